"""Model folders of this package: a spec in JSON, parameters in safetensors, and the tokenizer.

A folder holds `pbrl_policy.json`, `pbrl_encoder.json` or `pbrl_comet.json`, `model.safetensors` with one tensor per
parameter path, and the tokenizer's files. A work directory may be given in place of a model folder: its `policy/` or
`encoder/` is used, or that of the training stage in a quickstart's work directory.
"""

import dataclasses
import functools
import json
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from pbrl_jax.config.older import FIRST_VERSION
from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.paths import parse_json, sha256_file
from pbrl_jax.core.trees import flat_paths
from pbrl_jax.core.version import __version__
from pbrl_jax.text.tokenizers import Tokenizer, load_tokenizer, pieces_beyond
from pbrl_jax.weights.hf_names import Stored
from pbrl_jax.weights.safetensors_file import Planned, located, open_safetensors, write_safetensors
from pbrl_jax.weights.tensors import WEIGHTS, Weights, load_params

#: Pieces that no text or chat template produces and that need no embedding: Gemma 3's text models share their tokenizer
#: with multimodal models, whose embedding is larger.
NEVER_MADE = frozenset({"<image_soft_token>"})

#: Kind -> the stage of a quickstart whose work directory holds its model.
QUICKSTART_STAGES = {"policy": "rl", "encoder": "encoder"}


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int, source: str) -> None:
    """Check that every id of a tokenizer has an embedding; unused rows of the embedding (padding) are allowed.

    Raises:
      CheckpointError: names the first pieces without an embedding.
    """
    beyond = {piece: i for piece, i in pieces_beyond(tokenizer, vocab_size).items() if piece not in NEVER_MADE}
    outside = [i for i in (*tokenizer.eos_ids, tokenizer.pad_id, tokenizer.bos_id) if i is not None and i >= vocab_size]
    if beyond or outside:
        shown = ", ".join(f"{piece!r} ({i})" for piece, i in sorted(beyond.items(), key=lambda x: x[1])[:5])
        raise CheckpointError(
            f"The tokenizer of {source!r} has {tokenizer.vocab_size} ids, but the embedding has {vocab_size} rows; "
            f"without one: {shown or outside}. Take the tokenizer that belongs to these weights."
        )


def save_model(directory, kind: str, spec, params, tokenizer: Tokenizer, **more) -> None:
    """Write a model folder; `kind` is policy, encoder or comet. The spec is written last and marks a complete folder.

    `more` is added to the record of the spec. One parameter at a time is copied to the host.
    """
    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"pbrl_{kind}.json").unlink(missing_ok=True)
    leaves = flat_paths(params)
    planned = [Planned(path, tuple(leaf.shape), np.dtype(leaf.dtype)) for path, leaf in leaves.items()]
    arrays = (np.asarray(jax.device_get(leaf)) for leaf in leaves.values())
    digest = write_safetensors(folder / WEIGHTS, planned, arrays)
    tokenizer.save(str(folder))
    record = {"version": __version__, "spec": dataclasses.asdict(spec), "weights_sha256": digest, **more}
    (folder / f"pbrl_{kind}.json").write_text(json.dumps(record, indent=1))


def own_folder(source: str, kind: str) -> epath.Path | None:
    """The model folder of this package at `source` or inside the work directory `source`; None if there is none."""
    root = epath.Path(source)
    folders = [root, root / kind]
    if kind in QUICKSTART_STAGES:
        folders.append(root / QUICKSTART_STAGES[kind] / kind)
    return next((folder for folder in folders if (folder / f"pbrl_{kind}.json").exists()), None)


def model_folder(place: str, kind: str, source: str | None = None) -> epath.Path:
    """`own_folder`, which must exist; `source` is the name that the user gave.

    Raises:
      CheckpointError: there is none; the message lists the expected files, or says that a run has not ended.
    """
    folder = own_folder(place, kind)
    if folder is None and (epath.Path(place) / "checkpoints").exists():
        raise CheckpointError(
            f"The run in {source or place!r} has not ended: it has checkpoints, but no {kind}/ yet. Let it end; the "
            "command that started it goes on, and with --train.max-steps N it ends at step N."
        )
    if folder is None and epath.Path(place).is_file():
        gguf = " GGUF is not read: take the model's safetensors." if str(place).endswith(".gguf") else ""
        raise CheckpointError(f"{source or place!r} is a file; expected the folder of a {kind}.{gguf}")
    if folder is None:
        raise CheckpointError(
            f"No {kind} in {source or place!r}: neither pbrl_{kind}.json nor {kind}/pbrl_{kind}.json is there, nor the "
            "config.json of a Hugging Face model. Give a folder written by `pbrl sft`, `pbrl train` or `pbrl encoder`, "
            "a finished work directory, the folder of a downloaded model, or a hub id such as Qwen/Qwen3-0.6B."
        )
    return folder


def read_spec(kind: type, stored: Mapping[str, Any]) -> Any:
    """A spec of this dataclass from its JSON form (`dataclasses.asdict`)."""
    hints = typing.get_type_hints(kind)

    def value_of(hint: Any, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(value_of(hint, item) for item in value)
        nested = [part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)]
        return read_spec(nested[0], value) if isinstance(value, Mapping) else value  # type: ignore[arg-type]

    return kind(**{name: value_of(hints[name], value) for name, value in stored.items()})


def abstract_tree(init: Callable[[jax.Array, Any], Any], spec: Any) -> Any:
    """Shapes of the parameters of `init(key, spec)`, which is traced once."""
    return jax.tree.map(lambda leaf: leaf, _traced_shapes(init, spec))  # the caller's own tree


@functools.lru_cache(maxsize=256)
def _traced_shapes(init: Callable[[jax.Array, Any], Any], spec: Any) -> Any:
    return jax.eval_shape(lambda: init(jax.random.key(0), spec))


def read_record(
    place: str, kind: str, spec_of: Callable[[Mapping], Any], source: str | None = None
) -> tuple[epath.Path, Any, dict[str, Any]]:
    """(folder, spec, content of its JSON file) of a local model folder, without its weights; see `read_model`."""
    folder, version = model_folder(place, kind, source), FIRST_VERSION
    file = folder / f"pbrl_{kind}.json"
    try:
        record = parse_json(file.read_text())
        version = record.get("version", FIRST_VERSION)
        spec, _ = spec_of(record["spec"]), record["weights_sha256"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{file} is not what this version writes ({type(error).__name__}: {error}): pbrl_jax {version} wrote it, "
            f"this is {__version__}. Write the folder again."
        ) from error
    return folder, spec, record


def read_model(
    place: str, kind: str, spec_of: Callable[[Mapping], Any], init: Callable[[jax.Array, Any], Any], *,
    source: str | None = None, shardings: Callable[[Any, Any], Any] | None = None, dtype: Any = None,
) -> tuple[Any, Any, Tokenizer, dict[str, Any]]:  # fmt: skip
    """(spec, parameters on the devices, tokenizer, content of its JSON file) of a local model folder.

    Args:
      place: the folder, or a work directory.
      kind: policy, encoder or comet.
      spec_of: from the stored dict to a spec.
      init: `init(key, spec)` gives parameters of the expected shapes.
      source: the name that the user gave.
      shardings: from (spec, shapes) to a tree of shardings; None: the default device.
      dtype: type of the parameters; None: the stored type.

    Raises:
      CheckpointError: a file that this version cannot read (the message names the version that wrote it), a damaged
        file, or tensors that do not fit the spec (all are listed).
    """
    folder, spec, record = read_record(place, kind, spec_of, source)
    abstract = abstract_tree(init, spec)
    params = _read_weights(folder, record["weights_sha256"], abstract, shardings and shardings(spec, abstract), dtype)
    return spec, params, load_tokenizer(str(folder)), record


def _read_weights(folder: epath.Path, digest: str, abstract: Any, shardings: Any, dtype: Any) -> Any:
    path = located(folder / WEIGHTS)
    if path is None:
        raise CheckpointError(f"{folder} holds no {WEIGHTS}. Copy the whole folder, or write it again.")
    if sha256_file(path) != digest:
        raise CheckpointError(f"{path} is damaged: its checksum is not the recorded one. Write it again.")
    tensors = Weights([open_safetensors(path)], str(folder))
    names = {name: Stored(name, leaf.shape) for name, leaf in flat_paths(abstract).items()}
    problems = []
    for name, stored in names.items():
        shape = tensors[name].shape if name in tensors else None
        if shape != stored.shape:
            problems.append(f"{name}: expected {stored.shape}, found {shape}")
    problems += [f"{name}: not a parameter of this spec" for name in tensors if name not in names]
    if problems:
        raise CheckpointError(f"{folder} does not fit its spec: " + "; ".join(problems))
    return load_params(tensors, names, shardings, dtype)
