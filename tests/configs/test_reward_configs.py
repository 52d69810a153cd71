"""One run of `pbrl train` per reward configuration, on random models small enough for a test."""

import json

import pytest
from source_tree import ROOT
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax.cli import main
from pbrl_jax.core.paths import read_json_lines
from pbrl_jax.train import hosted

HF = ROOT / "tests" / "fixtures" / "hf"
TRANSLATOR = ("--reward.translator", str(HF / "m2m100"))
COMET = ("--reward.comet", str(HF / "comet_regression"))
SMALL = (
    "--reward.language-gate", "off", "--train.max-steps", "2", "--train.save-steps", "2", "--train.prompts-per-step",
    "2", "--algo.num-generations", "2", "--rollout.max-completion-length", "8", "--data.limit", "4", "--eval.limit",
    "1", "--log.no-tensorboard", "--log.no-entropy", "--algo.beta", "0", "--data.english-share", "0",
    "--data.languages", "sw", "--train.no-packed", "--log.compilation-cache", "",
)  # fmt: skip
RUNS = {
    "reward_embedding": (),
    "reward_translation": TRANSLATOR,
    "reward_comet": (*TRANSLATOR, *COMET, "--reward.parts", "whole"),  # random texts have no answer part
    "reward_hybrid": (*TRANSLATOR, *COMET),
    "reward_verifiable": (),
}


@pytest.fixture(scope="module", autouse=True)
def shared_programs():
    """All runs sample and update in the same way, which the reward does not enter: compiled by the first of them."""
    made = {}

    def once(make):
        def first(*arguments):
            key = (make.__name__, arguments[0])
            if key not in made:
                made[key] = make(*arguments)
            return made[key]

        return first

    patch = pytest.MonkeyPatch()
    for module, name in (
        (hosted, "make_generate"),
        (hosted, "make_targets"),
        (hosted, "make_policy_update"),
    ):
        patch.setattr(module, name, once(getattr(module, name)))
    yield
    patch.undo()


def test_no_reward_configuration_is_left_out():
    """tests/configs/test_first_step.py takes the first step of all others."""
    assert RUNS.keys() == {file.stem for file in ROOT.glob("configs/reward_*.py")}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_each_reward(name, tmp_path, capsys):
    config = str(ROOT / "configs" / f"{name}.py")
    status = main(["train", config, "--workdir", str(tmp_path), *SMALL, *RUNS[name]])
    assert status == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "final.json").read_text())["step"] == 2
    (function,) = json.loads((tmp_path / "config.json").read_text())["reward"]["functions"]
    rows = read_json_lines(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row[f"rewards/{function}/valid_share"] == 1 and row["reward/invalid_share"] == 0
        for statistic in ("mean", "std"):
            key = f"rewards/{function}/{statistic}"
            assert row[f"{key}/sw"] == pytest.approx(row[key], abs=1e-6)
    translations = read_json_lines(tmp_path / "translations.jsonl")
    samples = [row for step in (1, 2) for row in read_json_lines(tmp_path / "samples" / f"step_{step}.jsonl")]
    if "--reward.translator" in RUNS[name]:
        assert 0 < len({row["key"] for row in translations}) == len(translations)
        shown = {row["translation"] for row in samples}
        assert len(shown) > 1 and shown <= {row["text"] for row in translations} | {""}
    else:
        assert not translations and not any("translation" in row for row in samples)
    if name != "reward_verifiable":
        assert len({row["reward"] for row in samples}) > 1
