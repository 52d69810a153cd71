"""The fused step: finding the answer in tokens, the reward of the host path, and the same update."""

import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import largest_difference, quick_compiles, tiny_params  # noqa: F401
from tiny_world import (
    LANGUAGES,
    canonical_responses,
    encoder,
    policy,
    problem_prompts,
    reward_inputs,
    tokenizer,
)

from pbrl_jax import Config, OptimConfig, RewardConfig, with_values
from pbrl_jax.core.batching import pad_prompts
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.records import Rollout, TrainBatch
from pbrl_jax.data.sources import quickstart
from pbrl_jax.rewards.combine import RewardAssets, make_reward, make_token_reward
from pbrl_jax.rewards.language import token_gate
from pbrl_jax.rewards.tokens import PivotBatch, TokenInputs, TokenTables, answer_start, token_parts
from pbrl_jax.rollout.decode import completions
from pbrl_jax.rollout.generate import generate_samples
from pbrl_jax.rollout.sampling import sampling_params, step_key
from pbrl_jax.text.answers import split_response
from pbrl_jax.text.languages import LANGUAGES as KNOWN
from pbrl_jax.text.prompts import format_prompts
from pbrl_jax.text.token_languages import marker_tokens, token_language_table
from pbrl_jax.train.fused import check_fusable, make_fused_step
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.programs import make_update
from pbrl_jax.train.state import new_state

PHRASES = {code: KNOWN[code].answer_phrase.split("{")[0].strip() for code in LANGUAGES}
P, G, R, LENGTH, TOLERANCE = 4, 3, 40, 12, 1e-5
MAX_DIFFERING = {"sampled": 0.8, "edited": 0.2}
"""Shares of rows whose two rewards may differ: random tokens of a random policy, and right responses with one edit."""


def rows_of(ids_of_rows, width=R) -> Rollout:
    """Token lists as a rollout, with other tokens behind each length."""
    tokens = np.full((len(ids_of_rows), width), 5, np.int32)
    for row, ids in enumerate(ids_of_rows):
        tokens[row, : len(ids)] = ids
    lengths = jnp.asarray([len(ids) for ids in ids_of_rows], jnp.int32)
    return Rollout(jnp.asarray(tokens), lengths, jnp.zeros(tokens.shape), lengths == width)


def hand_tables(markers) -> TokenTables:
    return TokenTables(jnp.ones((len(markers), 20), bool), jnp.asarray(markers), jnp.asarray([2, 3]))


# The answer's place, with made-up tokens: the phrase is 7 8 (language 0) or 9 (language 1), the ends are 2 and 3.


@pytest.mark.parametrize(
    "tokens, length, marker, start",
    [
        ([4, 7, 8, 5, 2], 5, [7, 8], 1),
        ([7, 8, 4, 7, 8, 2], 6, [7, 8], 3),
        ([7, 8, 4, 7, 4, 2], 6, [7, 8], 0),
        ([4, 4, 7, 8], 4, [7, 8], 2),
        ([4, 4, 4, 7, 8, 4], 4, [7, 8], 6),
        ([4, 4, 4, 7], 4, [7, 8], 4),
        ([4, 4, 5, 2], 4, [7, 8], 4),
        ([9, 4, 9, 2], 4, [9, -1], 2),
        ([4, 4, 4, 9], 4, [9, -1], 3),
        ([4, 4, 4, 9], 3, [9, -1], 4),
    ],
    ids=["once", "the last of two", "a torn second", "at the end", "behind the length", "torn by the end", "none",
         "short marker", "short marker at the end", "short marker behind the length"],
)  # fmt: skip
def test_answer_start(tokens, length, marker, start):
    assert answer_start(jnp.asarray([tokens]), jnp.asarray([length]), jnp.asarray([marker])).tolist() == [start]


def no_pivots(language) -> PivotBatch:
    """Rows in these languages, without references."""
    none = jnp.zeros((len(language), 0))
    return PivotBatch(none, none, none, jnp.zeros(len(language), bool), language)


def masked(part) -> list[list[int]]:
    tokens, mask = (np.asarray(x) for x in part)
    return [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)]


def test_response_parts_split_before_the_phrase_and_leave_the_end_out():
    """A row in each language, one without a phrase, one truncated, one that is only its end."""
    rollout = rows_of([[4, 6, 7, 8, 11, 2], [4, 7, 8, 9, 11, 3], [4, 6, 2], [4, 9, 11, 12, 13, 14], [3]], width=6)
    language = jnp.asarray([0, 1, 0, 1, 0])
    tables = hand_tables([[7, 8], [9, -1]])
    inputs = TokenInputs(rollout.tokens_BR, rollout.lengths_B, no_pivots(language), tables, None)
    reasoning, answer = token_parts(inputs, "split")
    assert masked(reasoning) == [[4, 6], [4, 7, 8], [4, 6], [4], []]
    assert masked(answer) == [[7, 8, 11], [9, 11], [], [9, 11, 12, 13, 14], []]
    assert np.asarray(answer[1])[0].tolist() == [True, True, True, False, False, False], "moved to the front"
    (whole,) = token_parts(inputs, "whole")
    assert masked(whole) == [[4, 6, 7, 8, 11], [4, 7, 8, 9, 11], [4, 6], [4, 9, 11, 12, 13, 14], []]


# The reward on tokens against the reward on text.


@pytest.fixture(scope="module")
def allowed():
    known = quickstart.problems("sft", 100, 0, "small")
    return token_language_table(
        tokenizer(), {code: [quickstart.response(p, code) for p in known] for code in LANGUAGES}
    )


@pytest.fixture(scope="module")
def tables(allowed):
    return TokenTables(
        jnp.asarray(np.stack([allowed[code] for code in LANGUAGES])),
        jnp.asarray(marker_tokens(tokenizer(), PHRASES)),
        jnp.asarray(tokenizer().eos_ids),
    )


def device_pivots(prompts) -> PivotBatch:
    vectors = reward_inputs(prompts, [""] * len(prompts), encoder()).pivots
    language = jnp.asarray([LANGUAGES.index(p.language) for p in prompts])
    return PivotBatch(*(jnp.asarray(v, jnp.float32) for v in vectors[:3]), jnp.asarray(vectors.has_B), language)


def token_rewards(config: RewardConfig, encoder_params, rollout: Rollout, pivots: PivotBatch, tables):
    """The reward on the device, of rows with as many samples per prompt as there are."""
    score = make_token_reward(config, encoder().spec)

    def run(encoder_params, rollout, pivots, tables):
        rows = jax.tree.map(lambda x: jnp.repeat(x, len(rollout.lengths_B) // len(pivots.has_P), axis=0), pivots)
        return score(TokenInputs(rollout.tokens_BR, rollout.lengths_B, rows, tables, encoder_params))

    return jax.jit(run)(encoder_params, rollout, pivots, tables)


def both_paths(config: RewardConfig, prompts, rollout: Rollout, tables, allowed):
    """(Combined on the device, Combined on the host, texts) of rows with one sample per prompt."""
    fused = token_rewards(config, encoder().params, rollout, device_pivots(prompts), tables)
    texts = completions(rollout, tokenizer())
    inputs = reward_inputs(prompts, texts, encoder())._replace(
        tokens_BR=np.asarray(rollout.tokens_BR), lengths_B=np.asarray(rollout.lengths_B)
    )
    return fused, make_reward(config, RewardAssets(encoder(), LANGUAGES, allowed))(inputs), texts


def expect_parity(fused, host):
    np.testing.assert_allclose(fused.value_B, host.total.value_B, atol=TOLERANCE)
    np.testing.assert_array_equal(fused.valid_B, host.total.valid_B)
    cosine = host.each["cosine"]
    assert fused.each.keys() == host.each.keys()
    np.testing.assert_allclose(fused.each["cosine"].value_B, cosine.value_B, atol=TOLERANCE)
    for name in host.each.keys() - {"cosine"}:
        np.testing.assert_allclose(fused.each[name].value_B, host.each[name].value_B, atol=TOLERANCE)
        assert np.unique(host.each[name].value_B).size > 3
    parts = fused.each["cosine"].parts
    assert parts.keys() <= cosine.parts.keys()
    for name in parts:
        np.testing.assert_allclose(parts[name], cosine.parts[name], atol=TOLERANCE)


@pytest.mark.parametrize(
    "config",
    [
        RewardConfig(language_gate="tokens", answer_weight=0.3),
        RewardConfig(
            language_gate="off",
            parts="whole",
            functions=("cosine", "repetition"),
            reward_weights=(2.0, 0.5),
            repetition_ngram=1,
        ),
    ],
    ids=["split and gated", "whole, weight 2, and repetition"],
)
def test_canonical_responses_have_the_same_reward_on_both_paths(config, tables, allowed):
    """Right responses, the English one in their place, one without an answer, an empty one, a missing reference."""
    prompts = problem_prompts(10)
    texts = canonical_responses(10)
    texts[3] = texts[4]
    texts[7] = split_response(texts[7], prompts[7].language)[0]
    texts[10], prompts[13] = "", prompts[13]._replace(reference=None)
    rollout = rows_of([[*tokenizer().encode(text), *tokenizer().eos_ids] for text in texts])
    fused, host, decoded = both_paths(config, prompts, rollout, tables, allowed)
    assert decoded == texts
    expect_parity(fused, host)
    if config.language_gate == "tokens":
        np.testing.assert_array_equal(fused.right_language_B, host.right_language_B)
    assert host.total.valid_B.tolist() == [row != 13 for row in range(30)]
    assert host.total.value_B[10] == 0
    assert np.asarray(fused.right_language_B).tolist() == [row != 3 for row in range(30)]
    assert np.unique(np.round(fused.value_B, 4)).size > 15


def is_canonical(ids, text, language) -> bool:
    """Whether the sampled tokens are those that the host makes of the response's parts, and the answer is announced
    in the very words that the device looks for (the host takes "answer is" for "The answer is", too)."""
    parts = split_response(text, language)
    announced = not parts[1] or parts[1].startswith(PHRASES[language])
    return announced and [token for part in parts for token in tokenizer().encode(part)] == ids


def differing_share(name, prompts, rollout, tables, allowed) -> float:
    """Share of rows whose two values differ; rows with canonical tokens may not."""
    fused, host, texts = both_paths(RewardConfig(language_gate="off"), prompts, rollout, tables, allowed)
    ends = tokenizer().eos_ids
    sampled = [
        [int(token) for token in row[:length] if token not in ends]
        for row, length in zip(np.asarray(rollout.tokens_BR), np.asarray(rollout.lengths_B), strict=True)
    ]
    languages = [prompt.language for prompt in prompts]
    canonical = np.array([is_canonical(*row) for row in zip(sampled, texts, languages, strict=True)])
    assert canonical.any()
    np.testing.assert_allclose(fused.value_B[canonical], host.total.value_B[canonical], atol=TOLERANCE)
    differs = np.abs(np.asarray(fused.value_B) - np.asarray(host.total.value_B)) > TOLERANCE
    print(f"{name}: {differs.mean():.1%} of {len(differs)} rows differ, {1 - canonical.mean():.1%} are not canonical")
    inputs = reward_inputs(prompts, texts)._replace(
        tokens_BR=np.asarray(rollout.tokens_BR), lengths_B=np.asarray(rollout.lengths_B)
    )
    np.testing.assert_array_equal(fused.right_language_B, token_gate(inputs, allowed))
    return float(differs.mean())


def prompt_batch(prompts):
    ids = format_prompts([p.question for p in prompts], [p.language for p in prompts], tokenizer())
    return jax.tree.map(jnp.asarray, pad_prompts(ids, 64, [p.id for p in prompts], tokenizer().pad_id))


@pytest.fixture(scope="module")
def sampler():
    """(prompts, key) -> rollout of the tiny policy at temperature 1."""
    run = jax.jit(functools.partial(generate_samples, spec=policy().spec, samples=G, max_length=LENGTH))
    sampling = sampling_params(1.0, 1.0, 0, tokenizer().eos_ids)
    return lambda prompts, key: run(policy().params, prompts, key, sampling)


def test_the_share_of_sampled_rows_that_differ_is_known(sampler, tables, allowed):
    """Tokens of a random policy are seldom those that its text would be encoded to: this is the worst case."""
    prompts = problem_prompts(2)[:P]
    rollouts = [sampler(prompt_batch(prompts), step_key(0, step)) for step in range(16)]
    rollout = jax.tree.map(lambda *parts: jnp.concatenate(parts), *rollouts)
    rows = [prompt for prompt in prompts for _ in range(G)] * 16
    assert differing_share("sampled", rows, rollout, tables, allowed) <= MAX_DIFFERING["sampled"]


def test_the_share_of_edited_rows_that_differ_is_known(tables, allowed):
    """Right responses in which one token is replaced by another of the language, as a policy in training errs."""
    prompts, rng = problem_prompts(64), random.Random(0)
    rows = []
    for prompt, text in zip(prompts, canonical_responses(64), strict=True):
        ids = tokenizer().encode(text)
        ids[rng.randrange(len(ids))] = rng.choice(np.flatnonzero(allowed[prompt.language])[4:].tolist())
        rows.append([*ids, *tokenizer().eos_ids])
    assert differing_share("edited", prompts, rows_of(rows), tables, allowed) <= MAX_DIFFERING["edited"]


# The whole step.

OPTIM = {"learning_rate": 1e-2, "eps": 1e-2, "weight_decay": 0.1}
CONFIG = with_values(
    Config(),
    algo={"num_generations": G, "beta": 0.1},
    rollout={"max_completion_length": LENGTH},
    reward={"language_gate": "off"},
    encoder={"max_length": 64},
    optim=OPTIM,
    log={"entropy": False},
)


@pytest.fixture(scope="module")
def step_inputs(tables):
    prompts = problem_prompts(2)[:P]
    reference = tiny_params(policy().spec, seed=9)
    sampling = sampling_params(1.0, 1.0, 0, tokenizer().eos_ids)
    return (
        reference, encoder().params, prompt_batch(prompts), device_pivots(prompts), tables, sampling, step_key(0, 5)
    )  # fmt: skip


def fresh_state():
    return new_state(policy().params, make_optimizer(OptimConfig(**OPTIM)))


@pytest.fixture(scope="module")
def step():
    return make_fused_step(policy().spec, encoder().spec, CONFIG)


@pytest.fixture(scope="module")
def fused_outcome(step, step_inputs):
    """(the state before, what the step returned)."""
    state = fresh_state()
    return state, step(state, *step_inputs)


def test_the_fused_step_equals_its_parts(fused_outcome, step_inputs, sampler):
    before, (state, metrics, rollout, scores) = fused_outcome
    reference, encoder_params, prompts, pivots, tables, _, key = step_inputs
    apart = sampler(prompts, key)
    np.testing.assert_array_equal(apart.tokens_BR, rollout.tokens_BR)
    assert largest_difference(apart, rollout) <= TOLERANCE
    apart_scores = token_rewards(CONFIG.reward, encoder_params, apart, pivots, tables)
    assert largest_difference(apart_scores, scores) <= TOLERANCE
    batch = TrainBatch(prompts, apart, apart_scores.value_B, apart_scores.valid_B)
    copy = jax.tree.map(jnp.copy, before)
    apart_state, apart_metrics = make_update(policy().spec, CONFIG)(copy, reference, batch)
    assert largest_difference(apart_state, state) <= TOLERANCE
    assert metrics.keys() == apart_metrics.keys()
    for name in metrics:
        np.testing.assert_allclose(metrics[name], apart_metrics[name], rtol=1e-4, atol=TOLERANCE, err_msg=name)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, before.params)
    assert min(jax.tree.leaves(moved)) > 100 * TOLERANCE


def test_the_state_is_not_donated(fused_outcome):
    before, (state, *_) = fused_outcome
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert (int(before.step), int(state.step)) == (0, 1)
    assert largest_difference(before.params, policy().params) == 0


def test_rows_without_a_reference_do_not_move_the_policy(step, step_inputs):
    """All invalid: no reward, no KL, no gradient; only the decay of the weights is left."""
    pivots = step_inputs[3]
    blind = PivotBatch(pivots.whole_PE, pivots.reasoning_PE, pivots.answer_PE, jnp.zeros(P, bool), pivots.language_P)
    inputs = (*step_inputs[:3], blind, *step_inputs[4:])
    _, metrics, _, scores = step(fresh_state(), *inputs)
    assert not scores.valid_B.any()
    assert float(metrics["reward/invalid_share"]) == 1 and float(metrics["grad_norm"]) == 0


def test_everything_that_cannot_be_fused_is_named_at_once():
    check_fusable(CONFIG, shared_tokenizer=True)
    bad = with_values(
        CONFIG,
        reward={"functions": ("cosine", "answer"), "language_gate": "hard"},
        encoder={"prefix": "query: ", "max_length": LENGTH - 1},
        algo={"num_iterations": 2},
    )
    with pytest.raises(ConfigError) as found:
        check_fusable(bad, shared_tokenizer=False)
    for word in ("reward.functions", "language_gate hard", "different tokenizers", "'query: '", "encoder.max_length",
                 "num_iterations", "--train.no-fused"):  # fmt: skip
        assert word in str(found.value)
    with pytest.raises(ConfigError, match="encoder.prefix 'query: ' .the default prompt of the encoder's folder."):
        check_fusable(CONFIG, shared_tokenizer=True, prefix="query: ")
    terms = {"functions": ("cosine", "repetition", "overlong"), "reward_weights": (1.0, 0.2, 0.1)}
    check_fusable(with_values(CONFIG, reward=terms), shared_tokenizer=True)
    with pytest.raises(ConfigError, match="parts answer"):
        check_fusable(with_values(CONFIG, reward={"parts": "answer"}), shared_tokenizer=True)
    with pytest.raises(ConfigError, match="reward_weights 0"):
        check_fusable(with_values(CONFIG, reward={"reward_weights": (0.0,)}), shared_tokenizer=True)
