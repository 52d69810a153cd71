"""Policies: spec, parameters and tokenizer."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from pbrl_jax.core.errors import CheckpointError, ConfigError
from pbrl_jax.logs.progress import Progress
from pbrl_jax.mesh.sharding import tree_shardings
from pbrl_jax.models.decoder import causal_logits, decoder_axes, init_decoder
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.text.tokenizers import MissingTokenizer, Tokenizer, folder_tokenizer
from pbrl_jax.weights.adapters import Adapter, is_adapter, read_adapter, reading_base
from pbrl_jax.weights.folders import check_vocabulary, own_folder, read_model, read_spec, save_model
from pbrl_jax.weights.hf_decoder import decoder_names, decoder_spec, is_fused, kept_fields
from pbrl_jax.weights.hf_fields import read_config, stored_compute_type
from pbrl_jax.weights.hf_rope import positions_of
from pbrl_jax.weights.hub import local_copy
from pbrl_jax.weights.tensors import (
    LONG_LOAD,
    abstract_params,
    has_own_head,
    load_params,
    open_weights,
    resolve_names,
    weights_digest,
)

PARAM_TYPES = ("float32", "bfloat16", "stored")
COMPUTE_TYPES = ("float32", "bfloat16", "float64")
#: Fields of config.json that are not part of a model's fingerprint.
NOT_IDENTITY = ("_name_or_path", "transformers_version", "use_cache", "architectures")


class Policy(NamedTuple):
    """A policy; `logits(params, tokens_BT, mask_BT)` is a pure function of its arguments and can be jitted."""

    spec: DecoderSpec
    params: Any
    tokenizer: Tokenizer
    #: Identifies the model: sha256 of the weights file in a folder of this package; for a Hugging Face folder, of
    #: config.json and each tensor's name, type, shape and three samples of its bytes.
    fingerprint: str
    #: Fields of the original config.json that an export copies.
    kept: dict[str, Any] | None = None

    @property
    def positions(self) -> int:
        """Longest prompt and response together, in tokens, that the policy supports: `max_position_embeddings`, times
        the factor of RoPE scaling if that is not included; 0 if unknown."""
        return positions_of(self.kept or {}, 1 if self.spec.local_rope_theta else self.spec.rope_factor)

    def logits(self, params, tokens_BT, mask_BT) -> Float[Array, "B T V"]:
        """Float32 logits at every position of a batch; `mask_BT` marks real tokens."""
        return causal_logits(params, self.spec, tokens_BT, mask_BT)


class _Held:
    """Parameters in memory (None after their release), and a function that loads them again."""

    def __init__(self, params: Any, load: Callable[[], Any]):
        self.params, self.load = params, load


class StartPolicy(Policy):
    """The policy that a run starts from. After `release`, each access to its parameters loads them again, so that they
    take no device memory during the run."""

    @classmethod
    def of(cls, policy: Policy, load: Callable[[], Any]) -> "StartPolicy":
        """The policy as a StartPolicy whose parameters `load()` returns again."""
        return cls(policy.spec, _Held(policy.params, load), *policy[2:])

    @property
    def params(self) -> Any:
        """The parameters, from memory or loaded again."""
        held = self[1]
        return held.load() if held.params is None else held.params

    def release(self) -> None:
        """Drop the reference to the parameters."""
        self[1].params = None

    def _replace(self, **changes: Any) -> Policy:  # type: ignore[override]
        replaced = super()._replace(**changes)
        return Policy(*replaced) if "params" in changes else replaced


def let_go(policy: Policy) -> None:
    """Release the parameters of a StartPolicy; other policies are unchanged."""
    if isinstance(policy, StartPolicy):
        policy.release()


def load_policy(directory: str, mesh=None, dtype: str | None = None, param_dtype: str = "float32") -> Policy:
    """A policy from a folder of this package, a finished work directory, or a Hugging Face model.

    Args:
      directory: the folder, a hub id (`Qwen/Qwen3-0.6B`, HF_TOKEN for gated models), or `gs://...`; a LoRA adapter of
        PEFT is merged into its base.
      mesh: shard the parameters over this mesh, where each device reads its part; default: the default device.
      dtype: compute type, float32 or bfloat16; default: that of the folder.
      param_dtype: type of the parameters: float32 (for training), bfloat16, or `stored` as in the files.

    Raises:
      CheckpointError: no policy, a damaged or unsupported one, weights that do not fit, a tokenizer with more ids than
        the embedding has rows, or a hub that cannot be reached.
      ConfigError: an unknown type, or a mesh over which the parameters do not divide.
    """
    if param_dtype not in PARAM_TYPES:
        raise ConfigError(f"param_dtype is {param_dtype!r}; expected {', '.join(PARAM_TYPES)}.")
    if dtype is not None and dtype not in COMPUTE_TYPES:
        raise ConfigError(f"dtype is {dtype!r}; expected {', '.join(COMPUTE_TYPES)}.")
    directory = str(directory)
    place = local_copy(directory)
    config = None if own_folder(place, "policy") else read_config(place, directory)
    adapter = read_adapter(place, directory) if is_adapter(place) else None
    if adapter is not None:
        with reading_base(directory, adapter.base):
            place = local_copy(adapter.base)
            config = read_config(place, adapter.base)
        if config is None:
            raise CheckpointError(
                f"{directory!r} is a LoRA adapter for {adapter.base!r}, where there is no config.json of a model. Put "
                "the base there, or set base_model_name_or_path to its folder or hub id. `pbrl convert POLICY BASE` "
                "makes a base of a policy of this package."
            )
    if config is not None:
        return read_hf_policy(place, config, directory, mesh, dtype, param_dtype, adapter)
    spec, params, tokenizer, record = read_model(
        place, "policy", functools.partial(read_spec, DecoderSpec), init_decoder, source=directory,
        shardings=None if mesh is None else lambda spec, abstract: tree_shardings(abstract, decoder_axes(spec), mesh),
        dtype=None if param_dtype == "stored" else jnp.dtype(param_dtype),
    )  # fmt: skip
    if dtype is not None:
        spec = dataclasses.replace(spec, dtype=dtype)
    return Policy(spec, params, tokenizer, record["weights_sha256"], record.get("kept"))


def read_hf_policy(
    folder: str, config: dict[str, Any], source: str, mesh=None, dtype: str | None = None, param_dtype: str = "float32",
    adapter: Adapter | None = None,
) -> Policy:  # fmt: skip
    """A policy from a local Hugging Face folder, with an adapter merged in; see load_policy for the other arguments.

    Raises:
      CheckpointError: an unsupported model, weights that do not fit it, or a tokenizer that is too large.
    """
    spec = dataclasses.replace(decoder_spec(config), dtype=dtype or stored_compute_type(config))
    stored = tensors = open_weights(folder)
    if adapter is not None:
        tensors = adapter.applied(stored, spec.tied_embeddings, exact=param_dtype != "stored")
        # PEFT saves the embedding that was resized for more tokens.
        spec = dataclasses.replace(spec, vocab_size=adapter.vocabulary() or spec.vocab_size)
    if spec.tied_embeddings and has_own_head(tensors):
        print(f"{source}: lm_head differs from the embedding and is used, although config.json ties them.")
        spec = dataclasses.replace(spec, tied_embeddings=False)
    names = decoder_names(spec, is_fused(config["model_type"]))
    resolve_names(tensors, names)
    tokenizer = folder_tokenizer(adapter.folder, source, folder) if adapter else MissingTokenizer(source)
    if isinstance(tokenizer, MissingTokenizer):
        tokenizer = folder_tokenizer(folder, source)
    if not isinstance(tokenizer, MissingTokenizer):
        check_vocabulary(tokenizer, spec.vocab_size, source)
    shardings = None if mesh is None else tree_shardings(abstract_params(names), decoder_axes(spec), mesh)
    kind = None if param_dtype == "stored" else jnp.dtype(param_dtype)
    total = sum(math.prod(stored.full_shape()) for stored in names.values()) * (kind.itemsize if kind else 2)
    with Progress(f"loading {source}", max(1, total >> 20), unit="MiB", active=total >= LONG_LOAD) as progress:
        params = load_params(tensors, names, shardings, kind, tick=lambda size: progress.advance(size >> 20))
    described = {name: value for name, value in config.items() if name not in NOT_IDENTITY}
    text = json.dumps(described, sort_keys=True) + weights_digest(stored)
    if adapter is not None:
        text += f"{adapter.alpha} {sorted(adapter.alphas.items())} {adapter.rooted}" + weights_digest(adapter.tensors)
        text += "tied" if adapter.keeps_tie else ""
    stored.release()
    return Policy(spec, params, tokenizer, hashlib.sha256(text.encode()).hexdigest(), kept_fields(config))


def save_policy(policy: Policy, directory: str) -> None:
    """Write a folder for `load_policy`, without the operational fields of the spec (remat, attention kernels)."""
    spec = dataclasses.replace(policy.spec, remat="none", attention="auto", decode_attention="auto")
    more = {} if policy.kept is None else {"kept": policy.kept}
    save_model(directory, "policy", spec, policy.params, policy.tokenizer, **more)
