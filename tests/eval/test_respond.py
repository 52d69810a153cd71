"""Responses and choices of a tiny policy: against the plain causal model, in any batches, stopped and continued."""

import copy
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import policy, problem_prompts, tokenizer

from pbrl_jax import MeshConfig
from pbrl_jax.core.batching import by_length
from pbrl_jax.core.errors import DataError
from pbrl_jax.eval.benchmarks.common import Problem
from pbrl_jax.eval.evaluate import Decoder, answer_texts
from pbrl_jax.eval.respond import (
    Answering,
    Settings,
    continuations,
    cut_at_stop,
    encode_prompts,
    generate_responses,
    problem_id,
    score_choices,
)
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.models.decoder import causal_logits
from pbrl_jax.rollout import engine

PROMPTS = problem_prompts(4)[:10]
PROBLEMS = [
    Problem(f"{p.language}/{i}", p.language, p.question, f"{p.question}\n", p.answer, "number", p.language)
    for i, p in enumerate(PROMPTS)
]


def answering(**settings) -> Answering:
    return Answering(
        policy().spec, policy().params, tokenizer(),
        Settings(**{"max_completion_length": 8, "batch_size": 4, **settings}),
    )  # fmt: skip


def generated(problems=PROBLEMS, done=(), **settings):
    rows, ticks = [], []
    generate_responses(answering(**settings), problems, done, rows.extend, ticks.append)
    return rows, ticks


def test_responses_are_those_of_the_sampler_of_training():
    rows, ticks = generated()
    texts = answer_texts(
        Decoder(policy().spec, tokenizer(), 48, 8, 4), policy().params, [p.question for p in PROMPTS],
        [p.language for p in PROMPTS],
    )  # fmt: skip
    assert {row["key"]: row["completion"] for row in rows} == {
        problem.key: text for problem, text in zip(PROBLEMS, texts, strict=True)
    }
    assert sum(ticks) == 10 and {row["language"] for row in rows} == {"en", "sw", "zh"}
    assert all(row["truncated"] == (row["tokens"] == 8) for row in rows if row["tokens"] < 8 or row["truncated"])


def test_samples_depend_on_the_problem_and_the_seed_only():
    key = {(row["key"], row["sample"]): row["completion"] for row in generated(samples=2, temperature=1.0)[0]}
    assert len(key) == 20 and len(set(key.values())) == 20
    alone, _ = generated(PROBLEMS[3:4], samples=2, temperature=1.0, batch_size=1)
    assert {(row["key"], row["sample"]): row["completion"] for row in alone}.items() <= key.items()
    other, _ = generated(PROBLEMS[3:4], samples=2, temperature=1.0, batch_size=1, seed=1)
    assert [row["completion"] for row in other] != [row["completion"] for row in alone]
    assert len({problem_id(problem.key) for problem in PROBLEMS}) == 10 and problem_id("sw/17") == 1128879687


def test_what_is_done_is_not_done_again(monkeypatch):
    whole, _ = generated()
    calls = []
    compiled = engine.make_programs

    def counted(*arguments):
        def replaced(slots):
            def steps(*inner):
                calls.append(1)
                return compiled(*arguments)._replace(slots=slots).steps(*inner)

            return SimpleNamespace(steps=steps)

        return SimpleNamespace(_replace=replaced)

    monkeypatch.setattr(engine, "make_programs", counted)
    done = {(row["key"], row["sample"]) for row in whole[:6]}
    rest, ticks = generated(done=done)
    assert rest == whole[6:] and sum(ticks) == 4 and len(calls) < len([*by_length([1] * 10, 4)]) + 1
    assert generated(done={(row["key"], 0) for row in whole}) == ([], []) and len(calls) <= 3


def test_stops():
    assert cut_at_stop("12. Swali: mpya </s>", ("</s>", "Swali:")) == "12. "
    assert cut_at_stop("12", ("Swali:",)) == "12" and cut_at_stop("Swali:", ("Swali:",)) == ""
    stops = tuple({text[1] for text in (row["completion"] for row in generated()[0]) if len(text) > 1})
    rows, _ = generated([problem._replace(stops=stops) for problem in PROBLEMS])
    assert all(not any(stop in row["completion"] for stop in stops) for row in rows)
    assert any(not row["truncated"] and row["tokens"] == 8 for row in rows), "what a stop cut did not reach the limit"


def test_prompt_styles():
    given = PROBLEMS[0]._replace(prompt="Question: X\nAnswer:")
    bos = [] if tokenizer().bos_id is None else [tokenizer().bos_id]
    assert encode_prompts([given], tokenizer(), "benchmark") == [bos + tokenizer().encode("Question: X\nAnswer:")]
    assert encode_prompts([given], tokenizer(), "plain") == [bos + tokenizer().encode(f"{given.question}\n")]
    letter = given._replace(kind="letter")
    assert encode_prompts([letter], tokenizer(), "plain") == encode_prompts([given], tokenizer(), "benchmark")


# Choices.

CHOICES = [
    Problem("en/0", "en", "q", "Ali starts with", "A", "letter", "en", (" 10 bottles.", " 4", " more bottles and 7")),
    Problem("en/1", "en", "q", "How many", "B", "letter", "en", (" bottles", " more bottles are there?")),
    Problem("en/2", "en", "q", "The answer is ", "B", "letter", "en", (" 12.", "7")),
]


def summed_by_hand(context: str, choice: str) -> float:
    """Log-probs of the tokens behind the context's own, one forward pass of the whole text."""
    bos = [tokenizer().bos_id]
    whole, start = bos + tokenizer().encode(context + choice), len(bos + tokenizer().encode(context.rstrip()))
    tokens, mask = jnp.asarray([whole]), jnp.ones((1, len(whole)), bool)
    logits = jax.jit(functools.partial(causal_logits, spec=policy().spec))(
        policy().params, tokens_BT=tokens, mask_BT=mask
    )
    logp = np.asarray(jax.nn.log_softmax(logits[0]), np.float64)
    return sum(logp[i - 1, whole[i]] for i in range(start, len(whole)))


def scored(problems=CHOICES, done=(), **settings):
    rows = []
    score_choices(answering(**settings), problems, done, rows.extend, lambda count: None)
    return {row["key"]: row for row in rows}


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_sums_are_those_of_the_causal_model(batch_size):
    found = scored(batch_size=batch_size)
    for problem in CHOICES:
        expected = [summed_by_hand(problem.prompt, choice) for choice in problem.choices]
        np.testing.assert_allclose(found[problem.key]["logprobs"], expected, atol=2e-5)
    assert found["en/0"]["tokens"] == [len(tokenizer().encode(CHOICES[0].prompt + c)) - len(
        tokenizer().encode(CHOICES[0].prompt)) for c in CHOICES[0].choices]  # fmt: skip


def test_choices_go_on_where_they_stopped():
    whole = scored(batch_size=2)
    assert scored(batch_size=2, done={("en/0", 0)}) == {key: row for key, row in whole.items() if key != "en/0"}


def merging(bos_id: int | None = 1):
    """A tokenizer of pairs of letters: the end of a context merges with a choice."""
    pairs = copy.copy(tokenizer())
    pairs.bos_id = bos_id
    pairs.encode_batch = lambda texts: [
        [2 + sum(map(ord, text[i : i + 2])) for i in range(0, len(text), 2)] for text in texts
    ]
    return pairs


def test_a_context_whose_end_merges_with_a_choice():
    """`abc` is [ab][c]; `abcd` is [ab][cd] and `abce` [ab][ce]: what merged is context, as in the harness, but its last
    token is scored, or such a choice would have no score at all."""
    problem = CHOICES[0]._replace(prompt="abc", choices=("d", "efg"))
    found = continuations(problem, merging())
    assert found.prompt == [1, 2 + ord("a") + ord("b")]
    assert [len(tokens) for tokens in found.tokens] == [1, 2] and found.skip == [0, 1]


def test_choices_that_share_nothing():
    problem = CHOICES[0]._replace(prompt="", choices=("ab", "cd"))
    with pytest.raises(DataError, match="en/0 has no token that its choices share"):
        continuations(problem, merging(None))


@pytest.mark.serial
def test_devices_share_the_rows():
    """A batch of 6 becomes one of 8 rows on 8 devices: the same responses, the same sums."""
    mesh = make_mesh(MeshConfig())
    whole = jax.device_put(policy().params, NamedSharding(mesh, PartitionSpec()))
    shared = answering(mesh=mesh, batch_size=6)._replace(params=whole)
    rows, scores = [], []
    generate_responses(shared, PROBLEMS, (), rows.extend, lambda count: None)
    assert sorted(rows, key=str) == sorted(generated()[0], key=str)
    score_choices(shared, CHOICES, (), scores.extend, lambda count: None)
    for row in scores:
        np.testing.assert_allclose(row["logprobs"], scored()[row["key"]]["logprobs"], atol=2e-5)
    assert len(scores) == len(CHOICES)
