"""The models and arrays of a run as shapes, without reading or allocating anything."""

import dataclasses
import functools
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from pbrl_jax.algos import ALGORITHMS
from pbrl_jax.config.fields import settings_of
from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import ConfigError, lookup
from pbrl_jax.core.records import TrainBatch, TrainState
from pbrl_jax.mesh.offload import HOST_MEMORY, in_host_memory
from pbrl_jax.mesh.sharding import MESH_AXES, replicated, tree_shardings
from pbrl_jax.models.comet import CometSpec, init_comet
from pbrl_jax.models.decoder import decoder_axes, init_decoder
from pbrl_jax.models.encoder import init_encoder
from pbrl_jax.models.lora import adapter_axes, init_adapters
from pbrl_jax.models.m2m100 import M2M100Spec
from pbrl_jax.models.precision import cast_matrices
from pbrl_jax.models.specs import (
    DECODERS,
    ENCODERS,
    DecoderSpec,
    DenseSpec,
    EncoderSpec,
    TextEncoderSpec,
)
from pbrl_jax.rewards.translation import TranslatorConfig
from pbrl_jax.train.experiment import Experiment
from pbrl_jax.train.hosted import cycle_batch_shapes
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.start import keeps_start, narrows_frozen, new_critic
from pbrl_jax.train.state import state_shapes
from pbrl_jax.train.trained import forward_params
from pbrl_jax.weights.adapters import base_of
from pbrl_jax.weights.comet_checkpoint import CHECKPOINT
from pbrl_jax.weights.encoders import folder_spec
from pbrl_jax.weights.folders import abstract_tree, own_folder, read_record, read_spec
from pbrl_jax.weights.hf_decoder import decoder_spec
from pbrl_jax.weights.hf_fields import read_config, stored_compute_type
from pbrl_jax.weights.hf_m2m100 import MODEL_TYPE, m2m100_names, m2m100_spec
from pbrl_jax.weights.tensors import WEIGHTS, abstract_params

#: Hub ids whose sizes are known here, so that a plan needs neither the network nor the weights.
RELEASED_POLICIES = {
    "meta-llama/Llama-3.2-1B": "llama32_1b",
    "meta-llama/Llama-3.2-1B-Instruct": "llama32_1b",
    "meta-llama/Llama-3.1-8B": "llama31_8b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama31_8b",
    "Qwen/Qwen3-0.6B": "qwen3_0_6b",
    "Qwen/Qwen3-4B": "qwen3_4b",
    "Qwen/Qwen3-8B": "qwen3_8b",
    "Qwen/Qwen3-32B": "qwen3_32b",
}


def _xlm_roberta(max_positions: int, pooling: str) -> EncoderSpec:
    return EncoderSpec(
        vocab_size=250_002, width=1024, layers=24, heads=16, ffn=4096, max_positions=max_positions, position_offset=2,
        norm_eps=1e-5, pooling=pooling, begin_ids=(0,), end_ids=(2,),
    )  # fmt: skip


RELEASED_ENCODERS = {
    "BAAI/bge-m3": _xlm_roberta(8194, "cls"),
    "intfloat/multilingual-e5-large": _xlm_roberta(514, "mean"),
    "sentence-transformers/LaBSE": EncoderSpec(
        vocab_size=501_153,
        width=768,
        layers=12,
        heads=12,
        ffn=3072,
        max_positions=512,
        type_vocab=2,
        pooling="cls",
        dense=(DenseSpec(768, "tanh"),),
        begin_ids=(101,),
        end_ids=(102,),
    ),
}

RELEASED_COMETS = {
    "Unbabel/wmt22-comet-da": CometSpec(_xlm_roberta(514, "mean"), "regression", hidden=(3072, 1024)),
    "Unbabel/wmt22-cometkiwi-da": CometSpec(_xlm_roberta(514, "mean"), "unified", hidden=(3072, 1024)),
}
RELEASED_TRANSLATORS = {
    "facebook/nllb-200-distilled-600M": M2M100Spec(256_206, 1024, 12, 12, 16, 16, 4096, 4096, embed_scale=32.0),
    "facebook/m2m100_418M": M2M100Spec(128_112, 1024, 12, 12, 16, 16, 4096, 4096, embed_scale=32.0),
}


class Models(NamedTuple):
    """The models of a run; `reward_bytes` is what those that rewards load beside the encoder hold on one device."""

    policy: DecoderSpec
    encoder: TextEncoderSpec
    reward_bytes: float = 0.0


def _folder(source: str) -> str:
    """The local folder that a source names; "" where there is none."""
    folder = os.path.expanduser(source)
    return folder if os.path.isdir(folder) else ""


def released_policy(source: str) -> DecoderSpec | None:
    """Sizes of a decoder: a released one that is known here, or that of a local folder; None for another source."""
    if source in RELEASED_POLICIES:
        return DECODERS[RELEASED_POLICIES[source]]
    folder = _folder(source)
    if folder and own_folder(folder, "policy"):
        return read_record(folder, "policy", functools.partial(read_spec, DecoderSpec))[1]
    stored = read_config(folder, source) if folder else None
    return None if stored is None else decoder_spec(stored)


def run_models(config: Config) -> Models:
    """Sizes of the run's policy and encoder.

    Raises:
      ConfigError: a source that is neither a preset, nor known here, nor a folder of a model.
    """
    settings = config.policy
    source = base_of(settings.source)
    if source == "random":
        preset = lookup(DECODERS, settings.preset, "policy preset")
        policy: DecoderSpec | None = dataclasses.replace(preset, vocab_size=config.data.vocab_size)
    else:
        policy = released_policy(source)
    if policy is None:
        raise ConfigError(
            f"policy.source {source!r}: its sizes are not known here. Give a folder with its config.json "
            f"(no weights needed), or one of {', '.join(RELEASED_POLICIES)}."
        )
    policy = dataclasses.replace(policy, dtype=settings.dtype, remat=settings.remat, attention=settings.attention)
    encoder = run_encoder_spec(config, policy.vocab_size)
    return Models(policy, encoder, reward_bytes(config) + stored_beyond(config, encoder))


def reward_bytes(config: Config) -> float:
    """Bytes of the COMET models and the translator that rewards load, on one device of each host. A translator that is
    the policy itself or an endpoint takes none.

    Raises:
      ConfigError: a model whose sizes are not known here.
    """
    settings, total = settings_of(config.reward, TranslatorConfig), 0.0
    named = [("comet", source) for source in (settings.comet, *settings.comet_more)]
    for name, source in (*named, ("translator", settings.translator)):
        if source in ("", "policy", "endpoint"):
            continue
        held = comet_bytes(source) if name == "comet" else translator_bytes(source)
        if held is None:
            known = RELEASED_COMETS if name == "comet" else RELEASED_TRANSLATORS
            raise ConfigError(
                f"reward.{name} {source!r}: its sizes are not known here. For the plan, use a folder of such a model, "
                f"or one of {', '.join(known)}."
            )
        total += held
    return total


def comet_bytes(source: str) -> float | None:
    """Bytes of a COMET model: of a released one in float32, or of the weights in a folder; None where it is neither."""
    if source in RELEASED_COMETS:
        return tree_bytes(abstract_tree(init_comet, RELEASED_COMETS[source]))
    folder = _folder(source)
    own = own_folder(folder, "comet") if folder else None
    file = own / WEIGHTS if own else os.path.join(folder, CHECKPOINT)
    return float(os.path.getsize(file)) if folder and os.path.exists(file) else None


def translator_bytes(source: str) -> float | None:
    """Bytes of a translator: M2M100 or NLLB in float32, or a policy in the type in which it is stored; None for a model
    that is neither known here nor in a folder."""
    folder = _folder(source)
    config = read_config(folder, source) if folder else None
    if source in RELEASED_TRANSLATORS or (config is not None and config.get("model_type") == MODEL_TYPE):
        spec = RELEASED_TRANSLATORS[source] if config is None else m2m100_spec(config)
        return tree_bytes(abstract_params(m2m100_names(spec)))
    policy = released_policy(source)
    if policy is None:
        return None
    kind = "bfloat16" if config is None else stored_compute_type(config)
    return tree_bytes(policy_shapes(policy)) * jnp.dtype(kind).itemsize / 4


def run_encoder_spec(config: Config, vocab_size: int) -> TextEncoderSpec:
    """Sizes of the run's encoder with its compute type, which is also the parameter type of released encoders."""
    settings = config.encoder
    if settings.source in RELEASED_ENCODERS:
        return dataclasses.replace(RELEASED_ENCODERS[settings.source], dtype=settings.dtype or "float32")
    if folder := _folder(settings.source):
        return folder_spec(folder, settings.pooling or None, settings.dtype or None)
    if settings.source != "random":
        raise ConfigError(
            f"encoder.source {settings.source!r}: its sizes are not known here. For the plan, use its folder, one of "
            f"{', '.join(RELEASED_ENCODERS)}, or --encoder.source random --encoder.preset P."
        )
    spec = lookup(ENCODERS, settings.preset, "encoder preset")
    positions, dtype = max(spec.max_positions, settings.max_length), settings.dtype or spec.dtype
    return dataclasses.replace(spec, vocab_size=vocab_size, max_positions=positions, dtype=dtype)


def stored_beyond(config: Config, spec: TextEncoderSpec) -> float:
    """Bytes that the parameters of an encoder of this package hold beyond its compute type: they keep their own."""
    folder = _folder(config.encoder.source)
    own = own_folder(folder, "encoder") if folder else None
    if own is None:
        return 0.0
    shapes = tree_bytes(abstract_tree(init_encoder, spec)) / 4 * jnp.dtype(spec.dtype).itemsize
    return max(0.0, os.path.getsize(own / WEIGHTS) - shapes)


def add_shardings(shapes: Any, shardings: Any) -> Any:
    """Shapes with shardings; one sharding may be given for the entire tree."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _leaf: shardings, shapes)
    return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, shardings)


def policy_shapes(spec: DecoderSpec) -> Any:
    """Shapes of the policy's parameters."""
    return abstract_tree(init_decoder, spec)


def check_shards(config: Config, spec: DecoderSpec, sizes: Sequence[int]) -> None:
    """Raise ConfigError where the policy's parameters, or the adapters, do not divide over a mesh of these sizes, by
    the function that lays them when a run starts."""
    mesh = AbstractMesh(tuple(sizes[:3]), MESH_AXES)
    tree_shardings(policy_shapes(spec), decoder_axes(spec), mesh)
    if config.lora.rank:
        tree_shardings(adapters(config, spec), adapter_axes(spec, config.lora), mesh)


def sharded_policy(spec: DecoderSpec, mesh: Mesh, hosted: bool = False, narrow: bool = False) -> Any:
    """The policy's parameters on the mesh, or sharded the same way in host memory; matrices in the compute type where
    `narrow`."""
    shapes = policy_shapes(spec)
    if narrow:
        shapes = jax.eval_shape(functools.partial(cast_matrices, dtype=spec.dtype), shapes)
    shardings = tree_shardings(shapes, decoder_axes(spec), mesh)
    return add_shardings(shapes, in_host_memory(shardings) if hosted else shardings)


def sharded_frozen(config: Config, spec: DecoderSpec, mesh: Mesh) -> Any:
    """The start policy beside the state, as `train.start.frozen_of` lays it; None where nothing needs it."""
    if not keeps_start(config):
        return None
    return sharded_policy(spec, mesh, "reference" in config.train.offload, narrows_frozen(spec, config))


def sharded_sampler(config: Config, spec: DecoderSpec, mesh: Mesh) -> Any:
    """The parameters of the rollout: the policy's, with adapters where these are trained."""
    if not config.lora.rank:
        return sharded_policy(spec, mesh)
    policy = sharded_policy(spec, mesh, narrow=narrows_frozen(spec, config))
    shapes = jax.eval_shape(
        lambda frozen, trained: forward_params(trained, frozen, config.lora), policy, adapters(config, spec)
    )
    return add_shardings(shapes, tree_shardings(shapes, decoder_axes(spec) + adapter_axes(spec, config.lora), mesh))


def adapters(config: Config, spec: DecoderSpec) -> Any:
    """Shapes of the adapters."""
    make = functools.partial(init_adapters, spec=spec, lora=config.lora)
    return jax.eval_shape(make, jax.random.key(0), policy_shapes(spec))


def sharded_state(config: Config, spec: DecoderSpec, mesh: Mesh) -> TrainState:
    """The train state on the mesh, as `train.state.place_state` lays it."""
    optimizer = make_optimizer(config.optim)
    beta = None if config.algo.kl_target is None else config.algo.beta
    critic = None
    if lookup(ALGORITHMS, config.algo.name, "algorithm").critic:
        critic = jax.eval_shape(lambda: new_critic(spec.width, config))
    params, axes = policy_shapes(spec), decoder_axes(spec)
    if config.lora.rank:
        params, axes = adapters(config, spec), adapter_axes(spec, config.lora)
    return state_shapes(params, optimizer, axes, mesh, beta, critic, "optimizer" in config.train.offload)


def sharded_batch(config: Config, mesh: Mesh) -> TrainBatch:
    """A rollout batch of full-length responses on the mesh."""
    nothing: dict[str, Any] = dict.fromkeys(set(Experiment._fields) - {"config", "mesh"})
    return cycle_batch_shapes(Experiment(config=config, mesh=mesh, **nothing))


def sharded_encoder(spec: TextEncoderSpec, mesh: Mesh) -> Any:
    """The encoder's parameters, replicated."""
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(spec.dtype)), abstract_tree(init_encoder, spec)
    )
    return add_shardings(shapes, replicated(mesh))


def tree_bytes(tree: Any) -> float:
    """Bytes of a tree of shapes in the device memory of one chip."""

    def own(leaf) -> float:
        if leaf.sharding is not None and leaf.sharding.memory_kind == HOST_MEMORY:
            return 0.0
        sizes = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        return math.prod(sizes) * jnp.dtype(leaf.dtype).itemsize

    return float(sum(own(leaf) for leaf in jax.tree.leaves(tree)))
