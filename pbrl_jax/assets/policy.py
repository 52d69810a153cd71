"""A policy: spec, parameters and tokenizer together."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pbrl_jax.assets.folders import read_model, save_model
from pbrl_jax.core.sharding import tree_shardings
from pbrl_jax.models.decoder import causal_logits, decoder_axes, init_decoder
from pbrl_jax.models.specs import DecoderSpec, Llama3Scaling
from pbrl_jax.text.tokenizers import Tokenizer


class Policy(NamedTuple):
    """`logits(params, tokens_BT, mask_BT)` is pure and can be jitted; `params` are passed, not remembered."""

    spec: DecoderSpec
    params: Any
    tokenizer: Tokenizer
    fingerprint: str

    def logits(self, params, tokens_BT, mask_BT) -> Float[Array, "B T V"]:
        """Float32 logits at every position of a batch; `mask_BT` marks real tokens."""
        return causal_logits(params, self.spec, tokens_BT, mask_BT)


def _spec(stored: dict) -> DecoderSpec:
    scaling = stored.get("rope_scaling")
    return DecoderSpec(**{**stored, "rope_scaling": None if scaling is None else Llama3Scaling(**scaling)})


def abstract_decoder(spec: DecoderSpec):
    """Shapes of a decoder's parameters."""
    return jax.eval_shape(lambda: init_decoder(jax.random.key(0), spec))


def load_policy(directory: str, mesh=None, dtype: str | None = None) -> Policy:
    """A policy from a folder written by this package, or from a finished work directory.

    Args:
      directory: the folder.
      mesh: lay the parameters on this mesh; without one they go to the default device.
      dtype: compute type in place of the stored one (parameters stay float32).

    Raises:
      CheckpointError: no policy there, or a damaged one.
    """
    spec, params, tokenizer, fingerprint = read_model(directory, "policy", _spec, abstract_decoder)
    if dtype is not None:
        spec = dataclasses.replace(spec, dtype=dtype)
    if mesh is None:
        params = jax.tree.map(jnp.asarray, params)
    else:
        params = jax.device_put(params, tree_shardings(params, decoder_axes(spec), mesh))
    return Policy(spec, params, tokenizer, fingerprint)


def save_policy(policy: Policy, directory: str) -> None:
    """Write a folder that load_policy reads; what only this machine cares for (remat, kernel) is not kept."""
    spec = dataclasses.replace(policy.spec, remat="none", attention="auto")
    save_model(directory, "policy", spec, policy.params, policy.tokenizer)
