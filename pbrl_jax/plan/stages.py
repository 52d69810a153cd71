"""Plans of `pbrl sft`, `pbrl dpo` and `pbrl encoder`: their step, and the sampling before it where there is one.

A step on rows with one response, or pairs behind one prompt, has the arrays of an update in groups of one or two, so
what is known of the update by hand serves here too.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pbrl_jax.config.supervised import STAGES
from pbrl_jax.config.tree import Config, OptimConfig, with_values
from pbrl_jax.core.records import TrainState
from pbrl_jax.mesh.sharding import batch_sharding
from pbrl_jax.models.encoder import encoder_axes, init_encoder
from pbrl_jax.models.specs import DecoderEncoderSpec, TextEncoderSpec
from pbrl_jax.plan.analytic import (
    Sizes,
    encoder_weights,
    generate_estimate,
    parameter_count,
    resident,
    reward_estimate,
    start_bytes,
    update_estimate,
)
from pbrl_jax.plan.hlo import Cost
from pbrl_jax.plan.programs import Need, compile_ahead, generate_need, reward_need
from pbrl_jax.plan.shapes import (
    Models,
    sharded_batch,
    sharded_encoder,
    sharded_frozen,
    sharded_policy,
    sharded_state,
    tree_bytes,
)
from pbrl_jax.train.contrastive import ContrastiveBatch, contrastive_optimizer_config, make_contrastive_step
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.preferences import dpo_optimizer_config, make_dpo_step
from pbrl_jax.train.sft import SftBatch, make_sft_step, sft_optimizer_config
from pbrl_jax.train.state import state_shapes
from pbrl_jax.weights.folders import abstract_tree


def stage_optimizer(config: Config, verb: str) -> OptimConfig:
    """The optimizer of a stage."""
    if verb == "encoder":
        return contrastive_optimizer_config(config.contrastive)
    return sft_optimizer_config(config.sft) if verb == "sft" else dpo_optimizer_config(config.dpo)


def as_update(config: Config, verb: str) -> Config:
    """The configuration of a GRPO step whose update has the arrays of a step of `sft` or `dpo`."""
    section = getattr(config, STAGES[verb])
    return with_values(
        config,
        algo={"name": "grpo", "num_generations": 1 if verb == "sft" else 2, "beta": 0.0 if verb == "sft" else 0.1,
              "num_iterations": 1, "minibatch_prompts": 0, "kl_target": None},
        train={"prompts_per_step": section.batch_size, "microbatch_prompts": section.microbatch_size,
               "microbatch_samples": 0, "offload": ()},
        optim={"optimizer": "adamw"},
    )  # fmt: skip


def as_sampling(config: Config) -> Config:
    """The configuration of a GRPO step that samples as a stage does before it trains, from the start policy alone."""
    return with_values(config, algo={"beta": 0.1}, train={"offload": ()})


def samples_first(config: Config, verb: str) -> bool:
    """Whether a stage begins by sampling and scoring the policy's own responses."""
    return verb == "dpo" and not config.dpo.path or (verb == "sft" and config.sft.source == "samples")


def encoder_estimate(config: Config, spec: TextEncoderSpec, mesh: Sizes) -> Need:
    """The step of `pbrl encoder`, by hand."""
    settings, item = config.contrastive, 2 if spec.dtype == "bfloat16" else 4
    inner = spec.decoder if isinstance(spec, DecoderEncoderSpec) else spec
    weights, everything = encoder_weights(spec)
    size, S = settings.microbatch_size or settings.batch_size, config.encoder.max_length
    texts = (2 + settings.hard_negatives) / mesh.row_shards
    parts, tokens = settings.batch_size / size, texts * size * S
    state = 12.0 * everything / mesh.fsdp
    gradients = 4.0 * everything / mesh.fsdp * (2 if parts > 1 else 1)
    scores = texts * size * inner.heads * min(S, 512) * S * 4.0
    inside = (2.0 * inner.ffn + 6 * inner.width) * item
    temporary = gradients + tokens * inside * (inner.layers / 1.5 + 3) + 3 * scores
    forward = tokens * (2.0 * weights + 4.0 * inner.width * S * inner.layers)
    flops = parts * forward * (3 + (parts > 1)) + parts * tokens * 4.0 * inner.width * S * inner.layers
    moved = parts * (8.0 * everything + tokens * inner.layers * inside * 6)
    sent = {"all-gather": 3 * parts * item * everything * (mesh.fsdp - 1) / mesh.fsdp,
            "all-reduce": 8.0 * everything * (mesh.row_shards - 1) / mesh.row_shards}  # fmt: skip
    network = mesh.network({"fsdp": sent["all-gather"], "rows": sent["all-reduce"]})
    return Need(state + temporary, temporary, Cost(flops, moved, sent, network_bytes=network))


def estimate_stage(config: Config, models: Models, mesh: Sizes, verb: str) -> dict[str, Need]:
    """Memory and cost of each program of a stage, estimated."""
    if verb == "encoder":
        return {"train": encoder_estimate(config, models.encoder, mesh)}
    needs, update = {}, as_update(config, verb)
    if samples_first(config, verb):
        sampling = as_sampling(config)
        start = 4.0 * parameter_count(models.policy) + start_bytes(sampling, models.policy)
        reward = encoder_bytes(models.encoder) + models.reward_bytes
        other = start / mesh.weight_shards + reward - resident(sampling, models, mesh)
        for name, estimate in (("generate", generate_estimate), ("reward", reward_estimate)):
            need = estimate(sampling, models, mesh)
            needs[name] = need._replace(hbm_bytes=need.hbm_bytes + other)
    need = update_estimate(update, models._replace(reward_bytes=0.0), mesh)
    return needs | {"train": need._replace(hbm_bytes=need.hbm_bytes - encoder_bytes(models.encoder))}


def encoder_bytes(spec: TextEncoderSpec) -> float:
    """Bytes of the reward's encoder on a chip."""
    return encoder_weights(spec)[1] * (2.0 if spec.dtype == "bfloat16" else 4.0)


def encoder_state(spec: TextEncoderSpec, optim: OptimConfig, mesh: Mesh) -> TrainState:
    """Shapes of the train state of `pbrl encoder`, in float32."""
    return state_shapes(abstract_tree(init_encoder, spec), make_optimizer(optim), encoder_axes(spec), mesh)


def stage_program(config: Config, models: Models, mesh: Mesh, verb: str) -> tuple[Callable, tuple]:
    """(the compiled step of a stage, shapes of its arguments) for full-length, unpacked rows."""
    optim, shared = stage_optimizer(config, verb), batch_sharding(mesh)
    if verb == "encoder":
        settings, S = config.contrastive, config.encoder.max_length
        columns: list[Any] = []
        for rows in (1, 1, settings.hard_negatives):
            shape = (rows * settings.batch_size, S)
            columns += [jax.ShapeDtypeStruct(shape, kind, sharding=shared) for kind in (jnp.int32, jnp.bool_)]
        step = make_contrastive_step(models.encoder, settings)
        return step, (encoder_state(models.encoder, optim, mesh), ContrastiveBatch(*columns))
    update = with_values(as_update(config, verb), optim=vars(optim))
    shapes, frozen = sharded_batch(update, mesh), sharded_frozen(update, models.policy, mesh)
    batch = SftBatch(shapes.prompts, shapes.rollout.tokens_BR, shapes.rollout.lengths_B)
    chunk, lora = config.train.logprob_chunk, config.lora
    step = (
        make_sft_step(models.policy, optim, chunk, lora, config.sft.microbatch_size)
        if verb == "sft" else make_dpo_step(models.policy, config.dpo, chunk, lora)
    )  # fmt: skip
    return step, (sharded_state(update, models.policy, mesh), batch, *(() if frozen is None else (frozen,)))


def compile_stage(
    config: Config, models: Models, mesh: Mesh, verb: str, say: Callable[[str], None]
) -> Mapping[str, Need]:
    """Memory and cost of each program of a stage, by compiling it; nothing is allocated or run."""
    needs = {}
    if samples_first(config, verb):
        sampling = as_sampling(config)
        start = sharded_policy(models.policy, mesh), sharded_frozen(sampling, models.policy, mesh)
        held = tree_bytes((start, sharded_encoder(models.encoder, mesh))) + models.reward_bytes
        for name, need in (("generate", generate_need), ("reward", reward_need)):
            say(f"compiling {name} ...")
            needs[name] = need(sampling, models, mesh, held)
    say("compiling train ...")
    step, shapes = stage_program(config, models, mesh, verb)
    found = compile_ahead(mesh, step, *shapes)
    return needs | {"train": Need(found.memory.total, found.memory.temporary, found.cost, found.seconds)}
