"""Checks across fields, before anything is loaded; and the batch arithmetic in words."""

import math

from pbrl_jax.core.config import Config
from pbrl_jax.core.errors import ConfigError, did_you_mean
from pbrl_jax.core.sharding import mesh_shape

#: Fields with a closed set of values.
CHOICES = {
    "policy.dtype": ("float32", "bfloat16"),
    "policy.remat": ("none", "full", "dots"),
    "pivot.source": ("dataset", "policy", "file"),
    "reward.parts": ("split", "whole"),
    "reward.language_gate": ("hard", "tokens", "off"),
    "algo.kl_estimator": ("k1", "k2", "k3"),
    "algo.loss_type": ("grpo", "bnpo", "dr_grpo", "dapo"),
    "algo.scale_rewards": ("group", "batch", "none"),
    "data.overlong_prompts": ("error", "drop"),
    "optim.schedule": ("constant", "linear", "cosine"),
}

#: Inclusive bounds of numbers; None is no bound. A field that holds None is not looked at.
BOUNDS = {
    "pivot.max_completion_length": (1, None),
    "pivot.temperature": (0, None),
    "encoder.max_length": (1, None),
    "algo.num_generations": (1, None),
    "algo.num_iterations": (1, None),
    "algo.beta": (0, None),
    "algo.epsilon": (0, 1),
    "algo.epsilon_high": (0, None),
    "algo.advantage_epsilon": (0, None),
    "reward.answer_weight": (0, 1),
    "rollout.max_prompt_length": (1, None),
    "rollout.max_completion_length": (1, None),
    "rollout.temperature": (0, None),
    "rollout.top_p": (1e-6, 1),
    "rollout.top_k": (0, None),
    "rollout.segment_length": (1, 128),
    "data.limit": (0, None),
    "data.english_share": (0, 1),
    "data.vocab_size": (1, None),
    "optim.learning_rate": (0, None),
    "optim.warmup_steps": (0, None),
    "optim.schedule_steps": (0, None),
    "optim.min_learning_rate_share": (0, 1),
    "optim.weight_decay": (0, None),
    "optim.b1": (0, 1),
    "optim.b2": (0, 1),
    "optim.eps": (0, None),
    "optim.max_grad_norm": (0, None),
    "train.prompts_per_step": (1, None),
    "train.microbatch_prompts": (0, None),
    "train.logprob_chunk": (1, None),
    "train.max_steps": (1, None),
    "train.save_steps": (1, None),
    "train.save_total_limit": (1, None),
    "train.eval_steps": (0, None),
    "train.logging_steps": (1, None),
    "train.seed": (0, 2**31 - 1),
    "sft.steps": (1, None),
    "sft.batch_size": (1, None),
    "sft.learning_rate": (0, None),
    "sft.warmup_steps": (0, None),
    "sft.english_rows": (1, None),
    "sft.warm_rows_per_language": (1, None),
    "contrastive.steps": (1, None),
    "contrastive.batch_size": (2, None),
    "contrastive.learning_rate": (0, None),
    "contrastive.temperature": (1e-6, None),
    "contrastive.hard_negatives": (0, None),
    "eval.limit": (0, None),
    "eval.batch_size": (1, None),
    "eval.max_prompt_length": (0, None),
    "log.samples_per_step": (0, None),
    "guard.max_invalid_share": (0, 1),
}


def field_value(config: Config, path: str):
    """The value at `section.field`."""
    section, field = path.split(".")
    return getattr(getattr(config, section), field)


def validate(config: Config, device_count: int) -> None:
    """Refuse a configuration that cannot run.

    Args:
      config: the resolved configuration.
      device_count: devices the run will use.

    Raises:
      ConfigError: says which field, what it holds, and what would work.
    """
    for path, known in CHOICES.items():
        value = field_value(config, path)
        if value not in known:
            raise ConfigError(f"{path} is {value!r}. {did_you_mean(str(value), known)}")
    for path, (low, high) in BOUNDS.items():
        value = field_value(config, path)
        # Written so that a NaN, which compares with nothing, is refused.
        if value is not None and not (low <= value <= (math.inf if high is None else high)) or value == math.inf:
            limit = f"at least {low}" if high is None else f"from {low} to {high}"
            raise ConfigError(f"{path} is {value}; expected {limit}.")
    if config.sft.warmup_steps >= config.sft.steps:
        raise ConfigError(
            f"sft.warmup_steps is {config.sft.warmup_steps}, expected fewer than sft.steps={config.sft.steps}. "
            f"Use --sft.warmup-steps {config.sft.steps // 10}."
        )
    _check_groups(config)
    _check_batch(config, device_count)


def _check_groups(config: Config) -> None:
    algo = config.algo
    if algo.num_generations < 2 and (algo.scale_rewards == "group" or algo.leave_one_out):
        raise ConfigError(
            f"algo.num_generations is {algo.num_generations}: a group needs two samples to compare. "
            "Use --algo.num-generations 8."
        )
    if config.rollout.temperature == 0:
        raise ConfigError(
            "rollout.temperature is 0: all samples of a group would be equal. Use --rollout.temperature 1.0."
        )


def _check_batch(config: Config, device_count: int) -> None:
    data, fsdp, _ = mesh_shape(config.mesh, device_count)
    prompts, micro = config.train.prompts_per_step, config.train.microbatch_prompts or config.train.prompts_per_step
    row_shards = data * fsdp
    if prompts % micro or micro > prompts:
        raise ConfigError(
            f"train.microbatch_prompts={micro} does not divide train.prompts_per_step={prompts}. "
            f"Use one of {[n for n in range(1, prompts + 1) if prompts % n == 0]}."
        )
    if micro % row_shards:
        nearest = -(-micro // row_shards) * row_shards
        raise ConfigError(
            f"{micro} prompts of a microbatch cannot be shared evenly by mesh data * fsdp = {row_shards} devices. "
            f"Use --train.prompts-per-step {nearest} (and --train.microbatch-prompts 0), or a smaller mesh.data."
        )


def batch_arithmetic(config: Config, device_count: int) -> str:
    """What a step consists of, in one paragraph for the start of a run."""
    data, fsdp, tensor = mesh_shape(config.mesh, device_count)
    prompts, samples = config.train.prompts_per_step, config.algo.num_generations
    micro = config.train.microbatch_prompts or prompts
    rollout = config.rollout
    return (
        f"{prompts} prompts x {samples} samples = {prompts * samples} responses of at most "
        f"{rollout.max_completion_length} tokens per rollout; {config.algo.num_iterations} optimizer step(s) on each, "
        f"in {prompts // micro} microbatch(es) of {micro} groups; mesh data {data} x fsdp {fsdp} x tensor {tensor} "
        f"on {device_count} device(s)."
    )
