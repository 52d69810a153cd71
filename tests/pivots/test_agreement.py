"""Several samples of one question: which become references, who is dropped, and what an endpoint's failure leaves."""

import dataclasses

import pytest
from tiny_endpoint import TinyEndpoint
from tiny_policy import tiny_spec

from pbrl_jax import Config, with_values
from pbrl_jax.core.errors import ConfigError, EndpointError
from pbrl_jax.core.records import Prompt, Reference
from pbrl_jax.pivots.agreement import choose
from pbrl_jax.pivots.store import PivotStore
from pbrl_jax.pivots.write import attach_references
from pbrl_jax.run.assemble import reference_expert
from pbrl_jax.run.check import validate
from pbrl_jax.weights.policies import Policy


def config(source: str = "policy", **pivot) -> Config:
    return with_values(Config(), pivot={"source": source, **pivot}, eval={"batch_size": 2})


def prompts(count: int, answer: str | None = "sum") -> list[Prompt]:
    """Problem `row` is `row + 1`, in two languages."""
    return [
        Prompt(64 * row + number, code, f"{code}: {row} + 1?", f"{row} + 1?", answer and str(row + 1))
        for row in range(count)
        for number, code in enumerate(("sw", "en"))
    ]


def right(row: int) -> Reference:
    return Reference(f"{row} and one more.", f"The answer is {row + 1}.")


def attach(rows, store, sample_texts, settings, expert="policy", revision="r1"):
    return attach_references(rows, settings, store, sample_texts, expert=expert, revision=revision)


def says(answer, words="So.") -> Reference:
    return Reference(words, f"The answer is {answer}." if answer else "")


def test_the_answer_of_most_samples_is_chosen():
    """5 twice (5.0 is 5), 7 once, one without an answer; the gold answer, where known, goes before the many."""
    samples = [says("7"), says("5"), says("5.0", "Thus."), says(None)]
    assert choose(samples, None, 9) == ((samples[1], samples[2]), 0.5)
    assert choose(samples, None, 1) == ((samples[1],), 0.5)
    assert choose(samples, "7", 9) == ((samples[0],), 0.25)
    assert choose(samples, "8", 9) == ((samples[1], samples[2]), 0.5)
    assert choose([says("1"), says("2")], None, 9).references == (says("1"),), "the earlier of equals"
    assert choose([says("1"), says("1")], None, 9) == ((says("1"),), 1.0), "equal texts are one"
    assert choose([says(None)], "3", 2) == ((says(None),), 0.0)


def expert(questions, sample=0):
    """Right, with other words each time; to question 1 with another answer each time, to question 2 once."""
    rows = [int(question.split()[0]) for question in questions]
    wrong = {1: sample + 50, 2: 50 if sample == 2 else 3}
    return [f"{row} and one more, way {sample}. The answer is {wrong.get(row, row + 1)}." for row in rows]


def test_references_of_several_samples(tmp_path):
    settings = config(samples=3, references=2, min_agreement=0.6, temperature=0.7)
    rows = prompts(4, answer=None)
    kept, report = attach(rows, PivotStore(tmp_path), expert, settings)
    assert report.asked == 12 and report.disagreed == 1 and report.dropped == {"sw": 1, "en": 1}
    assert "1 without agreement" in report.describe() and report.problems.total == 3
    assert [p.question_en for p in kept[::2]] == ["0 + 1?", "2 + 1?", "3 + 1?"]
    assert [r.reasoning for r in kept[0].references] == ["0 and one more, way 0.", "0 and one more, way 1."]
    again = attach(rows, PivotStore(tmp_path), None, settings)
    assert again[0] == kept and again[1]._replace(asked=12) == report
    one = attach(rows, PivotStore(tmp_path), None, config(samples=3, temperature=0.7))
    assert len(one[0]) == 8 and one[1].fingerprint != report.fingerprint


def test_one_sample_is_what_it_was(tmp_path):
    """The first of several samples is the only one of a run that asks for one: nothing is asked again."""
    store = PivotStore(tmp_path)
    attach(prompts(2), store, lambda questions: [right(int(q[0])).text for q in questions], config(temperature=0.7))
    _, report = attach(prompts(2), store, expert, config(samples=2, temperature=0.7))
    assert report.asked == 2


def test_what_an_endpoint_does_not_answer_is_asked_again(tmp_path):
    def failing(questions):
        return [EndpointError("down") if "1 +" in q[:3] else right(int(q[0])).text for q in questions]

    store, who = PivotStore(tmp_path), {"expert": "endpoint:m", "revision": "endpoint"}
    with pytest.raises(EndpointError, match="1 of 2 questions got no answer, and 1 are stored.*down"):
        attach(prompts(2), store, failing, config("endpoint"), **who)
    calls = []

    def mended(questions):
        calls.extend(questions)
        return [right(int(q[0])).text for q in questions]

    kept, report = attach(prompts(2), store, mended, config("endpoint"), **who)
    assert calls == ["1 + 1?"] and report.kept == 4 and kept[0].reference == right(0)


def test_a_question_without_an_answer_does_not_hold_up_the_others(tmp_path):
    """Batches of one size go on behind it; a dead endpoint is asked for one batch."""
    asked, store = [], PivotStore(tmp_path)

    def sampler(dead):
        def answers(questions):
            asked.extend(questions)
            return [
                EndpointError("refused") if dead or q.startswith("1 +") else right(int(q[0])).text for q in questions
            ]

        return answers

    settings, who = config("endpoint"), {"expert": "endpoint:m", "revision": "e"}
    with pytest.raises(EndpointError, match="2 of 2 questions got no answer, and 0 are stored.*refused"):
        attach(prompts(6), store, sampler(True), settings, **who)
    assert len(asked) == 2
    with pytest.raises(EndpointError, match="1 of 6 questions got no answer, and 5 are stored.*refused"):
        attach(prompts(6), store, sampler(False), settings, **who)


def test_an_endpoint_is_asked_with_a_seed_for_each_sample(tmp_path):
    endpoint = TinyEndpoint(lambda body: f"Way {body['seed']}. The answer is 1.")
    with endpoint.served() as served:
        settings = dataclasses.replace(config("endpoint", samples=2, references=2, temperature=0.7), endpoint=served)
        expert = reference_expert(Policy(tiny_spec(), {}, None, "unused"), settings)
        kept, report = attach_references(prompts(1), settings, PivotStore(tmp_path), **expert)
        assert attach_references(prompts(1), settings, PivotStore(tmp_path), **expert)[0] == kept
    bodies = [body for _, _, body in endpoint.seen]
    assert [(body["seed"], body["temperature"], body["max_tokens"]) for body in bodies] == [(0, 0.7, 64), (1, 0.7, 64)]
    assert "0 + 1?" in bodies[0]["messages"][0]["content"] and "The answer is N." in bodies[0]["messages"][0]["content"]
    assert report.kept == 2 and [r.reasoning for r in kept[0].references] == ["Way 0.", "Way 1."]


@pytest.mark.parametrize(
    "source, settings, message",
    [("policy", {"samples": 2}, "all samples would be equal"), ("dataset", {"samples": 2}, "writes none"),
     ("policy", {"references": 2}, "pivot.samples 1"), ("endpoint", {}, "endpoint.url")],
)  # fmt: skip
def test_settings_that_cannot_work(source, settings, message):
    with pytest.raises(ConfigError, match=message):
        validate(config(source, **settings), 1)
