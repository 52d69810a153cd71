"""Comparisons of our advantages, returns, KL and log-probs with the oracles; `tests/test_oracles.py` runs them.

See `oracle_checks` for what a check is.
"""

import jax
import jax.numpy as jnp
import numpy as np
from algos.oracle_checks import EXACT, FLOAT32, Case

from pbrl_jax import AlgoConfig
from pbrl_jax.algos import ALGORITHMS
from pbrl_jax.algos.advantages import ScoredGroups, group_advantages, group_metrics, normalize_then_sum
from pbrl_jax.algos.correction import sampler_weights
from pbrl_jax.algos.objectives import kl_estimate
from pbrl_jax.algos.ppo import value_loss
from pbrl_jax.algos.returns import (
    adapted_beta,
    generalised_advantages,
    kl_penalty,
    returns_to_go,
    token_rewards,
    whiten,
)
from pbrl_jax.core.masking import masked_mean, masked_std, masked_variance
from pbrl_jax.models.logprobs import chunked_logprobs
from pbrl_jax.models.specs import tiny_decoder

# Advantages


def check_trl_advantages(case: Case):
    """TRL's weighted sum of rewards (NaN is left out; a row of NaN alone is invalid), then our advantages."""
    rewards = case.input("rewards_per_func")
    weights = jnp.asarray(case.config["reward_weights"] or [1.0] * rewards.shape[1])
    groups = (-1, case.config["num_generations"])
    valid = ~jnp.isnan(rewards).all(axis=1).reshape(groups)
    reward = jnp.where(valid, jnp.nansum(rewards * weights[None], axis=1).reshape(groups), jnp.nan)
    if case.config["multi_objective_aggregation"] == "normalize_then_sum":
        parts = rewards.T.reshape(-1, *valid.shape)
        adv = normalize_then_sum(parts, ~jnp.isnan(parts), weights, epsilon=1e-4).reshape(-1)
        metrics = {name: value for name, value in group_metrics(reward, valid).items() if name.startswith("reward")}
    else:
        config = AlgoConfig(scale_rewards=case.config["scale_rewards"])
        mask = jnp.ones((rewards.shape[0], 1), bool)
        adv, _ = ALGORITHMS["grpo"].estimate(ScoredGroups(reward, valid, mask), None, config=config)
        metrics = group_metrics(reward, valid)
    case.expect("advantages", adv)
    for name, value in metrics.items():
        case.expect(f"metric:{name}", value)


def by_group(index: np.ndarray):
    """(row numbers [P, G], valid [P, G]) of the groups named by `index`, short groups filled with invalid rows."""
    members = [np.flatnonzero(index == group) for group in np.unique(index)]
    size = max(map(len, members))
    rows = np.stack([np.pad(rows, (0, size - len(rows))) for rows in members])
    valid = np.stack([np.arange(size) < len(rows) for rows in members])
    return rows, valid


def check_verl_advantages(case: Case):
    """Outcome advantages: a row's reward is the sum of its tokens'; every valid token gets the row's advantage."""
    mask, reward = case.input("mask"), case.input("token_level_rewards").sum(axis=1)
    rows, valid = by_group(np.asarray(case.input("group_index")))
    loo = "rloo" in case.name
    scale = "group" if case.config.get("norm_adv_by_std_in_grpo", True) and not loo else "none"
    adv = group_advantages(reward[rows], jnp.asarray(valid), scale=scale, epsilon=1e-6, leave_one_out=loo)
    adv = jnp.zeros_like(reward).at[rows[valid]].set(adv[valid])
    vectorized = case.name == "verl.adv.grpo_vectorized"  # its group statistics are float32 inside verl
    case.expect("advantages", adv[:, None] * mask, FLOAT32 if vectorized else EXACT)


#: verl's estimator -> ours, both on token rewards and groups of equal size.
VERL_ESTIMATORS = {
    "opo": "opo",
    "gpg": "gpg",
    "reinforce_plus_plus": "reinforce_plus_plus",
    "reinforce_plus_plus_g0.98": "reinforce_plus_plus",
    "reinforce_plus_plus_baseline": "reinforce_plus_plus_baseline",
}


def check_verl_estimator(case: Case):
    """Advantages of our algorithms. `_g0.98` names verl's discount, which its config does not hold."""
    mask, reward = case.input("mask"), case.input("token_level_rewards").sum(axis=1)
    kind = case.name.removeprefix("verl.adv.")
    rows, valid = by_group(np.asarray(case.input("group_index")))
    assert valid.all() and (rows.ravel() == np.arange(len(reward))).all()
    _, _, gamma = kind.partition("_g")
    config = AlgoConfig(gamma=float(gamma) if gamma[:1] == "0" else 1.0)
    groups = ScoredGroups(reward[rows], jnp.asarray(valid), mask)
    adv, _ = ALGORITHMS[VERL_ESTIMATORS[kind]].estimate(groups, None, config=config)
    case.expect("advantages", adv if adv.ndim == 2 else adv[:, None] * mask)


def check_verl_gae(case: Case):
    """verl whitens, and carries values on where the mask is False; there we say 0, and compare nothing."""
    mask, values = case.input("mask"), case.input("values")
    reward, config = case.input("token_level_rewards"), case.config
    adv = generalised_advantages(reward, values, mask, gamma=config["gamma"], lam=config["lam"])
    for name, found in (("advantages", whiten(adv, mask)), ("returns", adv + values)):
        np.testing.assert_allclose(found[mask], case.output(name)[mask], rtol=0, atol=EXACT)


def openrlhf_token_rewards(case: Case):
    """Token rewards with OpenRLHF's KL: k1, clamped to +-10, which ordinary values do not reach."""
    old, ref, mask = case.input("old_logps"), case.input("ref_logps"), case.input("mask")
    penalty = kl_penalty(old, ref, mask, beta=case.config["kl_coef"], estimator="k1")
    return penalty, token_rewards(case.input("rewards"), mask, penalty)


def check_openrlhf_rewards(case: Case):
    expected = np.where(case.input("mask"), case.output("token_rewards"), 0)
    np.testing.assert_allclose(openrlhf_token_rewards(case)[1], expected, rtol=0, atol=EXACT)


def check_openrlhf_returns(case: Case):
    """GAE and discounted returns, not whitened."""
    mask, reward, gamma = case.input("mask"), case.input("token_level_rewards"), case.config["gamma"]
    if "values" not in case.inputs:
        return case.expect("returns", returns_to_go(reward, mask, gamma=gamma))
    adv = generalised_advantages(reward, case.input("values"), mask, gamma=gamma, lam=case.config["lambd"])
    case.expect("advantages", adv)
    case.expect("returns", adv + jnp.where(mask, case.input("values"), 0))


def check_openrlhf_advantages(case: Case):
    """Our advantage, plus the return to go of the k1 penalty that OpenRLHF puts into the token rewards."""
    mask, kind = case.input("mask"), case.config["estimator"]
    assert case.config["gamma"] == 1.0
    penalty, _ = openrlhf_token_rewards(case)
    reward = case.input("rewards").reshape(-1, case.config["n_samples_per_prompt"])
    scale = "group" if kind == "group_norm" else "none"
    everything, loo = jnp.ones(reward.shape, bool), kind == "rloo"
    adv = group_advantages(reward, everything, scale=scale, epsilon=1e-9, leave_one_out=loo)
    case.expect("advantages", adv.reshape(-1, 1) * mask - returns_to_go(penalty, mask, gamma=1.0))


def check_openrlhf_whitened(case: Case):
    """reinforce, reinforce_baseline and gae: whitened over all tokens with the biased variance and no epsilon.

    OpenRLHF converts advantages to float32 before it takes their mean and variance.
    """
    mask, kind, gamma = case.input("mask"), case.config["estimator"], case.config["gamma"]
    penalty, token_reward = openrlhf_token_rewards(case)
    if kind == "reinforce_baseline":
        reward = case.input("rewards").reshape(-1, case.config["n_samples_per_prompt"])
        token_reward = token_rewards((reward - reward.mean(axis=1, keepdims=True)).reshape(-1), mask, penalty)
    if kind == "gae":
        values = jnp.where(mask, case.input("values"), 0)
        adv = generalised_advantages(token_reward, values, mask, gamma=gamma, lam=case.config["lambd"])
        returns = adv + values
    else:
        adv = returns = returns_to_go(token_reward, mask, gamma=gamma)
    case.expect("returns", returns)
    case.expect("advantages", whiten(adv, mask, ddof=0, epsilon=0.0), FLOAT32)


# A critic's loss


def check_value_loss(case: Case):
    """verl's halved and OpenRLHF's halved clipped error; both exclude rows without tokens from a mean over rows."""
    verl = case.name.startswith("verl")
    mode = case.config["loss_agg_mode"] if verl else "token-mean"
    loss_type = {"token-mean": "dapo", "seq-mean-token-mean": "grpo", "seq-mean-token-sum": "dr_grpo"}[mode]
    clip = case.config["cliprange_value" if verl else "clip_eps"]

    def loss(value):
        old, target, mask = (case.input(name) for name in ("values", "returns", "mask"))
        total, count, metrics = value_loss(value, old, target, mask, cliprange_value=clip, loss_type=loss_type)
        return total / count, metrics

    (value, metrics), grad = jax.value_and_grad(loss, has_aux=True)(case.input("vpreds"))
    case.expect("loss", value)
    case.expect("grad_vpreds", grad)
    if "clipfrac" in case.outputs:
        case.expect("clipfrac", jnp.divide(*metrics["value_clip_ratio"]))


# Between sampler and trainer


def check_trl_sampler_weights(case: Case):
    """TRL stores one ratio per row in its sequence modes."""
    old, rollout, config = case.input("old_logps"), case.input("rollout_logps"), case.config
    mask = jnp.arange(old.shape[1])[None] < case.input("lengths")[:, None]
    bounds = {"clip_min": config["clip_min"], "clip_max": config["clip_max"]}
    found = sampler_weights(old, rollout, mask, mode=config["vllm_importance_sampling_mode"], **bounds)
    expected = np.broadcast_to(case.output("importance_sampling_ratio"), found.shape)
    np.testing.assert_allclose(found[mask], expected[mask], rtol=0, atol=EXACT)


def check_verl_sampler_weights(case: Case):
    """One threshold truncates from above; two (IcePop) mask what lies outside them."""
    low, _, high = str(case.config["rollout_is_threshold"]).rpartition("_")
    mode = f"{case.config['rollout_is']}_{'mask' if low else 'truncate'}"
    bounds = {"clip_min": float(low) if low else None, "clip_max": float(high)}
    old, rollout, mask = case.input("old_logps"), case.input("rollout_logps"), case.input("mask")
    case.expect("weights", sampler_weights(old, rollout, mask, mode=mode, **bounds))


def check_verl_rejection(case: Case):
    """What verl rejects is what our masks give no weight. A bound on k2 is one on the log-ratio from both sides; a
    row's mean is held by a single token."""
    level, _, estimator = case.config["rollout_rs"].rpartition("_")
    low, _, high = str(case.config["rollout_rs_threshold"]).rpartition("_")
    reach = np.exp(np.sqrt(2 * float(high)))
    low, high = (float(low), float(high)) if estimator == "k1" else (1 / reach, reach)
    gap, mask = case.input("old_logps") - case.input("rollout_logps"), case.input("mask")
    row = level == "seq_mean"
    gap, held = (masked_mean(gap, mask, axis=1, keepdims=True), mask[:, :1]) if row else (gap, mask)
    mode = "token_mask" if level == "token" else "sequence_mask"
    kept = sampler_weights(gap, jnp.zeros_like(gap), held, mode=mode, clip_min=low, clip_max=high) > 0
    assert kept.any() and (held & ~kept).any()
    case.expect("mask", (mask & kept).astype(float))


# KL, masking, log-probs


def check_verl_kl(case: Case):
    plain = "new_logps" in case.inputs
    logp = case.input("new_logps" if plain else "logprob")
    ref = case.input("ref_logps" if plain else "ref_logprob")
    name = case.config["kl_penalty"]
    case.expect("kl", kl_estimate(logp, ref, name))
    case.expect("grad_sum", jax.grad(lambda x: kl_estimate(x, ref, name).sum())(logp))


def check_verl_adaptive_beta(case: Case):
    """AdaptiveKLController(0.1, 0.05, 10000), updated with 256 responses at a time."""
    beta, found = jnp.asarray(0.1), []
    for kl in case.input("current_kl"):
        beta = adapted_beta(beta, kl, target=0.05, horizon=10000, responses=256)
        found.append(beta)
    case.expect("kl_coef", jnp.stack(found))


def check_verl_rewards_with_kl(case: Case):
    """The penalty of every token, masked or not."""
    old, ref, reward = (case.input(name) for name in ("old_logps", "ref_logps", "token_level_rewards"))
    penalty = kl_penalty(old, ref, jnp.ones(old.shape, bool), beta=case.config["kl_ratio"], estimator="k1")
    case.expect("token_level_rewards", reward - penalty)


def check_openrlhf_kl(case: Case):
    """Computed in float32 by OpenRLHF and clamped to +-10."""
    kl = kl_estimate(case.input("new_logps"), case.input("ref_logps"), case.config["kl_estimator"])
    expected = case.output("kl")
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(jnp.clip(kl, -10, 10), expected, rtol=0, atol=FLOAT32)


def check_nanstd(case: Case):
    """TRL's nanstd. Its factor n / (n - 1) is a float32 number, which is worth 2e-8 and is put in here."""
    x = case.input("x")
    for name, axis in (("std_all", None), ("std_dim1", 1)):
        n = np.sum(~np.isnan(x), axis=axis)
        rounded = np.sqrt((n / (n - 1)).astype(np.float32) / (n / (n - 1)))
        case.expect(name, masked_std(x, ~jnp.isnan(x), axis=axis, ddof=1) * rounded)


def check_masked(case: Case):
    """Mean, unbiased variance, and verl's whitening (1e-8 under the root) with and without its shift."""
    x, mask = case.input("advantages_token"), case.input("mask")
    mean, variance = masked_mean(x, mask), masked_variance(x, mask, ddof=1)
    case.expect("mean", mean)
    case.expect("var_unbiased", variance)
    white = np.asarray(whiten(x, mask))
    for name, found in (("whiten", white), ("whiten_noshift", white + mean)):
        np.testing.assert_allclose(found[mask], case.output(name)[mask], rtol=0, atol=EXACT)


def logprobs_and_entropy(logits, tokens):
    """Our chunked log-probs, the logits being hidden states under an identity head."""
    vocab = logits.shape[-1]
    spec = tiny_decoder(vocab_size=vocab, width=vocab, tied_embeddings=True)
    return chunked_logprobs({"embed": jnp.eye(vocab)}, spec, logits, tokens, 1.0, chunk=8, entropy=True)


def check_logprobs(case: Case):
    tokens, output = ("index", "logps") if case.name.startswith("trl") else ("labels", "logprobs")
    logp, entropy = logprobs_and_entropy(case.input("logits"), case.input(tokens))
    case.expect(output, logp)
    case.expect("entropy", entropy)


def check_entropy_loss(case: Case):
    mask = case.input("mask")
    _, entropy = logprobs_and_entropy(case.input("logits"), jnp.zeros(mask.shape, int))
    case.expect("token_mean", masked_mean(entropy, mask))


#: Case, or pattern of cases -> check. Exactly one pattern matches a case.
CHECKS = {
    **{
        f"trl.adv.{kind}": check_trl_advantages
        for kind in ("group", "batch", "none", "two_rewards_weighted", "nan_rewards", "zero_variance_group", "*gdpo*")
    },
    "trl.adv.mask_truncated": check_trl_advantages,
    "trl.is.*": check_trl_sampler_weights,
    "trl.nanstd": check_nanstd,
    "trl.logps": check_logprobs,
    "verl.logprobs": check_logprobs,
    "verl.entropy_loss": check_entropy_loss,
    **{
        f"verl.adv.{kind}": check_verl_advantages
        for kind in ("grpo", "grpo_no_std", "grpo_vectorized", "rloo", "rloo_vectorized")
    },
    **{f"verl.adv.{kind}": check_verl_estimator for kind in VERL_ESTIMATORS},
    "verl.adv.gae_*": check_verl_gae,
    "verl.value_loss.*": check_value_loss,
    "openrlhf.value_loss.*": check_value_loss,
    "verl.masked": check_masked,
    "verl.is.*[!n]": check_verl_sampler_weights,
    **{f"verl.rs.{kind}_[0-9]*": check_verl_rejection for kind in ("token_k[12]", "seq_sum_k1", "seq_mean_k1")},
    **{f"verl.kl.{kind}{end}": check_verl_kl for kind in ("k1", "k2", "k3") for end in ("", "_extreme")},
    "verl.kl.adaptive_controller": check_verl_adaptive_beta,
    "verl.rewards_with_kl": check_verl_rewards_with_kl,
    "openrlhf.kl.k1": check_openrlhf_kl,
    "openrlhf.compute_reward": check_openrlhf_rewards,
    "openrlhf.gae": check_openrlhf_returns,
    "openrlhf.cumulative_returns": check_openrlhf_returns,
    **{f"openrlhf.adv.{kind}": check_openrlhf_advantages for kind in ("rloo", "group_norm", "dr_grpo")},
    **{f"openrlhf.adv.{kind}": check_openrlhf_whitened for kind in ("reinforce", "reinforce_baseline", "gae")},
}
