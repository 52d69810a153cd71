"""The engine: answers are those of the plain rollout in any batches and order, scores those of the whole logits."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import compilations, quick_compiles  # noqa: F401
from tiny_world import policy, tokenizer

from pbrl_jax.core.batching import pad_prompts
from pbrl_jax.core.errors import DataError
from pbrl_jax.models.specs import Llama3Scaling
from pbrl_jax.rollout import engine as module
from pbrl_jax.rollout.engine import Answer, Continuations, Engine, Sampling
from pbrl_jax.rollout.generate import generate_samples
from pbrl_jax.rollout.refill import Interrupted
from pbrl_jax.rollout.sampling import sampling_params, step_key
from pbrl_jax.rollout.slots import slot_programs

R, LONGEST = 9, 80
SAMPLED = Sampling(R, temperature=1.0, samples=2, seed=3)
LENGTHS = (3, 40, 17, 16, 5, 33, 60, 18, 1)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Random ids in three length buckets."""
    rng = np.random.default_rng(0)
    return [rng.integers(3, policy().spec.vocab_size, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def direct():
    """(prompts, ids, sampling) -> the answers of one traced rollout of all prompts, padded to one length."""
    run = jax.jit(functools.partial(generate_samples, spec=policy().spec, samples=2, max_length=R))

    def answers(prompts, ids, sampling: Sampling) -> list[Answer]:
        batch = jax.tree.map(jnp.asarray, pad_prompts(prompts, LONGEST, ids))
        settings = sampling_params(sampling.temperature, sampling.top_p, sampling.top_k, tokenizer().eos_ids)
        rollout = jax.device_get(run(policy().params, batch, step_key(sampling.seed, 0), settings))
        found = []
        for row, length, logp, cut in zip(
            rollout.tokens_BR, rollout.lengths_B, rollout.logp_BR, rollout.truncated_B, strict=True
        ):
            ids = row[:length].tolist()
            text = tokenizer().decode(ids[:-1] if ids[-1] in tokenizer().eos_ids else ids)
            found.append(Answer(ids, logp[:length].tolist(), bool(cut), text))
        return found

    return answers


def assert_same(found: list[Answer], expected: list[Answer]) -> None:
    """The same tokens, marks and texts; log-probs but for rounding."""
    assert [answer._replace(logp=None) for answer in found] == [answer._replace(logp=None) for answer in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logp, other.logp, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
@pytest.mark.parametrize("sampling", [SAMPLED, SAMPLED._replace(temperature=0.7, top_p=0.9, top_k=20, seed=4)])
def test_answers_are_those_of_a_rollout(batch_size, sampling, prompts, direct):
    """Two samples of each prompt, in any batches; ids stay with their prompts when the order changes."""
    ids = list(range(100, 100 + len(prompts)))
    expected, engine = direct(prompts, ids, sampling), Engine.of(policy(), batch_size)
    ticks = []
    assert_same(engine.answer(prompts, sampling, ids, ticks.append), expected)
    assert sum(ticks) == len(prompts) and max(ticks) <= batch_size
    backwards = engine.answer(prompts[::-1], sampling, ids[::-1])
    pairs = [expected[i : i + 2] for i in range(0, len(expected), 2)]
    assert_same(backwards, [answer for pair in pairs[::-1] for answer in pair])
    assert len({tuple(answer.tokens) for answer in expected}) > len(prompts), "samples differ"


def test_without_ids_a_prompt_has_the_one_of_its_place(prompts, direct):
    assert_same(Engine.of(policy(), 4).answer(prompts, SAMPLED), direct(prompts, range(len(prompts)), SAMPLED))
    assert Engine.of(policy()).answer([], SAMPLED) == []


def test_parameters_can_be_replaced(prompts):
    engine = Engine.of(policy(), 4)
    other = engine._replace(params=jax.tree.map(lambda x: x * 1.1, engine.params))
    greedy = Sampling(R)
    assert other.answer(prompts, greedy) != engine.answer(prompts, greedy) == engine.answer(prompts, greedy)


def test_batches_go_on_where_they_stopped(prompts):
    """Only batches with a wanted prompt run, and they are the batches of the whole."""
    engine = Engine.of(policy(), 4)
    whole = list(engine.answer_batches(prompts, SAMPLED))
    assert sorted(row for rows, _ in whole for row in rows) == list(range(len(prompts)))
    assert all(len(answers) == 2 * len(rows) for rows, answers in whole)
    first = set(whole[0][0]) | set(whole[1][0])
    rest = list(engine.answer_batches(prompts, SAMPLED, wanted=set(range(len(prompts))) - first))
    assert rest == whole[2:]
    assert list(engine.answer_batches(prompts, SAMPLED, wanted=set())) == []


def test_an_answer_as_it_grows(prompts):
    engine, sampling = Engine.of(policy()), SAMPLED._replace(samples=1)
    grown = list(engine.stream(prompts[1], sampling, 2))
    (whole,) = engine.answer(prompts[1:2], sampling)
    assert_same(grown[-1:], [whole])
    length = len(whole.tokens)
    assert [len(answer.tokens) for answer in grown] == [*range(1, length, 2), length] and length > 3
    assert all(answer.tokens == whole.tokens[: len(answer.tokens)] for answer in grown)


def test_a_stop_between_two_segments(prompts, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT_LENGTH", 3)
    engine, looks = Engine.of(policy(), 4), itertools.count()
    short, batches = [prompts[0], prompts[4]], []
    with pytest.raises(Interrupted):
        for rows, _ in engine.answer_batches(prompts, SAMPLED, should_stop=lambda: next(looks) == 4):
            batches.append(rows)
    assert batches == [sorted((8, 0, 4, 3), key=lambda row: LENGTHS[row])], "what had finished was given out"
    assert engine.answer(short, SAMPLED, should_stop=lambda: False) == engine.answer(short, SAMPLED)


def test_prompts_that_are_refused(prompts):
    with pytest.raises(DataError, match="40 tokens, expected 1 to 20"):
        Engine.of(policy())._replace(max_prompt_length=20).answer([prompts[0], prompts[1]], SAMPLED)
    with pytest.raises(DataError, match="0 tokens"):
        Engine.of(policy()).answer([[]], SAMPLED)


# Scores.


@pytest.fixture(scope="module")
def by_hand():
    """(ids, first scored place) -> (summed log-prob in float64, whether all are the likeliest), by the whole logits."""
    logits = jax.jit(policy().logits)

    def one(ids, start):
        tokens = jnp.asarray([ids + [0] * (2 * LONGEST - len(ids))])
        found = logits(policy().params, tokens, jnp.arange(2 * LONGEST)[None] < len(ids))[0]
        logp = np.asarray(found, np.float64)
        logp -= np.log(np.exp(logp - logp.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)) + logp.max(
            axis=1, keepdims=True
        )
        places = range(start - 1, len(ids) - 1)
        return sum(logp[n, ids[n + 1]] for n in places), all(logp[n].argmax() == ids[n + 1] for n in places)

    return one


@pytest.mark.parametrize("batch_size, chunk", [(3, 4), (32, 256)])
def test_scores_are_sums_of_the_whole_logits(batch_size, chunk, prompts, by_hand, monkeypatch):
    """Continuations of 1 to 60 tokens, one of none, and the greedy one, in chunks of few and of many positions."""
    monkeypatch.setattr(module, "LOGITS_CHUNK", chunk)
    module.compiled_scores.cache_clear()
    engine, ticks = Engine.of(policy(), batch_size), []
    (greedy,) = engine.answer(prompts[:1], Sampling(3))
    contexts, texts = [*prompts, prompts[2], prompts[0]], [*prompts[::-1], [], greedy.tokens]
    found = engine.score(contexts, texts, ticks.append)
    for context, text, likelihood in zip(contexts, texts, found, strict=True):
        expected = by_hand([*context, *text], len(context))
        np.testing.assert_allclose(likelihood.logp, expected[0], rtol=1e-6, atol=1e-5)
        assert (likelihood.greedy, likelihood.tokens) == (expected[1], len(text))
    assert found[-1].greedy and not found[0].greedy and found[-2] == (0.0, True, 0)
    assert sum(ticks) == len(texts) - 1
    module.compiled_scores.cache_clear()


def test_several_continuations_of_one_prompt(prompts, by_hand):
    """Each row has its own number of them; the first tokens of some are context. Batches go on where they stopped."""
    asked = [
        Continuations(prompts[0], [prompts[2], prompts[4], prompts[8]], [2, 0, 0]),
        Continuations(prompts[1], [prompts[4]], [1]),
        Continuations(prompts[3], [prompts[0], prompts[6]], [0, 59]),
    ]
    engine = Engine.of(policy(), 2)
    whole = list(engine.score_batches(asked))
    found = {row: scores for rows, batch in whole for row, scores in zip(rows, batch, strict=True)}
    assert [len(found[row]) for row in range(3)] == [3, 1, 2]
    for row, (prompt, texts, skips) in enumerate(asked):
        for likelihood, text, skip in zip(found[row], texts, skips, strict=True):
            expected = by_hand([*prompt, *text], len(prompt) + skip)
            np.testing.assert_allclose(likelihood.logp, expected[0], rtol=1e-6, atol=1e-5)
            assert (likelihood.greedy, likelihood.tokens) == (expected[1], len(text) - skip)
    assert list(engine.score_batches(asked, wanted={1})) == [batch for batch in whole if 1 in batch[0]]
    assert list(engine.score_batches([])) == [] and engine.score([], []) == []


# Programs.


def test_mixed_lengths_take_few_programs(caplog):
    """Prompts of every length up to 64 and continuations up to 32 need a prefill for each of three padded
    lengths, one segment, and a scorer for each pair of lengths; other lengths within these compile nothing."""
    rng = np.random.default_rng(1)

    def rows(longest):
        return [rng.integers(3, 60, length).tolist() for length in rng.permutation(np.arange(1, longest + 1))]

    slot_programs.cache_clear()
    engine, sampling = Engine.of(policy(), 4), Sampling(6, temperature=1.0)
    engine.answer(rows(64), sampling)
    programs = module.make_programs(policy().spec, 1, 6, module.SEGMENT_LENGTH, "auto").programs
    assert (programs.start._cache_size(), programs.segment._cache_size()) == (3, 1)
    module.compiled_scores.cache_clear()
    contexts, texts = rows(64), rows(32)
    engine.score(contexts, texts + texts)
    scorer = module.compiled_scores(policy().spec, 1)
    assert scorer._cache_size() <= 6
    with compilations(caplog) as found:
        engine.answer(rows(60), sampling._replace(temperature=0.3, top_p=0.5, seed=9))
        engine.score(contexts, texts[::-1] + texts[::-1])
    assert not found


def test_what_exceeds_the_models_positions_is_refused(prompts):
    """A prompt and its response together, in tokens; the longest that fits runs."""
    small = policy()._replace(kept={"max_position_embeddings": 60 + R - 1})
    engine = Engine.of(small, 4)
    message = f"A prompt of 60 tokens and a response of {R} are more than the {60 + R - 1} positions"
    with pytest.raises(DataError, match=message):
        engine.answer(prompts, SAMPLED)
    with pytest.raises(DataError, match=message):
        next(engine.stream(prompts[6], SAMPLED, 4))
    with pytest.raises(DataError, match=message):
        engine.score(prompts, [[5] * R] * len(prompts))
    assert len(engine._replace(positions=60 + R).answer(prompts[6:7], SAMPLED)) == 2
    assert engine._replace(positions=0).score(prompts[6:7], [[5] * R])[0].tokens == R


def test_positions_count_a_linear_scaling():
    """As vLLM counts them: Llama 3.1 and Gemma 3 name the scaled length in their config.json already."""
    base = policy()._replace(kept={"max_position_embeddings": 100})
    assert (policy().positions, base.positions) == (0, 100)
    for changes, expected in (
        ({"rope_factor": 4.0}, 400),
        ({"rope_scaling": Llama3Scaling()}, 100),
        ({"rope_factor": 8.0, "local_rope_theta": 1e4}, 100),
    ):
        assert base._replace(spec=dataclasses.replace(base.spec, **changes)).positions == expected
