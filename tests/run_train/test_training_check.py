"""Checks before a training run: the test in its text is found, reported, refused, and not looked for twice."""

import json

import pytest
from tiny_hf import hf_policy

from pbrl_jax import Config, with_values
from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.core.paths import work_dir
from pbrl_jax.core.records import Prompt, Reference
from pbrl_jax.run import contamination
from pbrl_jax.run.assemble import evaluation_prompts, make_evaluate
from pbrl_jax.run.check import validate
from pbrl_jax.run.contamination import check_names, check_training

ENGLISH = "A farmer has twelve brown hens and every hen lays two large eggs each day"
SWAHILI = "Mkulima ana kuku kumi na wawili wa kahawia na kila kuku hutaga mayai mawili kila siku"
PROMPTS = [
    Prompt(64, "sw", SWAHILI + " kwa wiki.", "Another question?", "24", Reference("It says: " + ENGLISH + ".", "24")),
    Prompt(65, "sw", "Mbili na mbili ni ngapi?", "What is two and two?", "4"),
]
PRINTS = {"dataset": "d", "pivots": "p"}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("PBRL_DATA", str(tmp_path / "data"))
    folder = tmp_path / "data" / "mgsm"
    folder.mkdir(parents=True)
    (folder / "mgsm_en.tsv").write_text(f"{ENGLISH} of the year?\t24\nOne and one?\t2\n")
    (folder / "mgsm_sw.tsv").write_text(f"{SWAHILI}?\t24\nMbili na mbili ni ngapi?\t4\n")


def config(*asked: str, bound: float = 1.0, ngram: int = 13) -> Config:
    checks = {"contamination": asked, "max_overlap": bound, "overlap_ngram": ngram}
    return with_values(Config(), data={"languages": ("sw",)}, eval=checks)


def found(tmp_path) -> dict:
    return json.loads((tmp_path / "w" / "contamination.json").read_text())["benchmarks"]


def test_prompts_and_references_are_looked_through(tmp_path, data, capsys):
    check_training(config("mgsm"), work_dir(tmp_path / "w"), PROMPTS, PRINTS)
    record = found(tmp_path)["mgsm"]
    assert (record["n"], record["overlapping"], record["share"]) == (4, 3, 0.75)
    assert record["languages"] == {"sw": 1.0, "en": 0.5} and record["examples"][2]["key"] == "en/0"
    assert "Contamination: mgsm: 75.0 % of its problems" in capsys.readouterr().out


def test_more_than_the_bound_is_refused_again_and_again(tmp_path, data, monkeypatch):
    work = work_dir(tmp_path / "w")
    for _ in range(2):
        with pytest.raises(DataError, match=r"mgsm: 3 of 4 problems \(75.0 %\) share 13.*eval.max_overlap 0.5.*sw/0"):
            check_training(config("mgsm", bound=0.5), work, PROMPTS, PRINTS)
        monkeypatch.setattr(contamination, "benchmark_problems", lambda _: 1 / 0)  # the second time it is known
    check_training(config("mgsm", bound=0.8), work, PROMPTS, PRINTS)
    with pytest.raises(ZeroDivisionError):
        check_training(config("mgsm"), work, PROMPTS, PRINTS | {"dataset": "other"})


def test_every_benchmark_names_those_that_cannot_be_loaded(tmp_path, data, monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    check_training(config("all"), work_dir(tmp_path / "w"), PROMPTS, PRINTS)
    records = found(tmp_path)
    assert records["mgsm"]["overlapping"] == 3 and "cannot be loaded: no network" in records["belebele"]["not_checked"]
    assert records["msvamp"].keys() == {"not_checked"} and len(records) == 14
    with pytest.raises(DataError, match="belebele.*cannot be loaded"):
        check_training(config("belebele"), work_dir(tmp_path / "v"), PROMPTS, PRINTS)


def test_nothing_is_asked_nothing_is_written(tmp_path):
    check_training(config(), work_dir(tmp_path / "w"), PROMPTS, PRINTS)
    assert not (tmp_path / "w").exists()


def test_bad_settings():
    with pytest.raises(ConfigError, match="Did you mean 'mgsm'"):
        check_names(config("mgms"))
    with pytest.raises(ConfigError, match="eval.max_overlap is 2"):
        validate(config("mgsm", bound=2.0), 1)
    with pytest.raises(ConfigError, match="eval.overlap_ngram is 0"):
        validate(config("mgsm", ngram=0), 1)


def test_the_training_file_is_no_evaluation(tmp_path, capsys):
    """One file has no test split: without eval.source its rows would be evaluated on as if they were new."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(4)))
    config = with_values(Config(), data={"source": "table", "path": str(path), "languages": ("sw",)})
    with pytest.raises(DataError, match=r"4 of 4 .*row 1 \(sw\)"):
        evaluation_prompts(config)
    assert make_evaluate(config, hf_policy()) is None and "No evaluation" in capsys.readouterr().out
    with pytest.raises(DataError, match="training rows"):
        make_evaluate(with_values(config, train={"eval_steps": 2}), hf_policy())
    asked = with_values(config, eval={"training_rows": True})
    assert [row.answer for row in evaluation_prompts(asked)] == ["1", "2", "3", "4"]
    (tmp_path / "new.jsonl").write_text('{"question": "9 + 1?", "answer": "10"}\n')
    other = with_values(config, eval={"source": "table", "path": str(tmp_path / "new.jsonl")})
    assert [row.answer for row in evaluation_prompts(other)] == ["10"]
    (tmp_path / "own.jsonl").write_text('{"prompt": "9 + 3?", "more": {"gold": "12"}}\n')
    own = {"path": str(tmp_path / "own.jsonl"), "columns": ("answer=more.gold",)}
    for source in ("", "table"):
        assert [row.answer for row in evaluation_prompts(with_values(config, eval=own | {"source": source}))] == ["12"]
    with pytest.raises(DataError, match="no column 'gold' for answer"):
        make_evaluate(with_values(config, eval=own | {"columns": ("answer=gold",)}), hf_policy())
