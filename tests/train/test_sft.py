"""Supervised fine-tuning: the loss by plain causal cross-entropy, a task learned by heart, which rows a batch has."""

import dataclasses
import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import (
    full_rows,
    largest_difference,
    quick_compiles,  # noqa: F401
    tiny_params,
    tiny_prompts,
    tiny_rollout,
    tiny_spec,
)

from pbrl_jax import SftConfig
from pbrl_jax.models.decoder import causal_logits
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.sft import (
    SftBatch,
    gradient_step,
    make_sft_step,
    mixed_rows,
    pad_sft,
    pool_counts,
    sft_optimizer_config,
    sft_sums,
)
from pbrl_jax.train.sft_packing import assign_streams, pack_rows
from pbrl_jax.train.state import new_state

SPEC = tiny_spec()
LENGTHS = (6, 1, 4, 3)


def sft_loss(params, batch, **options):
    """The mean over all response tokens."""
    total, (count, _) = sft_sums(params, batch, **options)
    return total / count


@pytest.fixture(scope="module")
def batch():
    rollout = tiny_rollout(SPEC, LENGTHS, 6)
    return SftBatch(tiny_prompts(SPEC, (5, 2, 4, 3), 5), rollout.tokens_BR, rollout.lengths_B)


def test_the_loss_is_the_cross_entropy_of_whole_rows(batch):
    """Each row as one text under a causal model; only response tokens count, each the same."""
    params = tiny_params(SPEC)
    tokens, mask, starts = full_rows(batch.prompts, tiny_rollout(SPEC, LENGTHS, 6))
    logits = np.asarray(causal_logits(params, SPEC, tokens, mask), np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = [
        -logp[b, start + t - 1, tokens[b, start + t]]
        for b, (start, length) in enumerate(zip(starts, LENGTHS, strict=True))
        for t in range(length)
    ]
    assert len(losses) == 14
    found = jax.jit(functools.partial(sft_loss, spec=SPEC, chunk=8))(params, batch)
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-5)


def test_a_small_task_is_learned_by_heart(batch):
    """Four rows, 60 steps: from above chance to almost none; skipped nothing, counted every step."""
    config = SftConfig(steps=60, warmup_steps=5, learning_rate=3e-2)
    optim = sft_optimizer_config(config)
    step = make_sft_step(SPEC, optim, 64)
    state = new_state(tiny_params(SPEC), make_optimizer(optim))
    losses = []
    for _ in range(config.steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[0] > np.log(SPEC.vocab_size) > 1 > 0.05 > losses[-1]
    assert (int(state.step), int(state.skipped)) == (60, 0)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted():
    optimizer = make_optimizer(sft_optimizer_config(SftConfig(steps=4, warmup_steps=0)))
    state = new_state({"a": jnp.ones(3), "b": jnp.ones(2)}, optimizer)
    good = {"a": jnp.ones(3), "b": jnp.ones(2)}
    after = gradient_step(state, {"a": jnp.ones(3), "b": jnp.array([1.0, jnp.nan])}, optimizer)
    assert (int(after.step), int(after.skipped)) == (1, 1)
    assert all(bool((x == 1).all()) for x in after.params.values())
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), after.opt_state, state.opt_state))
    moved = gradient_step(after, good, optimizer)
    assert (int(moved.step), int(moved.skipped)) == (2, 1)
    assert all(bool((x < 1).all()) for x in moved.params.values())


def test_a_short_stage_has_a_short_warm_up():
    assert sft_optimizer_config(SftConfig(steps=300, warmup_steps=20)).warmup_steps == 20
    assert sft_optimizer_config(SftConfig(steps=6, warmup_steps=20)).warmup_steps == 3


@pytest.mark.parametrize(
    "shares, size, counts",
    [
        ({"a": 0.6, "b": 0.2, "c": 0.2}, 64, {"a": 38, "b": 13, "c": 13}),
        ({"a": 0.6, "b": 0.2, "c": 0.2}, 10, {"a": 6, "b": 2, "c": 2}),
        ({"a": 0.5, "b": 0.3, "c": 0.2}, 3, {"a": 1, "b": 1, "c": 1}),
        ({"a": 1.0}, 7, {"a": 7}),
        ({"a": 0.9, "b": 0.1}, 1, {"a": 1, "b": 0}),
    ],
)
def test_pool_counts_by_largest_remainder(shares, size, counts):
    assert pool_counts(shares, size) == counts


def test_every_row_of_every_pool_is_used_once_per_epoch():
    """Pools of 10 and 6 in batches of 4 + 3: after 5 steps two epochs of the first, after 4 two of the second."""
    sizes, counts = {"a": 10, "b": 6}, {"a": 4, "b": 3}
    batches = [mixed_rows(sizes, counts, seed=7, step=step) for step in range(10)]
    assert all(Counter(name for name, _ in rows) == counts for rows in batches)
    for name, size in sizes.items():
        walked = [row for rows in batches for pool, row in rows if pool == name]
        epochs = [walked[start : start + size] for start in range(0, len(walked), size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1, "every epoch in the same order"


def test_a_batch_is_a_function_of_seed_and_step():
    sizes, counts = {"a": 50, "b": 60}, {"a": 4, "b": 3}
    assert mixed_rows(sizes, counts, 1, 9) == mixed_rows(sizes, counts, 1, 9)
    assert mixed_rows(sizes, counts, 1, 9) != mixed_rows(sizes, counts, 2, 9)
    assert mixed_rows(sizes, counts, 1, 9) != mixed_rows(sizes, counts, 1, 8)


def test_a_pool_smaller_than_its_share_of_a_batch_starts_over():
    rows = [row for _, row in mixed_rows({"a": 3}, {"a": 7}, 0, 0)]
    assert sorted(rows[:3]) == sorted(rows[3:6]) == [0, 1, 2]


def test_pad_sft_by_hand():
    batch = pad_sft([[5, 6], [7]], [[8, 2], [9, 4, 2]], 3, 4)
    assert batch.prompts.tokens_PT.tolist() == [[5, 6, 0], [7, 0, 0]]
    assert batch.prompts.lengths_P.tolist() == [2, 1] and batch.prompts.row_ids_P.tolist() == [0, 1]
    assert batch.tokens_BR.tolist() == [[8, 2, 0, 0], [9, 4, 2, 0]] and batch.lengths_B.tolist() == [2, 3]


def float64_params():
    return tiny_params(SPEC, dtype=np.float64)


def test_packed_rows_give_the_same_loss_and_gradient():
    """Seven ragged rows in streams of 11 tokens against one padded row each, in float64."""
    rng = np.random.default_rng(4)
    sizes = [(5, 6), (2, 1), (4, 4), (3, 3), (1, 6), (2, 2), (1, 1)]
    prompts, responses = ([rng.integers(1, 61, size[i]).tolist() for size in sizes] for i in (0, 1))
    packed = pack_rows(prompts, responses, 11)
    with jax.enable_x64(True):
        spec = dataclasses.replace(SPEC, dtype="float64")
        loss = jax.value_and_grad(functools.partial(sft_loss, spec=spec, chunk=8))
        whole, whole_grads = jax.jit(loss)(float64_params(), pad_sft(prompts, responses, 5, 6))
        found, grads = jax.jit(loss)(float64_params(), packed)
        assert whole.dtype == jnp.float64
        np.testing.assert_allclose(found, whole, rtol=1e-12)
        assert largest_difference(grads, whole_grads) < 1e-12
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole_grads)) > 1e-4


def test_streams_by_hand():
    """Longest first into the first with room: 7 + 3, 6 + 2 + 2, 5."""
    assert assign_streams([2, 7, 3, 6, 5, 2], 10) == [[1, 2], [3, 0, 5], [4]]


def test_packed_rows_by_hand():
    """Two rows in one stream: tokens, positions that start over, the places of response tokens."""
    rows = pack_rows([[7, 8], [9]], [[1, 2], [3, 4]], 8)
    assert rows.tokens_XL.shape == (8, 8) and rows.used_XM.shape == (8, 8)
    assert rows.tokens_XL[0].tolist() == [7, 8, 1, 2, 9, 3, 4, 0]
    assert rows.position_XL[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0]
    assert rows.segment_XL[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 0]
    assert rows.slot_XM[0][rows.used_XM[0]].tolist() == [2, 3, 5, 6] and not rows.used_XM[1:].any()
