"""`pbrl eval` from the command line with a tiny policy: the contract's files, killed and continued, and bad input."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import policy

from pbrl_jax import Config, cli, with_values
from pbrl_jax.config.serialize import to_json
from pbrl_jax.weights.policies import save_policy

SHORT = ["--max-completion-length", "6", "--batch-size", "4"]
WORDS = "moja mbili tatu nne tano sita saba nane tisa kumi na".split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """PBRL_DATA with 12 problems in three languages, and two rows of XCOPA."""
    root = tmp_path_factory.mktemp("data")
    (root / "mgsm").mkdir()
    for code, name in (("en", "Ann"), ("sw", "Ali"), ("zh", "小明" * 9)):
        rows = [f"{name} {' '.join(WORDS[: 9 + i % 3])} {i}?\t{i}" for i in range(12)]
        (root / "mgsm" / f"mgsm_{code}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (root / "xcopa" / "data" / "sw").mkdir(parents=True)
    row = {"premise": "Ali alianza.", "choice1": "Ana kumi.", "choice2": "Mbili.", "question": "cause", "label": 0}
    lines = "".join(json.dumps(row | {"label": label}) + "\n" for label in (0, 1))
    (root / "xcopa" / "data" / "sw" / "test.sw.jsonl").write_text(lines, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
    """A finished work directory: a policy, and the config that says which languages it was trained in."""
    root = tmp_path_factory.mktemp("work")
    save_policy(policy(), str(root / "policy"))
    (root / "config.json").write_text(to_json(with_values(Config(), data={"languages": ("en", "sw")})))
    return root


@pytest.fixture
def pbrl_eval(capsys, monkeypatch, data, policy_folder):
    """(arguments) -> (exit status, standard output, standard error)."""
    monkeypatch.setenv("PBRL_DATA", str(data))

    def run(*arguments, benchmark="mgsm", policy_path=policy_folder):
        words = ["eval", "--policy", policy_path, "--benchmark", benchmark, *SHORT, "--compilation-cache", ""]
        words += arguments
        status = cli.main([str(word) for word in words])
        return status, *capsys.readouterr()

    return run


def content(folder):
    return {name: (folder / name).read_bytes() for name in ("eval.json", "responses.jsonl", "evaluation.json")}


@pytest.fixture(scope="module")
def started(driver, data, policy_folder):
    """(work directory) -> the driver, which has begun to evaluate all problems in a process of its own."""

    def start(folder):
        words = ["--policy", policy_folder, "--benchmark", "mgsm", "--languages", "en,sw,zh", "--workdir", folder]
        words += [*SHORT, "--compilation-cache", ""]
        driver.start(["eval", *words], environment={"PBRL_DATA": str(data)})
        return driver

    return start


@pytest.fixture(scope="module")
def finished(tmp_path_factory, started):
    """An evaluation of all problems that nobody interrupts."""
    folder = tmp_path_factory.mktemp("finished") / "w"
    complete(started, folder)
    return folder


def complete(started, folder):
    status, output = started(folder).end()
    assert status == 0, output


def reach(driver, file, lines: int):
    """Wait until so many responses are there."""
    while not file.exists() or file.read_bytes().count(b"\n") < lines:
        assert Path(f"/proc/{driver.pid}").exists(), driver.output.read_text()
        time.sleep(0.005)


def test_the_files_of_the_contract(finished):
    result = json.loads((finished / "eval.json").read_text())
    assert result["benchmark"] == "mgsm" and result["protocol"] == "native-cot"
    assert set(result["languages"]) == {"en", "sw", "zh"}
    for row in result["languages"].values():
        assert {"accuracy", "low", "high", "n", "extraction_failures", "right_language"} <= set(row)
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1 and row["n"] == 12
    accuracy = {code: row["accuracy"] for code, row in result["languages"].items()}
    assert result["mean_non_english"] == pytest.approx((accuracy["sw"] + accuracy["zh"]) / 2)
    assert result["gap_to_english"] == pytest.approx(accuracy["en"] - result["mean_non_english"])
    assert result["seen"]["languages"] == ["sw"] and result["unseen"]["languages"] == ["zh"], "of the policy's config"
    rows = [json.loads(line) for line in (finished / "responses.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == [f"{code}/{i}" for code in ("en", "sw", "zh") for i in range(12)]
    assert len({row["completion"] for row in rows}) > 5
    for code, row in result["languages"].items():
        assert row["accuracy"] == sum(r["correct"] for r in rows if r["language"] == code) / 12


@pytest.mark.parametrize("lines", [1, 14])
def test_killed_and_continued(tmp_path, finished, started, lines):
    """SIGKILL when so many responses are there; the same command ends with the same bytes."""
    folder, file = tmp_path / "w", tmp_path / "w" / "responses.jsonl"
    driver = started(folder)
    reach(driver, file, lines)
    os.kill(driver.pid, signal.SIGKILL)
    status, output = driver.end()
    assert status == -signal.SIGKILL, output
    before = file.read_bytes()
    assert lines <= before.count(b"\n") < 36 and not (folder / "eval.json").exists(), "killed too late to show anything"
    complete(started, folder)
    assert content(folder) == content(finished)


def test_a_signal_keeps_the_responses(tmp_path, finished, started):
    folder, file = tmp_path / "w", tmp_path / "w" / "responses.jsonl"
    driver = started(folder)
    reach(driver, file, 1)
    os.kill(driver.pid, signal.SIGTERM)
    sent = time.monotonic()
    while "SIGTERM: stopping at the next safe point" not in driver.output.read_text():
        assert time.monotonic() - sent < 5
        time.sleep(0.005)
    status, output = driver.end()
    assert status == 0 and not (folder / "eval.json").exists(), f"too late to show anything:\n{output}"
    complete(started, folder)
    assert content(folder) == content(finished)


def test_a_torn_batch_is_completed(tmp_path, pbrl_eval, finished):
    """A batch of which only some rows, and half of one, reached the disk."""
    folder = tmp_path / "w"
    folder.mkdir()
    whole = content(finished)
    lines = whole["responses.jsonl"].splitlines(keepends=True)
    raw = [json.loads(line) for line in lines]
    names = ("key", "language", "sample", "completion", "tokens", "truncated")
    kept = [json.dumps({name: row[name] for name in names}, ensure_ascii=False).encode() + b"\n" for row in raw]
    (folder / "responses.jsonl").write_bytes(b"".join(kept[5:22]) + kept[22][:40])
    (folder / "evaluation.json").write_bytes(whole["evaluation.json"])
    status, output, errors = pbrl_eval("--languages", "en,sw,zh", "--workdir", folder)
    assert status == 0 and "17 of 36 problems were answered before" in output, errors
    found = content(folder)
    assert found == whole
    assert pbrl_eval("--languages", "en,sw,zh", "--workdir", folder)[0] == 0 and content(folder) == whole


def test_another_evaluation_is_refused(tmp_path, pbrl_eval, finished, monkeypatch):
    folder = ["--languages", "en,sw,zh", "--workdir", finished]
    before = content(finished)
    for more, field in [
        (["--protocol", "direct"], 'protocol "native-cot", now "direct"'),
        (["--limit", "3"], "limit 0, now 3"),
        (["--temperature", "0.5", "--samples", "2"], "samples 1, now 2; temperature 0.0, now 0.5"),
        (["--style", "plain"], 'style "benchmark", now "plain"'),
    ]:
        status, _, errors = pbrl_eval(*folder, *more)
        assert status == 1 and "holds another evaluation" in errors and field in errors, errors
    other = tmp_path / "other"
    save_policy(policy()._replace(params={**policy().params, "embed": policy().params["embed"] * 2}), str(other))
    assert 'policy "' in pbrl_eval(*folder, policy_path=other)[2]
    from pbrl_jax.run import eval as verb

    newer = verb.BENCHMARKS["mgsm"]._replace(version="2")
    monkeypatch.setattr(verb, "BENCHMARKS", {"mgsm": newer})
    status, _, errors = pbrl_eval(*folder)
    assert status == 1 and 'version "1 (lm-eval' in errors and 'now "2"' in errors and "--workdir" in errors
    status, _, errors = pbrl_eval("--languages", "en,sw,zh", "--workdir", tmp_path / "new", "--base", finished)
    assert status == 1 and "cannot be compared with: version" in errors
    assert content(finished) == before


def test_choices_against_a_base(tmp_path, pbrl_eval):
    """Log-likelihood, and an evaluation beside an earlier one."""
    folder = ["--languages", "sw", "--workdir"]
    assert pbrl_eval(*folder, tmp_path / "a", benchmark="xcopa")[0] == 0
    status, output, errors = pbrl_eval(*folder, tmp_path / "b", "--base", tmp_path / "a", benchmark="xcopa")
    assert status == 0 and "xcopa, loglikelihood" in output, errors
    result = json.loads((tmp_path / "b" / "eval.json").read_text())
    assert result["languages"]["sw"]["accuracy"] == 0.5, "one of two equal rows with unlike labels"
    assert result["against_base"]["languages"]["sw"]["points"] == 0 and result["gap_to_english"] is None
    assert "samples" not in result and "temperature" not in result
    status, output, errors = pbrl_eval(
        *folder, tmp_path / "d", "--base", tmp_path / "a", tmp_path / "b", benchmark="xcopa"
    )
    gain = "Against b: +0.0 points outside English (95 %: +0.0 to +0.0, p 1), +0.0 % relative"
    assert status == 0 and gain in output, errors
    result = json.loads((tmp_path / "d" / "eval.json").read_text())
    assert list(result["against"]) == ["a", "b"] and result["against"]["a"] == result["against_base"]
    status, _, errors = pbrl_eval(*folder, tmp_path / "c", "--base", tmp_path / "a", tmp_path / "a", benchmark="xcopa")
    assert status == 1 and "is given twice" in errors
    status, _, errors = pbrl_eval(*folder, tmp_path / "c", "--base", tmp_path / "nothing", benchmark="xcopa")
    assert status == 1 and "holds no finished evaluation" in errors and not (tmp_path / "c").exists()


def test_a_base_is_graded_as_answers_are_read_today(tmp_path, pbrl_eval):
    """An evaluation of another version holds the grades of its own reading; its responses count, not these."""
    folder = ["--languages", "sw", "--limit", "3", "--workdir"]
    assert pbrl_eval(*folder, tmp_path / "a")[0] == 0
    file = tmp_path / "a" / "responses.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    known = [row["correct"] for row in rows]
    file.write_text("".join(json.dumps(row | {"correct": not row["correct"]}) + "\n" for row in rows))
    status, _, errors = pbrl_eval(*folder, tmp_path / "b", "--base", tmp_path / "a")
    assert status == 0, errors
    row = json.loads((tmp_path / "b" / "eval.json").read_text())["against_base"]["languages"]["sw"]
    assert row["points"] == 0 and len(known) == 3


def test_samples_and_training_text(tmp_path, pbrl_eval, data):
    """pass@k of two samples; a training file that holds three of the test questions."""
    questions = (data / "mgsm" / "mgsm_sw.tsv").read_text().splitlines()[:3]
    rows = [{"question": line.split("\t")[0], "answer": "1", "language": "sw"} for line in questions]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"source": "table", "path": str(tmp_path / "train.jsonl"), "languages": ("sw",)}
    config = with_values(Config(), data=source)
    (tmp_path / "config.json").write_text(to_json(config))
    arguments = ["--languages", "sw", "--samples", "2", "--temperature", "1"]
    arguments += ["--training-data", tmp_path / "config.json"]
    status, _, errors = pbrl_eval(*arguments, "--workdir", tmp_path / "w")
    assert status == 0, errors
    result = json.loads((tmp_path / "w" / "eval.json").read_text())
    assert {"pass@1", "pass@2", "mean@2", "maj@2"} <= set(result["languages"]["sw"])
    assert result["contamination"]["overlapping"] == 3 and result["contamination"]["languages"] == {"sw": 0.25}
    assert [hit["key"] for hit in result["contamination"]["examples"]] == ["sw/0", "sw/1", "sw/2"]
    assert result["seen"]["languages"] == ["sw"]
    status, _, errors = pbrl_eval(*arguments, "--workdir", tmp_path / "v", "--max-overlap", "0.2")
    assert status == 1 and "3 of 12 problems (25.0 %) share 13 words" in errors and not (tmp_path / "v").exists()


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["--languages", "swahilli"], ["mgsm has no language 'swahilli'. Did you mean 'sw'? Known: bn, de"]),
        (["--languages", ","], ["--languages is ','", "such as sw,bn"]),
        (["--protocol", "nativ"], ["mgsm has no protocol 'nativ'", "Did you mean 'native-cot'?"]),
        (["--style", "chatt"], ["Unknown prompt style 'chatt'", "Did you mean 'chat'?"]),
        (["--limit", "-1"], ["--limit is -1; expected at least 0"]),
        (["--samples", "4"], ["--samples 4 at --temperature 0", "--temperature 0.6"]),
        (["--top-p", "1.5"], ["--top-p is 1.5; expected a share"]),
        (["--max-completion-length", "0"], ["--max-completion-length is 0; expected at least 1"]),
        (["--shots", "2"], ["has no exemplars.json", "--shots 0"]),
        (["--languages", "bn"], ["mgsm_bn.tsv"]),
        (["--seen", "xx"], ["Unknown language 'xx'"]),
        (["--training-data", "nowhere.py"], ["No config at 'nowhere.py'"]),
    ],
    ids=" ".join,
)
def test_bad_input(tmp_path, pbrl_eval, arguments, messages):
    status, output, errors = pbrl_eval("--workdir", tmp_path / "w", *arguments)
    assert status == 1 and errors.startswith("Error: ") and "Traceback" not in errors
    assert all(message in errors for message in messages), errors
    assert not (tmp_path / "w").exists()


def test_bad_places(tmp_path, pbrl_eval):
    status, _, errors = pbrl_eval("--workdir", tmp_path / "w", benchmark="mgms")
    assert status == 1 and "Unknown benchmark 'mgms'" in errors and "Did you mean 'mgsm'?" in errors
    status, _, errors = pbrl_eval("--languages", "sw", "--workdir", tmp_path / "w", policy_path=tmp_path / "none")
    assert status == 1 and "No policy" in errors and not (tmp_path / "w").exists()
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "responses.jsonl").write_text("{}\n")
    status, _, errors = pbrl_eval("--languages", "sw", "--workdir", tmp_path / "w")
    assert status == 1 and "exists without evaluation.json" in errors


def test_a_table_of_ones_own(tmp_path, pbrl_eval):
    """Own columns, rows in two languages, gold answers as they are written; without answers it is refused."""
    rows = [{"prompt": f"{word} {i}?", "label": f"Jibu: #### {i}", "lang": code, "extra": {"gold": str(i)}}
            for code, word in (("sw", "Ngapi"), ("en", "How many")) for i in range(3)]  # fmt: skip
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ["--data", file, "--workdir", tmp_path / "w"]
    columns = ["--columns", "answer=extra.gold", "language=lang"]
    status, output, errors = pbrl_eval(*own, *columns, benchmark="table")
    assert status == 0 and "table, native-cot" in output, errors
    result = json.loads((tmp_path / "w" / "eval.json").read_text())
    assert {code: row["n"] for code, row in result["languages"].items()} == {"sw": 3, "en": 3}
    graded = [json.loads(line) for line in (tmp_path / "w" / "responses.jsonl").read_text().splitlines()]
    assert [(row["key"], row["gold"]) for row in graded] == [(f"{c}/{i + s}", str(i)) for c, s in (("sw", 0), ("en", 3))
                                                             for i in range(3)]  # fmt: skip
    for arguments, message in [
        (columns[:1] + columns[2:], "6 of 6 rows have no answer, the first is row 1. Name the column: --columns"),
        ([*columns, "--shots", "2"], "no worked solutions"),
        (["--columns", "answer=extra.golt", "language=lang"], "no column 'extra.golt' for answer"),
    ]:
        status, _, errors = pbrl_eval("--data", file, "--workdir", tmp_path / "v", *arguments, benchmark="table")
        assert status == 1 and message in errors, errors
    assert "needs --data" in pbrl_eval("--workdir", tmp_path / "v", benchmark="table")[2]
    assert "--columns is for --benchmark table" in pbrl_eval("--workdir", tmp_path / "v", *columns)[2]
