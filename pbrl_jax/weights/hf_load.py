"""Policies from Hugging Face folders: `config.json`, safetensors and the tokenizer."""

import dataclasses
import hashlib
import json
import os
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.logs.progress import Progress
from pbrl_jax.mesh.sharding import tree_shardings
from pbrl_jax.models.decoder import decoder_axes
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.text.tokenizers import MissingTokenizer, Tokenizer, folder_tokenizer, pieces_beyond
from pbrl_jax.weights.hf_decoder import decoder_names, decoder_spec, kept_fields
from pbrl_jax.weights.tensors import abstract_params, load_params, open_weights, resolve_names, weights_digest

CONFIG = "config.json"
LONG_LOAD = 1 << 30
"""Bytes of parameters from which on loading shows how far it is."""

#: Pieces beyond the embedding that no text and no chat template makes: Gemma 3's text models share their tokenizer
#: with the multimodal ones, whose embedding is larger.
NEVER_MADE = frozenset({"<image_soft_token>"})

#: Fields of config.json that say nothing about the model.
NOT_IDENTITY = ("_name_or_path", "transformers_version", "use_cache", "architectures")


class Loaded(NamedTuple):
    """What a Hugging Face folder gives."""

    spec: DecoderSpec
    params: Any
    tokenizer: Tokenizer | MissingTokenizer
    fingerprint: str
    kept: dict[str, Any]


def read_config(folder: str, source: str) -> dict[str, Any] | None:
    """`config.json` of a model; None where there is none, or that of a run.

    Raises:
      CheckpointError: it is not JSON.
    """
    path = os.path.join(folder, CONFIG)
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except ValueError as error:
        raise CheckpointError(f"{CONFIG} in {source!r} is not JSON: {error}. Download the file again.") from error
    return config if isinstance(config, dict) and {"model_type", "architectures"} & config.keys() else None


def stored_compute_type(config: dict[str, Any]) -> str:
    """bfloat16 where the folder says so, else float32: float16 has too small a range for what bfloat16 trained."""
    places = (config, config.get("text_config") or {})
    named = [str(place.get(name)) for place in places for name in ("dtype", "torch_dtype") if place.get(name)]
    return "bfloat16" if named and named[0].endswith("bfloat16") else "float32"


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, source: str) -> None:
    """A tokenizer must not make ids that have no embedding; embeddings without an id (padding) are fine.

    Raises:
      CheckpointError: names the first pieces that have no embedding.
    """
    beyond = {piece: i for piece, i in pieces_beyond(tokenizer, vocab_size).items() if piece not in NEVER_MADE}
    outside = [i for i in (*tokenizer.eos_ids, tokenizer.pad_id, tokenizer.bos_id) if i is not None and i >= vocab_size]
    if beyond or outside:
        shown = ", ".join(f"{piece!r} ({i})" for piece, i in sorted(beyond.items(), key=lambda x: x[1])[:5])
        raise CheckpointError(
            f"The tokenizer of {source!r} has {tokenizer.vocab_size} ids, but the embedding has {vocab_size} rows; "
            f"without one: {shown or outside}. Take the tokenizer that belongs to these weights."
        )


def read_hf_policy(
    folder: str, config: dict[str, Any], source: str, mesh=None, dtype: str | None = None, param_dtype: str = "float32"
) -> Loaded:
    """A policy from a local folder; see load_policy for the arguments.

    Raises:
      CheckpointError: a model that is not understood, weights that do not fit it, a tokenizer that is too large.
    """
    spec = dataclasses.replace(decoder_spec(config), dtype=dtype or stored_compute_type(config))
    names = decoder_names(spec)
    tensors = open_weights(folder)
    resolve_names(tensors, names)
    tokenizer = folder_tokenizer(folder, source)
    if not isinstance(tokenizer, MissingTokenizer):
        check_vocabulary(tokenizer, spec.vocab_size, source)
    shardings = None if mesh is None else tree_shardings(abstract_params(names), decoder_axes(spec), mesh)
    kind = None if param_dtype == "stored" else jnp.dtype(param_dtype)
    total = sum(int(np.prod(stored.full_shape())) for stored in names.values()) * (kind.itemsize if kind else 2)
    with Progress(f"loading {source}", max(1, total >> 20), unit="MiB", active=total >= LONG_LOAD) as progress:
        params = load_params(tensors, names, shardings, kind, tick=lambda size: progress.advance(size >> 20))
    described = {name: value for name, value in config.items() if name not in NOT_IDENTITY}
    text = json.dumps(described, sort_keys=True) + weights_digest(tensors)
    tensors.release()
    return Loaded(spec, params, tokenizer, hashlib.sha256(text.encode()).hexdigest(), kept_fields(config))
