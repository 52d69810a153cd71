"""Policies out again: a Hugging Face folder that transformers and vLLM load."""

import dataclasses
import functools
import itertools
import json
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pbrl_jax.core.errors import CheckpointError, ConfigError
from pbrl_jax.core.trees import map_with_path, match_rules
from pbrl_jax.logs.progress import Progress
from pbrl_jax.models.decoder import causal_logits, decoder_axes
from pbrl_jax.text.hf_tokenizer import GENERATION_CONFIG
from pbrl_jax.text.sentencepiece_json import write_tokenizer_json
from pbrl_jax.text.tokenizers import MissingTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from pbrl_jax.weights.hf_decoder import decoder_names, decoder_spec, hf_config
from pbrl_jax.weights.hf_load import CONFIG, LONG_LOAD, read_config
from pbrl_jax.weights.hf_names import Stored
from pbrl_jax.weights.hub import local_copy
from pbrl_jax.weights.policies import PARAM_TYPES, Policy
from pbrl_jax.weights.safetensors_file import Planned, write_safetensors
from pbrl_jax.weights.tensors import WEIGHTS, load_params, open_weights

_LOGGER = logging.getLogger(__name__)

LARGEST_FILE = 5_000_000_000
"""Bytes of tensors per file; beyond it the folder gets several, and an index."""
INDEX = f"{WEIGHTS}.index.json"
STALE = re.compile(r"(model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|generation_config\.json)")
HEADS = ("heads", "kv_heads")
CHECKED_TOKENS = 16
TOLERANCE = 1e-5
"""Share of the largest logit: both sides are one program on the same numbers, up to how they are laid out."""
SAMPLE_TEXT = "Jibu ni 12. 答案是 12。 คำตอบคือ 12 <think>\\boxed{12}</think>"


class StoredLeaf:
    """One parameter of ours, as the tensors of a checkpoint.

    Args:
      stored: where it lies.
      logical: the names of its axes: heads and the head channels behind them are one axis of the checkpoint's.
      leaf: the parameter.
      dtype: type to store.
    """

    def __init__(self, stored: Stored, logical: tuple[str, ...], leaf: Any, dtype: np.dtype):
        self.stored, self.leaf, self.dtype = stored, leaf, dtype
        axes = logical[len(logical) - len(stored.shape) :]
        self.merged: list[int] = []
        for place, size in enumerate(stored.shape):
            if place and axes[place] == "none" and axes[place - 1] in HEADS:
                self.merged[-1] *= size
            else:
                self.merged.append(size)

    def planned(self) -> list[Planned]:
        """Its tensors, in the order of `arrays`."""
        shape = tuple(reversed(self.merged)) if self.stored.transpose else tuple(self.merged)
        return [Planned(name, shape, self.dtype) for name in self.stored.names()]

    def arrays(self) -> Iterator[np.ndarray]:
        """The tensors; one layer at a time is brought to the host."""
        layers = range(self.stored.layers) if self.stored.layers else (None,)
        for layer in layers:
            block = np.asarray(_layer(self.leaf, layer, self.dtype))
            for entry in block if self.stored.experts else (block,):
                view = entry.reshape(self.merged)
                yield view.T if self.stored.transpose else view


@functools.partial(jax.jit, static_argnames="dtype")
def _one_layer(leaf, layer, dtype):
    return jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False).astype(dtype)


def _layer(leaf: jax.Array, layer: int | None, dtype: np.dtype) -> Any:
    if leaf.is_fully_replicated and next(iter(leaf.devices())).platform == "cpu":
        host = np.asarray(leaf)  # no copy: it lies in the host's memory as it is
        return (host if layer is None else host[layer]).astype(dtype, copy=False)
    return leaf.astype(dtype) if layer is None else _one_layer(leaf, layer, dtype)


def export_policy(policy: Policy, directory: str, dtype: str | None = None) -> None:
    """Write a Hugging Face folder: safetensors, config.json, tokenizer, chat template, generation_config.json.

    Parameters are written one by one, into several files with an index above 5 GB; config.json comes last, so a torn
    folder is no model. The folder is then read back and must give the same parameters, the same token ids and, on a
    few tokens, the same logits.

    Args:
      policy: what to write; on one host.
      directory: the folder, local or `gs://...`; a model that is there is replaced.
      dtype: type of the stored weights, float32 or bfloat16; default: that of the parameters.

    Raises:
      CheckpointError: no model family has this spec, the folder holds a model of this package, or what was read back
        is not what was written.
      ConfigError: an unknown type.
    """
    if dtype is not None and dtype not in PARAM_TYPES[:2]:
        raise ConfigError(f"dtype is {dtype!r}; expected {' or '.join(PARAM_TYPES[:2])}.")
    kind = np.dtype(jnp.dtype(dtype or jax.tree.leaves(policy.params)[0].dtype))
    config = hf_config(policy.spec, {**_token_ids(policy.tokenizer), **(policy.kept or {})}, kind.name)
    folder = epath.Path(directory)
    if (folder / "pbrl_policy.json").exists():
        raise CheckpointError(f"{directory} holds a policy of this package, which would be lost. Name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    for file in list(folder.iterdir()):
        if STALE.fullmatch(file.name):
            file.unlink()
    _write_weights(folder, _stored_leaves(policy, kind))
    if not isinstance(policy.tokenizer, MissingTokenizer):
        policy.tokenizer.save(str(folder))
        if type(policy.tokenizer) is SentencePieceTokenizer:
            _write_sentencepiece(policy.tokenizer, folder, config["model_type"])
        if not (folder / GENERATION_CONFIG).exists():
            (folder / GENERATION_CONFIG).write_text(json.dumps(_token_ids(policy.tokenizer), indent=2))
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    try:
        check_export(policy, str(directory), kind)
    except Exception:
        (folder / CONFIG).unlink(missing_ok=True)
        raise


def _write_sentencepiece(tokenizer: SentencePieceTokenizer, folder: epath.Path, model_type: str) -> None:
    """tokenizer.json for transformers, beside tokenizer.model; a warning where it cannot be."""
    if why := write_tokenizer_json(tokenizer, folder, model_type=model_type):
        _LOGGER.warning("%s has tokenizer.model, but no tokenizer.json for transformers: %s.", folder, why)


def _token_ids(tokenizer: Tokenizer | MissingTokenizer) -> dict[str, Any]:
    if isinstance(tokenizer, MissingTokenizer):
        return {}
    eos = list(tokenizer.eos_ids)
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos,
        "pad_token_id": tokenizer.pad_id,
    }


def _stored_leaves(policy: Policy, kind: np.dtype) -> list[StoredLeaf]:
    names = decoder_names(policy.spec)
    axes = match_rules(policy.params, decoder_axes(policy.spec))
    found: list[StoredLeaf] = []
    map_with_path(
        lambda path, leaf, logical: found.append(StoredLeaf(names[path], tuple(logical), jnp.asarray(leaf), kind)),
        policy.params, axes,
    )  # fmt: skip
    return found


def file_plan(planned: list[Planned], largest: int) -> list[list[Planned]]:
    """The tensors in their order, cut into files of at most `largest` bytes (a larger tensor has one of its own)."""
    files: list[list[Planned]] = [[]]
    size = 0
    for tensor in planned:
        if files[-1] and size + tensor.size > largest:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.size
    return files


def _write_weights(folder: epath.Path, leaves: list[StoredLeaf]) -> None:
    planned = [tensor for leaf in leaves for tensor in leaf.planned()]
    files = file_plan(planned, LARGEST_FILE)
    total = sum(tensor.size for tensor in planned)
    names = [WEIGHTS] if len(files) == 1 else [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]  # fmt: skip
    with Progress(f"writing {folder}", max(1, total >> 20), unit="MiB", active=total >= LONG_LOAD) as progress:

        def arrays() -> Iterator[np.ndarray]:
            for leaf in leaves:
                for array in leaf.arrays():
                    yield array
                    progress.advance(array.nbytes >> 20)

        following = arrays()
        for name, tensors in zip(names, files, strict=True):
            part = itertools.islice(following, len(tensors))
            write_safetensors(folder / name, tensors, part, {"format": "pt"})
    if len(files) > 1:
        where = {tensor.name: name for name, tensors in zip(names, files, strict=True) for tensor in tensors}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2))


def check_export(policy: Policy, directory: str, kind: np.dtype) -> None:
    """Read an exported folder back and compare it with the policy.

    Raises:
      CheckpointError: a parameter, token id or logit that differs; says which.
    """
    place = local_copy(directory)
    config = read_config(place, directory)
    here = {name: getattr(policy.spec, name) for name in ("dtype", "remat", "attention")}
    spec = dataclasses.replace(decoder_spec(config), **here)
    written = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(kind), policy.params)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, written)
    found = load_params(open_weights(place), decoder_names(spec), shardings, kind)
    failed = _differing(written, found)
    if not isinstance(policy.tokenizer, MissingTokenizer):
        sides = [(t.encode(SAMPLE_TEXT), t.eos_ids) for t in (policy.tokenizer, load_tokenizer(place))]
        failed += ["the tokenizer gives other ids"] if sides[0] != sides[1] else []
    tokens_BT = jnp.linspace(0, spec.vocab_size - 1, CHECKED_TOKENS).astype(jnp.int32)[None]
    mask_BT = jnp.ones(tokens_BT.shape, bool)
    logits = jax.jit(causal_logits, static_argnums=1)
    wanted_BTV = np.asarray(logits(written, policy.spec, tokens_BT, mask_BT))
    difference = float(np.abs(np.asarray(logits(found, spec, tokens_BT, mask_BT)) - wanted_BTV).max())
    if not difference <= TOLERANCE * float(np.abs(wanted_BTV).max()):
        failed.append(f"logits differ by {difference:.3g}")
    if failed:
        raise CheckpointError(
            f"{directory} was written, but reads back differently: {'; '.join(failed[:8])}. It is not marked as a "
            "model (config.json is removed). Check the disk and export again; if that does not help, report it."
        )


def _differing(written: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    def same(left, right) -> Any:
        return jax.tree.map(lambda a, b: jnp.array_equal(a, b, equal_nan=True), left, right)

    problems: list[str] = []
    equal = jax.device_get(jax.jit(same)(written, found))
    map_with_path(lambda path, alike: alike or problems.append(f"{path} differs"), equal)
    return problems
