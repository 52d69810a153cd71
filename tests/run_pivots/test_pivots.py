"""`pbrl pivots` as a user types it: several samples of an endpoint, then the user's own file."""

import json

import pytest
from source_tree import ROOT
from stop_requests import Stopping
from tiny_endpoint import TinyEndpoint
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax.cli import main
from pbrl_jax.core.paths import write_json_lines
from pbrl_jax.data.sources import quickstart
from pbrl_jax.pivots.store import PivotStore

TINY = str(ROOT / "configs" / "tiny_cpu.py")
SMALL = ("--data.limit", "4", "--data.languages", "en", "sw", "--log.compilation-cache", "")
PROBLEMS = quickstart.problems("train", 4, 0, "small")
KNOWN = {quickstart.question(problem, "en"): quickstart.response(problem, "en") for problem in PROBLEMS}
HARD, SLIPPERY = list(KNOWN)[:2]


def expert(body) -> str:
    """Right, in other words for each sample; to one question never the same, to another wrong once."""
    sample, (question,) = body["seed"], [text for text in KNOWN if text in body["messages"][0]["content"]]
    if question == HARD:
        return f"It is hard. The answer is {900 + sample}."
    if question == SLIPPERY and sample == 0:
        return "It slips. The answer is 800."
    return f"Way {sample}. {KNOWN[question]}"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("pivots")


def pivots(workdir, *more) -> int:
    return main(["pivots", TINY, "--workdir", str(workdir), *SMALL, *more])


def test_samples_of_an_endpoint_are_written_once_and_filtered_by_agreement(workdir, capsys):
    endpoint = TinyEndpoint(expert)
    with endpoint.served() as served:
        settings = ("--pivot.source", "endpoint", "--endpoint.url", served.url, "--endpoint.model", "tiny",
                    "--pivot.samples", "3", "--pivot.references", "2", "--pivot.temperature", "0.7",
                    "--pivot.min-agreement", "0.6")  # fmt: skip
        assert pivots(workdir, *settings) == 0, capsys.readouterr().err
        said = capsys.readouterr().out
        assert len(endpoint.seen) == 3 * len(KNOWN)
        assert pivots(workdir, *settings) == 0 and len(endpoint.seen) == 3 * len(KNOWN)
    assert (
        "3 of 3 kept (3 right" in said and "1 without agreement; 6 of 8 prompts have one; dropped: en 1, sw 1" in said
    )
    stored = PivotStore(workdir / "pivots").references().values()
    assert {row.origin.question for row in stored} == KNOWN.keys() and len(stored) == 12
    assert sum(row.verified for row in stored) == 8
    (index,) = (workdir / "pivots" / "vectors").glob("*/index.json")
    shards = json.loads(index.read_text())["shards"]
    assert sum(shard["rows"] for shard in shards) >= 6, "two references each of three problems, and their parts"


def test_a_file_of_references(workdir, tmp_path, capsys):
    rows = [{"question": question, "response": response} for question, response in list(KNOWN.items())[1:]]
    rows[0]["response"] = "It slips. The answer is 800."
    write_json_lines(tmp_path / "own.jsonl", rows)
    assert pivots(workdir, "--pivot.source", "file", "--pivot.file", str(tmp_path / "own.jsonl")) == 0
    said = capsys.readouterr().out
    assert (
        "2 of 3 kept (2 right" in said
        and "1 wrong" in said
        and "dropped: en 1, sw 1; not in the file: en 1, sw 1" in said
    )
    write_json_lines(tmp_path / "own.jsonl", [{"question": HARD}])
    assert pivots(workdir, "--pivot.source", "file", "--pivot.file", str(tmp_path / "own.jsonl")) == 1
    assert "expected response, or reasoning and answer" in capsys.readouterr().err


def test_a_signal_while_references_are_written_keeps_the_answers(tmp_path, capsys):
    reply = Stopping(lambda body: expert(body | {"seed": 1}), 2)
    with (endpoint := TinyEndpoint(reply)).served() as served:
        settings = ("--pivot.source", "endpoint", "--endpoint.url", served.url, "--endpoint.model", "tiny",
                    "--endpoint.parallel", "2")  # fmt: skip
        assert pivots(tmp_path, *settings) == 0
        assert reply.seconds() < 5 and "Stopped. What was finished is kept" in capsys.readouterr().out
        assert len(PivotStore(tmp_path / "pivots").references()) == 2
        asked, endpoint.reply = len(endpoint.seen), reply.reply
        assert pivots(tmp_path, *settings) == 0
    assert len(endpoint.seen) - asked == len(KNOWN) - 2, "only what was missing"
