"""Damaged files in a work directory: a page that is whole, or one message that names the file; never a traceback."""

import base64
import copy
import hashlib
import json
import re
import warnings

import pytest
from report_pages import SUMMARY, Page, graded_rows, make_workdir, metrics, sample

from pbrl_jax.core.errors import DataError
from pbrl_jax.eval.metrics_table import compare, summary
from pbrl_jax.report.page import POLICY
from pbrl_jax.report.write import read_run, report_workdirs

EVIL = "<img src=x onerror=alert(1)>"
HUGE = 10**400
OVERLAP = {"n": 5, "overlapping": 1, "share": 0.2, "languages": {"sw": 0.2}, "examples": [{"shared": "a b"}]}
COMPARED = compare(graded_rows(en=8, sw=1), graded_rows(en=8, sw=9))
#: Files of a work directory -> what stands in them.
FILES = {
    "summary.json": SUMMARY,
    "metrics.jsonl": list(metrics(3)),
    "evaluations.jsonl": [{"step": 0, "eval/accuracy/sw": 0.3}, {"step": 2, "eval/accuracy/sw": 0.5}],
    "final.json": {"step": 3, "metrics": {"eval/accuracy/sw": 0.6, "eval/problems/sw": 32}},
    "samples/step_9.jsonl": [sample(9, "th"), sample(9, "sw")],
    "eval.json": summary(graded_rows(en=8, sw=9), seen=("en", "sw"))
    | {
        "benchmark": "mgsm",
        "against": {"b": COMPARED},
        "contamination": OVERLAP,
    },
    "responses.jsonl": [{"key": "sw/0", "language": "sw", "correct": True, "completion": "12", "published": {"x": 1}}],
    "audit.json": {"sw": {"wrong number": 0.9}},
    "contamination.json": {"benchmarks": {"mgsm": OVERLAP}},
    "config.json": {"algo": {"beta": 0.1}},
}
TRAINED = {"summary.json", "eval.json", "responses.jsonl"}
"""Files that are not in the work directory of `pbrl train`."""
#: (file, path of the value, what it becomes).
DAMAGE = [
    ("metrics.jsonl", (1, "step"), None), ("metrics.jsonl", (1, "step"), "2"), ("metrics.jsonl", (0,), {}),
    ("metrics.jsonl", (1, "step"), HUGE), ("metrics.jsonl", (1, "reward"), HUGE), ("metrics.jsonl", (1, "reward"), []),
    ("metrics.jsonl", (1, "kl"), 1e308), ("metrics.jsonl", (1, "kl"), float("nan")), ("metrics.jsonl", (1,), [1]),
    ("evaluations.jsonl", (0, "step"), None), ("evaluations.jsonl", (1, "eval/accuracy/sw"), 3),
    ("evaluations.jsonl", (1, "eval/accuracy/sw"), "x"), ("final.json", ("step",), "3"),
    ("final.json", ("metrics",), [1]), ("final.json", ("metrics", "eval/problems/sw"), "many"),
    ("samples/step_9.jsonl", (0, "reward"), "high"), ("samples/step_9.jsonl", (0, "parts"), [0.5]),
    ("samples/step_9.jsonl", (0, "step"), "9"), ("samples/step_9.jsonl", (0, "parts", "cosine"), {}),
    ("samples/step_9.jsonl", (0, "language"), ["sw"]), ("samples/step_9.jsonl", (0, "completion"), "\ud800"),
    ("summary.json", ("languages",), ["sw"]), ("summary.json", ("languages", "sw"), 0.5),
    ("summary.json", ("languages", "sw", "intervals"), {"before": [0.1]}),
    ("summary.json", ("languages", "sw", "change"), [0.1]), ("summary.json", ("problems_per_language",), "256"),
    ("summary.json", ("problems_per_language", "sw"), -1), ("summary.json", ("controls",), [1]),
    ("summary.json", ("controls", "answer"), {"mean_non_english": "x"}), ("summary.json", ("seeds",), {"17": 3}),
    ("summary.json", ("seeds", 0, "languages"), 4), ("summary.json", ("seconds", "total"), HUGE),
    ("summary.json", ("mean_non_english",), [0.3, 0.5]), ("summary.json", ("seed",), EVIL),
    ("eval.json", ("languages", "sw"), {}), ("eval.json", ("languages", "sw", "n"), EVIL),
    ("eval.json", ("languages", "sw", "truncated"), "x"), ("eval.json", ("languages", "sw", "published"), None),
    ("eval.json", ("against", "b", "languages", "sw", "points"), None), ("eval.json", ("worst_language",), "sw"),
    ("eval.json", ("mean_non_english_interval",), [0.1]), ("eval.json", ("contamination",), None),
    ("eval.json", ("contamination", "n"), EVIL), ("responses.jsonl", (0, "correct"), "yes"),
    ("responses.jsonl", (0, "key"), None), ("responses.jsonl", (0, "published"), ["x"]),
    ("audit.json", ("sw",), 0.9), ("audit.json", ("sw",), {}), ("audit.json", ("sw", "wrong number"), "good"),
    ("contamination.json", ("benchmarks",), [1]), ("contamination.json", ("benchmarks", "mgsm", "share"), EVIL),
    ("contamination.json", ("benchmarks", "mgsm", "overlapping"), EVIL), ("config.json", ("algo",), [EVIL]),
    ("config.json", ("algo", "beta"), HUGE),
]  # fmt: skip


def changed(value, path: tuple, new):
    """`value` with what stands at `path` replaced."""
    if not path:
        return new
    value = copy.deepcopy(value)
    place = value
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = new
    return value


def write(folder, name: str, value) -> None:
    lines = [json.dumps(row) + "\n" for row in value] if name.endswith(".jsonl") else [json.dumps(value)]
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("".join(lines))


def report(folder) -> str:
    """The page, or the message."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            text = report_workdirs([folder]).read_text(encoding="utf-8")
        except DataError as error:
            assert len(str(error)) < 400
            return str(error)
    Page(text)
    return text


def test_each_damage_is_named_or_left_out(tmp_path):
    pages = 0
    for number, (name, path, new) in enumerate(DAMAGE):
        folder = tmp_path / str(number)
        folder.mkdir()
        evaluated = name in ("eval.json", "responses.jsonl")
        left_out = set() if evaluated or name == "summary.json" else TRAINED
        left_out = left_out | ({"summary.json", "contamination.json"} if evaluated else {"eval.json"})
        for file, value in FILES.items():
            if file not in left_out:
                write(folder, file, changed(value, path, new) if file == name else value)
        found = report(folder)
        named = name.removesuffix("/step_9.jsonl") in found or "The summary: " in found or "Accuracy " in found
        assert found.startswith("<!doctype html>") or named, (name, path, new, found)
        assert EVIL not in found or not found.startswith("<!doctype"), (name, path)
        pages += found.startswith("<!doctype")
    assert 10 < pages < 0.5 * len(DAMAGE)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000, b"9" * 5000, b"nonsense", b"[]", b"null", b"3"])
def test_files_that_are_no_json_of_this_form(name, content, tmp_path):
    make_workdir(tmp_path, summary=name != "eval.json", samples=False)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content + b"\n")
    if name == "eval.json":
        (tmp_path / "config.json").unlink()
    assert name in report(tmp_path) or name == "responses.jsonl", "responses are read beside an eval.json"


def test_the_page_runs_its_own_script_alone(tmp_path):
    make_workdir(tmp_path)
    text = report(tmp_path)
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', text)[1]
    assert policy == POLICY and text.index(policy) < text.index("<style>")
    for tag, directive in (("script", "script-src"), ("style", "style-src-elem")):
        (own,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'") and "script-src 'unsafe" not in policy
    assert not re.search(r'<[^>]+\son\w+="', text), "no handler in an attribute, which the policy would block"


def test_rows_out_of_order(tmp_path):
    """As of two logs joined by hand."""
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "reward": {step}}}\n' for step in (5, 9, 1, 5)))
    assert [row["step"] for row in read_run(tmp_path).metrics] == [1, 5, 5, 9] and report(tmp_path).startswith("<")


def test_a_folder_is_no_file_to_write(tmp_path):
    make_workdir(tmp_path)
    with pytest.raises(IsADirectoryError, match=f"Is a directory: '{tmp_path}'"):
        report_workdirs([tmp_path], tmp_path)
    assert not tmp_path.with_name(tmp_path.name + ".tmp").exists()
