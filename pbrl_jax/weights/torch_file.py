"""torch files (`pytorch_model.bin`, Lightning's `.ckpt`) read without torch, and without executing their contents.

The format: a zip archive of uncompressed entries; `<root>/data.pkl` is a pickle whose tensors name a storage by key,
and `<root>/data/<key>` is that storage's bytes. Tensors are returned as read-only NumPy views of the mapped file: data
is read from the disk only when it is used, and any slice can be read alone. Every offset, size and stride is checked
against the length of the storage.
"""

import math
import mmap
import os
import struct
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from pbrl_jax.core.characters import CONTROL
from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.paths import is_remote
from pbrl_jax.weights.pickle_data import Foreign, Name, PickleDataError, Record, read_pickle
from pbrl_jax.weights.safetensors_file import LARGEST_ARRAY, MOST_AXES

#: torch's name of an element type -> ours.
DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 complex64 complex128 bool "
    "int64 int32 int16 int8 uint8 uint16 uint32 uint64".split()
}
STORAGES = {
    f"{storage}Storage": DTYPES[dtype]
    for storage, dtype in {
        "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
        "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
        "ComplexFloat": "complex64", "ComplexDouble": "complex128", "Untyped": "uint8",
    }.items()
}  # fmt: skip

#: First bytes of files written by torch before 1.6: a pickled magic number.
LEGACY_START = b"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
#: Exceptions of the standard library for truncated or overwritten archives.
DAMAGED = (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, OSError, struct.error)
RESAVE = "Write it again where torch is installed: torch.save(torch.load(PATH, weights_only=True), PATH)."


class Storage(NamedTuple):
    """One storage of the archive: its bytes and its element type."""

    raw: np.ndarray
    dtype: np.dtype


def read_torch(path: str | os.PathLike) -> Any:
    """The contents of a torch zip file: dicts, lists and scalars, with NumPy arrays in place of tensors.

    Arrays are read-only views of the file (bfloat16 and float8 in ml_dtypes' types). Objects of unknown classes are
    `Foreign` placeholders; a Namespace is a dict of its attributes, a set a list.

    Raises:
      CheckpointError: not a torch zip file (a text file, one from before torch 1.6, a truncated one), or tensors that
        reach outside their storage.
    """
    path = os.fspath(path)
    if is_remote(path):
        raise CheckpointError(f"{path} is not on this machine; a torch file is read in place. Copy it here first.")
    _check_start(path)
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            entries = {entry.filename: entry for entry in archive.infolist()}
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return _read_archive(archive, entries, np.frombuffer(mapped, np.uint8))
    except PickleDataError as error:
        raise CheckpointError(f"{path} cannot be read: {error}. If you trust the file: {RESAVE}") from error
    except DAMAGED as error:
        raise CheckpointError(f"{path} is damaged ({error}): a truncated download? Fetch it again.") from error


def state_dict(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Name -> tensor of a `pytorch_model.bin` or a Lightning checkpoint (its `state_dict` entry).

    Raises:
      CheckpointError: as `read_torch`, or something in it is no tensor.
    """
    tree = read_torch(path)
    if isinstance(tree, dict) and isinstance(tree.get("state_dict"), dict):
        tree = tree["state_dict"]
    if not isinstance(tree, dict):
        raise CheckpointError(
            f"{os.fspath(path)} holds a {type(tree).__name__}; expected a state dict, or a dict with a 'state_dict'."
        )
    unnamed = [name for name in tree if not isinstance(name, str) or CONTROL.search(name)]
    if unnamed:
        raise CheckpointError(f"{os.fspath(path)} is no state dict: {unnamed[0]!r:.60} is no name of a tensor.")
    wrong = {name: value for name, value in tree.items() if not isinstance(value, np.ndarray)}
    if wrong or not tree:
        kinds = [repr(v) if isinstance(v, Foreign) else f"a {type(v).__name__}" for v in wrong.values()]
        found = "; ".join(f"{name} is {kind}" for name, kind in list(zip(wrong, kinds, strict=True))[:3]) or "nothing"
        raise CheckpointError(
            f"{os.fspath(path)} is no state dict: expected tensors by name, found {found}. Save model.state_dict()."
        )
    return tree


def _check_start(path: str) -> None:
    """Raise CheckpointError for a file that is no zip archive, and say what it is."""
    try:
        with open(path, "rb") as file:
            start = file.read(32)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened: {error.strerror}.") from error
    if start.startswith(LEGACY_START):
        raise CheckpointError(f"{path} has the format from before torch 1.6, which is a bare pickle. {RESAVE}")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer and not the weights. Run `git lfs pull` in its folder.")
    if not start.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"{path} is no torch file: expected a zip archive, found {start[:8]!r}. {RESAVE}")


def _read_archive(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], mapped: np.ndarray) -> Any:
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise PickleDataError(f"a zip archive with {len(pickles)} data.pkl; a torch file has one")
    root = pickles[0].removesuffix("data.pkl")
    order = entries.get(f"{root}byteorder")
    if order is not None and bytes(_entry_bytes(mapped, order)) != b"little":
        raise PickleDataError("written on a big-endian machine")
    # `read` verifies the checksum of the pickle, whose length is at most that of the file: it is not compressed.
    _entry_bytes(mapped, entries[pickles[0]])
    data = archive.read(entries[pickles[0]])

    def load_storage(persistent_id: Any) -> Storage:
        kind, storage_type, key, _location, count = persistent_id
        if kind != "storage" or not isinstance(storage_type, Name) or storage_type.name not in STORAGES:
            raise PickleDataError(f"a storage of unknown type {storage_type}")
        entry = entries.get(f"{root}data/{key}")
        if entry is None:
            raise PickleDataError(f"storage {key} is not in the archive")
        dtype = STORAGES[storage_type.name]
        raw = _entry_bytes(mapped, entry)
        if _whole(count) * dtype.itemsize > raw.size:
            raise PickleDataError(f"storage {key} has {raw.size} bytes; its {count} elements need more")
        return Storage(raw, dtype)

    return read_pickle(data, CONSTRUCTORS, load_storage)


def _entry_bytes(mapped: np.ndarray, entry: zipfile.ZipInfo) -> np.ndarray:
    """An entry's bytes as a view of the mapped file."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise PickleDataError(f"{entry.filename} is compressed, which torch never does")
    header = mapped[entry.header_offset : entry.header_offset + 30]
    if header.size < 30 or bytes(header[:4]) != b"PK\x03\x04":
        raise PickleDataError(f"{entry.filename} does not begin where the archive says")
    name_length, extra_length = (int(x) for x in header[26:30].view("<u2"))
    start = entry.header_offset + 30 + name_length + extra_length
    if start + entry.file_size > mapped.size:
        raise PickleDataError(f"{entry.filename} reaches past the end of the file")
    return mapped[start : start + entry.file_size]


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise PickleDataError(f"expected a whole number of at least 0, found {value!r:.40}")
    return value


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_rest: Any) -> np.ndarray:
    return _view(storage, storage.dtype, offset, size, stride)


def _rebuild_tensor_of(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_rest: Any
) -> np.ndarray:
    """Tensors with an element type other than that of their storage."""
    if not isinstance(dtype, Name) or dtype.name not in DTYPES:
        raise PickleDataError(f"a tensor of unknown type {dtype}")
    return _view(storage, DTYPES[dtype.name], offset, size, stride)


def _view(storage: Any, dtype: np.dtype, offset: Any, size: Any, stride: Any) -> np.ndarray:
    """The strided view described by the file, if it is within the storage."""
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise PickleDataError("a tensor without a storage, size or stride")
    if len(size) != len(stride) or len(size) > MOST_AXES:
        raise PickleDataError(f"a tensor of {len(size)} sizes and {len(stride)} strides")
    offset, size, stride = _whole(offset), [_whole(x) for x in size], [_whole(x) for x in stride]
    held = storage.raw.size // dtype.itemsize
    if math.prod(length or 1 for length in size) > LARGEST_ARRAY and 0 in size:
        raise PickleDataError(f"an empty tensor of shape {size}")
    if 0 in size:
        return np.zeros(size, dtype)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    # The size of overlapping views is bounded too: repeated a million times, a small file could fill the memory.
    if last >= held or math.prod(size) > held:
        raise PickleDataError(f"a tensor of shape {size}, stride {stride}, offset {offset} in {held} elements")
    elements = storage.raw[: held * dtype.itemsize].view(dtype)[offset:]
    steps = [step * dtype.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(elements, size, steps, writeable=False)


def _dict(pairs: Any = ()) -> dict:
    usable = isinstance(pairs, list | tuple) and all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs)
    if not usable or not all(isinstance(key, str | int) for key, _ in pairs):
        raise PickleDataError("an OrderedDict of something other than pairs with text or numbers as keys")
    return dict(pairs)


def _list(items: Any = ()) -> list:
    if not isinstance(items, list | tuple):
        raise PickleDataError(f"a set of a {type(items).__name__}")
    return list(items)


def _encoded(text: Any, codec: Any = "latin1") -> bytes:
    """Bytes as protocol 2 writes them: as latin1 text."""
    if not isinstance(text, str) or codec != "latin1":
        raise PickleDataError("bytes that are not written as latin1 text")
    return text.encode("latin1")


#: All objects that a file can build besides dicts, lists, tuples and scalars.
CONSTRUCTORS: dict[Name, Callable[..., Any]] = {
    Name("collections", "OrderedDict"): _dict,
    Name("collections", "defaultdict"): lambda *_factory: {},
    Name("argparse", "Namespace"): lambda: Record(),
    Name("torch", "Size"): lambda size=(): tuple(_list(size)),
    Name("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    Name("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    Name("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_of,
    Name("torch._utils", "_rebuild_parameter"): lambda tensor, *_rest: tensor,
    Name("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_rest: tensor,
    Name("_codecs", "encode"): _encoded,
    **{
        Name(module, name): _list
        for module in ("builtins", "__builtin__")
        for name in ("set", "frozenset", "list", "tuple")
    },
    **{
        Name(f"{package}.utilities.parsing", "AttributeDict"): lambda *_rest: {}
        for package in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")
    },
}
