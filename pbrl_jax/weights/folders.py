"""Model folders of our own: a spec in JSON, parameters in safetensors, and the tokenizer, together.

A folder holds `pbrl_policy.json` or `pbrl_encoder.json`, `model.safetensors` with one tensor per parameter path, and
the tokenizer's own files. A work directory is accepted wherever a model folder is: its `policy/` or `encoder/` is used,
of a quickstart's work directory that of the stage which trained it.
"""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
from etils import epath

from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.paths import sha256_file
from pbrl_jax.core.trees import map_with_path
from pbrl_jax.text.tokenizers import Tokenizer, load_tokenizer
from pbrl_jax.weights.hf_names import Stored
from pbrl_jax.weights.safetensors_file import Planned, located, open_safetensors, write_safetensors
from pbrl_jax.weights.tensors import WEIGHTS, Weights, load_params

QUICKSTART_STAGES = {"policy": "rl", "encoder": "encoder"}
"""Kind -> the stage of a quickstart whose work directory holds its model."""


def save_model(directory, kind: str, spec, params, tokenizer: Tokenizer, **more) -> None:
    """Write a model folder; `kind` is policy or encoder. The spec is written last, so a torn folder has none.

    `more` goes into the record beside the spec. One parameter at a time is brought to the host.
    """
    folder = epath.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"pbrl_{kind}.json").unlink(missing_ok=True)
    leaves: dict[str, Any] = {}
    map_with_path(lambda path, leaf: leaves.__setitem__(path, leaf), params)
    planned = [Planned(path, tuple(leaf.shape), np.dtype(leaf.dtype)) for path, leaf in leaves.items()]
    arrays = (np.asarray(jax.device_get(leaf)) for leaf in leaves.values())
    digest = write_safetensors(folder / WEIGHTS, planned, arrays)
    tokenizer.save(str(folder))
    record = {"spec": dataclasses.asdict(spec), "weights_sha256": digest, **more}
    (folder / f"pbrl_{kind}.json").write_text(json.dumps(record, indent=1))


def own_folder(source: str, kind: str) -> epath.Path | None:
    """The folder itself, or the one inside a work directory; None where neither was written by this package."""
    root = epath.Path(source)
    folders = [root, root / kind]
    if kind in QUICKSTART_STAGES:
        folders.append(root / QUICKSTART_STAGES[kind] / kind)
    return next((folder for folder in folders if (folder / f"pbrl_{kind}.json").exists()), None)


def model_folder(place: str, kind: str, source: str | None = None) -> epath.Path:
    """`own_folder`, which must be there; `source` is what the user called it.

    Raises:
      CheckpointError: no such model there; says what was looked for, or that a run has not ended.
    """
    folder = own_folder(place, kind)
    if folder is None and (epath.Path(place) / "checkpoints").exists():
        raise CheckpointError(
            f"The run in {source or place!r} has not ended: it has checkpoints, but no {kind}/ yet. Let it end; the "
            "command that started it goes on, and with --train.max-steps N it ends at step N."
        )
    if folder is None:
        raise CheckpointError(
            f"No {kind} in {source or place!r}: neither pbrl_{kind}.json nor {kind}/pbrl_{kind}.json is there, nor the "
            "config.json of a Hugging Face model. Give a folder written by `pbrl sft`, `pbrl train` or `pbrl encoder`, "
            "a finished work directory, the folder of a downloaded model, or a hub id such as Qwen/Qwen3-0.6B."
        )
    return folder


def read_record(folder: epath.Path, kind: str, spec_class) -> tuple[Any, dict]:
    """(spec, the whole record) of a model folder.

    Raises:
      CheckpointError: a file that this version does not write.
    """
    file = folder / f"pbrl_{kind}.json"
    try:
        record = json.loads(file.read_text())
        spec, _ = spec_class(record["spec"]), record["weights_sha256"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{file} is not what this version writes ({type(error).__name__}: {error}). Write the folder again."
        ) from error
    return spec, record


def read_weights(folder: epath.Path, digest: str, abstract: Any, shardings: Any = None, dtype: Any = None) -> Any:
    """Parameters of a model folder, on the devices; `abstract` is the tree of shapes they must have.

    Raises:
      CheckpointError: a missing or damaged file, or tensors that do not fit: all of them are listed.
    """
    path = located(folder / WEIGHTS)
    if path is None:
        raise CheckpointError(f"{folder} holds no {WEIGHTS}. Copy the whole folder, or write it again.")
    if sha256_file(path) != digest:
        raise CheckpointError(f"{path} is damaged: its checksum is not the recorded one. Write it again.")
    tensors = Weights([open_safetensors(path)], str(folder))
    names: dict[str, Stored] = {}
    map_with_path(lambda name, leaf: names.__setitem__(name, Stored(name, leaf.shape)), abstract)
    wrong = []
    for name, stored in names.items():
        found = tensors[name].shape if name in tensors else None
        if found != stored.shape:
            wrong.append(f"{name}: expected {stored.shape}, found {found}")
    wrong += [f"{name}: not a parameter of this spec" for name in tensors if name not in names]
    if wrong:
        raise CheckpointError(f"{folder} does not fit its spec: " + "; ".join(wrong))
    return load_params(tensors, names, shardings, dtype)


def read_model(place: str, kind: str, spec_class, abstract_params) -> tuple[Any, Any, Tokenizer, str]:
    """(spec, parameters, tokenizer, weights' sha256) of a local model folder.

    Args:
      spec_class: function from the stored dict to a spec.
      abstract_params: function from a spec to the tree of shapes its parameters must have.

    Raises:
      CheckpointError: a missing or damaged file, or tensors that do not fit the spec: all of them are listed.
    """
    folder = model_folder(place, kind)
    spec, record = read_record(folder, kind, spec_class)
    params = read_weights(folder, record["weights_sha256"], abstract_params(spec))
    return spec, params, load_tokenizer(str(folder)), record["weights_sha256"]
