"""COMET from its upstream folders, against a torch twin of unbabel-comet, and from our own after conversion.

The fixtures and their scores were written by tests/fixture_makers/comet.py.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax.core.errors import CheckpointError, ConfigError, DataError
from pbrl_jax.models.specs import tiny_encoder
from pbrl_jax.weights import comets as comet_module
from pbrl_jax.weights.comet_checkpoint import comet_spec
from pbrl_jax.weights.comets import convert_comet, load_comet

FIXTURES = Path(__file__).parents[1] / "fixtures" / "hf"
KINDS = ("regression", "referenceless", "unified", "xcomet")
TOLERANCE = 2e-6


def case(kind: str):
    """(folder, sources, translations, references, scores with them, scores without)."""
    folder = FIXTURES / f"comet_{kind}"
    with np.load(folder / "expected.npz") as data:
        texts = [[str(text) for text in data[name]] for name in ("src", "mt", "ref")]
        return str(folder), *texts, data["scores"], data["scores_without"]


@pytest.mark.parametrize("kind", KINDS)
def test_scores(kind):
    """The last source is longer than the encoder reads, and the joint sequences with it."""
    folder, src, mt, ref, scores, without = case(kind)
    comet = load_comet(folder)
    assert np.ptp(scores) > 500 * TOLERANCE
    found = comet.score(src, mt, ref)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, scores, atol=TOLERANCE)
    if kind == "regression":
        with pytest.raises(ConfigError, match="compares with references. Give ref"):
            comet.score(src, mt)
    else:
        np.testing.assert_allclose(comet.score(src, mt), without, atol=TOLERANCE)
    assert comet.needs_reference == (kind == "regression")
    assert comet.takes_reference == (kind != "referenceless")


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_other_sizes_score_alike(kind, monkeypatch):
    """Rows keep their places when they are sorted by length and run one or two at a time."""
    folder, src, mt, ref, scores, _ = case(kind)
    comet, order = load_comet(folder), [2, 0, 1, 1, 2, 0, 0]
    monkeypatch.setattr(comet_module, "SCORE_TOKENS", 200)
    found = comet.score(*([texts[i] for i in order] for texts in (src, mt, ref)))
    np.testing.assert_allclose(found, scores[order], atol=TOLERANCE)
    assert comet.score([], [], []).shape == (0,)


def test_what_the_kinds_really_mix():
    """The settings say sparsemax for three of them; only the regression model's setting ever had an effect."""
    found = {kind: load_comet(case(kind)[0]).spec for kind in KINDS}
    assert {kind: spec.transform for kind, spec in found.items()} == {
        "regression": "sparsemax", "referenceless": "softmax", "unified": "softmax", "xcomet": "softmax"
    }  # fmt: skip
    assert [kind for kind, spec in found.items() if spec.layer_norm] == ["referenceless"]
    assert found["xcomet"].encoder.pre_norm and found["xcomet"].tags == 4 and found["xcomet"].word_layer == 2
    folder, src, mt, ref, scores, _ = case("unified")
    sparse = load_comet(folder, transform="sparsemax")
    assert sparse.spec.transform == "sparsemax" and np.abs(sparse.score(src, mt, ref) - scores).max() > 1e-3


@pytest.mark.parametrize("kind", ["regression", "xcomet"])
def test_converted_and_back(kind, tmp_path):
    folder, src, mt, ref, scores, _ = case(kind)
    convert_comet(folder, str(tmp_path))
    assert (tmp_path / "model.safetensors").exists() and not (tmp_path / "checkpoints").exists()
    comet = load_comet(str(tmp_path))
    assert comet.spec == load_comet(folder).spec
    np.testing.assert_array_equal(comet.score(src, mt, ref), load_comet(folder).score(src, mt, ref))


def test_bfloat16_stays_close(tmp_path):
    folder, src, mt, ref, scores, _ = case("regression")
    convert_comet(folder, str(tmp_path), "bfloat16")
    assert (tmp_path / "model.safetensors").stat().st_size < 40_000
    np.testing.assert_allclose(load_comet(str(tmp_path)).score(src, mt, ref), scores, atol=0.05)


def test_lists_must_be_equally_long_and_long_texts_are_told():
    folder, src, mt, ref, *_ = case("regression")
    assert load_comet(folder).cut(src).tolist() == [False, False, True]
    with pytest.raises(DataError, match="'src': 3, 'mt': 2, 'ref': 3"):
        load_comet(folder).score(src, mt[:2], ref)


def edited(tmp_path, kind: str, old: str, new: str) -> str:
    folder = Path(shutil.copytree(case(kind)[0], tmp_path / "copy"))
    text = (folder / "hparams.yaml").read_text()
    assert old in text
    (folder / "hparams.yaml").write_text(text.replace(old, new))
    return str(folder)


def test_bad_folders(tmp_path):
    with pytest.raises(CheckpointError, match="No COMET model in .*checkpoints/model.ckpt with hparams.yaml"):
        load_comet(str(tmp_path))
    folder = edited(tmp_path, "regression", "regression_metric", "ranking_metric")
    with pytest.raises(CheckpointError, match="class_identifier 'ranking_metric'. Known: referenceless"):
        load_comet(folder)
    (Path(folder) / "hparams.yaml").write_text("- : [")
    with pytest.raises(CheckpointError, match="hparams.yaml cannot be read"):
        load_comet(folder)


def test_a_checkpoint_of_another_kind_lists_its_tensors(tmp_path):
    folder = edited(tmp_path, "regression", "regression_metric", "referenceless_regression_metric")
    with pytest.raises(CheckpointError, match=r"estimator.ff.0.weight has shape \(10, 96\)"):
        load_comet(folder)


def test_sizes_are_read_from_the_tensors_where_there_is_no_config(tmp_path):
    """All but the number of heads, which is known of the released widths alone."""
    folder = Path(shutil.copytree(case("regression")[0], tmp_path / "copy"))
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="No released encoder of 16 channels.*config.json of 'xlm-roberta-large'"):
        load_comet(str(folder))


def test_a_missing_tokenizer_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it asks the hub for most of a minute
    folder = Path(shutil.copytree(case("regression")[0], tmp_path / "copy"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    hparams = (folder / "hparams.yaml").read_text().replace("xlm-roberta-large", "no such/model!")
    (folder / "hparams.yaml").write_text(hparams)
    with pytest.raises(CheckpointError, match="holds no tokenizer.*Copy the tokenizer's files"):
        load_comet(str(folder))


HPARAMS = {"class_identifier": "regression_metric", "hidden_sizes": [8, 4], "layer_norm": False}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layer": 24}, "layer=24"),
        ({"pool": "max"}, "pool='max'.*avg, cls"),
        ({"activations": "Mish"}, "activations='mish'"),
        ({"final_activation": "Mish"}, "final_activation='mish'"),
        ({"layer_transformation": "entmax"}, "layer_transformation='entmax'"),
        ({"hidden_sizes": None}, "hidden_sizes is missing"),
        ({"class_identifier": "xcomet_metric", "word_layer": 36}, "word_layer=36"),
        ({"class_identifier": "xcomet_metric", "word_layer": 1, "error_labels": ["bad"]}, r"error_labels=\['bad'\]"),
    ],
)
def test_a_setting_that_is_not_computed_is_named(changes, message):
    with pytest.raises(CheckpointError, match=message):
        comet_spec({**HPARAMS, **changes}, tiny_encoder())


def test_what_old_checkpoints_leave_out():
    """Before the settings had names, layers were mixed by softmax and normalised."""
    spec = comet_spec({"class_identifier": "regression_metric", "hidden_sizes": [8, 4]}, tiny_encoder())
    assert (spec.transform, spec.layer_norm, spec.pooling, spec.activation) == ("softmax", True, "mean", "tanh")
