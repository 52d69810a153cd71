"""Comparisons of our policy losses with the oracles; `tests/test_oracles.py` runs them.

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

from pbrl_jax import AlgoConfig
from pbrl_jax.algos import grpo
from pbrl_jax.algos.correction import sampler_weights
from pbrl_jax.algos.losses import aggregate
from pbrl_jax.core.masking import masked_mean

FOLDER = Path(os.environ.get("PBRL_ORACLES") or Path(__file__).parents[1] / "fixtures" / "oracles")
EXACT = 1e-9
FLOAT32 = 1e-6
#: verl adds it to a row's number of tokens in this mode, at least 1: a relative difference of at most as much.
VERL_DIVISOR = {"seq-mean-token-mean": 1e-8}


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

    def expect(self, name: str, actual, tolerance: float = EXACT, or_zero: bool = False):
        """Assert that `actual` is the stored output, which itself must say something: not all zero, if a gradient
        (unless `or_zero`: a tight clip of whole rows may leave nothing)."""
        expected = self.output(name)
        assert or_zero or not name.startswith("grad") or np.abs(expected).max() > 0
        assert actual.dtype == np.float64
        relative = VERL_DIVISOR.get(self.config.get("loss_agg_mode"), 0)
        np.testing.assert_allclose(actual, expected, rtol=relative, atol=tolerance, err_msg=f"{self.name}: {name}")


CASES = {entry["case"]: Case(entry) for entry in json.loads((FOLDER / "rl_oracles.json").read_text())["cases"]}


# Policy losses

#: TRL's configuration of a stub that is not an objective's setting.
NOT_SETTINGS = ("current_gradient_accumulation_steps", "steps_per_generation", "old_per_token_logps", "use_vllm")


def trl_settings(case: Case) -> tuple[AlgoConfig, float]:
    """Our config for a TRL case, and by how much more TRL divides its loss.

    luspo is the token sum over the number of rows, which is dr_grpo with the constant 1 (see check_trl_loss). Under
    accumulation TRL divides a microbatch's loss by the number of microbatches, which is one division by the count of
    all of them; dapo's token count is that of all already.
    """
    config = {"beta": 0.0, "use_bias_correction_kl": True} | case.config
    microbatches = config.get("current_gradient_accumulation_steps", 1) if config["loss_type"] != "dapo" else 1
    loss_type = {"luspo": "dr_grpo"}.get(config["loss_type"], config["loss_type"])
    settings = {key: value for key, value in config.items() if key not in NOT_SETTINGS}
    return AlgoConfig(**settings | {"loss_type": loss_type}), microbatches


def check_trl_loss(case: Case):
    """TRL's loss, gradient and metrics. TRL counts fully masked rows; its sapo gate is computed in float32."""
    config, microbatches = trl_settings(case)
    length = 1 if case.config["loss_type"] == "luspo" else CASES["step.qwen3_dr_grpo"].config["max_completion_length"]
    given = {
        ours: case.input(theirs) if theirs in case.inputs else None
        for ours, theirs in (("ref_logp_BR", "ref_logps"), ("weight_BR", "importance_sampling_ratio"))
    }

    def loss(logp):
        total, count, metrics = grpo.policy_loss(
            logp,
            case.input("old_logps") if case.config["old_per_token_logps"] else jax.lax.stop_gradient(logp),
            case.input("advantages"),
            case.input("mask"),
            config=config,
            max_completion_length=length,
            count_masked_rows=True,
            entropy_BR=case.input("entropies"),
            **given,
        )
        return total / (count * microbatches), metrics

    (value, metrics), grad = jax.value_and_grad(loss, has_aux=True)(case.input("new_logps"))
    tolerance = FLOAT32 if config.loss_type == "sapo" else EXACT
    case.expect("loss", value, tolerance)
    case.expect("grad_new_logps", grad, tolerance, or_zero="gspo" in case.name)
    assert ("kl" in metrics) == ("metric:kl" in case.outputs)
    for name, (numerator, denominator) in metrics.items():
        case.expect(f"metric:{name}", numerator / denominator)


def check_trl_entropy_bonus(case: Case):
    """TRL's bonus is a mean over tokens whatever the loss, ours is aggregated as the loss is: all but the bonus, which
    TRL's stub leaves out of its gradient, is the same, and the values differ by what the two means do."""
    settings, _ = trl_settings(case)
    mask, entropy = case.input("mask"), case.input("entropies")

    def loss(logp, config):
        given = {"entropy_BR": entropy, "count_masked_rows": True}
        args = case.input("old_logps"), case.input("advantages"), mask
        total, count, _ = grpo.policy_loss(logp, *args, config=config, **given)
        return total / count

    logp, config = case.input("new_logps"), AlgoConfig(**{**vars(settings), "entropy_coef": 0.0})
    case.expect("metric:policy_loss", loss(logp, config))
    case.expect("grad_new_logps", jax.grad(loss)(logp, settings))
    tokens, rows = masked_mean(entropy, mask), masked_mean(entropy, mask, axis=1).mean()
    case.expect("loss", loss(logp, settings) + settings.entropy_coef * (rows - tokens))


def check_trl_rloo(case: Case):
    """TRL's RLOO clips the product of a row's ratios: our objective on rows of one token, the whole response."""
    mask = case.input("mask")
    config = AlgoConfig(beta=0.0, **case.config)

    def loss(logp):
        whole, old = (jnp.where(mask, x, 0).sum(axis=1, keepdims=True) for x in (logp, case.input("old_logps")))
        everything = jnp.ones(whole.shape, bool)
        total, count, _ = grpo.policy_loss(whole, old, case.input("advantages"), everything, config=config)
        return total / count

    value, grad = jax.value_and_grad(loss)(case.input("new_logps"))
    case.expect("loss", value)
    case.expect("grad_new_logps", grad)


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


#: verl's loss by the first word after `verl.loss.` -> what it takes in our settings.
VERL_LOSSES = {
    "vanilla": {},
    "gspo": {"importance_sampling_level": "sequence_token"},
    "sapo": {"loss_type": "sapo", "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05},
    "gpg": {"loss_type": "gpg"},
}


def verl_loss(case: Case, config: AlgoConfig, old, length: int):
    """verl's quotient and its gradient from our sum and count, the clip metric beside it."""
    adv = case.input("advantages_token" if "advantages_token" in case.inputs else "advantages")
    weights = case.input("rollout_is_weights") if "rollout_is_weights" in case.inputs else None

    def loss(logp):
        total, count, metrics = grpo.policy_loss(
            logp, old(logp), adv, case.input("mask"), config=config, max_completion_length=length, weight_BR=weights
        )
        return verl_quotient(case.config, total, count), metrics

    return jax.value_and_grad(loss, has_aux=True)(case.input("new_logps"))


def check_verl_loss(case: Case):
    """verl's losses; its dual clip, on by default where it clips, is our `delta`."""
    kind = case.name.removeprefix("verl.loss.").split("_")[0]
    aggregation = verl_aggregation(case.config, case.input("mask").shape[1])
    low = case.config.get("clip_ratio_low", 0.2)
    clip = {"epsilon": low, "epsilon_high": case.config.get("clip_ratio_high", low)}
    if kind == "vanilla":
        clip["delta"] = case.config.get("clip_ratio_c", 3.0)
    settings = {"loss_type": aggregation["loss_type"], **clip, **VERL_LOSSES[kind]}
    length = aggregation["max_completion_length"]
    config = AlgoConfig(beta=0.0, **settings)
    (value, metrics), grad = verl_loss(case, config, lambda logp: case.input("old_logps"), length)
    case.expect("loss", value)
    case.expect("grad_new_logps", grad, or_zero=kind == "gspo")
    if kind == "vanilla":
        case.expect("metric:actor/pg_clipfrac", jnp.divide(*metrics["clip_ratio/region_mean"]))


def check_verl_cispo(case: Case):
    """verl bounds the detached ratio from both sides; the lower bound is made here, by old log-probs near the new."""
    low, high = case.config["clip_ratio_low"], case.config["clip_ratio_high"]
    assert case.config["loss_agg_mode"] == "token-mean"

    def old(logp):
        logp = jax.lax.stop_gradient(logp)
        return jnp.minimum(case.input("old_logps"), logp - np.log(1 - low))

    config = AlgoConfig(beta=0.0, loss_type="cispo", epsilon_high=1 + high)
    (value, _), grad = verl_loss(case, config, old, case.input("mask").shape[1])
    case.expect("loss", value)
    case.expect("grad_new_logps", grad)


def check_verl_aggregation(case: Case):
    loss, mask = case.input("advantages_token"), case.input("mask")
    case.expect(
        "loss", verl_quotient(case.config, *aggregate(loss, mask, **verl_aggregation(case.config, mask.shape[1])))
    )


#: OpenRLHF's correction by (level, mode) -> ours; its sequence ratio is the geometric mean.
OPENRLHF_CORRECTIONS = {("token", "clip"): "token_truncate", ("token", "mask"): "token_mask", ("seq", "mask"): None}


def openrlhf_weights(case: Case, settings: dict):
    """Weights of tokens from the correction's settings, which are taken out of `settings`."""
    level, mode = settings.pop("is_correction_level", None), settings.pop("is_correction_mode", None)
    low, high = settings.pop("is_correction_threshold", (None, None))
    if level is None:
        return None
    mask, old, rollout = case.input("mask"), case.input("old_logps"), case.input("rollout_logps")
    ours = OPENRLHF_CORRECTIONS[level, mode]
    if ours is not None:
        return sampler_weights(old, rollout, mask, mode=ours, clip_min=low, clip_max=high)
    # One token per row, whose log-ratio is the mean of the row's, says which rows are kept; their tokens keep ratios.
    row = masked_mean(old - rollout, mask, axis=1, keepdims=True)
    kept = sampler_weights(row, row * 0, row == row, mode="sequence_mask", clip_min=low, clip_max=high) > 0
    return jnp.where(kept, sampler_weights(old, rollout, mask, mode="token_truncate"), 0)


def check_openrlhf_loss(case: Case):
    """OpenRLHF's PPO loss; its row means divide by the length plus 1e-8, which is a factor on the row's advantage."""
    settings = dict(case.config)
    sequence = settings.pop("policy_loss_type", "ppo") == "gspo"
    tokens = settings.pop("token_level_loss", not sequence)
    weights = openrlhf_weights(case, settings)
    config = AlgoConfig(
        loss_type="dapo" if tokens else "grpo",
        beta=0.0,
        epsilon=settings.pop("clip_eps_low", 0.2),
        epsilon_high=settings.pop("clip_eps_high", 0.2),
        delta=settings.pop("dual_clip", None),
        importance_sampling_level="sequence" if sequence else "token",
    )
    assert not settings
    mask, adv = case.input("mask"), case.input("advantages")
    length = mask.sum(axis=1)
    adv = adv if tokens else adv * (length / (length + 1e-8))

    def loss(logp):
        total, count, _ = grpo.policy_loss(logp, case.input("old_logps"), adv, mask, config=config, weight_BR=weights)
        return total / count

    value, grad = jax.value_and_grad(loss)(case.input("new_logps"))
    case.expect("loss", value)
    case.expect("grad_new_logps", grad)


#: Case, or pattern of cases -> check. Exactly one pattern matches a case.
CHECKS = {
    **{
        f"trl.loss.{kind}": check_trl_loss
        for kind in ("grpo", "bnpo", "dr_grpo", "dapo", "sapo", "cispo*", "gspo*", "luspo", "dapo_entropy_coef")
    },
    **{
        f"trl.loss.*_{kind}": check_trl_loss
        for kind in ("onpolicy", "clip_higher", "kl_k3_*", "ga4", "mask_truncated", "delta", "tis_token")
    },
    "trl.loss.grpo_entropy_coef": check_trl_entropy_bonus,
    "trl.rloo.loss": check_trl_rloo,
    **{f"verl.loss.{kind}": check_verl_loss for kind in ("vanilla_*", "gspo_*", "sapo", "gpg")},
    "verl.loss.cispo": check_verl_cispo,
    "verl.agg.*": check_verl_aggregation,
    **{
        f"openrlhf.loss.{kind}": check_openrlhf_loss
        for kind in ("ppo_*", "clip_higher", "dual_clip", "gspo", "tis_token_clip", "icepop_token_mask", "seq_mask")
    },
}
