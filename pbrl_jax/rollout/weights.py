"""Parameters as decoding reads them: one step reads them all for one token a row, so they are exchanged once a rollout
and not at every token."""

import dataclasses
from typing import Any

import jax

from pbrl_jax.core.trees import first_rule, map_with_path
from pbrl_jax.mesh.sharding import DECODING_AXES, constrain, tensor_parallel_axes
from pbrl_jax.models.decoder import decoder_axes, unstack_layers
from pbrl_jax.models.precision import MATRICES, cast_matrices
from pbrl_jax.models.specs import DecoderSpec

#: Values of rollout.weights whose matrices are tensor-parallel over fsdp too.
TENSOR = ("auto", "tensor")
PRODUCT_AXES = ("vocab", "heads", "kv_heads", "ffn")


def decoding_spec(spec: DecoderSpec, weights: str) -> DecoderSpec:
    """The spec of a model that decodes with parameters from `decoding_params`."""
    return dataclasses.replace(spec, gathered_rows=weights in TENSOR)


def decoding_params(params: Any, spec: DecoderSpec, weights: str = "whole") -> Any:
    """One tree a layer, matrices in the compute type. Traceable; the responses are those of the parameters as they were
    trained.

    Args:
      weights: as `rollout.weights` of the config.
    """
    mesh, rules = jax.sharding.get_abstract_mesh(), decoder_axes(spec)
    params = cast_matrices(params, spec.dtype)

    def laid(path: str, leaf):
        rule = first_rule(path, rules) if path.split("/")[-1] in MATRICES else None
        if rule is None:
            return leaf
        sharded = [size for size, name in zip(leaf.shape, rule[1], strict=True) if name in PRODUCT_AXES]
        table = tensor_parallel_axes(sharded[0] if sharded else 1) if weights in TENSOR else DECODING_AXES
        return constrain(leaf, *rule[1], table=table)

    if weights != "as_trained" and not mesh.empty and mesh.shape["fsdp"] > 1:
        params = map_with_path(laid, params)
    return unstack_layers(params)
