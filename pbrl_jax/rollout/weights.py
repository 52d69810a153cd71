"""Parameters as decoding reads them: one step reads them all for one token a row, so they are exchanged once a rollout
and not at every token."""

from typing import Any

import jax
import jax.numpy as jnp

from pbrl_jax.core.trees import first_rule, map_with_path
from pbrl_jax.mesh.sharding import DECODING_AXES, constrain
from pbrl_jax.models.decoder import decoder_axes
from pbrl_jax.models.specs import DecoderSpec

#: Last names of the parameters that every forward pass casts to the compute type first, so that casting once is the
#: same; norms, which stay wide, adapters and quantised kernels stay where they are.
MATRICES = ("kernel", "embed", "lm_head")


def decoding_params(params: Any, spec: DecoderSpec) -> Any:
    """Matrices in the compute type, laid by DECODING_AXES: whole along `fsdp`, cut along `tensor`. Traceable; the
    responses are those of the parameters as they were trained."""
    mesh, rules = jax.sharding.get_abstract_mesh(), decoder_axes(spec)
    spread = not mesh.empty and mesh.shape["fsdp"] > 1

    def laid(path: str, leaf):
        rule = first_rule(path, rules)
        if rule is None or path.split("/")[-1] not in MATRICES or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        leaf = leaf.astype(spec.dtype)
        return constrain(leaf, *rule[1], table=DECODING_AXES) if spread else leaf

    return map_with_path(laid, params)
