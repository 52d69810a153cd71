"""`pbrl translate` against a local endpoint: what is accepted, what is rejected and why, resume, and kills."""

import json
import re

import pytest
from stop_requests import Stopping
from tiny_endpoint import TinyEndpoint

from pbrl_jax.cli import main
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.paths import read_json_lines, write_json_lines
from pbrl_jax.data.sources.table import rows as table_rows
from pbrl_jax.rewards.text_similarity import chrf
from pbrl_jax.run.options import HarnessOptions, TranslateOptions
from pbrl_jax.translate import questions as translate
from pbrl_jax.translate.questions import Checks, Job, check_settings, missing_names, proper_names, translation_faults

HOUSES = "In this town Janet has 3 houses and Bob buys 14 more houses. How many houses are there now?"
SWAHILI = "Katika mji huu Janet ana nyumba 3 na Bob ananunua nyumba 14 zaidi. Sasa kuna nyumba ngapi?"
GERMAN = "In dieser Stadt hat Janet 3 Häuser und Bob kauft noch 14 Häuser. Wie viele Häuser gibt es jetzt?"
WATER = "The old boat carries 20 tons of water across the lake every single day of the year."
WATER_SW = "Mashua ya zamani hubeba tani 20 za maji kuvuka ziwa kila siku moja ya mwaka mzima."
QUESTIONS = [{"question": HOUSES, "answer": "17"}, {"question": WATER, "answer": "20", "note": "kept"}]
DICTIONARY = {("Swahili", HOUSES): SWAHILI, ("Swahili", WATER): WATER_SW.replace("20", "21"),
              ("German", HOUSES): GERMAN, ("German", WATER): WATER,
              ("English", SWAHILI): HOUSES, ("English", GERMAN): HOUSES}  # fmt: skip


def reply(body) -> str:
    request, _, text = body["messages"][0]["content"].partition("\n\n")
    target = re.search(r"into (\w+)\.", request).group(1)
    # By its beginning: what is asked again has its numbers hidden behind names, which this model does not keep.
    begins = {(code, known[:12]): found for (code, known), found in DICTIONARY.items()}
    return begins.get((target, text[:12]), text)


@pytest.fixture
def files(tmp_path):
    write_json_lines(tmp_path / "in.jsonl", QUESTIONS)
    return tmp_path


def run(folder, endpoint, *more) -> int:
    with endpoint.served() as config:
        return main([
            "translate", str(folder / "in.jsonl"), str(folder / "out.jsonl"), "--to", "sw,de", "--translator",
            "endpoint", "--endpoint-url", config.url, "--endpoint-model", "tiny", *more,
        ])  # fmt: skip


def results(folder):
    return read_json_lines(folder / "out.jsonl"), read_json_lines(folder / "out.rejected.jsonl")


def test_a_file_is_translated_and_the_table_source_reads_it(files, capsys):
    assert run(files, TinyEndpoint(reply)) == 0
    good, bad = results(files)
    assert [(row["id"], row["language"], row["question"]) for row in good] == [(0, "sw", SWAHILI), (0, "de", GERMAN)]
    assert [(row["id"], row["language"]) for row in bad] == [(1, "sw"), (1, "de")]
    assert "numbers differ" in bad[0]["reasons"] and "wrong language" in bad[1]["reasons"]
    assert "2 accepted" in (out := capsys.readouterr().out) and "numbers differ 1" in out
    prompts = table_rows(str(files / "out.jsonl"), "train", ("sw", "de"), 0, 0)
    assert [(p.language, p.question, p.question_en, p.answer) for p in prompts] == [
        ("sw", SWAHILI, HOUSES, "17"), ("de", GERMAN, HOUSES, "17"),
    ]  # fmt: skip


def test_a_second_call_asks_nothing_and_other_settings_are_refused(files, capsys):
    assert run(files, TinyEndpoint(reply)) == 0
    before, silent = results(files), TinyEndpoint(reply)
    assert run(files, silent) == 0 and not silent.seen and results(files) == before
    assert run(files, silent, "--min-agreement", "0.9") == 1
    assert "min_agreement was 0.35, is 0.9" in capsys.readouterr().err
    assert run(files, silent, "--to", "en") == 1 and "already" in capsys.readouterr().err


def test_a_kill_between_batches_loses_nothing(files, monkeypatch):
    whole = files / "whole"
    whole.mkdir()
    write_json_lines(whole / "in.jsonl", QUESTIONS)
    assert run(whole, TinyEndpoint(reply)) == 0
    append, calls = translate.append_json_lines, []

    def torn(path, rows):
        calls.append(path)
        if len(calls) == 4:  # behind the second batch's accepted rows, before its rejected ones
            raise KeyboardInterrupt
        append(path, rows)

    monkeypatch.setattr(translate, "append_json_lines", torn)
    assert run(files, TinyEndpoint(reply), "--batch-size", "1") == 130
    monkeypatch.undo()
    with open(files / "out.jsonl", "ab") as file:
        file.write(b'{"id": 1, "langu')  # and a line that was being written
    assert run(files, again := TinyEndpoint(reply)) == 0
    assert results(files) == results(whole)
    assert len(again.seen) <= 4


def test_an_endpoint_that_fails_leaves_rows_for_the_next_call(files, capsys):
    assert run(files, TinyEndpoint(lambda body: (401, "no key"))) == 1
    assert "4 rows got no answer" in capsys.readouterr().err
    assert results(files) == ([], [])
    assert run(files, TinyEndpoint(reply)) == 0 and len(results(files)[0]) == 2


def test_flags_are_those_of_the_verb(files, capsys):
    words = ["translate", str(files / "in.jsonl"), str(files / "out.jsonl"), "--to", "sw", "--translator", "endpoint"]
    assert main(words) == 1
    assert "Use" not in (said := capsys.readouterr().err) and "--endpoint-url http://localhost:8000/v1" in said
    assert main([*words, "--limit", "-3"]) != 0 and "--limit is -3" in capsys.readouterr().err


def test_a_signal_keeps_what_was_translated(files, capsys):
    whole = files / "whole"
    whole.mkdir()
    write_json_lines(whole / "in.jsonl", QUESTIONS)
    assert run(whole, TinyEndpoint(reply)) == 0
    stopping = Stopping(reply, 3)
    with (endpoint := TinyEndpoint(stopping)).served() as config:
        words = ["translate", str(files / "in.jsonl"), str(files / "out.jsonl"), "--to", "sw,de", "--translator",
                 "endpoint", "--endpoint-url", config.url, "--endpoint-model", "tiny"]  # fmt: skip
        assert main(words) == 0
        assert stopping.seconds() < 5 and "Stopped. What was finished is kept" in capsys.readouterr().out
        assert 0 < len(read_json_lines(files / "out.cache.jsonl"))
        endpoint.reply = reply
        assert main(words) == 0
    assert sorted(map(str, results(files)[0])) == sorted(map(str, results(whole)[0]))
    assert sorted(map(str, results(files)[1])) == sorted(map(str, results(whole)[1]))


@pytest.mark.parametrize(
    "translation, back, found",
    [
        (SWAHILI, HOUSES, []),
        (SWAHILI, None, []),
        ("", HOUSES, ["empty"]),
        (SWAHILI.replace("14", "41"), HOUSES, ["numbers differ"]),
        (SWAHILI + " $x$", HOUSES, ["formulas differ"]),
        (HOUSES, HOUSES, ["wrong language"]),
        (SWAHILI.replace("Janet", "mama"), HOUSES.replace("Janet", "mother"), ["names lost: Janet"]),
        (SWAHILI, HOUSES.replace("14", "15"), ["numbers differ on the way back"]),
        (SWAHILI, "Janet, Bob: 3, 14.", ["back-translation agrees by 0.12"]),
    ],
    ids=["none", "no way back", "empty", "number", "formula", "language", "name", "number back", "agreement"],
)
def test_each_fault_has_its_name(translation, back, found):
    job = Job("question", ("sw",), None, None, chrf, Checks())
    own = translation_faults(HOUSES, translation, back, "sw", job)
    assert [reason.split(" by ")[0] for reason in own] == [reason.split(" by ")[0] for reason in found]


def test_names_are_found_inside_sentences():
    assert proper_names("Yesterday Tom and Mary met Dr. Lee at $A B$. Then Tom left.") == ["Tom", "Mary"]
    assert missing_names("When Thomas met Anna", ["Тогда Анна", "Then Tomas met Ana"]) == []
    assert missing_names("When Thomas met Anna", ["he met her"]) == ["Thomas", "Anna"]


def test_a_file_of_somebody_else_is_not_touched(tmp_path):
    (tmp_path / "out.jsonl").write_text("{}\n")
    with pytest.raises(translate.DataError, match="was not written by"):
        check_settings(translate.output_files(str(tmp_path / "out.jsonl")), {})


def test_what_is_no_file_of_questions(files, capsys):
    """A name that is wrong, a folder, half of a character; languages may have spaces between them."""
    (files / "half.jsonl").write_text(json.dumps({"question": "a \ud83d"}))
    for name, message in (("none.jsonl", "No file"), ("", "No file"), ("half.jsonl", "line 1, holds half of a")):
        more = ["--to", "sw, de,", "--translator", "endpoint"]
        assert main(["translate", str(files / name), str(files / "out.jsonl"), *more]) == 1
        assert message in capsys.readouterr().err


def test_the_output_says_what_it_is():
    with pytest.raises(translate.DataError, match="out.csv would hold JSON lines"):
        translate.output_files("out.csv")


def test_numbers_that_cannot_be():
    """A negative --limit would leave out the last rows in silence."""
    for name, value in (("limit", -1), ("timeout", 0.0), ("max_requests", -1)):
        with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} is {value}; expected at least"):
            TranslateOptions(source="a", target="b", to="sw", translator="c", **{name: value})
    with pytest.raises(ConfigError, match="--shots is -1; expected at least 0"):
        HarnessOptions(policy="a", tasks="b", workdir="c", shots=-1)
