"""A whole step as one compiled program, with no host in between: `step.policy_step` traced over functions that stay on
the device. For policies and encoders that share a tokenizer (see rewards.tokens)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pbrl_jax.algos import ALGORITHMS
from pbrl_jax.algos.grpo import scales_rewards_separately
from pbrl_jax.config.fields import settings_of
from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import ConfigError, lookup
from pbrl_jax.core.records import PromptBatch, Rollout, SamplingParams, TrainBatch, TrainState
from pbrl_jax.mesh.agree import host_count
from pbrl_jax.mesh.sharding import place, replicated, row_shards
from pbrl_jax.models.specs import DecoderSpec, TextEncoderSpec
from pbrl_jax.rewards.combine import REWARDS, Combined, make_token_reward
from pbrl_jax.rewards.cosine import CosineConfig
from pbrl_jax.rewards.tokens import PivotBatch, TokenInputs, TokenTables
from pbrl_jax.rollout.generate import generate_samples
from pbrl_jax.rollout.weights import decoding_params, decoding_spec
from pbrl_jax.train.experiment import Experiment, token_tables
from pbrl_jax.train.hosted import run_sampling
from pbrl_jax.train.microbatches import ChosenBuckets, packing_of
from pbrl_jax.train.programs import batch_targets, minibatches, update_context, update_minibatch
from pbrl_jax.train.step import Drawn, Scored, StepFunctions, policy_step, sample_batch
from pbrl_jax.train.trained import Frozen, forward_params


def check_fusable(config: Config, shared_tokenizer: bool, prefix: str = "") -> None:
    """Refuse a configuration whose reward cannot be computed from tokens on the device (ConfigError).

    `prefix` is that of the loaded encoder: its folder may have a default one that the configuration does not name.
    """
    problems = []
    known = [name for name, reward in REWARDS.items() if reward.of_tokens is not None]
    if "cosine" not in config.reward.functions or set(config.reward.functions) - set(known):
        terms = ", ".join(name for name in known if name != "cosine")
        problems.append(f"reward.functions {config.reward.functions} (only cosine, with or without {terms})")
    if not any(config.reward.reward_weights):
        problems.append("reward.reward_weights 0 (nothing would be trained on)")
    if config.reward.language_gate not in ("tokens", "off"):
        problems.append(f"reward.language_gate {config.reward.language_gate} (use tokens or off)")
    if config.reward.parts not in ("split", "whole"):
        problems.append(f"reward.parts {config.reward.parts} (use split or whole)")
    if settings_of(config.reward, CosineConfig).similarity == "calibrated":
        problems.append("reward.similarity calibrated")
    if not shared_tokenizer:
        problems.append("policy and encoder with different tokenizers")
    if prefix := config.encoder.prefix or prefix:
        whose = "" if config.encoder.prefix else " (the default prompt of the encoder's folder)"
        problems.append(f"encoder.prefix {prefix!r}{whose}")
    if config.encoder.max_length < config.rollout.max_completion_length:
        problems.append("encoder.max_length below rollout.max_completion_length")
    if scales_rewards_separately(config.algo):
        problems.append("algo.multi_objective_aggregation other than sum_then_normalize")
    if lookup(ALGORITHMS, config.algo.name, "algorithm").critic:
        problems.append(f"algo.name {config.algo.name}")
    if config.algo.num_iterations != 1:
        problems.append("algo.num_iterations other than 1")
    if minibatches(config) != 1:
        problems.append("algo.minibatch_prompts")
    if config.reward.final_weights:
        problems.append("reward.final_weights")
    if config.algo.max_sampling_rounds != 1:
        problems.append("algo.max_sampling_rounds other than 1")
    if problems:
        raise ConfigError("train.fused cannot be used with: " + "; ".join(problems) + ". Use --train.no-fused.")


class FusedInputs(NamedTuple):
    """What a fused step reads besides the state."""

    encoder_params: Any
    prompts: PromptBatch
    pivots: PivotBatch
    tables: TokenTables
    sampling: SamplingParams
    key: jax.Array


def device_functions(
    inputs: FusedInputs, *, spec: DecoderSpec, encoder_spec: TextEncoderSpec, config: Config
) -> StepFunctions:
    """The functions of a step that never leaves the device; all traceable."""
    context, G = update_context(spec, config), config.algo.num_generations
    if packing := packing_of(spec, config, row_shards(), traced=True):
        context = context._replace(packed=ChosenBuckets(packing))
    score = make_token_reward(config.reward, encoder_spec)
    decoding = decoding_spec(spec, config.rollout.weights)

    def params(state: TrainState, frozen: Frozen) -> Any:
        policy = forward_params(state.params, frozen.base, config.lora)
        return decoding_params(policy, spec, config.rollout.weights)

    def rollout(policy: Any, drawn: Drawn) -> Rollout:
        length = config.rollout.max_completion_length
        return generate_samples(
            policy, drawn.prompts, drawn.key, inputs.sampling, spec=decoding, samples=G, max_length=length
        )  # fmt: skip

    def reward(rollout: Rollout, drawn: Drawn) -> Scored:
        rows = jax.tree.map(lambda x: jnp.repeat(x, G, axis=0), drawn.pivots)
        found = score(TokenInputs(rollout.tokens_BR, rollout.lengths_B, rows, inputs.tables, inputs.encoder_params))
        value_B = jnp.where(found.valid_B, found.value_B, 0.0)
        return Scored(TrainBatch(drawn.prompts, rollout, value_B, found.valid_B), found, (), {})

    return StepFunctions(
        params=params,
        rollout=rollout,
        reward=reward,
        advantages=functools.partial(batch_targets, context=context),
        update=functools.partial(update_minibatch, context=context),
        sample=sample_batch,
    )


def fused_step(
    state: TrainState, frozen: Frozen, inputs: FusedInputs, *, spec: DecoderSpec, encoder_spec: TextEncoderSpec,
    config: Config,
) -> tuple[TrainState, dict[str, Any], Rollout, Combined]:  # fmt: skip
    """`step.policy_step` on the device as one traceable function."""
    functions = device_functions(inputs, spec=spec, encoder_spec=encoder_spec, config=config)
    drawn = Drawn(inputs.prompts, inputs.pivots, inputs.key)
    state, metrics, scored = policy_step(functions, state, frozen, drawn)
    return state, metrics, scored.batch.rollout, scored.rewards


def make_fused_step(spec: DecoderSpec, encoder_spec: TextEncoderSpec, config: Config) -> Callable:
    """The compiled step `(state, ref_params, encoder_params, prompts, pivots, tables, sampling, key) ->
    (state, metrics, rollout, rewards)`.

    `ref_params` are the parameters of the reference policy; with adapters a keyword `base` has the frozen weights
    beside them. The state is not donated: a step that fails must leave the caller a state to save.
    """
    compiled = jax.jit(functools.partial(fused_step, spec=spec, encoder_spec=encoder_spec, config=config))

    def step(state: TrainState, ref_params: Any, *arguments: Any, base: Any = None):
        return compiled(state, Frozen(ref_params if config.algo.beta > 0 else None, base), FusedInputs(*arguments))

    return step


def make_fused_policy_step(experiment: Experiment) -> Callable[[TrainState, Frozen, Drawn], tuple]:
    """`step.policy_step` of a run, `(state, frozen, drawn) -> (state, metrics, Scored)`, as one program.

    Raises:
      ConfigError: a configuration that cannot be fused.
    """
    config, policy, encoder = experiment.config, experiment.policy, experiment.encoder
    check_fusable(config, policy.tokenizer.fingerprint == encoder.tokenizer.fingerprint, encoder.prefix)
    fused = make_fused_step(policy.spec, encoder.spec, config)
    tables, sampling = token_tables(experiment), run_sampling(experiment)
    everywhere = replicated(experiment.mesh)
    encoder_params, on_every_host = encoder.params, jax.jit(lambda x: x, out_shardings=everywhere)
    if host_count() > 1:
        encoder_params = place(encoder_params, jax.tree.map(lambda _: everywhere, encoder_params))

    def step(state: TrainState, frozen: Frozen, drawn: Drawn):
        state, metrics, rollout, rewards = fused(
            state, frozen.reference, encoder_params, drawn.prompts, drawn.pivots, tables, sampling, drawn.key,
            base=frozen.base,
        )  # fmt: skip
        if host_count() > 1:
            rollout, rewards = on_every_host((rollout, rewards))  # every host reads all rows, a step later
        batch = TrainBatch(drawn.prompts, rollout, rewards.value_B, rewards.valid_B)
        return state, metrics, Scored(batch, rewards, drawn.prompts_P, drawn.cursor)

    return step
