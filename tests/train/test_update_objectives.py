"""Every objective through the update: microbatches in float64, the KL in the reward, an adaptive beta, corrections.

The policy is a table of one logit per token and position in the place of the decoder, so that a program compiles in a
blink; tests/train/test_update.py runs the decoder.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from table_policy import CONFIG, SPEC, G, P, R, batch_of, keep_gradient, table, table_outputs
from tiny_policy import largest_difference, quick_compiles  # noqa: F401

from pbrl_jax import with_values
from pbrl_jax.algos import ALGORITHMS
from pbrl_jax.algos.losses import LOSSES
from pbrl_jax.algos.returns import kl_penalty
from pbrl_jax.core.records import Scores
from pbrl_jax.rewards.combine import Combined
from pbrl_jax.train import programs, update
from pbrl_jax.train.dynamic import without_signal
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.programs import make_update
from pbrl_jax.train.state import new_state
from pbrl_jax.train.step import Scored

BELOW_A_GROUP = {"microbatch_prompts": 4, "microbatch_samples": 1}
OBJECTIVES = {
    **{loss_type: {"loss_type": loss_type} for loss_type in LOSSES},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.02},
    "gspo": {"importance_sampling_level": "sequence"},
    "gspo_token": {"importance_sampling_level": "sequence_token"},
    "delta": {"delta": 1.5},
    "correction": {"importance_sampling_mode": "sequence_truncate"},
    "entropy": {"entropy_coef": 0.05, "loss_type": "dapo"},
    "kl_in_reward": {"kl_in": "reward", "kl_estimator": "k1"},
    "only_signal": {"mask_zero_std_groups": True},
    **{name: {"name": name, "kl_in": "reward", "gamma": 0.9} for name in ALGORITHMS if name.startswith("reinforce")},
    "opo": {"name": "opo"},
    "gpg_algorithm": {"name": "gpg", "loss_type": "gpg"},
}


@pytest.fixture(autouse=True)
def table_policy(monkeypatch):
    for module in (update, programs):
        monkeypatch.setattr(module, "row_outputs", table_outputs)
    monkeypatch.setattr(update, "optimizer_step", keep_gradient)
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        yield


@functools.cache
def compiled(config):
    return make_update(SPEC, config)


def gradient(config, batch=None, beta=None):
    """(gradient, metrics, state after) of one update."""
    state = new_state(table(0), make_optimizer(config.optim), beta)
    ref_params = table(1) if config.algo.beta else None
    state, metrics = compiled(config)(state, ref_params, batch_of() if batch is None else batch)
    return state.params["table"], metrics, state


@pytest.mark.parametrize("name", OBJECTIVES)
def test_microbatches_give_the_same_gradient(name):
    """All groups at once, two, and one at a time, and four single samples at a time, to 1e-10."""
    config = with_values(CONFIG, algo=OBJECTIVES[name])
    whole, expected, _ = gradient(config)
    assert np.abs(whole).max() > 1e-3 and whole.dtype == jnp.float64
    for train in ({"microbatch_prompts": 2}, {"microbatch_prompts": 1}, BELOW_A_GROUP):
        found, metrics, _ = gradient(with_values(config, train=train))
        np.testing.assert_allclose(found, whole, rtol=0, atol=1e-10)
        assert metrics.keys() == expected.keys()
        for key in expected:
            np.testing.assert_allclose(metrics[key], expected[key], rtol=1e-9, atol=1e-10, err_msg=key)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_garbage_of_rows_and_tokens_that_are_left_out(name):
    """Sampler log-probs past a row's length and the reward of an invalid row reach neither loss nor gradient."""
    config = with_values(CONFIG, algo=OBJECTIVES[name])
    batch = batch_of()
    used = (jnp.arange(R)[None] < batch.rollout.lengths_B[:, None]) & batch.valid_B[:, None]
    clean = gradient(config, batch)
    for garbage in (1e3, -1e3, jnp.nan):
        rollout = dataclasses.replace(batch.rollout, logp_BR=jnp.where(used, batch.rollout.logp_BR, garbage))
        spoiled = dataclasses.replace(batch, rollout=rollout, reward_B=batch.reward_B.at[1].set(garbage))
        dirty = gradient(config, spoiled)
        assert largest_difference(dirty[0], clean[0]) == 0 and dirty[1]["loss"] == clean[1]["loss"]


def test_the_kl_in_the_reward_moves_the_advantages_and_not_the_loss():
    """The gradient is that of rewards from which beta times the rows' KL was taken by hand, with no KL anywhere."""
    config = with_values(CONFIG, algo=OBJECTIVES["kl_in_reward"])
    batch = batch_of()
    ref, *_ = table_outputs(table(1), None, batch, None, False)
    penalty = kl_penalty(batch.rollout.logp_BR, ref, batch.sampled_BR, beta=0.1, estimator="k1")
    found, metrics, _ = gradient(config, batch)
    less = dataclasses.replace(batch, reward_B=batch.reward_B - penalty.sum(axis=1))
    expected, plain, _ = gradient(with_values(CONFIG, algo={"beta": 0.0}), less)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert metrics["loss"] == pytest.approx(float(plain["loss"]), rel=1e-12)
    assert metrics["kl"] != 0 and "kl" not in plain
    in_loss, _, _ = gradient(with_values(config, algo={"kl_in": "loss"}), batch)
    assert largest_difference(found, in_loss) > 1e-4


def test_the_kl_in_the_reward_is_the_trainers_where_the_samplers_is_another():
    """Of a policy that is still the reference it is 0, whatever the sampler says of its tokens; a batch keeps the
    trainer's log-probs for it where a server, eight bits or older parameters sampled."""
    config, batch = with_values(CONFIG, algo=OBJECTIVES["kl_in_reward"]), batch_of()
    own, *_ = table_outputs(table(0), None, batch, None, False)
    targets = [
        update.advantage_targets(new_state({}, make_optimizer(config.optim)), one, own, config)
        for one in (dataclasses.replace(batch, old_logp_BR=own), batch)
    ]
    expected = update.estimate_advantages(batch, targets[0].mask_BR, None, config)[0]
    np.testing.assert_allclose(targets[0].adv, expected, atol=1e-12)
    assert np.abs(targets[1].adv - expected).max() > 1e-3
    kept = [{}, {"rollout": {"engine": "vllm"}}, {"rollout": {"kv_dtype": "int8"}}, {"train": {"rollout_ahead": 1}}]
    assert [programs.keeps_logp(with_values(config, **one)) for one in kept] == [False, True, True, True]
    assert not programs.keeps_logp(with_values(CONFIG, rollout={"engine": "vllm"}))


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_beta_adapts_as_part_of_the_state(kl_in):
    """A KL above its target raises beta for the next step, by at most 20 % of 12 / 24; the step itself uses the old."""
    algo = {"kl_in": kl_in, "kl_target": 1e-6, "kl_horizon": 24, "kl_estimator": "k2"}
    config = with_values(CONFIG, algo=algo)
    found, metrics, state = gradient(config, beta=0.1)
    constant, plain, _ = gradient(with_values(config, algo={"kl_target": None}))
    np.testing.assert_allclose(found, constant, rtol=1e-6)
    assert metrics["kl"] > 1e-6 and metrics["beta"] == pytest.approx(0.1)
    assert state.beta == pytest.approx(0.11) and "beta" not in plain
    with_more, _, _ = gradient(config, beta=0.2)
    assert largest_difference(with_more, found) > 1e-4


def test_the_correction_weighs_tokens_by_trainer_over_sampler():
    """On-policy in the trainer's eyes: the clip sees no gap, with the correction the weight does."""
    config = with_values(CONFIG, algo={"beta": 0.0, "importance_sampling_mode": "token_truncate"})
    batch = dataclasses.replace(batch_of(), old_logp_BR=None)
    _, metrics, _ = gradient(config, batch)
    assert metrics["clip_ratio/region_mean"] == 0
    logp, *_ = table_outputs(table(0), None, batch, None, False)
    used = batch.sampled_BR
    expected = np.minimum(np.exp(np.asarray(logp - batch.rollout.logp_BR))[used], 3.0).mean()
    assert metrics["sampling/importance_sampling_ratio/mean"] == pytest.approx(expected, rel=1e-12)
    off = with_values(config, algo={"importance_sampling_mode": "off"})
    _, without, _ = gradient(off, batch)
    assert without["clip_ratio/region_mean"] == 0 and "sampling/importance_sampling_ratio/mean" not in without
    _, later, _ = gradient(off, batch_of())
    assert later["clip_ratio/region_mean"] > 0, "the log-probs that were kept are other ones"


def test_groups_without_signal_can_leave_the_loss():
    """The last group's rewards are the same: it leaves mask, count and KL; the others weigh what they weigh alone."""
    batch = batch_of()
    config = with_values(CONFIG, algo={"mask_zero_std_groups": True})
    mask = update.loss_mask(batch, config)
    assert not mask[9:].any() and mask[:9].any() and not mask[1].any()
    found, metrics, _ = gradient(config, batch)
    gone = dataclasses.replace(batch, valid_B=batch.valid_B.at[9:].set(False))
    expected, _, _ = gradient(CONFIG, gone)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert metrics["frac_reward_zero_std"] == 0.25


def test_a_group_of_equal_sums_has_a_signal_where_functions_are_scaled_apart():
    """Twice (0, 1, 1) and (2, 0, 0) have the sum 2 everywhere, and are scaled to one width: the first decides."""
    batch = batch_of()
    columns = jnp.stack([batch.reward_B, batch.reward_B], axis=1).at[9:].set(jnp.array([[0, 2], [1, 0], [1, 0]]))
    apart = dataclasses.replace(batch, rewards_BF=columns, reward_B=batch.reward_B.at[9:].set(2.0))
    config = with_values(
        CONFIG, algo={"multi_objective_aggregation": "normalize_then_sum", "mask_zero_std_groups": True},
        reward={"functions": ("a", "b"), "reward_weights": (2.0, 1.0)},
    )  # fmt: skip
    mask = update.loss_mask(apart, config)
    assert mask[9:].any() and np.abs(update.estimate_advantages(apart, mask, None, config)[0][9:]).min() > 0.1
    rewards = Combined(Scores(apart.reward_B, apart.valid_B, {}), {}, apart.valid_B)
    for one, flat in ((apart, False), (batch, True)):
        assert without_signal(Scored(one, rewards, (), {}), G).tolist() == [False, False, False, flat]


def test_rewards_apart_are_scaled_before_they_are_summed():
    """Of two functions the wide one decides the sum; scaled in their groups first, both count."""
    batch = batch_of()
    rng = np.random.default_rng(1)
    narrow, wide = 0.01 * rng.normal(size=P * G), 100 * rng.normal(size=P * G)
    columns = jnp.asarray(np.stack([narrow, wide], axis=1)).at[1].set(jnp.nan)
    batch = dataclasses.replace(batch, rewards_BF=columns, reward_B=jnp.asarray(narrow + wide))
    algo = {"multi_objective_aggregation": "normalize_then_sum", "beta": 0.0}
    config = with_values(CONFIG, algo=algo, reward={"functions": ("a", "b", "c"), "reward_weights": (1.0, 1.0, 0.0)})
    mask = update.loss_mask(batch, config)
    apart = update.estimate_advantages(batch, mask, None, config)[0]
    together = update.estimate_advantages(batch, mask, None, with_values(CONFIG, algo={"scale_rewards": "none"}))[0]
    valid = np.asarray(batch.valid_B)
    assert apart[1] == 0 and np.isfinite(apart).all()
    turned = dataclasses.replace(batch, rewards_BF=columns.at[:, 0].multiply(-1), reward_B=jnp.asarray(wide - narrow))
    assert np.abs(update.estimate_advantages(turned, mask, None, config)[0] - apart)[valid].max() > 0.5
    plain = with_values(CONFIG, algo={"scale_rewards": "none"})
    assert np.abs(update.estimate_advantages(turned, mask, None, plain)[0] - together)[valid].max() < 0.1
    assert np.abs(together)[valid].max() > 50
    for size in (0, 1):
        found, _, _ = gradient(with_values(config, train={"microbatch_prompts": size}), batch)
        assert np.isfinite(found).all() and np.abs(found).max() > 1e-3
