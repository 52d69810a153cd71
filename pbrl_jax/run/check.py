"""Checks that need the tables or several fields, before anything is loaded; and the batch arithmetic in words.

What a field declares beside itself (type, range, closed set) is `config.checks`' business.
"""

from collections.abc import Iterable
from typing import NamedTuple

from pbrl_jax.algos import ALGORITHMS
from pbrl_jax.algos.correction import MODES
from pbrl_jax.algos.grpo import scales_rewards_separately
from pbrl_jax.algos.losses import LOSSES
from pbrl_jax.algos.objectives import KL_ESTIMATORS, LEVELS
from pbrl_jax.algos.preference import PREFERENCE_LOSSES
from pbrl_jax.config.checks import check_fields
from pbrl_jax.config.fields import settings_of
from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import ConfigError, did_you_mean
from pbrl_jax.core.urls import hide_credentials
from pbrl_jax.data.sources import SOURCES
from pbrl_jax.mesh.offload import check_offload
from pbrl_jax.mesh.sharding import mesh_shape
from pbrl_jax.models.attention import KERNELS
from pbrl_jax.models.specs import DECODERS, ENCODERS
from pbrl_jax.rewards.combine import REWARDS, check_reward, reward_names
from pbrl_jax.rewards.shaping import OverlongConfig, overlong_bounds
from pbrl_jax.run.unread import check_read
from pbrl_jax.text.prompts import STYLES
from pbrl_jax.text.wording import wording_of
from pbrl_jax.train.guard import bounds, most_steps_back
from pbrl_jax.train.programs import microbatch_size, updates_per_rollout


class Names(NamedTuple):
    """The table that a field names an entry of, what an entry is called, and what else the field may hold."""

    table: Iterable[str]
    what: str = ""
    more: tuple[str, ...] = ()


#: Field -> its names; `--help` shows them too.
TABLES = {
    "policy.preset": Names(DECODERS, "policy preset"),
    "policy.attention": Names(KERNELS, "attention kernel"),
    "encoder.preset": Names(ENCODERS, "encoder preset"),
    "reward.functions": Names(REWARDS, "reward", ("package.module:function",)),
    "reward.hybrid_answer": Names(REWARDS, "reward", ("package.module:function",)),
    "reward.hybrid_reasoning": Names(REWARDS, "reward", ("package.module:function",)),
    "algo.name": Names(ALGORITHMS, "algorithm"),
    "algo.loss_type": Names(LOSSES),
    "algo.kl_estimator": Names(KL_ESTIMATORS),
    "algo.importance_sampling_level": Names(LEVELS),
    "algo.importance_sampling_mode": Names(MODES, more=("auto", "off")),
    "dpo.loss_type": Names(PREFERENCE_LOSSES),
    "data.source": Names(SOURCES, "data source"),
    "data.prompt_style": Names(STYLES, "prompt style"),
    "eval.source": Names(SOURCES, "data source", ("",)),
}


def field_value(config: Config, path: str):
    """The value at `section.field`."""
    section, field = path.split(".")
    return getattr(getattr(config, section), field)


def validate(config: Config, device_count: int, samples: bool = True) -> None:
    """Refuse a configuration that cannot run.

    Args:
      config: the resolved configuration.
      device_count: devices the run will use.
      samples: whether it samples batches of train.prompts_per_step.

    Raises:
      ConfigError: says which field, what it holds, and what would work.
    """
    for path, names in TABLES.items():
        if not path.startswith("reward."):  # check_reward knows which of them are read
            _check_name(path, field_value(config, path), names)
    check_fields(config)
    check_reward(config.reward)
    if config.sft.warmup_steps >= config.sft.steps:
        raise ConfigError(
            f"sft.warmup_steps is {config.sft.warmup_steps}, expected fewer than sft.steps={config.sft.steps}. "
            f"Use --sft.warmup-steps {config.sft.steps // 10}."
        )
    _check_models(config)
    _check_pivots(config)
    _check_groups(config)
    _check_overlong(config)
    _check_sampler(config)
    _check_ahead(config)
    _check_objective(config)
    _check_advantages(config)
    _check_guard(config)
    _check_adapters(config)
    check_offload(config)
    check_read(config)
    wording_of(config.data)
    mesh_shape(config.mesh, device_count)
    if samples:
        _check_batch(config, device_count)


def _check_name(path: str, value: str, names: Names) -> None:
    if value in names.table or value in names.more:
        return
    what = f"Unknown {names.what} {value!r}." if names.what else f"{path} is {value!r}."
    raise ConfigError(f"{what} {did_you_mean(value, [name for name in (*names.table, *names.more) if name])}")


def _check_models(config: Config) -> None:
    """Settings of a policy that is not loaded, and of an optimizer that does not act."""
    policy, optim, train = config.policy, config.optim, config.train
    refuse_muon(config, "optim.optimizer", optim.optimizer)
    ends_at_zero = optim.schedule != "constant" and optim.min_learning_rate_share == 0
    _refuse_first((
        (policy.tokenizer and policy.source != "random",
         f"policy.tokenizer is {policy.tokenizer!r}, but policy.source {policy.source!r} brings its own tokenizer. Use "
         "--policy.tokenizer ''."),
        (ends_at_zero and 0 < optim.schedule_steps < train.max_steps,
         f"optim.schedule {optim.schedule} ends at learning rate 0 after optim.schedule_steps={optim.schedule_steps}, "
         f"but train.max_steps is {train.max_steps}: the steps after it would change nothing. Use --train.max-steps "
         f"{optim.schedule_steps}, or --optim.schedule-steps {train.max_steps} for another experiment."),
    ))  # fmt: skip


def refuse_muon(config: Config, path: str, optimizer: str) -> None:
    """Refuse Muon beside adapters: it acts on the matrices of the layers, and they are frozen (ConfigError)."""
    if config.lora.rank and optimizer == "muon":
        raise ConfigError(
            f"{path} muon acts on the matrices of the layers, which lora.rank={config.lora.rank} freezes; the adapters "
            f"would be trained by AdamW. Use --{path} adamw."
        )


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


def _check_groups(config: Config) -> None:
    algo = config.algo
    algorithm = ALGORITHMS[algo.name]
    compares = algorithm.compares_groups or algo.mask_zero_std_groups or algo.max_sampling_rounds > 1
    if algo.num_generations < 2 and compares:
        raise ConfigError(
            f"algo.num_generations is {algo.num_generations}: a group needs two samples to compare. "
            "Use --algo.num-generations 8."
        )
    _refuse_first((
        (config.rollout.temperature == 0,
         "rollout.temperature is 0: all samples of a group would be equal. Use --rollout.temperature 1.0."),
        (config.rollout.top_k == 1,
         "rollout.top_k is 1: all samples of a group would be equal. Use --rollout.top-k 0, or 2 or more."),
    ))  # fmt: skip


def _check_overlong(config: Config) -> None:
    """A penalty of long responses that all of them get, or none."""
    if "overlong" not in reward_names(config.reward):
        return
    longest = config.rollout.max_completion_length
    limit, cache = overlong_bounds(settings_of(config.reward, OverlongConfig), longest)
    _refuse_first((
        (cache > limit,
         f"reward.overlong_cache is {cache}, more than rollout.max_completion_length={longest}: the shortest response "
         f"would be penalised. Use --reward.overlong-cache {max(1, limit // 5)}."),
        (limit - cache >= longest,
         f"Reward overlong penalises what is longer than {limit - cache} tokens (reward.overlong_length={limit} less "
         f"overlong_cache={cache}), and rollout.max_completion_length is {longest}: none would be. Use "
         "--reward.overlong-length 0, which is the latter."),
    ))  # fmt: skip


def _check_sampler(config: Config) -> None:
    """What a server or a policy in eight bits cannot sample, or the update cannot correct."""
    rollout = config.rollout
    eight_bits = [name for name in ("weight_dtype", "kv_dtype") if getattr(rollout, name) == "int8"]
    if rollout.engine == "vllm":
        sampler = "rollout.engine is vllm"
    elif eight_bits:
        sampler = f"rollout.{eight_bits[0]} is int8"
    else:
        return
    truncated, served = rollout.top_p < 1 or rollout.top_k > 0, rollout.engine == "vllm"
    _refuse_first((
        (config.train.fused,
         f"{sampler}, but a fused step samples on the devices{' with what it updates' * bool(eight_bits)}. Use "
         "--train.no-fused."),
        (config.algo.importance_sampling_mode == "off",
         f"{sampler}, whose log-probs differ from the trainer's, but algo.importance_sampling_mode is off: "
         "nothing would correct it. Use --algo.importance-sampling-mode auto."),
        ("weight_dtype" in eight_bits and config.lora.quantization != "none",
         f"rollout.weight_dtype is int8, but the policy's kernels are quantised already: lora.quantization is "
         f"{config.lora.quantization}. Use --rollout.weight-dtype model, or --lora.quantization none."),
        (served and truncated and rollout.temperature != 1,
         f"rollout.engine is vllm, which reports log-probs before temperature and truncation or after both, but "
         f"rollout.temperature is {rollout.temperature}, top_p {rollout.top_p} and top_k {rollout.top_k}. Use "
         "--rollout.temperature 1.0, or --rollout.top-p 1.0 --rollout.top-k 0."),
        (served and (not rollout.vllm_address.startswith(("http://", "https://")) or "@" in rollout.vllm_address),
         f"rollout.vllm_address is {hide_credentials(rollout.vllm_address)!r}; expected http://HOST:PORT without a "
         "user. A key goes into the environment variable VLLM_API_KEY."),
    ))  # fmt: skip


def _check_ahead(config: Config) -> None:
    """What cannot be sampled before the step before it is scored, or would not be corrected."""
    if not config.train.rollout_ahead:
        return
    rounds = config.algo.max_sampling_rounds
    _refuse_first((
        (config.train.fused,
         "train.rollout_ahead is 1, but a fused step has no work of the host that a rollout could run beside. Use "
         "--train.no-fused."),
        (config.algo.importance_sampling_mode == "off",
         "train.rollout_ahead is 1, which samples with older parameters, but algo.importance_sampling_mode is off: "
         "nothing would correct it. Use --algo.importance-sampling-mode auto."),
        (rounds > 1,
         f"train.rollout_ahead is 1, but algo.max_sampling_rounds is {rounds}: which prompts come next is known only "
         "when all rounds are scored. Use --algo.max-sampling-rounds 1, or --train.rollout-ahead 0."),
    ))  # fmt: skip


def _check_objective(config: Config) -> None:
    """Settings of the loss and of the KL that exclude each other."""
    algo = config.algo
    for owner in (LOSSES[algo.loss_type], ALGORITHMS[algo.name]):
        if owner.check is not None:
            owner.check(algo)
    low, high = algo.importance_sampling_clip_min, algo.importance_sampling_clip_max
    corrects = algo.importance_sampling_mode != "off"
    _refuse_first((
        (low is not None and high is not None and low > high,
         f"algo.importance_sampling_clip_min is {low}, above algo.importance_sampling_clip_max {high}. Swap them."),
        (corrects and high is not None and high < 1,
         f"algo.importance_sampling_clip_max is {high}; expected at least 1, the weight where both log-probs agree: "
         "below it the loss is scaled down or masked everywhere. Use --algo.importance-sampling-clip-max 3.0."),
        (corrects and low is not None and low > 1,
         f"algo.importance_sampling_clip_min is {low}; expected at most 1, the weight where both log-probs agree: "
         "above it the loss is scaled up or masked everywhere. Use --algo.importance-sampling-clip-min 0.5."),
        (algo.kl_target is not None and algo.beta == 0,
         f"algo.kl_target is {algo.kl_target}, but algo.beta is 0, which keeps no reference. Use --algo.beta 0.001."),
        (algo.kl_in == "reward" and algo.use_bias_correction_kl,
         "algo.use_bias_correction_kl multiplies a KL in the loss, but algo.kl_in is reward. Use "
         "--algo.no-use-bias-correction-kl."),
    ))  # fmt: skip


def _check_advantages(config: Config) -> None:
    """Rewards that are scaled apart: there must be several, with weights that stay."""
    apart = scales_rewards_separately(config.algo)
    weighted = sum(1 for weight in config.reward.reward_weights if weight)
    _refuse_first((
        (apart and weighted < 2,
         f"algo.multi_objective_aggregation normalize_then_sum needs two reward functions with a weight, and there is "
         f"{weighted}. Use sum_then_normalize."),
        (apart and config.reward.final_weights,
         "reward.final_weights change the sum of rewards, which algo.multi_objective_aggregation normalize_then_sum "
         "does not take. Use sum_then_normalize."),
    ))  # fmt: skip


def _check_guard(config: Config) -> None:
    """Bounds on metrics that the run does not make, and reactions that nothing sets off or that change nothing."""
    guard, train, beta = config.guard, config.train, config.algo.beta
    kept, back, cycle = train.save_steps * (train.save_total_limit - 1), most_steps_back(config), ""
    if (updates := updates_per_rollout(config)) > 1:
        cycle = f" and {updates} updates on each rollout"
    raises = guard.action == "raise_beta" or (guard.action == "roll_back" and guard.beta_factor > 1)
    _refuse_first((
        (raises and config.algo.beta == 0,
         f"guard.action {guard.action} raises algo.beta, which is 0 and keeps no reference. Use --algo.beta 0.001"
         + (", or --guard.beta-factor 1." if guard.action == "roll_back" else ".")),
        (guard.action == "roll_back" and kept < back,
         f"guard.action roll_back needs a checkpoint from before the collapse, {back} steps back with guard.patience="
         f"{guard.patience}{cycle}, but with train.save_steps={train.save_steps} and save_total_limit="
         f"{train.save_total_limit} those of the last {kept} steps are kept. Use --train.save-total-limit "
         f"{2 + -(-back // train.save_steps)}."),
        (guard.min_entropy is not None and not config.log.entropy,
         f"guard.min_entropy is {guard.min_entropy}, but log.entropy is off. Use --log.entropy."),
        (guard.max_kl is not None and config.algo.beta == 0,
         f"guard.max_kl is {guard.max_kl}, but algo.beta is 0, which keeps no reference. Use --algo.beta 0.001."),
        (guard.action != "warn" and not bounds(guard),
         f"guard.action is {guard.action}, but no bound is set, so that nothing sets it off; expected one of guard."
         "min_language_share, min_mean_length, max_clipped_ratio, min_entropy, min_reward_std, max_kl. Use "
         "--guard.min-language-share 0.5, or --guard.action warn."),
        (guard.action == "raise_beta" and guard.beta_factor == 1,
         "guard.action raise_beta multiplies algo.beta by guard.beta_factor, which is 1; expected more. Use "
         "--guard.beta-factor 2.0, or --guard.action warn."),
        (guard.action == "raise_beta" and guard.max_beta <= beta and config.algo.kl_target is None,
         f"guard.action raise_beta raises algo.beta={beta:g} up to guard.max_beta, which is {guard.max_beta:g}; "
         f"expected more than algo.beta. Use --guard.max-beta {10 * beta:g}, or --guard.action warn."),
    ))  # fmt: skip


def _check_adapters(config: Config) -> None:
    """Adapters on projections that do not exist, or frozen kernels without anything to train."""
    lora = config.lora
    known = ("query", "key", "value", "out", "gate", "up", "down")
    other = [name for name in lora.targets if name not in known]
    _refuse_first((
        (lora.rank and lora.alpha == 0,
         f"lora.alpha is 0, and adapters are multiplied by lora.alpha / lora.rank: those of lora.rank={lora.rank} "
         f"would do nothing. Expected more than 0. Use --lora.alpha {2.0 * lora.rank}."),
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
    prompts, mini = config.train.prompts_per_step, config.algo.minibatch_prompts or config.train.prompts_per_step
    micro, row_shards = microbatch_size(config), data * fsdp
    if prompts % mini:
        raise ConfigError(
            f"algo.minibatch_prompts={mini} does not divide train.prompts_per_step={prompts}. "
            f"Use one of {[n for n in range(1, prompts + 1) if prompts % n == 0]}, or 0 for the whole batch."
        )
    if mini % micro or micro > mini:
        whose = "train.prompts_per_step" if mini == prompts else "algo.minibatch_prompts"
        raise ConfigError(
            f"train.microbatch_prompts={micro} does not divide {whose}={mini}. "
            f"Use one of {[n for n in range(1, mini + 1) if mini % n == 0]}."
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
    updates, mini = updates_per_rollout(config), config.algo.minibatch_prompts or prompts
    micro = microbatch_size(config)
    rollout, part = config.rollout, config.train.microbatch_samples
    groups = f"{micro} groups" if not part else f"{micro} parts of groups ({part} samples each)"
    count = mini * (samples // part if part else 1) // micro
    each = f"on each, of {mini} prompts" if mini < prompts else "on each"
    return (
        f"{prompts} prompts x {samples} samples = {prompts * samples} responses of at most "
        f"{rollout.max_completion_length} tokens per rollout; {updates} optimizer step(s) {each}, "
        f"in {count} microbatch(es) of {groups}; mesh data {data} x fsdp {fsdp} x tensor {tensor} "
        f"on {device_count} device(s)."
    )


def repeatability(backend: str, flags: str) -> str:
    """One line where a resumed run will not be bit-equal to one that was not stopped; empty elsewhere.

    Args:
      backend: JAX's name of it.
      flags: XLA_FLAGS.
    """
    if backend != "gpu" or "--xla_gpu_deterministic_ops=true" in flags:
        return ""
    return (
        "A GPU may add in another order each time: a resumed run will not be bit-equal to an uninterrupted one. "
        "XLA_FLAGS=--xla_gpu_deterministic_ops=true makes it so, at some cost (no autotuning, no atomic sums)."
    )
