"""Model folders: a spec in JSON, parameters in safetensors, and the tokenizer, together.

A folder holds `pbrl_policy.json` or `pbrl_encoder.json`, `model.safetensors` with one tensor per parameter path, and
the tokenizer's own files. A work directory is accepted wherever a model folder is: its `policy/` or `encoder/` is used.
"""

import dataclasses
import hashlib
import json
from typing import Any

import jax
import numpy as np
from etils import epath
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.trees import map_with_path
from pbrl_jax.text.tokenizers import Tokenizer, load_tokenizer

WEIGHTS = "model.safetensors"


def flatten_params(params: Any) -> dict[str, np.ndarray]:
    """Path -> host array of every parameter."""
    flat: dict[str, np.ndarray] = {}
    map_with_path(lambda path, leaf: flat.__setitem__(path, np.asarray(leaf)), jax.device_get(params))
    return flat


def save_model(directory, kind: str, spec, params, tokenizer: Tokenizer) -> None:
    """Write a model folder; `kind` is policy or encoder. The spec is written last, so a torn folder has none."""
    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"pbrl_{kind}.json").unlink(missing_ok=True)
    data = save_safetensors(flatten_params(params))
    (folder / WEIGHTS).write_bytes(data)
    tokenizer.save(str(folder))
    record = {"spec": dataclasses.asdict(spec), "weights_sha256": hashlib.sha256(data).hexdigest()}
    (folder / f"pbrl_{kind}.json").write_text(json.dumps(record, indent=1))


def model_folder(source: str, kind: str) -> epath.Path:
    """The folder itself, or the one inside a work directory.

    Raises:
      CheckpointError: no such model there; says what was looked for.
    """
    root = epath.Path(source)
    for folder in (root, root / kind):
        if (folder / f"pbrl_{kind}.json").exists():
            return folder
    raise CheckpointError(
        f"No {kind} in {source!r}: neither pbrl_{kind}.json nor {kind}/pbrl_{kind}.json is there. "
        f"Give a folder written by `pbrl sft`, `pbrl train` or `pbrl encoder`, or a finished work directory."
    )


def read_model(source: str, kind: str, spec_class, abstract_params) -> tuple[Any, Any, Tokenizer, str]:
    """(spec, host parameters, tokenizer, weights' sha256) of a model folder.

    Args:
      spec_class: function from the stored dict to a spec.
      abstract_params: function from a spec to the tree of shapes its parameters must have.

    Raises:
      CheckpointError: a missing or damaged file, or tensors that do not fit the spec: all of them are listed.
    """
    folder = model_folder(source, kind)
    record_file = folder / f"pbrl_{kind}.json"
    try:
        record = json.loads(record_file.read_text())
        spec, digest = spec_class(record["spec"]), record["weights_sha256"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{record_file} is not what this version writes ({type(error).__name__}: {error}). Write the folder again."
        ) from error
    if not (folder / WEIGHTS).exists():
        raise CheckpointError(f"{folder} holds no {WEIGHTS}. Copy the whole folder, or write it again.")
    data = (folder / WEIGHTS).read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged: its checksum is not the recorded one. Write it again.")
    try:
        flat = load_safetensors(data)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error}. Write it again.") from error
    wrong: list[str] = []

    def take(path, shape):
        tensor = flat.pop(path, None)
        if tensor is None or tensor.shape != shape.shape:
            wrong.append(f"{path}: expected {shape.shape}, found {None if tensor is None else tensor.shape}")
        return tensor

    params = map_with_path(take, abstract_params(spec))
    wrong += [f"{path}: not a parameter of this spec" for path in flat]
    if wrong:
        raise CheckpointError(f"{folder} does not fit its spec: " + "; ".join(wrong))
    return spec, params, load_tokenizer(str(folder)), digest
