"""Reading released weights into (sharded) arrays, slice by slice.

A checkpoint is a mapping from tensor names to arrays in memory-mapped files or in an object store. A model's table of
`Stored` gives the tensors of each of our parameters. Parameters are assembled one at a time, only the slices of this
host's devices, so that in addition to the result a host holds at most its share of one stacked parameter.
"""

import hashlib
import itertools
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import ml_dtypes
import numpy as np

from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.paths import parse_json
from pbrl_jax.core.trees import flat_paths, nested
from pbrl_jax.weights.hf_names import Stored
from pbrl_jax.weights.safetensors_file import PART, RemoteTensor, Tensor, all_finite, located, open_safetensors

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TORCH_WEIGHTS = "pytorch_model.bin"

#: Prefixes of tensor names, which depend on the class that saved the model: complete models, the text part of a
#: multimodal model (two variants), encoders in a classifier, and COMET's encoder.
PREFIXES = (
    "language_model.model.", "model.language_model.", "language_model.", "encoder.model.", "model.", "bert.",
    "roberta.", "new.",
)  # fmt: skip

#: Tensors that are ignored: tied or unused heads, other parts of a multimodal model, and tables that are computed.
HARMLESS = re.compile(
    r"^(lm_head|pooler|classifier|embeddings\.pooler|vision_tower|vision_model|multi_modal_projector|cls)\."
    r"|(^|\.)position_ids$|rotary_emb\.(inv_freq|cos_cached|sin_cached)$|\.act_fn\.(beta|eps)$"
)
SHOWN_PROBLEMS = 40
#: Bytes of parameters above which loading and writing show a progress bar.
LONG_LOAD = 1 << 30
#: Elements copied at a time when transposing, so that source and target stay in the CPU's cache.
BLOCK_ELEMENTS = 1 << 18
SAMPLE_BYTES = 1024
#: Number of threads that copy.
READERS = min(16, os.cpu_count() or 1)


class Weights(dict[str, Tensor]):
    """Name -> tensor, over all files of a checkpoint."""

    def __init__(self, files: Sequence[Mapping[str, Tensor]], source: str):
        super().__init__()
        self.files, self.source = tuple(files), source
        for file in self.files:
            repeated = sorted(self.keys() & file.keys())
            if repeated:
                raise CheckpointError(f"{source}: {repeated[0]} is in two files. Remove the file that is left over.")
            self.update(file)

    def release(self) -> None:
        """Let the system drop pages that were read."""
        for file in self.files:
            if hasattr(file, "release"):
                file.release()


def open_weights(folder: str | os.PathLike, file: str = "") -> Weights:
    """The checkpoint in a local folder: safetensors, else a torch file; a single file, or an index of several.

    Args:
      file: read only this file.

    Raises:
      CheckpointError: no weights, a missing file of the index, or a damaged file.
    """
    folder = os.fspath(folder)
    for name in (file,) if file else (WEIGHTS, TORCH_WEIGHTS):
        path = os.path.join(folder, name)
        index = f"{path}.index.json"
        if file or located(path):  # before an index, as in transformers
            return Weights([_open_file(path)], folder)
        if os.path.exists(index):
            return Weights([_open_file(path) for path in _indexed_files(index)], folder)
    found = ", ".join(sorted(os.listdir(folder))[:8]) if os.path.isdir(folder) else "no such folder"
    raise CheckpointError(
        f"No weights in {folder!r}: expected {WEIGHTS}, {WEIGHTS}.index.json or {TORCH_WEIGHTS}, found "
        f"{found or 'nothing'}. Copy or download the whole folder."
    )


def _open_file(path: str) -> Mapping[str, Tensor]:
    if path.endswith(".safetensors"):
        return open_safetensors(path)
    from pbrl_jax.weights.torch_file import state_dict

    return state_dict(path)


def _indexed_files(index: str) -> list[str]:
    folder = os.path.dirname(index)
    try:
        with open(index, encoding="utf-8") as file:
            names = sorted(set(parse_json(file.read())["weight_map"].values()))
        if not names or any(os.path.basename(name) != name for name in names):
            raise ValueError(f"file names {names[:3]}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is no index of weights ({type(error).__name__}: {error}). Download the file again."
        ) from error
    missing = [name for name in names if not located(os.path.join(folder, name))]
    if missing:
        raise CheckpointError(
            f"{folder!r} lacks {len(missing)} of the {len(names)} files in its index: {', '.join(missing[:8])}. "
            "Download the rest."
        )
    return [os.path.join(folder, name) for name in names]


def plain_name(name: str) -> str:
    """A tensor's name without its prefix."""
    return name[len(next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")) :]


def fits(shape: tuple[int, ...], split: tuple[int, ...]) -> bool:
    """Whether a reshape from `shape` to `split` only splits axes, as from [D, H * C] to [D, H, C]."""
    rest = list(split)
    for size in shape:
        product = 1
        while rest and (product < size or rest[0] == 1):
            product *= rest.pop(0)
        if product != size:
            return False
    return not rest


def resolve_names(tensors: Mapping[str, Tensor], names: Mapping[str, Stored], ignore: str = "") -> dict[str, list[str]]:
    """Our parameter path -> the names of its tensors in this checkpoint.

    Args:
      tensors: the checkpoint.
      names: our parameter path -> its tensors.
      ignore: regular expression of plain names of further tensors that are ignored.

    Raises:
      CheckpointError: lists all tensors that are missing, unexpected, of another shape, or not of floating type.
    """
    by_plain: dict[str, str] = {}
    problems = []
    for name in tensors:
        first = by_plain.setdefault(plain_name(name), name)
        if first != name:
            problems.append(f"{name} and {first} name the same tensor")
    resolved: dict[str, list[str]] = {}
    used: set[str] = set()
    for path, stored in names.items():
        resolved[path] = []
        for expected in stored.names():
            plain = plain_name(expected)
            if plain not in by_plain:
                problems.append(f"{expected} is missing")
                continue
            name = by_plain[plain]
            used.add(plain)
            resolved[path].append(name)
            problems += _misfit(name, tensors[name], stored)
    for plain, name in by_plain.items():
        if plain not in used and not HARMLESS.search(plain) and not (ignore and re.search(ignore, plain)):
            problems.append(f"{name} is unexpected")
    if problems:
        more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise CheckpointError(
            f"{getattr(tensors, 'source', 'The weights')!r} and its configuration describe different models: "
            + "; ".join(problems[:SHOWN_PROBLEMS]) + more
            + ". Check that config.json belongs to these weights, and that all files are there."
        )  # fmt: skip
    return resolved


def _misfit(name: str, tensor: Tensor, stored: Stored) -> list[str]:
    shape = tensor.shape
    if stored.part:
        first, last, rows = stored.part
        if shape[:1] != (rows,):
            return [f"{name} has shape {shape}, expected {rows} rows"]
        shape = (last - first, *shape[1:])
    if not fits(shape[::-1] if stored.transpose else shape, stored.shape):
        order = " read as its transpose" if stored.transpose else ""
        return [f"{name} has shape {tensor.shape}, expected one that{order} is {stored.shape}"]
    if not np.issubdtype(tensor.dtype, np.floating) and tensor.dtype != ml_dtypes.bfloat16:
        return [f"{name} holds {tensor.dtype}, expected a floating type"]
    return []


def copy_blocks(out: np.ndarray, source: np.ndarray) -> None:
    """`out[...] = source` in blocks that fit the CPU's cache, which halves the time for a transposed source."""
    if out.size <= BLOCK_ELEMENTS or source.flags.c_contiguous:
        out[...] = source
        return
    axis = int(np.argmax(out.shape))
    half = out.shape[axis] // 2
    for part in (slice(None, half), slice(half, None)):
        index = (slice(None),) * axis + (part,)
        copy_blocks(out[index], source[index])


def rows_behind(shape: tuple[int, ...], stored: Stored, inner: tuple[slice, ...]) -> tuple[int, int]:
    """(first row, last row + 1) of a checkpoint's tensor that a slice of our parameter needs."""
    numbers = np.arange(shape[0]).reshape(-1, *(1,) * (len(shape) - 1))
    row_of_element = np.broadcast_to(numbers, shape)  # a view, without memory for each element
    needed = (row_of_element.T if stored.transpose else row_of_element).reshape(stored.shape)[inner]
    corners = needed[tuple(slice(None, None, max(1, size - 1)) for size in needed.shape)]
    return (int(corners.min()), int(corners.max()) + 1) if corners.size else (0, 0)


class _Leaf:
    """The slices of one parameter, each read once even if several devices hold it."""

    def __init__(self, tensors, names: list[str], stored: Stored, dtype, pool: ThreadPoolExecutor):
        self.tensors, self.names, self.stored, self.dtype, self.pool = tensors, names, stored, dtype, pool
        self.shape = stored.full_shape()
        self.read: dict[tuple, np.ndarray] = {}
        self.rows: dict[tuple, np.ndarray] = {}

    def __call__(self, index: tuple[slice, ...] | None) -> np.ndarray:
        index = (slice(None),) * len(self.shape) if index is None else index
        ranges = tuple(range(*part.indices(size)) for part, size in zip(index, self.shape, strict=True))
        key = tuple((part.start, part.stop) for part in ranges)
        if key not in self.read:
            self.read[key] = self._assemble(ranges)
        return self.read[key]

    def _tensor(self, name: str, inner: tuple[slice, ...]) -> np.ndarray:
        """An array of the tensor's shape in which at least the values of `inner` are read."""
        tensor = self.tensors[name]
        first, last = self.stored.part[:2] if self.stored.part else (0, None)
        if not isinstance(tensor, RemoteTensor):
            return tensor[first:last] if self.stored.part else tensor
        if not tensor.shape:
            return tensor.elements(0, 1).reshape(())
        shape = (last - first, *tensor.shape[1:]) if last else tensor.shape
        rows = tuple(first + row for row in rows_behind(shape, self.stored, inner))
        array = self.rows.get((name, *rows))
        if array is None:
            array = tensor.rows(*rows)
            needed = math.prod(part.stop - part.start for part in inner)
            if needed < array[slice(*rows)].size:  # another device needs the rest of these rows
                self.rows[name, *rows] = array
        return array[first:last] if last else array

    def _assemble(self, ranges: tuple[range, ...]) -> np.ndarray:
        stored = self.stored
        stacked = len(self.shape) - len(stored.shape)
        out = np.empty(tuple(len(part) for part in ranges), self.dtype)
        inner = tuple(slice(part.start, part.stop) for part in ranges[stacked:])
        experts = max(stored.experts, 1)

        def copy(place: tuple[int, ...]) -> None:
            numbers = [part[at] for part, at in zip(ranges[:stacked], place, strict=True)]
            layer = numbers[0] if stored.layers else 0
            expert = numbers[-1] if stored.experts else 0
            tensor = self._tensor(self.names[layer * experts + expert], inner)
            view = (tensor.T if stored.transpose else tensor).reshape(stored.shape)
            part = out[place] if place else out
            copy_blocks(part, view[inner])
            if not all_finite(part):
                name, source = self.names[layer * experts + expert], getattr(self.tensors, "source", "the weights")
                raise CheckpointError(
                    f"{name} of {source!r} holds numbers that are not finite (NaN or infinite) as {self.dtype.name}. "
                    "Such a model cannot be used: use an earlier one, or download the file again."
                )

        places = itertools.product(*(range(len(part)) for part in ranges[:stacked]))
        list(self.pool.map(copy, places))
        return out


def load_params(
    tensors: Mapping[str, Tensor],
    names: Mapping[str, Stored],
    shardings: Any = None,
    dtype: Any = np.float32,
    *,
    ignore: str = "",
    tick: Callable[[int], Any] | None = None,
) -> dict:
    """The parameters of a model, from a checkpoint.

    Args:
      tensors: name -> array (see open_weights).
      names: our parameter path (`layers/query/kernel`) -> its tensors.
      shardings: tree of shardings with these paths; None: the default device.
      dtype: type of the parameters; None: the stored type of each.
      ignore: as in resolve_names.
      tick: called with the size in bytes of each loaded parameter.

    Returns:
      Nested dict of arrays: `{"layers": {"query": {"kernel": [N, D, H, C]}}, ...}`.

    Raises:
      CheckpointError: as resolve_names; or `dtype` is None and tensors of one parameter have different types.
    """
    resolved = resolve_names(tensors, names, ignore)
    places = {} if shardings is None else flat_paths(shardings)
    params: dict[str, jax.Array] = {}
    with ThreadPoolExecutor(READERS) as pool:
        for path, stored in names.items():
            kind = np.dtype(dtype) if dtype is not None else _stored_type(tensors, resolved[path])
            array = _place(_Leaf(tensors, resolved[path], stored, kind, pool), places.get(path))
            if hasattr(tensors, "release"):
                tensors.release()
            params[path] = array
            if tick is not None:
                tick(array.nbytes)
    return nested(params)


def _stored_type(tensors, names: list[str]) -> np.dtype:
    types = {tensors[name].dtype for name in names}
    if len(types) > 1:
        shown = ", ".join(sorted(map(str, types)))
        raise CheckpointError(f"{names[0]} and its like in other layers are stored as {shown}. Ask for one type.")
    return types.pop()


def _place(leaf: _Leaf, sharding) -> jax.Array:
    """The parameter on its devices; waits, so that the host's copy is freed before the next parameter is read."""
    if sharding is None:
        array = jax.device_put(leaf(None))
    else:
        array = jax.make_array_from_callback(leaf.shape, sharding, leaf, dtype=leaf.dtype)
    return jax.block_until_ready(array)


def abstract_params(names: Mapping[str, Stored], dtype: Any = np.float32) -> dict:
    """Tree of the shapes of a table's parameters."""
    return nested({path: jax.ShapeDtypeStruct(stored.full_shape(), dtype) for path, stored in names.items()})


def has_own_head(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint has an `lm_head` with other values than its embedding. The two are then not tied, whatever
    the config says, as in transformers 5 and vLLM."""
    plain = {plain_name(name): tensors[name] for name in tensors}
    head, embed = plain.get("lm_head.weight"), plain.get("embed_tokens.weight")
    if head is None or embed is None:
        return False
    if head.shape != embed.shape:
        return True
    starts = range(0, head.size, PART)
    return any(not np.array_equal(_elements(head, start, PART), _elements(embed, start, PART)) for start in starts)


def _elements(tensor: Tensor, start: int, count: int) -> np.ndarray:
    """At most `count` elements of a tensor."""
    stop = min(start + count, tensor.size)
    return tensor.elements(start, stop) if isinstance(tensor, RemoteTensor) else tensor.reshape(-1)[start:stop]


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Hex digest that distinguishes checkpoints without reading them completely.

    It covers every tensor's name, type, shape, and first, middle and last kibibyte, but not the division into files. A
    training step changes it; a single flipped bit may not.
    """

    def described(name: str) -> bytes:
        tensor = tensors[name]
        count = SAMPLE_BYTES // tensor.dtype.itemsize
        starts = (0, max(0, tensor.size // 2), max(0, tensor.size - count))
        samples = [_elements(tensor, start, count) for start in starts]
        return f"{name} {tensor.dtype} {tensor.shape}\0".encode() + b"".join(sample.tobytes() for sample in samples)

    digest = hashlib.sha256()
    with ThreadPoolExecutor(READERS) as pool:
        for part in pool.map(described, sorted(tensors)):
            digest.update(part)
    return digest.hexdigest()
