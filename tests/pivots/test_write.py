"""Every prompt gets its problem's reference; the expert is asked once per problem; what is dropped is counted."""

import functools
import io
import json

import pytest
from rich.console import Console
from stored_references import flip_text

from pbrl_jax import Config, with_values
from pbrl_jax.core.errors import ConfigError, CutAnswer, DataError
from pbrl_jax.core.records import Prompt, Reference
from pbrl_jax.logs.progress import Progress
from pbrl_jax.pivots.filter import FilterReport
from pbrl_jax.pivots.store import PivotStore
from pbrl_jax.pivots.write import attach_references, read_reference_file, write_references

BATCH = 2


def config(source: str = "policy", **pivot) -> Config:
    return with_values(Config(), pivot={"source": source, **pivot}, eval={"batch_size": BATCH})


def problem(row: int, language: str, answer: str | None = "sum", reference: Reference | None = None) -> Prompt:
    """Problem `row` is `row + 1`."""
    gold = str(row + 1) if answer == "sum" else answer
    return Prompt(64 * row + (language != "en"), language, f"{language}: {row} + 1?", f"{row} + 1?", gold, reference)


def prompts(count: int = 5, **fields) -> list[Prompt]:
    return [problem(row, language, **fields) for row in range(count) for language in ("sw", "en")]


def right(row: int) -> Reference:
    return Reference(f"{row} and one more.", f"The answer is {row + 1}.")


class Expert:
    """Answers "3 + 1?" with "3 and one more. The answer is 4.", except where told otherwise."""

    def __init__(self, stop_at: int | None = None, **otherwise: str):
        self.stop_at, self.otherwise = stop_at, otherwise
        self.calls: list[list[str]] = []

    def __call__(self, questions: list[str]) -> list[str]:
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append(questions)
        return [self.otherwise.get(f"q{q.split()[0]}", right(int(q.split()[0])).text) for q in questions]

    @property
    def asked(self) -> list[str]:
        return [question for call in self.calls for question in call]


def attach(rows, store, sample=None, settings=None, **changes):
    who = {"expert": "policy", "revision": "r1"} | changes
    return attach_references(rows, settings or config(), store, sample, **who)


def test_the_expert_answers_each_problem_once_for_all_its_languages(tmp_path):
    expert, rows = Expert(), prompts()
    attached, report = attach(rows, PivotStore(tmp_path), expert)
    assert expert.calls == [["0 + 1?", "1 + 1?"], ["2 + 1?", "3 + 1?"], ["4 + 1?"]]
    assert attached == [row._replace(reference=right(row.id // 64)) for row in rows]
    assert report.problems == FilterReport(total=5, kept=5, right=5, wrong=0, unverified=0, no_answer=0)
    assert (report.prompts, report.kept, report.asked, report.dropped, report.missing) == (10, 10, 5, {}, {})


def test_a_second_call_asks_nothing_and_returns_the_same(tmp_path):
    rows = prompts()
    first, report = attach(rows, PivotStore(tmp_path), Expert())
    expert = Expert()
    second, again = attach(rows, PivotStore(tmp_path), expert)
    assert expert.calls == [] and second == first and again == report._replace(asked=0)
    assert attach(rows, PivotStore(tmp_path)) == (second, again), "nobody is needed any more"


def test_an_interrupted_call_loses_one_batch_and_goes_on(tmp_path):
    whole, _ = attach(prompts(), PivotStore(tmp_path / "whole"), Expert())
    store = PivotStore(tmp_path / "pivots")
    with pytest.raises(KeyboardInterrupt):
        attach(prompts(), store, Expert(stop_at=2))
    expert = Expert()
    attached, report = attach(prompts(), store, expert)
    assert expert.calls == [["4 + 1?"]] and report.asked == 1
    assert attached == whole
    assert list(store.references().items()) == list(PivotStore(tmp_path / "whole").references().items())


def test_a_torn_shard_is_asked_again(tmp_path):
    store = PivotStore(tmp_path)
    whole, _ = attach(prompts(), store, Expert())
    content, last = store.references(), max(store.path.glob("*.parquet"))
    last.write_bytes(last.read_bytes()[:-30])
    store = PivotStore(tmp_path)
    expert = Expert()
    assert attach(prompts(), store, expert)[0] == whole
    assert expert.asked == ["4 + 1?"] and store.references() == content


def test_more_problems_ask_only_for_the_new_ones(tmp_path):
    store, expert = PivotStore(tmp_path), Expert()
    attach(prompts(2), store, Expert())
    attach(prompts(4), store, expert)
    assert expert.asked == ["2 + 1?", "3 + 1?"]


@pytest.mark.parametrize(
    "who, section, values",
    [
        ({"expert": "other"}, "pivot", {}),
        ({"revision": "r2"}, "pivot", {}),
        ({"template": "Q: {question}"}, "pivot", {}),
        ({}, "train", {"seed": 1}),
        ({}, "pivot", {"temperature": 0.7}),
        ({}, "pivot", {"max_completion_length": 65}),
    ],
)
def test_another_expert_or_way_of_asking_reuses_nothing(tmp_path, who, section, values):
    store, expert, rows = PivotStore(tmp_path), Expert(), prompts(3)
    attach(rows, store, Expert())
    attach(rows, store, expert, with_values(config(), **{section: values}), **who)
    assert expert.asked == ["0 + 1?", "1 + 1?", "2 + 1?"]
    unchanged = Expert()
    attach(rows, store, unchanged)
    assert unchanged.calls == [], "the first expert's references are still there"


def test_wrong_and_unanswered_references_take_their_prompts_with_them(tmp_path):
    expert = Expert(q1="1 and one more. The answer is 3.", q2="I do not know.", q3="")
    rows = [*prompts(), problem(1, "de"), problem(4, "de")]
    attached, report = attach(rows, PivotStore(tmp_path), expert)
    assert [row.id // 64 for row in attached] == [0, 0, 4, 4, 4]
    assert report.problems == FilterReport(total=5, kept=2, right=2, wrong=1, unverified=0, no_answer=2)
    assert report.dropped == {"sw": 3, "en": 3, "de": 1} and (report.prompts, report.kept) == (12, 5)
    assert report.describe() == (
        "references (policy): 2 of 5 kept (2 right, 0 not verified, 1 wrong, 2 without an answer); "
        "5 of 12 prompts have one; dropped: de 1, en 3, sw 3"
    )


def test_keep_wrong_keeps_them_without_asking_again(tmp_path):
    store = PivotStore(tmp_path)
    attach(prompts(), store, Expert(q1="The answer is 3.", q2="I do not know."))
    expert = Expert()
    attached, report = attach(prompts(), store, expert, config(keep_wrong=True))
    assert expert.calls == []
    assert report.problems == FilterReport(total=5, kept=4, right=3, wrong=1, unverified=0, no_answer=1)
    assert attached[2].reference == Reference("", "The answer is 3.")


def test_without_gold_answers_all_answered_references_stay_unverified(tmp_path):
    attached, report = attach(
        prompts(3, answer=None), PivotStore(tmp_path), Expert(q1="The answer is 9.", q2="Who knows?")
    )
    assert report.problems == FilterReport(total=3, kept=2, right=0, wrong=0, unverified=2, no_answer=1)
    assert len(attached) == 4


def test_each_row_is_held_to_its_own_gold_answer(tmp_path):
    rows = [problem(1, "en"), problem(1, "sw", answer="7"), problem(1, "de", answer=None)]
    attached, report = attach(rows, PivotStore(tmp_path), Expert())
    assert [row.language for row in attached] == ["en", "de"] and report.dropped == {"sw": 1}


def test_the_store_says_what_was_verified(tmp_path):
    store = PivotStore(tmp_path)
    rows = [problem(0, "sw", answer=None), problem(0, "en"), problem(1, "en"), problem(2, "en", answer=None)]
    written = write_references(rows, Expert(q1="The answer is 5."), store, config(), "policy", "r1")
    assert [stored.verified for stored in written.values()] == [True, False, None]
    assert store.references(written) == written


def test_nothing_left_says_why_and_what_to_do(tmp_path):
    with pytest.raises(DataError, match="1 wrong, 1 without an answer") as caught:
        attach(prompts(2), PivotStore(tmp_path), Expert(q0="The answer is 5.", q1="So?"))
    message = str(caught.value)
    assert "to '0 + 1?' the reference is 'The answer is 5.', the gold answer '1'" in message
    assert "pivot.max_completion_length" in message and "--pivot.keep_wrong" in message


def test_without_the_expert_what_is_missing_is_an_error(tmp_path):
    store = PivotStore(tmp_path)
    attach(prompts(2), store, Expert())
    with pytest.raises(DataError, match="lacks the references of 3 of 5 questions by .policy., the first") as caught:
        attach(prompts(), store)
    assert "`pbrl pivots CONFIG`" in str(caught.value)


def test_the_fingerprint_knows_the_references_in_use_and_no_order(tmp_path):
    store, rows = PivotStore(tmp_path), prompts()
    report = attach(rows, store, Expert())[1]
    shuffled = attach([*rows[5:], *rows[:5]], PivotStore(tmp_path / "b"), Expert())[1]
    assert shuffled.fingerprint == report.fingerprint
    attach(rows, store, Expert(), expert="other")
    assert attach(rows, store)[1].fingerprint == report.fingerprint, "what else is in the store does not matter"
    other = attach(rows, PivotStore(tmp_path / "c"), Expert(q1="Yes. The answer is 2."))[1]
    fewer = attach(rows[2:], store)[1]
    assert len({report.fingerprint, other.fingerprint, fewer.fingerprint}) == 3


def test_a_process_that_does_not_write_gets_the_same_references(tmp_path):
    store = PivotStore(tmp_path / "pivots", writes=False)
    assert attach(prompts(), store, Expert()) == attach(prompts(), PivotStore(tmp_path / "other"), Expert())
    assert not (tmp_path / "pivots").exists()


def test_a_damaged_store_asks_nobody(tmp_path):
    store, expert = PivotStore(tmp_path), Expert()
    attach(prompts(), store, Expert())
    flip_text(min(store.path.glob("*.parquet")))
    with pytest.raises(
        DataError, match="lacks the references of 2 of 5 questions by 'policy', the first: '0 . 1.'.*pbrl p"
    ):
        attach(prompts(), store, expert)
    assert expert.calls == []


def test_a_response_that_was_cut_is_stored_without_an_answer(tmp_path):
    """It is dropped, and not asked for again."""
    cut = CutAnswer("An answer ends at its token limit.", "3 and one more. The answer is 1")
    answers = {"3 + 1?": cut}
    store, rows = PivotStore(tmp_path), prompts()
    kept, report = attach(rows, store, lambda questions: [answers.get(q, right(int(q[0])).text) for q in questions])
    assert report.problems.no_answer == 1 and len(kept) == len(rows) - 2
    assert attach(rows, store, Expert(stop_at=0))[0] == kept


def test_progress_starts_where_the_store_ends(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=False, width=120)
    progress = functools.partial(Progress, part=(2, 7), console=console, every_seconds=0.0)
    store = PivotStore(tmp_path)
    attach(prompts(2), store, Expert())
    who = {"expert": "policy", "revision": "r1"}
    attach_references(prompts(5), config(), store, Expert(), progress, **who)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "[2/7] references: started, 3 questions to do"
    assert lines[1].startswith("[2/7] references: 4 of 5 questions (80 %)")
    assert lines[-1].startswith("[2/7] references: done after")
    attach_references(prompts(5), config(), store, Expert(), progress, **who)
    assert console.file.getvalue().splitlines() == lines, "nothing to do shows nothing"


def test_calls_that_cannot_be_right(tmp_path):
    store = PivotStore(tmp_path)
    with pytest.raises(ValueError, match="1 responses to 2 questions"):
        attach(prompts(), store, lambda questions: ["one"])
    for who in ({"expert": ""}, {"revision": ""}):
        with pytest.raises(ValueError, match="needs the expert's name and revision"):
            attach(prompts(), store, Expert(), **who)
    with pytest.raises(ConfigError, match="Did you mean 'policy'"):
        attach(prompts(), store, Expert(), config("polcy"))
    with pytest.raises(DataError, match="Found no prompts"):
        attach([], store, Expert())


@pytest.mark.parametrize("source", ["policy", "file"])
def test_rows_without_an_english_question_are_named(tmp_path, source):
    rows = prompts(3)
    rows[2] = rows[2]._replace(question_en=" ")
    with pytest.raises(DataError, match=r"1 of 6 rows have no English question.*: row 2 \(sw, id 65\)\."):
        attach(rows, PivotStore(tmp_path), Expert(), config(source))


def test_dataset_references_are_taken_as_they_are(tmp_path):
    rows = [problem(0, "sw", reference=Reference("", "17")), problem(1, "sw", answer=None, reference=right(1))]
    store = PivotStore(tmp_path / "pivots")
    attached, report = attach_references(rows, config("dataset"), store)
    assert attached == rows
    assert report.problems == FilterReport(total=2, kept=2, right=0, wrong=0, unverified=2, no_answer=0)
    assert not (tmp_path / "pivots").exists()
    changed = [rows[0]._replace(reference=Reference("", "18")), rows[1]]
    assert attach_references(changed, config("dataset"), store)[1].fingerprint != report.fingerprint


def test_parts_that_references_lack_and_languages_that_are_lost_are_said(tmp_path):
    store = PivotStore(tmp_path / "pivots")
    rows = [problem(0, "sw", reference=Reference("So 1.", "")), problem(1, "sw", reference=right(1))]
    said = attach_references(rows, config("dataset"), store)[1].describe()
    assert said.endswith("; 1 have no answer part, for which similarities are 0 (reward.parts whole compares all)")
    whole = with_values(config("dataset"), reward={"parts": "whole"})
    assert "part" not in attach_references(rows, whole, store)[1].describe()
    expert = Expert(q1="1 and one more. The answer is 3.")
    _, report = attach([problem(0, "sw"), problem(1, "th")], store, expert)
    assert report.lost == "th" and report.describe().endswith("dropped: th 1; none of th is left")


@pytest.mark.parametrize("nothing", [None, Reference("", "")])
def test_dataset_rows_without_a_reference_are_named(tmp_path, nothing):
    rows = [problem(n, "sw", reference=nothing if n else right(n)) for n in range(8)]
    with pytest.raises(DataError, match=r"7 of 8 rows have no reference: row 2 \(sw, id 65\), .* and 2 more") as caught:
        attach_references(rows, config("dataset"), PivotStore(tmp_path))
    assert "--pivot.source policy" in str(caught.value)


def references_file(tmp_path, *rows) -> str:
    path = tmp_path / "references.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def from_file(tmp_path, rows, *lines, **pivot):
    settings = config("file", file=references_file(tmp_path, *lines), **pivot)
    return attach_references(rows, settings, PivotStore(tmp_path / "pivots"))


def test_file_rows_by_question_or_id_split_or_whole(tmp_path):
    attached, report = from_file(
        tmp_path,
        prompts(4),
        {"question": "0  + 1? ", "reasoning": "0 and one more.", "answer": "The answer is 1.", "pivot": "x"},
        "",
        {"id": 64, "reasoning": "1 and one more.", "answer": 2},
        {"question": "2 + 1?", "response": "2 and one more. The answer is 3."},
        {"id": 193, "response": "3 and one more. The answer is 4."},
        {"question": "99 + 1?", "response": "unused"},
        {"id": 64 * 99, "response": "unused"},
    )
    assert [row.reference for row in attached] == [right(row) for row in range(4) for _ in "ab"]
    assert report.problems.right == 4 and report.kept == 8 and report.missing == {}
    assert not (tmp_path / "pivots").exists()


@pytest.mark.parametrize("name", [{"question": "Cafe\u0301: 0 + 1?"}, {"id": 64}])
def test_spellings_of_one_english_question_share_the_reference_of_a_file(tmp_path, name):
    spellings = ("Caf\u00e9:  0 + 1?", "Cafe\u0301: 0 + 1?", "Caf\u00e9: 0 + 1?")
    rows = [problem(row, "sw", "1")._replace(id=64 * row, question_en=text) for row, text in enumerate(spellings)]
    attached, report = from_file(tmp_path, rows, {**name, "response": right(0).text})
    assert [row.reference for row in attached] == [right(0)] * 3 and not report.missing


@pytest.mark.parametrize(
    "answer, sentence",
    [
        ("18", "The answer is 18."),
        ("18.", "The answer is 18."),
        (18.0, "The answer is 18."),
        ("Jose\u0301", "The answer is \\boxed{Jos\u00e9}."),
        (2.5, "The answer is 2.5."),
        ("$1,250", "The answer is $1,250."),
        ("x^2+1", "The answer is \\boxed{x^2+1}."),
        ("\\frac{1}{2}", "The answer is \\boxed{\\frac{1}{2}}."),
        ("#### 18", "#### 18"),
        ("", ""),
    ],
)
def test_a_bare_answer_becomes_the_sentence_that_rewards_compare(tmp_path, answer, sentence):
    path = references_file(tmp_path, {"id": 0, "reasoning": "So.", "answer": answer})
    assert read_reference_file(path, prompts(1)) == {"0 + 1?": Reference("So.", sentence)}


def test_file_references_are_filtered_and_gaps_are_counted(tmp_path):
    lines = [{"id": 0, "response": right(0).text}, {"id": 64, "reasoning": "", "answer": "5"}]
    lines.append({"id": 128, "response": "no idea"})
    attached, report = from_file(tmp_path, prompts(4), *lines)
    assert [row.id for row in attached] == [1, 0]
    assert report.problems == FilterReport(total=3, kept=1, right=1, wrong=1, unverified=0, no_answer=1)
    assert report.dropped == {"sw": 2, "en": 2} and report.missing == {"sw": 1, "en": 1}
    assert report.describe().endswith("dropped: en 2, sw 2; not in the file: en 1, sw 1")
    assert len(from_file(tmp_path, prompts(4), *lines, keep_wrong=True)[0]) == 4


def test_a_file_about_other_problems_is_an_error(tmp_path):
    with pytest.raises(DataError, match="must be the English questions of the data"):
        from_file(tmp_path, prompts(2), {"question": "sw: 0 + 1?", "response": "The answer is 1."})


@pytest.mark.parametrize(
    "line, what",
    [
        ('{"question": "a"', "is not JSON"),
        ("3", "is int, expected an object"),
        ("[" * 100_000, "is not JSON .it is nested too deeply"),
        ({"question": "a", "response": "x \ud83d"}, "holds half of a character"),
        ('{"question": "a", "reasoning": "x", "answer": NaN}', "answer is float, expected text"),
        ({"response": "x"}, r"has \['response'\], expected question or id"),
        ({"question": "a", "answer": "x"}, "expected response, or reasoning and answer"),
        ({"question": "a", "reasoning": "x", "answer": None}, "answer is NoneType, expected text"),
        ({"question": ["a"], "response": "x"}, "question is list, expected text"),
        ({"id": "64", "response": "x"}, "id is '64', expected a prompt's number"),
        ({"id": 0, "response": "The answer is 2."}, "another reference for the problem of row 1, expected one"),
    ],
)
def test_bad_file_rows_are_named(tmp_path, line, what):
    good = {"question": "0 + 1?", "response": "The answer is 1."}
    with pytest.raises(DataError, match=rf"references.jsonl: row 3: .*{what}.*Correct or remove these rows"):
        from_file(tmp_path, prompts(1), good, good, line)


def test_where_the_file_must_be(tmp_path):
    store = PivotStore(tmp_path / "pivots")
    with pytest.raises(ConfigError, match="pivot.file is empty"):
        attach_references(prompts(1), config("file"), store)
    with pytest.raises(DataError, match="is nothing, expected a JSON lines file"):
        attach_references(prompts(1), config("file", file=str(tmp_path / "none")), store)
    with pytest.raises(DataError, match="is a folder"):
        attach_references(prompts(1), config("file", file=str(tmp_path)), store)
