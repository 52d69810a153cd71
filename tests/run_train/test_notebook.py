"""docs/notebook.ipynb runs from top to bottom; it is `run_training` with rows and a reward of its own."""

import functools
import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from source_tree import ROOT
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax import CheckpointError, ConfigError, DataError, run_training
from pbrl_jax.checkpoint import save_checkpoint
from pbrl_jax.core.lock import held
from pbrl_jax.core.paths import read_json_lines, write_json_lines
from pbrl_jax.run.library import importable_name
from pbrl_jax.text.languages import answer_sentence

NOTEBOOK = json.loads((ROOT / "docs" / "notebook.ipynb").read_text("utf-8"))
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_runs(capsys):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    names: dict = {"__name__": "__main__"}
    for number, cell in enumerate(CELLS):
        exec(compile(cell, f"cell {number}", "exec"), names)
    run = names["run"]
    assert (run.step, run.finished, [row["step"] for row in run.history]) == (2, True, [1, 2])
    assert run.metrics["reward"] == run.history[-1]["reward"]
    shown = capsys.readouterr().out
    assert names["rows"][0]["question"] in shown and "tokens]" in shown
    assert {number: signal.getsignal(number) for number in before} == before
    folder = Path(run.folder)
    assert len(read_json_lines(folder / "rows.jsonl")) == len(names["rows"]) and (folder / "policy").exists()
    again = run_training(str(folder / "config.json"), workdir=folder)
    assert again.step == 2 and again.metrics == run.metrics, "a finished run is found as it is"


def lambda_named(name):
    function = lambda completions: []  # noqa: E731
    function.__name__ = name
    return function


def test_a_function_of_a_module_keeps_its_name_and_another_gets_one():
    def inner(completions):
        return [0.0] * len(completions)

    assert importable_name(answer_sentence) == "pbrl_jax.text.languages:answer_sentence"
    name = importable_name(inner)
    module, _, function = name.partition(":")
    assert getattr(sys.modules[module], function) is inner
    other = importable_name(lambda_named("inner"), [name])
    assert other == name + "_2" and getattr(sys.modules[module], function) is inner
    for wrong in (functools.partial(inner), lambda completions: []):
        with pytest.raises(ConfigError, match="reward_functions holds"):
            importable_name(wrong)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"trian": {"max_steps": 1}}, ConfigError, "Unknown section 'trian'.*Did you mean 'train'"),
        ({"train": {"max_step": 1}}, ConfigError, "Unknown key 'train.max_step'"),
        ({"rows": []}, DataError, "rows holds nothing"),
        ({"rows": [{"question": object()}]}, DataError, "rows: .*not JSON serializable"),
        ({"config": "nope"}, ConfigError, "No config at 'nope'.*the name of a shipped one"),
    ],
)
def test_what_is_refused(arguments, error, message, tmp_path):
    with pytest.raises(error, match=message):
        run_training(workdir=tmp_path, **arguments)


def test_the_rows_of_a_run_are_not_replaced_by_those_of_another_call(tmp_path):
    """Neither while the run goes on, nor when it has saved something."""
    file, rows = tmp_path / "rows.jsonl", [{"question": "1 + 1?", "answer": "2"}]
    write_json_lines(file, rows)
    other = [{"question": "2 + 2?", "answer": "4"}]
    with held(tmp_path), pytest.raises(CheckpointError, match="in use by process"):
        run_training(workdir=tmp_path, rows=other)
    assert read_json_lines(file) == rows
    save_checkpoint(tmp_path / "checkpoints", 1, {"x": np.ones(1, np.float32)}, {}, keep=1)
    with pytest.raises(CheckpointError, match="a run on other rows, which stay in .*rows.jsonl"):
        run_training(workdir=tmp_path, rows=other)
    assert read_json_lines(file) == rows
