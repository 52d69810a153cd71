"""Parameters as decoding reads them: one step reads them all for one token a row, so they are exchanged once a rollout
and not at every token."""

import dataclasses
from typing import Any

import jax

from pbrl_jax.core.trees import first_rule, map_with_path
from pbrl_jax.mesh.sharding import DECODING_AXES, constrain
from pbrl_jax.models.decoder import decoder_axes, unstack_layers
from pbrl_jax.models.precision import MATRICES, cast_matrices
from pbrl_jax.models.specs import DecoderSpec


def decoding_spec(spec: DecoderSpec, weights: str) -> DecoderSpec:
    """The spec of a model that decodes with parameters from `decoding_params`."""
    return dataclasses.replace(spec, gathered_rows=weights == "tensor")


def decoding_params(params: Any, spec: DecoderSpec, weights: str = "whole") -> Any:
    """One tree a layer, matrices in the compute type. Traceable; the responses are those of the parameters as they were
    trained.

    Args:
      weights: as `rollout.weights` of the config: whole and tensor (laid by DECODING_AXES: not cut along fsdp, or
        tensor-parallel over it), or as_trained.
    """
    mesh, rules = jax.sharding.get_abstract_mesh(), decoder_axes(spec)
    params = cast_matrices(params, spec.dtype)

    def laid(path: str, leaf):
        rule = first_rule(path, rules) if path.split("/")[-1] in MATRICES else None
        return leaf if rule is None else constrain(leaf, *rule[1], table=DECODING_AXES[weights])

    if weights in DECODING_AXES and not mesh.empty and mesh.shape["fsdp"] > 1:
        params = map_with_path(laid, params)
    return unstack_layers(params)
