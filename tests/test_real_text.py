"""The gsm8k_multilingual_tiny experiment on the real files: eight languages in training, eleven in evaluation, resume.

Needs PBRL_DATA, the folder of the benchmarks in their original files.
"""

import gzip
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from shared_programs import programs_made_once
from source_tree import ROOT
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax import with_values
from pbrl_jax.core.paths import read_json_lines, work_dir
from pbrl_jax.data.sources.common import language_of, row_of
from pbrl_jax.run.assemble import build_experiment, make_evaluate
from pbrl_jax.run.config_file import load_config
from pbrl_jax.train.loop import train

DATA = os.environ.get("PBRL_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="PBRL_DATA is not set: it names the folder of real benchmark text")

LANGUAGES = {"en", "de", "es", "fr", "ja", "ru", "sw", "zh"}
MGSM = LANGUAGES | {"bn", "te", "th"}
STEPS = 2


def tiny(steps: int):
    """The experiment with 40 problems, the smallest models and few tokens."""
    return with_values(
        load_config(str(ROOT / "configs" / "gsm8k_multilingual_tiny.py")),
        policy={"preset": "tiny"},
        encoder={"preset": "tiny", "max_length": 64},
        algo={"num_generations": 2},
        rollout={"max_prompt_length": 128, "max_completion_length": 8},
        data={"limit": 40, "vocab_size": 4000},
        train={"max_steps": steps, "prompts_per_step": 32, "save_steps": 1},
        eval={"limit": 1, "batch_size": 11},
        log={"samples_per_step": 64, "tensorboard": False, "compilation_cache": ""},
    )


def run(steps: int, folder: Path) -> None:
    experiment = build_experiment(tiny(steps), work_dir(folder))
    position = train(experiment, make_evaluate(experiment.config, experiment.policy), quiet=True)
    assert position.step == steps


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(a run of two steps, the same run as a kill after its first step leaves it, continued)."""
    whole, parts = (tmp_path_factory.mktemp("real") / name for name in ("whole", "parts"))
    made: dict = {}
    with programs_made_once(made):
        run(STEPS, whole)
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / f"step_{STEPS:08d}")
    for file in (parts / "final.json", parts / "samples" / f"step_{STEPS}.jsonl"):
        file.unlink()
    with programs_made_once(made):
        run(STEPS, parts)
    return whole, parts


def samples(folder: Path) -> list[dict]:
    return [row for step in range(1, STEPS + 1) for row in read_json_lines(folder / "samples" / f"step_{step}.jsonl")]


def test_all_training_languages_went_through(runs):
    rows = samples(runs[0])
    assert {row["language"] for row in rows} == LANGUAGES
    metrics = read_json_lines(runs[0] / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2]
    for name in ("rewards/cosine/mean", "language/consistency", "completions/clipped_ratio"):
        for step in metrics:
            in_step = {row["language"] for row in rows if row["step"] == step["step"]}
            assert {key.rsplit("/", 1)[1] for key in step if re.fullmatch(rf"{name}/[a-z]{{2}}", key)} == in_step


def test_questions_and_references_are_those_of_the_files(runs):
    """Every sample's prompt is the line of its problem in its language, and its reference that problem's solution."""
    with gzip.open(Path(DATA) / "mgsm8k_questions" / "train_questions.jsonl.gz", "rt", encoding="utf-8") as file:
        questions = {row["id"]: row for row in map(json.loads, file)}
    solutions = (Path(DATA) / "gsm8k" / "train.jsonl").read_text("utf-8").splitlines()
    rows = samples(runs[0])
    assert len(rows) == STEPS * 32 * 2
    for row in rows:
        number = row_of(row["prompt_id"])
        assert language_of(row["prompt_id"]) == row["language"]
        assert row["prompt"] == questions[number][row["language"]]
        steps, gold = json.loads(solutions[number])["answer"].split("####")
        steps = re.sub("<<.*?>>", "", steps).strip()
        assert row["reference"] == f"{steps} The answer is {gold.strip().replace(',', '')}."
        assert row["valid"]


def test_all_evaluation_languages_went_through(runs):
    final = json.loads((runs[0] / "final.json").read_text("utf-8"))
    assert final["step"] == STEPS
    for name in ("accuracy", "right_language"):
        assert {key.rsplit("/", 1)[1] for key in final["metrics"] if key.startswith(f"eval/{name}/")} == MGSM
    assert all(0 <= value <= 1 for value in final["metrics"].values())


def test_resume_is_exact(runs):
    whole, parts = (json.loads((folder / "final.json").read_text("utf-8")) for folder in runs)
    assert whole == parts
    assert samples(runs[0]) == samples(runs[1])
    steps = [[row["step"] for row in read_json_lines(folder / "metrics.jsonl")] for folder in runs]
    assert steps == [[1, 2], [1, 2]]
