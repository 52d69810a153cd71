"""Parameters as decoding reads them: one step reads them all for one token a row, so they are exchanged once a rollout
and not at every token."""

import dataclasses
import functools
from typing import Any

import jax

from pbrl_jax.config.tree import RolloutConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.trees import first_rule, map_with_path
from pbrl_jax.mesh.sharding import DECODING_AXES, constrain, tensor_parallel_axes
from pbrl_jax.models.decoder import decoder_axes, unstack_layers
from pbrl_jax.models.int8 import int8_array
from pbrl_jax.models.precision import MATRICES, cast_matrices
from pbrl_jax.models.specs import DecoderSpec

#: Values of rollout.weights whose matrices are tensor-parallel over fsdp too.
TENSOR = ("auto", "tensor")
PRODUCT_AXES = ("vocab", "heads", "kv_heads", "ffn")
#: Axes of a stacked kernel that its product adds over, by the projection's name. These are quantised; embeddings and
#: the output matrix, to which log-probs are most sensitive, are not.
ADDED_AXES = dict.fromkeys(("query", "key", "value", "gate", "up", "down"), (1,)) | {"out": (1, 2)}


def sampling_spec(spec: DecoderSpec, rollout: RolloutConfig) -> DecoderSpec:
    """The spec of the policy that samples a training rollout.

    Raises:
      ConfigError: weights in eight bits of a policy with experts.
    """
    if spec.experts and rollout.weight_dtype == "int8":
        raise ConfigError(
            "rollout.weight_dtype is int8, but this policy's feed-forward is made of experts, whose products take no "
            "integers. Use --rollout.weight-dtype model."
        )
    return dataclasses.replace(spec, weight_dtype=rollout.weight_dtype, kv_dtype=rollout.kv_dtype)


def decoding_spec(spec: DecoderSpec, weights: str) -> DecoderSpec:
    """The spec of a model that decodes with parameters from `decoding_params`."""
    return dataclasses.replace(spec, gathered_rows=weights in TENSOR)


def decoding_params(params: Any, spec: DecoderSpec, weights: str = "whole") -> Any:
    """One tree a layer, matrices in the compute type; where the spec's weight_dtype is int8, kernels in eight bits with
    a step for each output. Traceable; else the responses are those of the parameters as they were trained.

    Args:
      weights: as `rollout.weights` of the config.
    """
    mesh, rules = jax.sharding.get_abstract_mesh(), decoder_axes(spec)
    if spec.weight_dtype == "int8":
        params = map_with_path(functools.partial(in_eight_bits, rules=rules), params)
    params = cast_matrices(params, spec.dtype)

    def laid(path: str, leaf):
        name = path.removesuffix("/integers").removesuffix("/step")
        rule = first_rule(name, rules) if name.split("/")[-1] in MATRICES else None
        if rule is None:
            return leaf
        axes = [name if size > 1 else "none" for size, name in zip(leaf.shape, rule[1], strict=True)]
        sharded = [size for size, name in zip(leaf.shape, axes, strict=True) if name in PRODUCT_AXES]
        table = tensor_parallel_axes(sharded[0] if sharded else 1) if weights in TENSOR else DECODING_AXES
        return constrain(leaf, *axes, table=table)

    if weights != "as_trained" and not mesh.empty and mesh.shape["fsdp"] > 1:
        params = map_with_path(laid, params)
    return unstack_layers(params)


def in_eight_bits(path: str, leaf, rules):
    """A stacked kernel of a projection in eight bits; other parameters as they are."""
    *_, name, last = ("", *path.split("/"))
    given = last == "kernel" and name in ADDED_AXES and first_rule(path, rules) is not None
    return int8_array(leaf, ADDED_AXES[name]) if given else leaf
