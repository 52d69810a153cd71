"""Reading safetensors files, memory-mapped or by range from an object store, and writing them tensor by tensor.

A file is eight bytes of header length (little endian), a JSON header {name: {dtype, shape, data_offsets}}, and the
tensors' bytes one after another (format of huggingface/safetensors). The header is checked against the file.
"""

import hashlib
import json
import math
import mmap
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

from pbrl_jax.core.characters import CONTROL
from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.paths import CHUNK_BYTES, is_remote

#: Name of a type in the header -> the NumPy type.
DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16), "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64), "I8": np.dtype(np.int8), "I16": np.dtype(np.int16), "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64), "U8": np.dtype(np.uint8), "U16": np.dtype(np.uint16), "U32": np.dtype(np.uint32),
    "U64": np.dtype(np.uint64), "BOOL": np.dtype(np.bool_),
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
#: Elements checked or compared at a time, to save memory.
PART = 1 << 22
#: In bytes; the limit of the safetensors library.
LONGEST_HEADER = 100_000_000
#: Limits for the number of axes, and for the product of the axes that are not empty; NumPy's are a little larger.
MOST_AXES, LARGEST_ARRAY = 32, 2**56
METADATA = "__metadata__"
#: Suffix of a pointer file, which holds the path of an object in a store.
POINTER = ".at"
_REPAIR = "Download or write the file again."


def all_finite(array: np.ndarray) -> bool:
    """Whether an array holds neither NaN nor infinities."""
    flat = array.reshape(-1)  # a copy only if the array is not contiguous
    return all(np.isfinite(flat[start : start + PART]).all() for start in range(0, flat.size, PART))


class Entry(NamedTuple):
    """One tensor of a file: type, shape, first byte and last byte + 1."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile(dict[str, np.ndarray]):
    """Name -> read-only view of the memory-mapped file, of which only used slices are read from the disk.

    Raises:
      CheckpointError: the file is truncated or not a safetensors file, or its header does not fit it.
    """

    def __init__(self, path: str | os.PathLike):
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            entries = read_entries(file, size, os.fspath(path))
            self.map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        super().__init__((name, self._view(entry)) for name, entry in entries.items())

    def _view(self, entry: Entry) -> np.ndarray:
        count = math.prod(entry.shape)  # NumPy refuses an empty view
        flat = np.frombuffer(self.map, entry.dtype, count, entry.begin) if count else np.zeros(0, entry.dtype)
        return flat.reshape(entry.shape)

    def release(self) -> None:
        """Let the system drop pages that were read; they are read again when used again."""
        self.map.madvise(mmap.MADV_DONTNEED)


class RemoteTensor:
    """A tensor in an object store, whose values are read on demand."""

    def __init__(self, path: epath.Path, entry: Entry):
        self.path, self.entry = path, entry
        self.dtype, self.shape, self.size = entry.dtype, entry.shape, math.prod(entry.shape)

    def elements(self, start: int, stop: int) -> np.ndarray:
        """The elements from `start` to `stop` in the order of the file."""
        elements = np.empty(max(0, min(stop, self.size) - start), self.dtype)
        self._read(elements, start)
        return elements

    def rows(self, start: int, stop: int) -> np.ndarray:
        """An array of the tensor's shape of which only these rows are read. The other rows are uninitialised; as they
        are never written, they take no physical memory."""
        array = np.empty(self.shape, self.dtype)
        if self.size:
            self._read(array[start:stop].reshape(-1), start * (self.size // self.shape[0]))
        return array

    def _read(self, out: np.ndarray, start: int) -> None:
        todo = memoryview(out.view(np.uint8).data)
        try:
            with self.path.open("rb") as file:
                file.seek(self.entry.begin + start * self.dtype.itemsize)
                while todo and (block := file.read(min(len(todo), 16 * CHUNK_BYTES))):
                    todo[: len(block)] = block
                    todo = todo[len(block) :]
        except Exception as error:  # the error types depend on the store's client
            raise CheckpointError(f"{self.path} cannot be read ({error}). Run the command again.") from error
        if todo:
            raise CheckpointError(f"{self.path} has become shorter while it was read. Run the command again.")


#: A tensor of a checkpoint.
Tensor = np.ndarray | RemoteTensor


def read_remote(path: epath.Path) -> dict[str, RemoteTensor]:
    """Name -> tensor of a file in an object store; only the header is read.

    Raises:
      CheckpointError: as SafetensorsFile, or the store cannot be read.
    """
    try:
        with path.open("rb") as file:
            entries = read_entries(file, int(path.stat().length), str(path))
    except CheckpointError:
        raise
    except Exception as error:  # the store's client decides what it raises
        raise CheckpointError(f"{path} cannot be read ({error}). Check the path and your access to it.") from error
    return {name: RemoteTensor(path, entry) for name, entry in entries.items()}


def located(path: str | os.PathLike) -> epath.Path | None:
    """The path of a file, or of the object in a store that a pointer file names; None where neither exists."""
    here, pointer = epath.Path(path), epath.Path(f"{os.fspath(path)}{POINTER}")
    if here.exists():
        return here
    return epath.Path(pointer.read_text()) if pointer.exists() else None


def open_safetensors(path: str | os.PathLike) -> Mapping[str, Tensor]:
    """The tensors of a file that is `located`."""
    place = located(path)
    return read_remote(place) if place is not None and is_remote(place) else SafetensorsFile(place or path)


def _header_bytes(file, size: int, path: str) -> bytes:
    start = file.read(8)
    if len(start) < 8:
        raise CheckpointError(f"{path} is truncated: {size} bytes, fewer than the 8 of its header length. {_REPAIR}")
    if start == b"version ":
        raise CheckpointError(f"{path} is a Git LFS pointer and not the weights. Run `git lfs pull` in its folder.")
    (length,) = struct.unpack("<Q", start)
    if length > LONGEST_HEADER:
        raise CheckpointError(f"{path} is no safetensors file: its header would have {length} bytes. {_REPAIR}")
    if 8 + length > size:
        raise CheckpointError(f"{path} is truncated: {size} bytes, but its header alone takes {8 + length}. {_REPAIR}")
    return file.read(length)


def _no_doubles(pairs: Sequence[tuple[str, object]]) -> dict:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a name occurs twice")
    return entries


def read_entries(file: IO[bytes], size: int, path: str) -> dict[str, Entry]:
    """The entries of an open file of `size` bytes. Checked are types, that sizes fit the shapes, and that every byte
    belongs to one tensor.

    Raises:
      CheckpointError: as SafetensorsFile.
    """
    header = _header_bytes(file, size, path)
    try:
        listed = json.loads(header, object_pairs_hook=_no_doubles)
        listed.pop(METADATA, None)
        start = 8 + len(header)
        entries = {name: _entry(name, record, start, path) for name, record in listed.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged header ({type(error).__name__}: {error}). {_REPAIR}") from error
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise CheckpointError(
                f"{path} has a damaged header: {name} begins at byte {entry.begin}, expected {position}. {_REPAIR}"
            )
        position = entry.end
        if position > size:
            raise CheckpointError(f"{path} is truncated: {size} bytes, but {name} ends at byte {position}. {_REPAIR}")
    if position != size:
        raise CheckpointError(f"{path} has {size} bytes, but its tensors end at byte {position}. {_REPAIR}")
    return entries


def _entry(name: str, record: Any, start: int, path: str) -> Entry:
    dtype = DTYPES.get(record["dtype"])
    if dtype is None:
        raise CheckpointError(
            f"{path}: {name} has the type {record['dtype']!r}; known: {', '.join(DTYPES)}. Quantised weights (F8_E4M3, "
            "F4) are not read: use the same model in bfloat16."
        )
    shape, (begin, end) = record["shape"], record["data_offsets"]
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise ValueError(f"{name} has shape {shape} at {begin}:{end}; expected whole numbers from 0")
    if len(shape) > MOST_AXES or math.prod(size or 1 for size in shape) > LARGEST_ARRAY or CONTROL.search(name):
        raise ValueError(f"{name!r:.60} has {len(shape)} axes, {str(shape)[:60]}; no array of NumPy can be so")
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"{name} has shape {shape} of {record['dtype']}, which is not the {end - begin} bytes it has")
    return Entry(dtype, tuple(shape), start + begin, start + end)


class Planned(NamedTuple):
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: str | os.PathLike, planned: Sequence[Planned], arrays: Iterable[np.ndarray], metadata: dict | None = None
) -> str:
    """Write a file tensor by tensor, so that at most one is in memory; returns the hex SHA-256 of the file.

    Args:
      path: local or remote file; an existing one is replaced.
      planned: names, shapes and types, for the header.
      arrays: the tensors, in the order of `planned`.
      metadata: strings for the header (transformers expects {"format": "pt"}).

    Raises:
      ValueError: an array differs from its plan in shape or type.
      CheckpointError: an array holds NaN or infinities; the file is then removed.
    """
    header, position = {METADATA: metadata} if metadata else {}, 0
    for tensor in planned:
        offsets = [position, position + tensor.size]
        header[tensor.name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": offsets}
        position = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    digest = hashlib.sha256()
    with epath.Path(path).open("wb") as file:
        for start in (struct.pack("<Q", len(text)), text):
            digest.update(start)
            file.write(start)
        for tensor, array in zip(planned, arrays, strict=True):
            if array.shape != tensor.shape or array.dtype != tensor.dtype:
                raise ValueError(f"{tensor} was planned, found {array.dtype} of shape {array.shape}")
            if not all_finite(array):
                epath.Path(path).unlink(missing_ok=True)
                raise CheckpointError(
                    f"{path} is not written: {tensor.name} holds numbers that are not finite (NaN or infinite) as "
                    f"{tensor.dtype.name}. Go back to an earlier checkpoint."
                )
            content = np.ascontiguousarray(array).view(np.uint8).reshape(-1).data if array.size else b""
            digest.update(content)
            file.write(content)
    return digest.hexdigest()
