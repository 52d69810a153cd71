"""Checks across fields, before anything is loaded; and the batch arithmetic in words."""

import math

from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import ConfigError, did_you_mean
from pbrl_jax.mesh.offload import check_offload
from pbrl_jax.mesh.sharding import mesh_shape

#: Fields with a closed set of values.
CHOICES = {
    "policy.dtype": ("float32", "bfloat16"),
    "policy.remat": ("none", "full", "dots"),
    "encoder.dtype": ("", "float32", "bfloat16"),
    "pivot.source": ("dataset", "policy", "file", "endpoint"),
    "reward.parts": ("split", "whole", "reasoning", "answer"),
    "reward.language_gate": ("hard", "penalty", "soft", "scheduled", "tokens", "off"),
    "reward.similarity": ("raw", "affine", "floor", "calibrated"),
    "reward.references": ("max", "mean"),
    "reward.translation_similarity": ("embedding", "chrf", "bleu", "rouge_l", "comet"),
    "reward.comet_wiring": ("reference", "quality", "direct"),
    "reward.implicit_form": ("reference", "response"),
    "reward.curriculum_shape": ("linear", "cosine"),
    "reward.hybrid_form": ("convex", "product", "gated"),
    "rollout.weights": ("whole", "as_trained"),
    "algo.kl_estimator": ("k1", "k2", "k3"),
    "algo.kl_in": ("loss", "reward"),
    "algo.loss_type": ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "gpg"),
    "algo.importance_sampling_level": ("token", "sequence", "sequence_token"),
    "algo.importance_sampling_mode": ("off", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    "algo.multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "algo.scale_rewards": ("group", "batch", "none"),
    "data.overlong_prompts": ("error", "drop"),
    "data.thinking": ("default", "on", "off"),
    "sft.source": ("pivot", "translated", "samples", "file"),
    "dpo.loss_type": ("sigmoid", "ipo"),
    "dpo.pairs": ("all", "best_worst"),
    "lora.quantization": ("none", "int8", "int4", "nf4"),
    "guard.action": ("warn", "stop", "raise_beta", "roll_back"),
    "optim.optimizer": ("adamw", "muon"),
    "sft.optimizer": ("adamw", "muon"),
    "optim.schedule": ("constant", "linear", "cosine"),
}

#: Inclusive bounds of numbers; None is no bound. A field that holds None is not looked at.
BOUNDS = {
    "pivot.max_completion_length": (1, None),
    "pivot.temperature": (0, None),
    "pivot.samples": (1, None),
    "pivot.min_agreement": (0, 1),
    "pivot.references": (1, None),
    "endpoint.timeout": (1e-3, None),
    "endpoint.retries": (0, None),
    "endpoint.max_requests": (0, None),
    "endpoint.max_tokens": (0, None),
    "endpoint.parallel": (1, None),
    "encoder.max_length": (1, None),
    "algo.num_generations": (1, None),
    "algo.num_iterations": (1, None),
    "algo.beta": (0, None),
    "algo.epsilon": (0, 1),
    "algo.epsilon_high": (0, None),
    "algo.delta": (1, None),
    "algo.kl_target": (1e-9, None),
    "algo.kl_horizon": (1, None),
    "algo.importance_sampling_clip_min": (0, None),
    "algo.importance_sampling_clip_max": (0, None),
    "algo.sapo_temperature_pos": (1e-6, None),
    "algo.sapo_temperature_neg": (1e-6, None),
    "algo.entropy_coef": (0, None),
    "algo.min_reward_std": (0, None),
    "algo.advantage_epsilon": (0, None),
    "algo.gamma": (0, 1),
    "algo.lam": (0, 1),
    "algo.vf_coef": (0, None),
    "algo.cliprange_value": (0, None),
    "algo.critic_learning_rate": (0, None),
    "algo.value_pretrain_steps": (0, None),
    "algo.max_sampling_rounds": (1, None),
    "reward.answer_weight": (0, 1),
    "reward.gate_share": (0, 1),
    "reward.similarity_floor": (-1, 0.99),
    "reward.gate_penalty": (0, None),
    "reward.gate_schedule_steps": (0, None),
    "reward.hybrid_gate": (0, 1),
    "reward.repetition_ngram": (1, None),
    "reward.repetition_penalty": (None, 0),
    "reward.overlong_length": (0, None),
    "reward.overlong_cache": (0, None),
    "reward.curriculum_start": (0, None),
    "reward.curriculum_steps": (1, None),
    "reward.timeout": (0, None),
    "reward.judge_opponents": (1, None),
    "rollout.max_prompt_length": (1, None),
    "rollout.max_completion_length": (1, None),
    "rollout.temperature": (0, None),
    "rollout.top_p": (1e-6, 1),
    "rollout.top_k": (0, None),
    "rollout.segment_length": (1, 128),
    "data.limit": (0, None),
    "data.english_share": (0, 1),
    "data.language_temperature": (1e-6, None),
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
    "train.microbatch_samples": (0, None),
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
    "sft.prompts": (1, None),
    "dpo.steps": (1, None),
    "dpo.batch_size": (1, None),
    "dpo.learning_rate": (0, None),
    "dpo.warmup_steps": (0, None),
    "dpo.beta": (1e-9, None),
    "dpo.label_smoothing": (0, 0.5),
    "dpo.min_margin": (0, None),
    "dpo.prompts": (1, None),
    "lora.rank": (0, None),
    "lora.alpha": (0, None),
    "lora.tile_size": (1, None),
    "contrastive.steps": (1, None),
    "contrastive.batch_size": (2, None),
    "contrastive.learning_rate": (0, None),
    "contrastive.temperature": (1e-6, None),
    "contrastive.hard_negatives": (0, None),
    "eval.limit": (0, None),
    "eval.batch_size": (1, None),
    "eval.max_prompt_length": (0, None),
    "eval.overlap_ngram": (1, None),
    "eval.max_overlap": (0, 1),
    "log.samples_per_step": (0, None),
    "log.slow_phase_seconds": (0, None),
    "guard.max_invalid_share": (0, 1),
    "guard.patience": (1, None),
    "guard.beta_factor": (1, None),
    "guard.max_beta": (0, None),
    "guard.max_rollbacks": (1, None),
    "guard.min_language_share": (0, 1),
    "guard.min_mean_length": (0, None),
    "guard.max_clipped_ratio": (0, 1),
    "guard.min_entropy": (0, None),
    "guard.min_reward_std": (0, None),
    "guard.max_kl": (0, None),
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
        bottom, top = -math.inf if low is None else low, math.inf if high is None else high
        if value is not None and not (bottom <= value <= top) or value in (math.inf, -math.inf):
            limit = f"at least {low}" if high is None else f"at most {high}" if low is None else f"from {low} to {high}"
            raise ConfigError(f"{path} is {value}; expected {limit}.")
    if config.sft.warmup_steps >= config.sft.steps:
        raise ConfigError(
            f"sft.warmup_steps is {config.sft.warmup_steps}, expected fewer than sft.steps={config.sft.steps}. "
            f"Use --sft.warmup-steps {config.sft.steps // 10}."
        )
    _check_pivots(config)
    _check_groups(config)
    _check_objective(config)
    _check_advantages(config)
    _check_guard(config)
    _check_adapters(config)
    check_offload(config)
    _check_batch(config, device_count)


def _check_pivots(config: Config) -> None:
    """Several references of one question, and how they come to differ."""
    pivot = config.pivot
    written = pivot.source in ("policy", "endpoint")
    _refuse_first((
        (pivot.samples > 1 and not written,
         f"pivot.samples is {pivot.samples}, but pivot.source {pivot.source} writes none. Use --pivot.samples 1."),
        (pivot.samples > 1 and pivot.temperature == 0,
         f"pivot.samples is {pivot.samples} and pivot.temperature 0: all samples would be equal. Use "
         "--pivot.temperature 0.7."),
        (pivot.references > pivot.samples,
         f"pivot.references is {pivot.references}, of pivot.samples {pivot.samples}. Use --pivot.samples "
         f"{pivot.references} --pivot.temperature 0.7."),
        (pivot.references > 1 and config.train.fused,
         f"pivot.references is {pivot.references}, but a fused step reads one. Use --train.no-fused."),
        (pivot.source == "endpoint" and not (config.endpoint.url and config.endpoint.model),
         "pivot.source is endpoint, but endpoint.url or endpoint.model is empty. Use --endpoint.url "
         "http://localhost:8000/v1 --endpoint.model NAME."),
    ))  # fmt: skip


#: Algorithms whose advantages compare the samples of a prompt.
GROUPED = ("grpo", "opo", "gpg", "reinforce_plus_plus_baseline")
#: Algorithms whose advantages are those of tokens, from rewards summed over tokens.
TOKEN_LEVEL = ("reinforce_plus_plus", "ppo")
#: Loss types that clip the ratio.
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo")


def _check_groups(config: Config) -> None:
    algo = config.algo
    alone = algo.name == "grpo" and algo.scale_rewards != "group" and not algo.leave_one_out
    compares = algo.name in GROUPED and not alone or algo.mask_zero_std_groups or algo.max_sampling_rounds > 1
    if algo.num_generations < 2 and compares:
        raise ConfigError(
            f"algo.num_generations is {algo.num_generations}: a group needs two samples to compare. "
            "Use --algo.num-generations 8."
        )
    if config.rollout.temperature == 0:
        raise ConfigError(
            "rollout.temperature is 0: all samples of a group would be equal. Use --rollout.temperature 1.0."
        )


def _check_objective(config: Config) -> None:
    """Settings of the loss and of the KL that exclude each other, or that nothing would read."""
    algo = config.algo
    upper = 1 + (algo.epsilon if algo.epsilon_high is None else algo.epsilon_high)
    low, high = algo.importance_sampling_clip_min, algo.importance_sampling_clip_max
    rules = (
        (algo.loss_type == "cispo" and (algo.epsilon_high is None or algo.epsilon_high < 1),
         f"algo.loss_type cispo bounds the ratio by algo.epsilon_high itself, and it is {algo.epsilon_high}; expected "
         "at least 1. Use --algo.epsilon-high 5.0."),
        (algo.delta is not None and algo.loss_type not in CLIPPED,
         f"algo.delta is {algo.delta}, but algo.loss_type {algo.loss_type} does not clip. Use --algo.delta None, or "
         f"one of {', '.join(CLIPPED)}."),
        (algo.delta is not None and algo.loss_type in CLIPPED and algo.delta <= upper,
         f"algo.delta is {algo.delta}; expected more than 1 + epsilon_high = {upper:g}, or it would cut what the clip "
         f"allows. Use --algo.delta {2 * upper:g}."),
        (algo.loss_type == "gpg" and (algo.num_iterations > 1 or algo.importance_sampling_level != "token"),
         f"algo.loss_type gpg has no importance ratio, but algo.num_iterations is {algo.num_iterations} and "
         f"algo.importance_sampling_level {algo.importance_sampling_level}. Use --algo.num-iterations 1 and token, or "
         "another loss_type."),
        (algo.importance_sampling_mode != "off" and algo.num_iterations > 1,
         f"algo.importance_sampling_mode {algo.importance_sampling_mode} compares the sampler with the trainer at the "
         f"moment of sampling, which algo.num_iterations={algo.num_iterations} has left behind from its second step "
         "on. Use --algo.num-iterations 1."),
        (low is not None and high is not None and low > high,
         f"algo.importance_sampling_clip_min is {low}, above algo.importance_sampling_clip_max {high}. Swap them."),
        (algo.kl_target is not None and algo.beta == 0,
         f"algo.kl_target is {algo.kl_target}, but algo.beta is 0, which keeps no reference. Use --algo.beta 0.001."),
        (algo.kl_in == "reward" and algo.use_bias_correction_kl,
         "algo.use_bias_correction_kl multiplies a KL in the loss, but algo.kl_in is reward. Use "
         "--algo.no-use-bias-correction-kl."),
    )  # fmt: skip
    _refuse_first(rules)


def _check_advantages(config: Config) -> None:
    """Settings of advantages that the chosen algorithm does not read."""
    algo = config.algo
    only_grpo = {"leave_one_out": algo.leave_one_out, "min_reward_std": algo.min_reward_std}
    unread = [f"algo.{name}={value}" for name, value in only_grpo.items() if value and algo.name != "grpo"]
    apart = algo.multi_objective_aggregation == "normalize_then_sum"
    fits = algo.name == "grpo" and algo.scale_rewards == "group" and not algo.leave_one_out and algo.kl_in == "loss"
    weighted = sum(1 for weight in config.reward.reward_weights if weight)
    rules = (
        (unread, f"{' and '.join(unread)} mean nothing to algo.name {algo.name}. Use --algo.name grpo, or drop them."),
        (algo.gamma != 1 and algo.name not in TOKEN_LEVEL,
         f"algo.gamma is {algo.gamma}, but algo.name {algo.name} gives every token of a response the same advantage. "
         f"Use --algo.gamma 1, or one of {', '.join(TOKEN_LEVEL)}."),
        (apart and weighted < 2,
         f"algo.multi_objective_aggregation normalize_then_sum needs two reward functions with a weight, and there is "
         f"{weighted}. Use sum_then_normalize."),
        (apart and config.reward.final_weights,
         "reward.final_weights change the sum of rewards, which algo.multi_objective_aggregation normalize_then_sum "
         "does not take. Use sum_then_normalize."),
        (apart and not fits,
         "algo.multi_objective_aggregation normalize_then_sum scales rewards by itself. Use it with algo.name grpo, "
         "scale_rewards group, no leave_one_out and kl_in loss."),
    )  # fmt: skip
    _refuse_first(rules)


def _check_guard(config: Config) -> None:
    """Bounds on metrics that the run does not make."""
    guard, train = config.guard, config.train
    kept = train.save_steps * (train.save_total_limit - 1)
    raises = guard.action == "raise_beta" or (guard.action == "roll_back" and guard.beta_factor > 1)
    _refuse_first((
        (raises and config.algo.beta == 0,
         f"guard.action {guard.action} raises algo.beta, which is 0 and keeps no reference. Use --algo.beta 0.001"
         + (", or --guard.beta-factor 1." if guard.action == "roll_back" else ".")),
        (guard.action == "roll_back" and kept <= guard.patience,
         f"guard.action roll_back needs a checkpoint from before the collapse, but with train.save_steps="
         f"{train.save_steps} and save_total_limit={train.save_total_limit} those of the last {kept} steps are kept "
         f"and guard.patience is {guard.patience}. Use --train.save-total-limit "
         f"{2 + -(-(guard.patience + 1) // train.save_steps)}."),
        (guard.min_entropy is not None and not config.log.entropy,
         f"guard.min_entropy is {guard.min_entropy}, but log.entropy is off. Use --log.entropy."),
        (guard.max_kl is not None and config.algo.beta == 0,
         f"guard.max_kl is {guard.max_kl}, but algo.beta is 0, which keeps no reference. Use --algo.beta 0.001."),
    ))  # fmt: skip


def _check_adapters(config: Config) -> None:
    """Adapters on projections that do not exist, or frozen kernels without anything to train."""
    lora = config.lora
    known = ("query", "key", "value", "out", "gate", "up", "down")
    other = [name for name in lora.targets if name not in known]
    _refuse_first((
        (lora.rank and (other or not lora.targets),
         f"lora.targets is {lora.targets}; expected some of {', '.join(known)}."),
        (lora.quantization != "none" and not lora.rank,
         f"lora.quantization {lora.quantization} freezes the weights, and lora.rank is 0: nothing would be trained. "
         "Use --lora.rank 16."),
    ))  # fmt: skip


def _refuse_first(rules) -> None:
    """Raise the message of the first rule (broken, message) that is broken."""
    for broken, message in rules:
        if broken:
            raise ConfigError(message)


def _check_batch(config: Config, device_count: int) -> None:
    data, fsdp, _ = mesh_shape(config.mesh, device_count)
    prompts, micro = config.train.prompts_per_step, config.train.microbatch_prompts or config.train.prompts_per_step
    row_shards = data * fsdp
    if prompts % micro or micro > prompts:
        raise ConfigError(
            f"train.microbatch_prompts={micro} does not divide train.prompts_per_step={prompts}. "
            f"Use one of {[n for n in range(1, prompts + 1) if prompts % n == 0]}."
        )
    samples, part = config.algo.num_generations, config.train.microbatch_samples
    if part and (samples % part or not config.train.microbatch_prompts):
        raise ConfigError(
            f"train.microbatch_samples={part} takes groups of algo.num_generations={samples} apart, in microbatches of "
            f"train.microbatch_prompts={config.train.microbatch_prompts} parts. Use one of "
            f"{[n for n in range(1, samples + 1) if samples % n == 0]}, and --train.microbatch-prompts {row_shards}."
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
    rollout, part = config.rollout, config.train.microbatch_samples
    groups = f"{micro} groups" if not part else f"{micro} parts of groups ({part} samples each)"
    count = prompts // micro * (samples // part if part else 1)
    return (
        f"{prompts} prompts x {samples} samples = {prompts * samples} responses of at most "
        f"{rollout.max_completion_length} tokens per rollout; {config.algo.num_iterations} optimizer step(s) on each, "
        f"in {count} microbatch(es) of {groups}; mesh data {data} x fsdp {fsdp} x tensor {tensor} "
        f"on {device_count} device(s)."
    )
