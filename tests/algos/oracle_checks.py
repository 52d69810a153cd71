"""Comparisons of our algorithms with the oracles; `tests/test_oracles.py` runs them.

A check is a function of a `Case`. It takes every number from the case's files, so that another draw of the same cases
is checked by the same code, and calls our functions with the settings that make them the other library's.
"""

import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pbrl_jax.algos import grpo
from pbrl_jax.algos.advantages import group_advantages, reward_metrics
from pbrl_jax.algos.objectives import aggregate, clipped_surrogate, importance_ratio, kl_estimate
from pbrl_jax.core.config import AlgoConfig
from pbrl_jax.core.masking import masked_mean, masked_std, masked_variance
from pbrl_jax.models.specs import tiny_decoder
from pbrl_jax.rollout.logprobs import chunked_logprobs

FOLDER = Path(os.environ.get("PBRL_ORACLES") or Path(__file__).parents[1] / "fixtures" / "oracles")
EXACT = 1e-9
FLOAT32 = 1e-6


@functools.cache
def arrays(file: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / file) as data:
        return dict(data)


class Case:
    """One oracle: its settings, and its arrays by their short names."""

    def __init__(self, entry: dict):
        self.name, self.config, self.file = entry["case"], entry["config"], entry["file"]
        self.inputs = {key.split("/", 2 if "/in/" in key else 1)[-1]: key for key in entry["inputs"]}
        self.outputs = {key.removeprefix(f"{self.name}/out/"): key for key in entry["outputs"]}

    def input(self, name: str):
        array = jnp.asarray(arrays(self.file)[self.inputs[name]])
        return array > 0 if name == "mask" else array

    def output(self, name: str) -> np.ndarray:
        return arrays(self.file)[self.outputs[name]]

    def expect(self, name: str, actual, tolerance: float = EXACT):
        """Assert that `actual` is the stored output, which itself must say something: not all zero, if a gradient."""
        expected = self.output(name)
        assert not name.startswith("grad") or np.abs(expected).max() > 0
        assert actual.dtype == np.float64
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance, err_msg=f"{self.name}: {name}")


CASES = {entry["case"]: Case(entry) for entry in json.loads((FOLDER / "rl_oracles.json").read_text())["cases"]}


# Policy losses


def check_trl_loss(case: Case):
    """TRL's loss, gradient and metrics. TRL counts fully masked rows."""
    config = dict(case.config)
    # Under accumulation TRL divides a microbatch's loss by the number of microbatches, which is one division by the
    # count of all of them; dapo's token count is that of all already.
    microbatches = config.pop("current_gradient_accumulation_steps", 1) if config["loss_type"] != "dapo" else 1
    for key in ("current_gradient_accumulation_steps", "steps_per_generation"):
        config.pop(key, None)
    off_policy = config.pop("old_per_token_logps")
    settings = {"beta": 0.0, "use_bias_correction_kl": True} | config
    new = case.input("new_logps")

    def loss(logp):
        total, count, metrics = grpo.policy_loss(
            logp,
            case.input("old_logps") if off_policy else jax.lax.stop_gradient(logp),
            case.input("advantages"),
            case.input("mask"),
            config=AlgoConfig(**settings),
            ref_logp_BR=case.input("ref_logps") if "ref_logps" in case.inputs else None,
            max_completion_length=CASES["step.qwen3_dr_grpo"].config["max_completion_length"],
            count_masked_rows=True,
        )
        return total / (count * microbatches), metrics

    (value, metrics), grad = jax.value_and_grad(loss, has_aux=True)(new)
    case.expect("loss", value)
    case.expect("grad_new_logps", grad)
    assert ("kl" in metrics) == ("metric:kl" in case.outputs)
    for name, (numerator, denominator) in metrics.items():
        case.expect(f"metric:{name}", numerator / denominator)


def verl_aggregation(config: dict, tokens: int) -> dict:
    """Our settings for verl's loss_agg_mode; `tokens` is R."""
    loss_type, length = {
        "token-mean": ("dapo", tokens),
        "token-sum": ("dapo", tokens),
        "seq-mean-token-mean": ("grpo", tokens),
        "seq-mean-token-sum": ("dr_grpo", 1),
        "seq-mean-token-sum-norm": ("dr_grpo", config.get("loss_scale_factor") or tokens),
    }[config["loss_agg_mode"]]
    return {"loss_type": loss_type, "max_completion_length": length}


def verl_quotient(config: dict, total, count):
    """verl's loss from our sum and count; with global_batch_info the count is that of all processes."""
    if config["loss_agg_mode"] == "token-sum":
        return total
    if "global_batch_info" in config:
        return total / config["global_batch_info"]["batch_num_tokens"] * config["global_batch_info"]["dp_size"]
    return total / count


def check_verl_loss(case: Case):
    """verl's vanilla loss. Its dual clip (on by default, ours has none) is a cap on the ratio where adv < 0."""
    new, old, mask = case.input("new_logps"), case.input("old_logps"), case.input("mask")
    token_level = "advantages_token" in case.inputs
    adv = case.input("advantages_token" if token_level else "advantages")
    adv_BR = adv if token_level else jnp.broadcast_to(adv[:, None], mask.shape)
    low = case.config.get("clip_ratio_low", 0.2)
    high = case.config.get("clip_ratio_high", low)
    log_cap = np.log(case.config.get("clip_ratio_c", 3.0))
    settings = verl_aggregation(case.config, mask.shape[1])

    def loss(logp):
        logp = jnp.where((adv_BR < 0) & (logp - old > log_cap), old + log_cap, logp)
        if token_level:
            tokens = clipped_surrogate(importance_ratio(logp, old), adv, epsilon=low, epsilon_high=high)
            total, count = aggregate(tokens.loss, mask, **settings)
            clipped = masked_mean((tokens.low_clipped | tokens.high_clipped).astype(adv.dtype), mask)
        else:
            config = AlgoConfig(loss_type=settings["loss_type"], beta=0.0, epsilon=low, epsilon_high=high)
            length = settings["max_completion_length"]
            total, count, metrics = grpo.policy_loss(logp, old, adv, mask, config=config, max_completion_length=length)
            clipped = jnp.divide(*metrics["clip_ratio/region_mean"])
        return verl_quotient(case.config, total, count), clipped

    (value, clipped), grad = jax.value_and_grad(loss, has_aux=True)(new)
    case.expect("loss", value)
    case.expect("grad_new_logps", grad)
    case.expect("metric:actor/pg_clipfrac", clipped)


def check_verl_aggregation(case: Case):
    loss, mask = case.input("advantages_token"), case.input("mask")
    case.expect(
        "loss", verl_quotient(case.config, *aggregate(loss, mask, **verl_aggregation(case.config, mask.shape[1])))
    )


def check_openrlhf_loss(case: Case):
    """OpenRLHF's PPO loss; its row means divide by the length plus 1e-8, which is a factor on the row's advantage."""
    settings = dict(case.config)
    tokens = settings.pop("token_level_loss", True)
    config = AlgoConfig(
        loss_type="dapo" if tokens else "grpo",
        beta=0.0,
        epsilon=settings.pop("clip_eps_low", 0.2),
        epsilon_high=settings.pop("clip_eps_high", 0.2),
    )
    assert not settings
    mask, adv = case.input("mask"), case.input("advantages")
    length = mask.sum(axis=1)
    adv = adv if tokens else adv * (length / (length + 1e-8))

    def loss(logp):
        total, count, _ = grpo.policy_loss(logp, case.input("old_logps"), adv, mask, config=config)
        return total / count

    value, grad = jax.value_and_grad(loss)(case.input("new_logps"))
    case.expect("loss", value)
    case.expect("grad_new_logps", grad)


# Advantages


def check_trl_advantages(case: Case):
    """TRL's weighted sum of rewards (NaN is left out; a row of NaN alone is invalid), then our advantages."""
    rewards = case.input("rewards_per_func")
    weights = jnp.asarray(case.config["reward_weights"] or [1.0] * rewards.shape[1])
    groups = (-1, case.config["num_generations"])
    valid = ~jnp.isnan(rewards).all(axis=1).reshape(groups)
    reward = jnp.where(valid, jnp.nansum(rewards * weights[None], axis=1).reshape(groups), jnp.nan)
    adv = grpo.advantages(reward, valid, config=AlgoConfig(scale_rewards=case.config["scale_rewards"]))
    case.expect("advantages", adv.reshape(-1))
    for name, value in reward_metrics(reward, valid).items():
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


def check_openrlhf_advantages(case: Case):
    """Our advantage, plus the return-to-go of the k1 penalty that OpenRLHF puts into the token rewards."""
    mask = case.input("mask")
    assert case.config["gamma"] == 1.0
    reward = case.input("rewards").reshape(-1, case.config["n_samples_per_prompt"])
    scale = "group" if case.config["estimator"] == "group_norm" else "none"
    loo = case.config["estimator"] == "rloo"
    adv = group_advantages(reward, jnp.ones(reward.shape, bool), scale=scale, epsilon=1e-9, leave_one_out=loo)
    penalty = case.config["kl_coef"] * np.where(mask, case.input("old_logps") - case.input("ref_logps"), 0)
    to_go = np.flip(np.cumsum(np.flip(penalty, axis=1), axis=1), axis=1)
    case.expect("advantages", (adv.reshape(-1, 1) - to_go) * mask)


# KL, masking, log-probs


def check_verl_kl(case: Case):
    plain = "new_logps" in case.inputs
    logp = case.input("new_logps" if plain else "logprob")
    ref = case.input("ref_logps" if plain else "ref_logprob")
    name = case.config["kl_penalty"]
    case.expect("kl", kl_estimate(logp, ref, name))
    case.expect("grad_sum", jax.grad(lambda x: kl_estimate(x, ref, name).sum())(logp))


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
    """Mean and unbiased variance; verl's whitening (1e-8 under the root) follows from the two."""
    x, mask = case.input("advantages_token"), case.input("mask")
    mean, variance = masked_mean(x, mask), masked_variance(x, mask, ddof=1)
    white = (x - mean) / jnp.sqrt(variance + 1e-8)
    case.expect("mean", mean)
    case.expect("var_unbiased", variance)
    case.expect("whiten", white)
    case.expect("whiten_noshift", white + mean)


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
    **{f"trl.loss.{kind}": check_trl_loss for kind in ("grpo", "bnpo", "dr_grpo", "dapo")},
    "trl.loss.*_onpolicy": check_trl_loss,
    "trl.loss.*_clip_higher": check_trl_loss,
    "trl.loss.*_kl_k3_*": check_trl_loss,
    "trl.loss.*_ga4": check_trl_loss,
    "trl.loss.*_mask_truncated": check_trl_loss,
    **{
        f"trl.adv.{kind}": check_trl_advantages
        for kind in ("group", "batch", "none", "two_rewards_weighted", "nan_rewards", "zero_variance_group")
    },
    "trl.adv.mask_truncated": check_trl_advantages,
    "trl.nanstd": check_nanstd,
    "trl.logps": check_logprobs,
    "verl.logprobs": check_logprobs,
    "verl.entropy_loss": check_entropy_loss,
    **{
        f"verl.adv.{kind}": check_verl_advantages
        for kind in ("grpo", "grpo_no_std", "grpo_vectorized", "rloo", "rloo_vectorized")
    },
    "verl.loss.vanilla_token-*": check_verl_loss,
    "verl.loss.vanilla_seq-*": check_verl_loss,
    **{
        f"verl.loss.vanilla_{kind}": check_verl_loss
        for kind in ("clip_higher", "no_dualclip", "token_adv", "global_info")
    },
    "verl.agg.*": check_verl_aggregation,
    "verl.masked": check_masked,
    **{f"verl.kl.{kind}{end}": check_verl_kl for kind in ("k1", "k2", "k3") for end in ("", "_extreme")},
    "openrlhf.kl.k1": check_openrlhf_kl,
    **{f"openrlhf.loss.{kind}": check_openrlhf_loss for kind in ("ppo_token", "ppo_sample", "clip_higher")},
    **{f"openrlhf.adv.{kind}": check_openrlhf_advantages for kind in ("rloo", "group_norm", "dr_grpo")},
}
