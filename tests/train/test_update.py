"""The update: microbatches, packing, invalid rows, updates that are skipped, donation, compilations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import (
    array_sizes,
    largest_difference,
    quick_compiles,  # noqa: F401
    tiny_batch,
    tiny_config,
    tiny_params,
    tiny_spec,
)

from pbrl_jax import OptimConfig, with_values
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.trees import split_microbatches
from pbrl_jax.models.packing import Bucket, fits
from pbrl_jax.train import programs
from pbrl_jax.train.metrics import read_metrics
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.programs import batch_metrics, make_update, minibatches, update_step, updates_per_rollout
from pbrl_jax.train.start import new_critic
from pbrl_jax.train.state import new_state
from pbrl_jax.train.trained import Frozen, Trained
from pbrl_jax.train.update import Targets, apply_gradient, loss_mask

SPEC = tiny_spec()
P, G, R = 4, 3, 6
LENGTHS = (6, 1, 4, 2, 2, 3, 5, 6, 1, 3, 3, 3)
BUCKET = Bucket(1, 16)
#: A large epsilon keeps Adam from dividing a rounding error by a rounding error.
OPTIM = dataclasses.asdict(
    OptimConfig(learning_rate=1e-2, schedule="linear", schedule_steps=10, eps=1e-2, weight_decay=0.1)
)
CONFIG = tiny_config(G, R, algo={"beta": 0.1}, optim=OPTIM, train={"logprob_chunk": 32})
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def batch():
    return tiny_batch(SPEC, (5, 2, 4, 3), 5, LENGTHS, R)


@pytest.fixture(scope="module")
def ref_params():
    return tiny_params(SPEC, seed=9)


@pytest.fixture(scope="module")
def update():
    return make_update(SPEC, CONFIG)


def fresh_state():
    return new_state(tiny_params(SPEC), make_optimizer(CONFIG.optim))


@pytest.fixture(scope="module")
def whole(update, ref_params, batch):
    """State and metrics after one update with the whole batch at once."""
    state, metrics = update(fresh_state(), ref_params, batch)
    start = fresh_state()
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, start.params)
    assert min(jax.tree.leaves(moved)) > 100 * TOLERANCE
    assert (state.step, state.skipped) == (1, 0)
    return state, metrics


def expect_same(found, whole, tolerance=TOLERANCE):
    """Parameters, moments and every metric."""
    (state, metrics), (expected_state, expected) = found, whole
    assert largest_difference(state, expected_state) <= tolerance
    assert metrics.keys() == expected.keys()
    for name in metrics:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=10 * tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("size, samples", [(1, 0), (2, 0), (2, 1)])
def test_microbatches_equal_the_whole_batch(size, samples, whole, ref_params, batch):
    """Rows of different lengths, so that a mean of microbatch means would differ; of whole groups, and of two samples
    of different groups."""
    update = make_update(SPEC, with_values(CONFIG, train={"microbatch_prompts": size, "microbatch_samples": samples}))
    expect_same(update(fresh_state(), ref_params, batch), whole)


def test_packed_equals_unpacked(update, whole, ref_params, batch):
    assert fits(np.array(LENGTHS).reshape(P, G), BUCKET).all()
    expect_same(update(fresh_state(), ref_params, batch, bucket=BUCKET), whole)


def test_microbatches_take_whole_groups():
    """Groups 0, 2 and 1, 3, with their rows, from arrays of groups and of rows alike."""
    groups, rows = jnp.arange(4), jnp.arange(8).reshape(8, 1)
    first, second = split_microbatches((groups, rows), 4, 2)
    assert first.tolist() == [[0, 2], [1, 3]]
    assert second[..., 0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]


def spoil(batch, rows, reward):
    """Other tokens and no sensible log-probs and rewards in these rows, which are marked invalid."""
    rows = jnp.asarray(rows)
    rollout = dataclasses.replace(
        batch.rollout,
        tokens_BR=batch.rollout.tokens_BR.at[rows].set(3),
        logp_BR=batch.rollout.logp_BR.at[rows].set(reward),
    )
    return dataclasses.replace(
        batch, rollout=rollout, reward_B=batch.reward_B.at[rows].set(reward), valid_B=batch.valid_B.at[rows].set(False)
    )


def test_invalid_rows_leave_loss_and_statistics(update, whole, ref_params, batch):
    """One row of group 0 and all of group 2. What invalid rows hold, NaN and infinity included, changes nothing."""
    rows = (1, 6, 7, 8)
    plain = dataclasses.replace(batch, valid_B=batch.valid_B.at[jnp.array(rows)].set(False))
    without = update(fresh_state(), ref_params, plain)
    for reward in (jnp.nan, jnp.inf, -1e30):
        expect_same(update(fresh_state(), ref_params, spoil(batch, rows, reward)), without, tolerance=0)
    assert largest_difference(without[0].params, whole[0].params) > 1e-3
    valid = np.asarray(plain.valid_B)
    assert without[1]["reward/invalid_share"] == pytest.approx(4 / 12)
    assert without[1]["reward"] == pytest.approx(np.asarray(batch.reward_B)[valid].mean(), rel=1e-6)
    assert without[1]["completions/mean_length"] == pytest.approx(np.mean(LENGTHS))


def nothing_truncated_counts(batch):
    """Every row reached the limit."""
    return dataclasses.replace(
        batch, rollout=dataclasses.replace(batch.rollout, truncated_B=jnp.ones_like(batch.rollout.truncated_B))
    )


EMPTY = {
    "all invalid": ({"kl_target": 0.1}, lambda batch: spoil(batch, range(12), jnp.nan)),
    "all truncated and masked": ({"mask_truncated_completions": True}, nothing_truncated_counts),
    "no signal and no KL": ({"beta": 0.0}, lambda batch: dataclasses.replace(batch, reward_B=jnp.ones(12))),
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_batch_in_which_nothing_counts_moves_nothing(name, ref_params, batch):
    """After an ordinary update: no weight (by decay or momentum), no moment, no schedule, no KL weight; it is counted,
    and statistics of nothing are absent from the log."""
    algo, empty = EMPTY[name]
    config = with_values(CONFIG, algo=algo)
    update, beta = make_update(SPEC, config), config.algo.beta if config.algo.kl_target else None
    state = new_state(tiny_params(SPEC), make_optimizer(config.optim), beta)
    references = ref_params if config.algo.beta else None
    state, _ = update(state, references, dataclasses.replace(batch, valid_B=batch.valid_B.at[0].set(False)))
    before = jax.tree.map(np.array, state)
    state, metrics = update(state, references, empty(batch))
    moved = ("params", "opt_state", "beta", "skipped")
    for field in moved:
        jax.tree.map(np.testing.assert_array_equal, getattr(state, field), getattr(before, field))
    assert (state.step, state.empty, metrics["empty_updates"], metrics["learning_rate"]) == (2, 1, 1, 0)
    assert np.isfinite(float(metrics["loss"])) and metrics["grad_norm"] == 0
    found = read_metrics(metrics)
    absent = {"kl", "entropy", "sampling/logp_difference/mean"} if name != "no signal and no KL" else {"kl"}
    assert not absent & found.keys() and "completions/mean_length" in found
    assert ("reward" in found) == (name != "all invalid")
    state, metrics = update(state, references, batch)
    assert metrics["learning_rate"] == pytest.approx(1e-2 * 0.9), "the second update that was made"
    assert largest_difference(state.params, before.params) > 1e-4


def test_the_first_update_has_a_ratio_of_one(batch, ref_params):
    """Whatever the sampler's log-probs are: old are the trainer's own, so no clip acts on rounding."""
    config = with_values(CONFIG, algo={"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4})
    rollout = dataclasses.replace(batch.rollout, logp_BR=batch.rollout.logp_BR + 0.01)
    _, metrics = make_update(SPEC, config)(fresh_state(), ref_params, dataclasses.replace(batch, rollout=rollout))
    assert metrics["clip_ratio/region_mean"] == 0
    kept = dataclasses.replace(batch, rollout=rollout, old_logp_BR=batch.rollout.logp_BR - 0.01)
    _, metrics = make_update(SPEC, config)(fresh_state(), ref_params, kept)
    assert metrics["clip_ratio/region_mean"] > 0
    assert metrics["sampling/logp_difference/mean"] == pytest.approx(0.02, rel=1e-4)


def test_the_correction_is_on_where_the_sampler_differs(batch, ref_params):
    """In bfloat16; its weights are those of the kept log-probs over the sampler's, at the first update and later."""
    for dtype, mode, corrected in (("float32", "auto", False), ("bfloat16", "auto", True), ("bfloat16", "off", False)):
        spec = dataclasses.replace(SPEC, dtype=dtype)
        config = with_values(CONFIG, algo={"importance_sampling_mode": mode})
        step = functools.partial(update_step, spec=spec, config=config)
        _, metrics = jax.eval_shape(step, fresh_state(), ref_params, batch)
        assert ("sampling/importance_sampling_ratio/mean" in metrics) == corrected, (dtype, mode)
    config = with_values(CONFIG, algo={"importance_sampling_mode": "token_truncate"})
    kept = dataclasses.replace(batch, old_logp_BR=batch.rollout.logp_BR + float(np.log(2)))
    _, metrics = make_update(SPEC, config)(fresh_state(), ref_params, kept)
    assert metrics["sampling/importance_sampling_ratio/mean"] == pytest.approx(2, rel=1e-5)


def test_minibatches_are_disjoint_parts_in_a_seeded_order(batch, ref_params):
    """Two passes of two minibatches: each pass has every prompt once; a step is a function of its number alone."""
    config = with_values(
        CONFIG, algo={"minibatch_prompts": 2, "num_iterations": 2}, train={"prompts_per_step": P, "seed": 5}
    )
    assert (minibatches(config), updates_per_rollout(config)) == (2, 4)
    seen = []

    def noted(state, frozen, rows, targets, context):
        seen.append((np.asarray(rows.prompts.row_ids_P), np.asarray(rows.rollout.lengths_B), np.asarray(targets.adv)))
        return state, {}

    ids = dataclasses.replace(batch, prompts=dataclasses.replace(batch.prompts, row_ids_P=jnp.arange(P)))
    targets = Targets(jnp.repeat(jnp.arange(P), G), batch.sampled_BR)
    for step in range(4):
        state = dataclasses.replace(fresh_state(), step=jnp.int32(step))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(programs, "update_parameters", lambda *a, context: noted(*a, context))
            programs.update_minibatch(state, Frozen(), ids, targets, programs.update_context(SPEC, config))
    for first, second in (seen[:2], seen[2:]):
        assert sorted([*first[0], *second[0]]) == list(range(P))
    for prompts, lengths, adv in seen:
        assert lengths.tolist() == np.asarray(LENGTHS).reshape(P, G)[prompts].reshape(-1).tolist()
        assert adv.tolist() == np.repeat(prompts, G).tolist()
    assert {tuple(row[0]) for row in seen} != {tuple(row[0]) for row in seen[:2]}, "another order in each pass"
    whole, _ = make_update(SPEC, CONFIG)(fresh_state(), ref_params, batch)
    part, _ = make_update(SPEC, config)(fresh_state(), ref_params, batch)
    assert largest_difference(whole.params, part.params) > 1e-5


def test_batch_metrics_by_hand():
    """Groups (1, 3, invalid), (2, 2, 2) and one without a valid reward."""
    batch = tiny_batch(SPEC, (2, 2, 2), 2, [1] * 9, 3)
    batch = dataclasses.replace(
        batch,
        reward_B=jnp.array([1.0, 3.0, jnp.nan, 2.0, 2.0, 2.0, 5.0, 5.0, jnp.inf]),
        valid_B=jnp.array([True, True, False, True, True, True, False, False, False]),
    )
    metrics = batch_metrics(batch, jnp.zeros(9), tiny_config(3, 3))
    assert metrics["reward"] == 2.0
    assert metrics["reward_std"] == pytest.approx(np.std([1, 3, 2, 2, 2], ddof=1))
    assert metrics["frac_reward_zero_std"] == 0.5
    assert metrics["reward/invalid_share"] == pytest.approx(4 / 9)


def nan_reward(batch):
    return dataclasses.replace(batch, reward_B=batch.reward_B.at[4].set(jnp.nan))


def nan_logp(batch):
    return dataclasses.replace(
        batch, rollout=dataclasses.replace(batch.rollout, logp_BR=batch.rollout.logp_BR.at[4, 0].set(jnp.nan))
    )


@pytest.mark.parametrize("break_it", [nan_reward, nan_logp, "params"])
def test_non_finite_update_is_skipped_and_counted(break_it, update, whole, ref_params, batch):
    """Nothing but the counters changes, moments and schedule included; the next update is as if nothing had been."""
    state = fresh_state()
    if break_it == "params":
        embed = state.params["embed"].at[batch.prompts.tokens_PT[0, 0]].set(jnp.inf)
        state = dataclasses.replace(state, params={**state.params, "embed": embed})
        broken = batch
    else:
        broken = break_it(batch)
    before = jax.tree.map(np.array, state)
    state, metrics = update(state, ref_params, broken)
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state), (before.params, before.opt_state))
    assert (state.step, state.skipped, metrics["skipped_updates"]) == (1, 1, 1)
    assert not np.isfinite(metrics["grad_norm"])
    if break_it != "params":
        state, metrics = update(state, ref_params, batch)
        assert largest_difference(state.params, whole[0].params) == 0
        assert metrics["learning_rate"] == whole[1]["learning_rate"] == pytest.approx(1e-2)
        assert (state.step, state.skipped) == (2, 1)


def test_a_gradient_that_is_not_finite_moves_neither_critic_nor_beta(batch):
    """A finite gradient of the value head beside it is left out as well; the counters are as ever."""
    config = with_values(CONFIG, algo={"name": "ppo", "beta": 0.1, "kl_target": 0.05, "critic_learning_rate": 1e-2})
    context, params = programs.update_context(SPEC, config), fresh_state().params
    targets = Targets(jnp.ones(batch.sampled_BR.shape), batch.sampled_BR)
    for wrong in (0.0, jnp.nan, jnp.inf):
        state = new_state(params, context.optimizer.policy, beta=0.1, critic=new_critic(SPEC.width, config))
        grads = jax.tree.map(jnp.ones_like, Trained(params, state.critic["params"]))
        grads.policy["embed"] = grads.policy["embed"].at[0, 0].add(wrong)
        after, _ = apply_gradient(state, batch, targets, (grads, {"kl": jnp.float32(1)}), context)
        moved = largest_difference(after.critic, state.critic) > 0, float(after.beta) != float(state.beta)
        assert moved == ((True, True) if wrong == 0 else (False, False))
        assert (after.skipped, after.empty) == (0 if wrong == 0 else 1, 0)


def test_state_is_donated_and_inputs_are_not(update, whole, ref_params, batch):
    state = fresh_state()
    update(state, ref_params, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((ref_params, batch)))


def test_one_program_per_bucket(update, whole, ref_params, batch):
    """Other numbers, lengths and marks of validity compile nothing; a packed stream length is one more program."""
    update(fresh_state(), ref_params, batch, bucket=BUCKET)
    programs = update._cache_size()
    other = dataclasses.replace(tiny_batch(SPEC, (1, 5, 5, 2), 5, [2] * 12, R), valid_B=batch.valid_B.at[0].set(False))
    update(fresh_state(), tiny_params(SPEC, seed=4), other)
    update(fresh_state(), ref_params, other, bucket=BUCKET)
    assert update._cache_size() == programs == 2


def test_truncated_rows_can_leave_the_loss():
    """Lengths 3 (full, so truncated), 1 and 2 of 3; the last row is invalid."""
    batch = tiny_batch(SPEC, (2,), 2, [3, 1, 2], 3)
    batch = dataclasses.replace(batch, valid_B=jnp.array([True, True, False]))
    assert loss_mask(batch, tiny_config(3, 3)).tolist() == [[True] * 3, [True, False, False], [False] * 3]
    masked = loss_mask(batch, tiny_config(3, 3, algo={"mask_truncated_completions": True}))
    assert masked.tolist() == [[False] * 3, [True, False, False], [False] * 3]


def traced(algo: dict, batch, ref_params, log=None):
    config = with_values(CONFIG, algo=algo, log=log or {})
    return jax.eval_shape(functools.partial(update_step, spec=SPEC, config=config), fresh_state(), ref_params, batch)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_settings_decide_which_metrics_there_are(loss_type, ref_params, batch):
    """Without beta there is no reference and no kl; entropy is only made when it is logged."""
    _, metrics = traced({"loss_type": loss_type}, batch, ref_params)
    assert {"kl", "entropy", "loss", "grad_norm", "clip_ratio/region_mean"} <= metrics.keys()
    _, fewer = traced({"loss_type": loss_type, "beta": 0.0}, batch, None, {"entropy": False})
    assert metrics.keys() - fewer.keys() == {"kl", "entropy"}


@pytest.mark.parametrize("field", ["loss_type", "name", "kl_estimator", "scale_rewards"])
def test_unknown_settings_are_named(field, ref_params, batch):
    with pytest.raises(ConfigError, match="'grop'.*Known: "):
        traced({field: "grop"}, batch, ref_params)


def test_no_array_of_all_logits():
    """Policy, reference and entropy: with 16384 tokens of vocabulary nothing near B * R * V is made."""
    spec = tiny_spec(vocab_size=16_384)
    config = tiny_config(4, 32, algo={"beta": 0.1}, train={"logprob_chunk": 16})
    batch = tiny_batch(spec, [4] * 4, 4, [32] * 16, 32)
    state = new_state(tiny_params(spec), make_optimizer(config.optim))
    for settings in ({}, {"microbatch_prompts": 2}):
        step = functools.partial(update_step, spec=spec, config=with_values(config, train=settings))
        assert max(array_sizes(step, state, state.params, batch)) <= 16 * 16_384
