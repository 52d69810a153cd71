"""Calibration by hand on a made-up encoder, and end to end through the command line on a tiny one."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from source_tree import ROOT
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import encoder, problem_prompts

from pbrl_jax import RewardConfig
from pbrl_jax.cli import main
from pbrl_jax.core.errors import DataError
from pbrl_jax.eval.calibrate import SHRINKAGE, calibrate, pairs_from_file, pairs_from_prompts, premium_warnings
from pbrl_jax.rewards.similarity import load_baselines
from pbrl_jax.weights.encoders import load_encoder, save_encoder

DATA = os.environ.get("PBRL_DATA")
CONFIG = str(ROOT / "configs" / "quickstart.py")


def made_up(count: int = 12):
    """English e_i = (0.6, 0.8 at axis i); Swahili s_i = (0, 1 at axis i): cos(s_i, e_i) = 0.8, cos(s_i, e_j) = 0,
    cos(e_i, e_j) = 0.36."""
    table, pairs = {}, []
    for i in range(count):
        axis = np.eye(count + 1)[i + 1]
        table[f"e{i}"] = 0.6 * np.eye(count + 1)[0] + 0.8 * axis
        table[f"s{i}"] = axis
        pairs.append((f"s{i}", f"e{i}"))
    return lambda texts: np.array([table[text] for text in texts], np.float32), pairs


def test_by_hand():
    model, pairs = made_up()
    record = calibrate(model, "by heart", {"sw": pairs, "en": [("e0", "e0")]})
    own, english = record["languages"]["sw"], record["languages"]["en"]
    assert record["encoder"] == "by heart" and own["pairs"] == 12
    np.testing.assert_allclose([own["matched_mean"], own["matched_std"]], [0.8, 0], atol=1e-6)
    np.testing.assert_allclose([own["mismatched_mean"], own["mismatched_std"], own["auc"]], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose([english["mismatched_mean"], english["baseline"]], [0.36, 0.36], atol=1e-6)
    assert own["same_language_premium"] > 1
    assert len(premium_warnings(record)) == 1 and "sw" in premium_warnings(record)[0]


def test_a_small_sample_is_drawn_towards_the_others():
    """zh: vectors of English words themselves, mismatched 0.36; 12 pairs against K."""
    model, pairs = made_up()
    same = [(english, english) for _, english in pairs]
    found = calibrate(model, "by heart", {"sw": pairs, "zh": same})["languages"]
    own = 12 / (12 + SHRINKAGE)
    assert found["sw"]["baseline"] == pytest.approx((1 - own) * 0.18, abs=1e-6)
    assert found["zh"]["baseline"] == pytest.approx(own * 0.36 + (1 - own) * 0.18, abs=1e-6)
    assert found["zh"]["same_language_premium"] == pytest.approx(0, abs=1e-6)


def test_doubles_are_no_mismatched_pairs():
    model, pairs = made_up()
    twice = calibrate(model, "by heart", {"sw": pairs + [("s0", "e1"), ("s1", "e2"), *pairs]})
    assert twice["languages"]["sw"]["pairs"] <= 12
    with pytest.raises(DataError, match="3 different pairs of sw"):
        calibrate(model, "by heart", {"sw": pairs[:3] * 10})
    with pytest.raises(DataError, match="other than English"):
        calibrate(model, "by heart", {"en": pairs})


def write(folder, rows, name="pairs.jsonl"):
    text = "\n".join(json.dumps(row) for row in rows)
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(path)


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz"])
def test_pairs_from_a_file(tmp_path, name):
    rows = [{"lang": code, "src": f"{code}{i}", "en": f"e{i}"} for i in range(4) for code in ("sw", "de")]
    path = write(tmp_path, rows, name)
    assert pairs_from_file(path, ("en", "sw"), 3) == {"sw": [("sw0", "e0"), ("sw1", "e1"), ("sw2", "e2")]}
    with pytest.raises(DataError, match="no text of zh"):
        pairs_from_file(path, ("zh",), 0)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(DataError, match="No file .*none.jsonl"):
        pairs_from_file(str(tmp_path / "none.jsonl"), ("sw",), 0)
    with pytest.raises(DataError, match="row 1: en is missing"):
        pairs_from_file(write(tmp_path, [{"lang": "sw", "src": "a"}]), ("sw",), 0)


def test_pairs_from_prompts():
    prompts = problem_prompts(3)
    found = pairs_from_prompts(prompts, 2)
    assert found.keys() == {"sw", "zh"}
    assert found["sw"] == [(p.question, p.question_en) for p in prompts if p.language == "sw"][:2]


def run(folder, *more) -> dict:
    save_encoder(encoder(), str(folder / "encoder"))
    arguments = ["calibrate", CONFIG, "--workdir", str(folder), "--encoder.max-length", "64", "--data.path", "small"]
    assert main([*arguments, "--log.compilation-cache", "", *more]) == 0
    return json.loads((folder / "calibration.json").read_text())


def test_end_to_end_on_the_quickstarts_questions(tmp_path, capsys):
    record = run(tmp_path, "--data.languages", "en", "sw", "zh", "--limit", "40", "--data.limit", "50")
    assert record["languages"].keys() == {"en", "sw", "zh"}
    assert record["languages"]["sw"]["pairs"] <= 40
    assert all(-1 <= row["mismatched_mean"] < row["matched_mean"] <= 1 for row in record["languages"].values())
    assert "calibration.json" in capsys.readouterr().out
    config = RewardConfig(similarity="calibrated", calibration=str(tmp_path / "calibration.json"))
    baselines = load_baselines(config, ("en", "sw", "zh"), load_encoder(str(tmp_path), 64).key)
    assert baselines == {code: row["baseline"] for code, row in record["languages"].items()}


def test_bad_input_is_one_message(tmp_path, capsys):
    assert main(["calibrate", CONFIG, "--workdir", str(tmp_path)]) == 1
    assert "No trained encoder" in capsys.readouterr().err
    assert main(["calibrate", CONFIG, "--workdir", str(tmp_path), "--limit", "-1"]) == 1


@pytest.mark.skipif(not DATA, reason="PBRL_DATA is not set: no real parallel text")
def test_end_to_end_on_tatoeba(tmp_path):
    """Whatever a random encoder says, the numbers are those of the definition, on 17 languages."""
    file = Path(DATA) / "tatoeba" / "tatoeba19.jsonl.gz"
    codes = ("ar", "bn", "de", "es", "fr", "hi", "id", "ja", "ko", "pt", "ru", "sw", "te", "th", "tr", "vi", "zh")
    record = run(tmp_path, "--data.languages", *codes, "--pairs", str(file), "--limit", "60")
    assert record["languages"].keys() == {*codes, "en"}
    pairs = pairs_from_file(str(file), ("sw",), 60)["sw"]
    unique = dict({english: text for text, english in dict(pairs).items()})
    own = record["languages"]["sw"]
    assert own["pairs"] == len(unique) > 50
    cosine = encoder().embed(list(unique.values())) @ encoder().embed(list(unique)).T
    assert own["matched_mean"] == pytest.approx(np.diag(cosine).mean(), abs=1e-4)
    assert own["mismatched_mean"] == pytest.approx(cosine[~np.eye(len(cosine), dtype=bool)].mean(), abs=1e-4)


def test_text_and_languages_of_a_file_are_read_as_those_of_a_table(tmp_path):
    path = write(tmp_path, [{"lang": "swh_Latn", "src": " Jose\u0301", "en": "Jose\u0301 "}])
    assert pairs_from_file(path, ("sw",), 0) == {"sw": [("Jos\u00e9", "Jos\u00e9")]}
