"""Microbatches of groups of equal length, each in a bucket of its own: the plan, its cost, and the updates it makes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import (
    largest_difference,
    quick_compiles,  # noqa: F401
    tiny_batch,
    tiny_config,
    tiny_params,
    tiny_spec,
)

from pbrl_jax import OptimConfig, with_values
from pbrl_jax.models.packing import Bucket, fits, packed_buckets, slot_cost
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.train.microbatches import ChosenBuckets, Packing, packing_of, plan_microbatches
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.packed import PackedUpdate, make_policy_update, make_rows
from pbrl_jax.train.programs import (
    batch_targets,
    make_logprobs,
    minibatch_rows,
    policy_logp,
    update_context,
    update_minibatch,
)
from pbrl_jax.train.state import new_state
from pbrl_jax.train.trained import Frozen

SPEC = tiny_spec()
P, G, R = 4, 3, 6
LENGTHS = (6, 6, 5, 2, 1, 1, 2, 3, 5, 1, 3, 2)
OPTIM = dataclasses.asdict(OptimConfig(learning_rate=1e-2, eps=1e-2))
CONFIG = tiny_config(G, R, algo={"beta": 0.1}, optim=OPTIM, train={"logprob_chunk": 32, "prompts_per_step": P})
PACKING = Packing(2, (Bucket(1, 8), Bucket(2, 8), Bucket(G, R)))

LLAMA_8B = DecoderSpec(
    vocab_size=128_256, width=4096, layers=32, heads=32, kv_heads=8, head_dim=128, ffn=14_336, rope_theta=5e5
)
#: (mean, spread) of lognormal lengths as shares of the longest.
LENGTH_SHARES = ((0.1, 0.6), (0.2, 0.6), (0.3, 0.6), (0.4, 0.5), (0.5, 0.5))


def long_tailed(groups: int, samples: int, longest: int, mean: float, spread: float, rng) -> np.ndarray:
    """Lognormal lengths, half of their variance between the prompts; [P, G]."""
    of_prompt_P1 = rng.normal(0, spread * 0.7, (groups, 1))
    logs = np.log(mean * longest) - spread**2 / 2 + of_prompt_P1 + rng.normal(0, spread * 0.7, (groups, samples))
    return np.clip(np.exp(logs), 1, longest).astype(int)


def test_plan_by_hand():
    """Tokens 17, 4, 10, 6: groups 1 and 3 in a stream of 8; then groups 2 and 0, which does not fit two such."""
    lengths_XG = np.reshape(LENGTHS, (P, G))
    short, long = plan_microbatches(lengths_XG, PACKING)
    assert (short.groups.tolist(), short.bucket) == ([1, 3], (1, 8))
    assert (long.groups.tolist(), long.bucket) == ([2, 0], (G, R))
    (chosen,) = plan_microbatches(lengths_XG, PACKING, np.array([2, 3]))
    assert (chosen.groups.tolist(), chosen.bucket) == ([3, 2], (2, 8))


@pytest.mark.parametrize(
    "idle, expected",
    [([2, 3], [[1, 0]]), ([2], [[1, 3], [2, 0]]), ([1, 3], [[2, 0]]), ([0, 2, 3], [[1, 3]]), ([0, 1, 2, 3], [[1, 3]])],
)
def test_groups_without_a_token_in_the_loss_are_left_out(idle, expected):
    """Tokens 17, 4, 10, 6; the shortest of the idle groups fill the last microbatch."""
    plan = plan_microbatches(np.reshape(LENGTHS, (P, G)), PACKING, idle_X=np.isin(np.arange(P), idle))
    assert [part.groups.tolist() for part in plan] == expected


@pytest.mark.parametrize("mean, spread", LENGTH_SHARES)
def test_slots_follow_the_tokens(mean, spread):
    """At most 1.35 slots for a token; 64 prompts of 8 rows of at most 2,048 tokens."""
    groups, samples, longest = 64, 8, 2048
    config = tiny_config(samples, longest, train={"prompts_per_step": groups, "packed": True})
    packing, rng, slots, tokens = packing_of(LLAMA_8B, config, 1), np.random.default_rng(0), 0, 0
    for _ in range(20):
        lengths_PG = long_tailed(groups, samples, longest, mean, spread, rng)
        plan = plan_microbatches(lengths_PG, packing)
        assert sorted(np.concatenate([part.groups for part in plan])) == list(range(groups))
        slots += sum(len(part.groups) * part.bucket.slots for part in plan)
        tokens += lengths_PG.sum()
    assert 1 <= slots / tokens <= 1.35


def test_no_bucket_costs_more_than_unpacked():
    """Whatever share attention has: at 8,192 tokens, in models of any width."""
    for spec in (LLAMA_8B, SPEC, tiny_spec(width=256, ffn=512)):
        for samples in (2, 3, 8, 16):
            cost = slot_cost(spec, 1024)
            *buckets, unpacked = packed_buckets(samples, 8192, cost)
            assert buckets and all(cost.of(bucket) < cost.of(unpacked) for bucket in buckets)
            assert [cost.of(bucket) for bucket in buckets] == sorted(cost.of(bucket) for bucket in buckets)


def test_what_is_packed():
    """Microbatches divide a batch, have rows of every device, and fill the devices; small batches are not packed."""

    def packing(prompts, shards=1, samples=8, longest=2048, **train):
        config = tiny_config(samples, longest, train={"prompts_per_step": prompts, "packed": True, **train})
        return packing_of(LLAMA_8B, config, shards)

    assert packing(64).size == 4 and packing(64, shards=8).size == 8 and packing(24, shards=4).size == 4
    assert packing(64, microbatch_prompts=2).size == 2 and packing(64, longest=64).size == 4
    assert packing(64, microbatch_samples=2, microbatch_prompts=16).size == 16
    assert packing(4, longest=16) is None and packing(64, packed=False) is None
    quickstart = tiny_config(8, 24, train={"prompts_per_step": 32, "packed": True})
    assert packing_of(LLAMA_8B, quickstart, 1).size == 8 and packing_of(LLAMA_8B, quickstart, 1, traced=True) is None
    assert packing(64, longest=64).buckets[-1] == (8, 64) and len(packing(64, longest=64).buckets) == 5
    skipping = with_values(quickstart, algo={"mask_zero_std_groups": True})
    assert packing_of(LLAMA_8B, skipping, 1, traced=True) == Packing(8, (Bucket(8, 24),))
    assert packing_of(LLAMA_8B, with_values(skipping, train={"prompts_per_step": 4}), 1, traced=True) is None


@pytest.mark.parametrize("samples, part", [(6, 3), (10, 5), (12, 4), (16, 8), (24, 6), (32, 8)])
def test_parts_of_groups_have_buckets_of_their_own(samples, part):
    """Groups taken apart are packed in streams of a part: short and long responses find their bucket."""
    train = {"packed": True, "prompts_per_step": 64, "microbatch_samples": part, "microbatch_prompts": 64}
    packing = packing_of(SPEC, tiny_config(samples, 16, train=train), 1)
    for length in (1, 5, 8, 16):
        lengths_XG, tokens = np.full((64 * samples // part, part), length), 0
        for index, bucket in plan_microbatches(lengths_XG, packing):
            assert fits(lengths_XG[index], bucket).all()
            tokens += lengths_XG[index].sum()
        assert tokens == 64 * samples * length


@functools.cache
def first_setting():
    batch = tiny_batch(SPEC, (5, 2, 4, 3), 5, LENGTHS, R)
    state, frozen = new_state(tiny_params(SPEC), make_optimizer(CONFIG.optim)), Frozen(tiny_params(SPEC, seed=9))
    return state, frozen, batch, batch_targets(state, frozen, batch, update_context(SPEC, CONFIG))


def setting():
    """(state, frozen, batch, targets) of an update with a reference; copies, since updates take the state."""
    return jax.tree.map(jnp.copy, first_setting())


@pytest.fixture(scope="module")
def whole():
    """(state, metrics) of the unpacked update."""
    state, *rest = setting()
    return jax.jit(lambda *args: update_minibatch(*args, update_context(SPEC, CONFIG)))(state, *rest)


def expect_same(found, expected):
    assert largest_difference(found[0], expected[0]) <= 1e-6
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_packed_microbatches_equal_the_whole_batch(whole):
    expect_same(PackedUpdate(SPEC, CONFIG, PACKING)(*setting()), whole)


def test_a_traced_step_chooses_its_buckets(whole):
    context = update_context(SPEC, CONFIG)._replace(packed=ChosenBuckets(PACKING))
    expect_same(jax.jit(lambda *args: update_minibatch(*args, context))(*setting()), whole)


def without_groups(*idle):
    """`setting` with no token of some groups in the loss, and the update that computes all groups."""
    state, frozen, batch, targets = setting()
    busy_B = ~np.isin(np.arange(P * G) // G, idle)
    targets = dataclasses.replace(targets, mask_BR=targets.mask_BR & busy_B[:, None])
    return state, frozen, batch, targets


@pytest.fixture(scope="module")
def skipping():
    """Updates that may leave groups out: of the whole batch, from the host, traced; and the context of the third."""
    config, packing = with_values(CONFIG, algo={"mask_zero_std_groups": True}), Packing(1, (Bucket(G, R),))
    context = update_context(SPEC, config)
    packed = context._replace(packed=ChosenBuckets(packing))
    whole, traced = (jax.jit(functools.partial(update_minibatch, context=one)) for one in (context, packed))
    return whole, PackedUpdate(SPEC, config, packing), traced, packed


@pytest.mark.parametrize("idle", [(1, 2), (0, 1, 2, 3)])
def test_groups_that_are_left_out_would_add_nothing(idle, skipping):
    """Host and traced updates compute the microbatches of the others alone; the sums are those of all groups."""
    whole, host, traced, packed = skipping
    expected = whole(*without_groups(*idle))
    expect_same(host(*without_groups(*idle)), expected)
    expect_same(traced(*without_groups(*idle)), expected)
    _, _, batch, targets = without_groups(*idle)
    rows, one = (batch, targets), lambda rows, context: jnp.int32(1)
    assert packed.packed.sums(one, rows, packed, jnp.add) == P - len(idle)


def test_packed_minibatches(monkeypatch):
    """Every microbatch is of the groups whose turn it is, those that one program would take."""
    config, seen = with_values(CONFIG, algo={"minibatch_prompts": 2}), []
    update = PackedUpdate(SPEC, config, PACKING._replace(size=1))
    monkeypatch.setattr(update, "_zeros", lambda: 0)

    class Adds:
        def prepare(self, args, needed):
            seen.append([])

        def __call__(self, sums, *args, bucket):
            seen[-1] += args[-1].tolist()
            return sums + 1

    class Applies:
        def prepare(self, args, needed):
            pass

        def __call__(self, state, batch, targets, sums):
            return sums

    monkeypatch.setattr(update, "_add", Adds())
    monkeypatch.setattr(update, "_apply", Applies())
    state, frozen, batch, targets = setting()
    batch = dataclasses.replace(batch, prompts=dataclasses.replace(batch.prompts, row_ids_P=jnp.arange(P)))
    for step in range(3):
        state = dataclasses.replace(state, step=jnp.int32(step))
        assert update(state, frozen, batch, targets) == 2
        rows, _ = minibatch_rows(state, batch, targets, config)
        assert sorted(seen[-1]) == sorted(rows.prompts.row_ids_P.tolist())
    assert sorted(seen[0] + seen[1]) == list(range(P))


def test_packed_rows_lie_where_their_groups_are(monkeypatch):
    state, frozen, batch, _ = setting()
    expected = np.where(batch.sampled_BR, make_logprobs(SPEC, CONFIG)(state, frozen, batch), 0)
    monkeypatch.setattr("pbrl_jax.train.packed.packing_of", lambda *_: PACKING)
    found = make_rows(SPEC, CONFIG, policy_logp)(state, frozen, batch)
    np.testing.assert_allclose(np.where(batch.sampled_BR, found, 0), expected, rtol=1e-6, atol=1e-6)


def test_parts_of_groups_are_packed(whole):
    """microbatch_samples 1: a group is one row, and none is packed beside another."""
    config = with_values(CONFIG, train={"microbatch_samples": 1, "microbatch_prompts": 4})
    packing = Packing(4, (Bucket(1, 3), Bucket(1, R)))
    expect_same(PackedUpdate(SPEC, config, packing)(*setting()), whole)


def test_small_runs_have_one_program():
    settings = {"prompts_per_step": 4, "packed": True}
    assert isinstance(make_policy_update(SPEC, tiny_config(8, 64, train=settings)), PackedUpdate)
    assert not isinstance(make_policy_update(SPEC, tiny_config(4, 16, train=settings)), PackedUpdate)
