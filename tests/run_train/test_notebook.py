"""docs/notebook.ipynb runs from top to bottom; it is `run_training` with rows and a reward of its own."""

import functools
import json
import signal
import sys
import threading
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
from source_tree import ROOT
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax import CheckpointError, Config, ConfigError, DataError, run_training, with_values
from pbrl_jax.checkpoint import save_checkpoint
from pbrl_jax.core.lock import held
from pbrl_jax.core.paths import read_json_lines, write_json_lines
from pbrl_jax.run import library
from pbrl_jax.run.library import importable_name
from pbrl_jax.text.languages import answer_sentence
from pbrl_jax.train.signals import watch_signals

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
        ({"rows": {"train": [], "test": []}}, DataError, "rows is a dict of train, test; expected a list of dicts"),
        ({"rows": [{"text": "?"}]}, DataError, "rows has no column 'question'. It has text"),
        ({"train": 5}, ConfigError, "train is 5; expected a section"),
        ({"config": ""}, ConfigError, "No config at ''"),
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


ROWS = [
    {"question": "Je?", "lang": "Swahili"},
    {"question": "How?", "lang": "en-GB"},
    {"question": "Nani?", "lang": "sw"},
]


def read_rows(monkeypatch, tmp_path, rows, **arguments):
    """(languages, rows in the work directory) of a call whose run is not made."""

    def verb(name, config, workdir, write_rows):
        write_rows()
        seen.append(config)

    monkeypatch.setattr(library, "run_verb", verb)
    seen: list = []
    run_training(workdir=tmp_path, rows=rows, **arguments)
    return seen[0].data.languages, read_json_lines(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("of", [list, iter, tuple, pandas.DataFrame, datasets.Dataset.from_list])
def test_rows_of_every_kind_and_their_languages(of, tmp_path, monkeypatch):
    """A renamed column of languages is read, by whatever spelling: no row is lost."""
    found = read_rows(monkeypatch, tmp_path, of(ROWS), data={"columns": ["language=lang"]})
    assert found == (("sw", "en"), ROWS)


def test_rows_hold_what_data_frames_of_parquet_files_hold(tmp_path, monkeypatch):
    """NumPy's numbers, and arrays for lists: a conversation as verl stores it."""
    turns = np.array([{"role": "user", "content": "3 na 4?"}], object)
    rows = [{"prompt": turns, "answer": np.int64(7), "score": np.float32(0.5), "language": "sw"}]
    plain = [{"prompt": [{"role": "user", "content": "3 na 4?"}], "answer": 7, "score": 0.5, "language": "sw"}]
    for given in (rows, pandas.DataFrame(rows)):
        assert read_rows(monkeypatch, tmp_path, given) == (("sw",), plain)


def test_rows_without_references_where_no_reward_reads_them(tmp_path, capsys):
    """Prompts and a function are enough, as in TRL; a semantic reward beside it still asks for references."""

    def short(completions, reference):
        assert reference == [None] * len(completions)
        return [-float(len(text)) for text in completions]

    rows = [{"prompt": f"{n} na {n}?", "language": "sw"} for n in range(3, 9)]
    sections: dict = {
        "data": {"limit": 0, "english_share": 0.0, "vocab_size": 300, "user_prompt": "{question}\n"},
        "train": {"max_steps": 1, "prompts_per_step": 2}, "log": {"tensorboard": False},
    }  # fmt: skip
    run = run_training("tiny_cpu", workdir=tmp_path, rows=rows, reward_functions=short, **sections)
    assert run.finished and run.metrics["reward/invalid_share"] == 0
    sections["reward"] = {"functions": ["cosine"]}
    with pytest.raises(DataError, match="6 of 6 rows have no reference"):
        run_training("tiny_cpu", workdir=tmp_path / "other", rows=rows, reward_functions=short, **sections)


def test_rows_without_languages_are_in_that_of_the_config(tmp_path, monkeypatch):
    rows = [{"question": "Je?"}]
    given = with_values(Config(), data={"languages": ("sw",)})
    assert read_rows(monkeypatch, tmp_path, rows, config=given)[0] == ("sw",)
    assert read_rows(monkeypatch, tmp_path, rows)[0] == ("en",)


def test_missing_cells_of_a_data_frame_are_none(tmp_path, monkeypatch):
    rows = [{"question": "Je?", "answer": 2}, {"question": "Nani?"}]
    assert read_rows(monkeypatch, tmp_path, pandas.DataFrame(rows))[1] == [
        {"question": "Je?", "answer": 2.0}, {"question": "Nani?", "answer": None}
    ]  # fmt: skip


def test_a_configuration_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("data: {languages: [th]}\n")
    assert read_rows(monkeypatch, tmp_path, [{"question": "?"}], config=tmp_path / "mine.yaml")[0] == ("th",)
    with pytest.raises(ConfigError, match="config is a dict; expected a Config"):
        library._start({"train": {"max_steps": 1}})


def test_a_thread_without_signals_trains_and_a_function_may_come_alone(tmp_path, monkeypatch):
    """A server or a notebook's executor calls from a thread, where Python sets no handlers."""

    def own(completions):
        return [0.0] * len(completions)

    def verb(name, config, workdir, write_rows):
        watch_signals()
        done.append(config.reward.functions)

    monkeypatch.setattr(library, "run_verb", verb)
    done: list = []
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: run_training(workdir=tmp_path, reward_functions=own))
    thread.start()
    thread.join()
    assert done == [(importable_name(own),)] and signal.getsignal(signal.SIGINT) is before
