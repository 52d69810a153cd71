"""A policy: spec, parameters and tokenizer together."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.mesh.sharding import tree_shardings
from pbrl_jax.models.decoder import causal_logits, decoder_axes, init_decoder
from pbrl_jax.models.specs import DecoderSpec, Llama3Scaling
from pbrl_jax.text.tokenizers import Tokenizer, load_tokenizer
from pbrl_jax.weights.folders import model_folder, own_folder, read_record, read_weights, save_model
from pbrl_jax.weights.hf_load import read_config, read_hf_policy
from pbrl_jax.weights.hub import local_copy

PARAM_TYPES = ("float32", "bfloat16", "stored")
COMPUTE_TYPES = ("float32", "bfloat16", "float64")


class Policy(NamedTuple):
    """`logits(params, tokens_BT, mask_BT)` is pure and can be jitted; `params` are passed, not remembered."""

    spec: DecoderSpec
    params: Any
    tokenizer: Tokenizer
    fingerprint: str
    """Tells models apart: sha256 of the weights of our own folders; of a Hugging Face folder, of its config.json and
    of every tensor's name, type, shape and three samples of its bytes."""
    kept: dict[str, Any] | None = None
    """What an export repeats of the config.json that the policy came from."""

    def logits(self, params, tokens_BT, mask_BT) -> Float[Array, "B T V"]:
        """Float32 logits at every position of a batch; `mask_BT` marks real tokens."""
        return causal_logits(params, self.spec, tokens_BT, mask_BT)


def _spec(stored: dict) -> DecoderSpec:
    scaling = stored.get("rope_scaling")
    return DecoderSpec(**{**stored, "rope_scaling": None if scaling is None else Llama3Scaling(**scaling)})


def abstract_decoder(spec: DecoderSpec):
    """Shapes of a decoder's parameters."""
    return jax.eval_shape(lambda: init_decoder(jax.random.key(0), spec))


def load_policy(directory: str, mesh=None, dtype: str | None = None, param_dtype: str = "float32") -> Policy:
    """A policy from a folder of this package, a finished work directory, or a Hugging Face model.

    Args:
      directory: the folder, a hub id (`Qwen/Qwen3-0.6B`, HF_TOKEN for gated ones), or `gs://...`.
      mesh: lay the parameters on this mesh, each device reading its own part; default: the default device.
      dtype: compute type, float32 or bfloat16; default: what the folder says.
      param_dtype: type of the parameters: float32 (what training wants), bfloat16, or `stored` as in the files.

    Raises:
      CheckpointError: no policy there, a damaged one, a model that is not understood, weights that do not fit, a
        tokenizer with more ids than the embedding has rows, a hub that cannot be reached.
      ConfigError: an unknown type, or a mesh that the parameters do not divide over.
    """
    if param_dtype not in PARAM_TYPES:
        raise ConfigError(f"param_dtype is {param_dtype!r}; expected {', '.join(PARAM_TYPES)}.")
    if dtype is not None and dtype not in COMPUTE_TYPES:
        raise ConfigError(f"dtype is {dtype!r}; expected {', '.join(COMPUTE_TYPES)}.")
    directory = str(directory)
    place = local_copy(directory)
    config = None if own_folder(place, "policy") else read_config(place, directory)
    if config is not None:
        return Policy(*read_hf_policy(place, config, directory, mesh, dtype, param_dtype))
    folder = model_folder(place, "policy", directory)
    spec, record = read_record(folder, "policy", _spec)
    if dtype is not None:
        spec = dataclasses.replace(spec, dtype=dtype)
    abstract = abstract_decoder(spec)
    shardings = None if mesh is None else tree_shardings(abstract, decoder_axes(spec), mesh)
    kind = None if param_dtype == "stored" else jnp.dtype(param_dtype)
    params = read_weights(folder, record["weights_sha256"], abstract, shardings, kind)
    tokenizer = load_tokenizer(str(folder))
    return Policy(spec, params, tokenizer, record["weights_sha256"], record.get("kept"))


def save_policy(policy: Policy, directory: str) -> None:
    """Write a folder that load_policy reads; what only this machine cares for (remat, kernel) is not kept."""
    spec = dataclasses.replace(policy.spec, remat="none", attention="auto")
    more = {} if policy.kept is None else {"kept": policy.kept}
    save_model(directory, "policy", spec, policy.params, policy.tokenizer, **more)
