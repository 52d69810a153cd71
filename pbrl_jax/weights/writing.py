"""Writing parameters as the tensors of a checkpoint, and comparing an export with its source."""

import contextlib
import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.trees import flat_paths
from pbrl_jax.logs.progress import Progress
from pbrl_jax.weights.hf_names import Stored
from pbrl_jax.weights.safetensors_file import Planned, write_safetensors
from pbrl_jax.weights.tensors import CONFIG, LONG_LOAD, WEIGHTS

#: Bytes of tensors in one file; a larger model gets several files and an index.
LARGEST_FILE = 5_000_000_000
INDEX = f"{WEIGHTS}.index.json"
#: Weights that an earlier export left, in one file or in several.
STALE = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


@functools.partial(jax.jit, static_argnames="dtype")
def _slice_layer(leaf, layer, dtype):
    return jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False).astype(dtype)


def _host_layer(leaf: jax.Array, layer: int | None, dtype: np.dtype) -> np.ndarray:
    if leaf.is_fully_replicated and next(iter(leaf.devices())).platform == "cpu":
        host = np.asarray(leaf)  # a view: on CPU, device memory is host memory
        return (host if layer is None else host[layer]).astype(dtype, copy=False)
    return np.asarray(leaf.astype(dtype) if layer is None else _slice_layer(leaf, layer, dtype))


def stored_arrays(leaf: Any, stored: Stored, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Yield the tensors of a parameter in the order of `stored.names()`, copying one layer at a time to the host."""
    leaf, shape = jnp.asarray(leaf), stored.file_shape()
    for layer in range(stored.layers) if stored.layers else (None,):
        block = _host_layer(leaf, layer, dtype)
        for entry in block if stored.experts else (block,):
            yield entry.reshape(shape[::-1]).T if stored.transpose else entry.reshape(shape)


def file_plan(planned: list[Planned], largest: int) -> list[list[Planned]]:
    """The tensors in order, divided into files of at most `largest` bytes (a larger tensor gets its own file)."""
    files: list[list[Planned]] = [[]]
    size = 0
    for tensor in planned:
        if files[-1] and size + tensor.size > largest:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.size
    return files


def write_tensors(
    folder: epath.Path, params: Any, names: Mapping[str, Stored], dtype: Any = None,
    constants: Mapping[str, float] | None = None,
) -> None:  # fmt: skip
    """Write parameters as safetensors; above LARGEST_FILE bytes, several files and an index.

    Args:
      folder: an existing folder; weights in it are removed.
      params: tree of arrays; paths that `names` does not list are skipped.
      names: our parameter path -> tensors of the file.
      dtype: type of the tensors; default: each parameter's own type.
      constants: further scalar tensors.
    """
    for file in list(folder.iterdir()):
        if STALE.fullmatch(file.name):
            file.unlink()
    constants = constants or {}
    leaves = flat_paths(params)
    kinds = {path: np.dtype(dtype or leaves[path].dtype) for path in names}
    by_tensor: dict[str, list[str]] = {}  # template -> paths of the parameters that are its parts
    for path, stored in names.items():
        by_tensor.setdefault(stored.template, []).append(path)
    planned = []
    for paths in by_tensor.values():
        stored = names[paths[0]]
        shape = (stored.part[2], *stored.file_shape()[1:]) if stored.part else stored.file_shape()
        planned += [Planned(name, shape, kinds[paths[0]]) for name in stored.names()]
    planned += [Planned(name, (), np.dtype(dtype or np.float32)) for name in constants]
    files, total = file_plan(planned, LARGEST_FILE), sum(tensor.size for tensor in planned)
    numbered = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    file_names = numbered if len(files) > 1 else [WEIGHTS]
    with Progress(f"writing {folder}", max(1, total >> 20), unit="MiB", active=total >= LONG_LOAD) as progress:

        def arrays() -> Iterator[np.ndarray]:
            for paths in by_tensor.values():
                parts = [stored_arrays(leaves[path], names[path], kinds[path]) for path in paths]
                for pieces in zip(*parts, strict=True):
                    array = pieces[0] if len(paths) == 1 else np.concatenate(pieces)
                    yield array
                    progress.advance(array.nbytes >> 20)
            yield from (np.asarray(value, dtype or np.float32) for value in constants.values())

        remaining = arrays()
        for name, tensors in zip(file_names, files, strict=True):
            write_safetensors(folder / name, tensors, itertools.islice(remaining, len(tensors)), {"format": "pt"})
    if len(files) > 1:
        where = {tensor.name: name for name, tensors in zip(file_names, files, strict=True) for tensor in tensors}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})


def write_module(folder: epath.Path, config: Any, params: Any, names: dict[str, Stored]) -> None:
    """Write config.json and model.safetensors of one module."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder, params, names)
    write_json(folder / CONFIG, config)


def write_json(path: epath.Path, content: Any) -> None:
    """Write an indented JSON file; parent folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def differing_parameters(left: Any, right: Any) -> list[str]:
    """`PATH differs` for every leaf that is not bit-equal in two trees of the same structure."""

    def compare(left, right) -> Any:
        return jax.tree.map(lambda a, b: jnp.array_equal(a, b, equal_nan=True), left, right)

    equal = jax.device_get(jax.jit(compare)(left, right))
    return [f"{path} differs" for path, same in flat_paths(equal).items() if not same]


@contextlib.contextmanager
def marking(folder: epath.Path, mark: str) -> Iterator[None]:
    """The block writes a model and checks it. The file `mark`, which it writes last and which marks a complete folder,
    is removed before the block, and again if the block raises."""
    (folder / mark).unlink(missing_ok=True)
    try:
        yield
    except BaseException:
        (folder / mark).unlink(missing_ok=True)
        raise


def refuse_differences(directory: str, problems: list[str], mark: str) -> None:
    """Raise CheckpointError if there are problems; in `marking`, which removes `mark`."""
    if problems:
        raise CheckpointError(
            f"{directory} was written, but reads back differently: {'; '.join(problems[:8])}. It is not marked as a "
            f"model ({mark} is removed). Check the disk and export again; if that does not help, report it."
        )
