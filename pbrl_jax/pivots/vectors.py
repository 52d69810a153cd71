"""Vectors of texts on disk, one folder per encoder: append-only safetensors shards and an index.

  <folder>/index.json                 {encoder, width, shards: [{file, rows, sha256}], fingerprint}
  <folder>/shard_00000.safetensors    digests uint8 [N, 32], vectors float32 [N, E], checksums uint32 [N]

Only shards in the index count, and the index is replaced atomically after the shard is written: a writer killed at any
point leaves at most an unlisted file, which the next writer overwrites. A look-up reads the digests of all shards, and
only the requested rows of vectors, whose checksums are verified. The folder may be on `gs://`.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from pbrl_jax.core.errors import CheckpointError, DataError
from pbrl_jax.core.paths import is_remote, sync_folder, write_atomic
from pbrl_jax.weights.safetensors_file import Entry, Planned, read_entries, write_safetensors

INDEX = "index.json"
SHARD_ROWS = 1 << 32
"""Upper bound of the rows of a shard."""
_FIELDS = {"encoder", "width", "shards", "fingerprint"}


class Shard(NamedTuple):
    """A shard whose vectors are not read; `vectors` is their entry in the file."""

    path: epath.Path
    checksums_N: np.ndarray
    vectors: Entry


class Cache(NamedTuple):
    """The content of a folder: `places` maps digests to shard * SHARD_ROWS + row (the first of equal digests); `width`
    is E, or 0 for an empty cache."""

    width: int
    shards: tuple[Shard, ...]
    places: dict[bytes, int]


def read_cache(folder: epath.Path, encoder: str) -> Cache:
    """The cache in a folder, empty if there is none; no vector is read yet.

    Args:
      encoder: the key of the expected encoder.

    Raises:
      DataError: a damaged cache, or another encoder's.
    """
    index = _read_index(folder, encoder)
    if index is None:
        return Cache(0, (), {})
    shards: list[Shard] = []
    places: dict[bytes, int] = {}
    for record in index["shards"]:
        shard, digests_N = _open_shard(folder, record, index["width"])
        for place, digest in enumerate(digests_N, start=len(shards) * SHARD_ROWS):
            places.setdefault(digest, place)
        shards.append(shard)
    return Cache(index["width"], tuple(shards), places)


def gather(cache: Cache, digests: Sequence[bytes]) -> np.ndarray:
    """The vectors of B texts, float32 [B, E]; every digest must be in `cache.places`.

    Raises:
      DataError: a row that does not match its checksum.
    """
    out_BE = np.zeros((len(digests), cache.width), np.float32)
    places_B = np.array([cache.places[digest] for digest in digests], np.int64)
    order_B = np.argsort(places_B, kind="stable")
    numbers_B = places_B[order_B] // SHARD_ROWS
    for start in np.flatnonzero(np.diff(numbers_B, prepend=-1)).tolist():
        number = int(numbers_B[start])
        index_M = order_B[start : np.searchsorted(numbers_B, number, side="right")]
        rows_N, first_N, inverse_M = np.unique(places_B[index_M] % SHARD_ROWS, return_index=True, return_inverse=True)
        digests_N = [digests[row] for row in index_M[first_N].tolist()]
        out_BE[index_M] = _read_rows(cache.shards[number], rows_N, digests_N)[inverse_M]
    return out_BE


def append_vectors(folder: epath.Path, encoder: str, digests: Sequence[bytes], vectors_NE: np.ndarray) -> None:
    """Add a shard, synced to disk. One writer at a time.

    Args:
      digests: N digests of 32 bytes.
      vectors_NE: float32.

    Raises:
      DataError: as `read_cache`; or the cache holds vectors of another width.
    """
    index = _read_index(folder, encoder) or {"encoder": encoder, "width": vectors_NE.shape[1], "shards": []}
    check_width(folder, index["width"], vectors_NE.shape[1])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"shard_{len(index['shards']):05d}.safetensors"
    checksums = [_checksum(digest, vector) for digest, vector in zip(digests, vectors_NE, strict=True)]
    arrays = {
        "vectors": vectors_NE,
        "checksums": np.array(checksums, np.uint32),
        "digests": np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32),
    }
    planned = [Planned(name, array.shape, array.dtype) for name, array in arrays.items()]
    sha256 = write_safetensors(path, planned, arrays.values())
    if not is_remote(path):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        sync_folder(folder)
    new = {"file": path.name, "rows": len(digests), "sha256": sha256}
    index = {"encoder": encoder, "width": index["width"], "shards": [*index["shards"], new]}
    write_atomic(folder / INDEX, json.dumps(index | {"fingerprint": _fingerprint(index)}, indent=1))


def check_width(folder: epath.Path, cached: int, given: int) -> None:
    """Raise DataError for vectors of another width than the cache's; 0 is the width of an empty cache."""
    if cached and cached != given:
        raise _broken(folder, f"has vectors of width {cached}, but the encoder gives {given}")


def _read_index(folder: epath.Path, encoder: str) -> dict[str, Any] | None:
    path = folder / INDEX
    if not path.exists():
        return None
    try:
        index = json.loads(path.read_text())
        valid = set(index) == _FIELDS and index["fingerprint"] == _fingerprint(index)
    except (ValueError, TypeError) as error:
        raise _broken(folder, f"has a damaged {INDEX} ({error})") from error
    if not valid:
        raise _broken(folder, f"has an {INDEX} that does not match its fingerprint")
    if index["encoder"] != encoder:
        raise _broken(folder, f"holds the vectors of encoder {index['encoder']!r}, but this run has {encoder!r}")
    return index


def _fingerprint(index: dict[str, Any]) -> str:
    """Hex digest of an index."""
    content = {name: value for name, value in index.items() if name != "fingerprint"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _open_shard(folder: epath.Path, record: dict[str, Any], width: int) -> tuple[Shard, list[bytes]]:
    """A shard and the digests of its rows."""
    path, rows = folder / record["file"], record["rows"]
    try:
        size = path.stat().length
        with path.open("rb") as file:
            entries = read_entries(file, size, os.fspath(path))
            digests = _read(file, entries["digests"], 0, rows)
            checksums_N = np.frombuffer(_read(file, entries["checksums"], 0, rows), np.uint32)
    except (OSError, CheckpointError, KeyError, ValueError) as error:
        raise _broken(folder, f"cannot be read ({type(error).__name__}: {error})") from error
    tensors = {name: (entry.dtype, entry.shape) for name, entry in entries.items()}
    if tensors != {
        "vectors": (np.dtype(np.float32), (rows, width)),
        "checksums": (np.dtype(np.uint32), (rows,)),
        "digests": (np.dtype(np.uint8), (rows, 32)),
    }:
        raise _broken(folder, f"has a {path.name} of other tensors than its {INDEX} says ({tensors})")
    digests_N = [digests[32 * row : 32 * row + 32] for row in range(rows)]
    return Shard(path, checksums_N, entries["vectors"]), digests_N


def _read(file, entry: Entry, start: int, stop: int) -> bytes:
    """The bytes of rows start to stop of a tensor."""
    size = (entry.end - entry.begin) // max(entry.shape[0], 1)
    file.seek(entry.begin + start * size)
    return file.read((stop - start) * size)


def _read_rows(shard: Shard, rows_N: np.ndarray, digests_N: Sequence[bytes]) -> np.ndarray:
    """Rows of a shard (sorted), read in runs of consecutive rows and verified by their checksums: [N, E]."""
    width = shard.vectors.shape[1]
    out_NE = np.zeros((len(rows_N), width), np.float32)
    with shard.path.open("rb") as file:
        for run in np.split(np.arange(len(rows_N)), np.flatnonzero(np.diff(rows_N) > 1) + 1):
            content = _read(file, shard.vectors, int(rows_N[run[0]]), int(rows_N[run[-1]]) + 1)
            if len(content) == 4 * width * len(run):
                out_NE[run] = np.frombuffer(content, np.float32).reshape(-1, width)
    for row, digest, vector in zip(rows_N.tolist(), digests_N, out_NE, strict=True):
        if _checksum(digest, vector) != shard.checksums_N[row]:
            raise _broken(shard.path.parent, f"is damaged: row {row} of {shard.path.name} does not match its checksum")
    return out_NE


def _checksum(digest: bytes, vector: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(vector).tobytes(), zlib.crc32(digest))


def _broken(folder: epath.Path, what: str) -> DataError:
    return DataError(
        f"{folder} {what}. Delete that folder; the same command then embeds its texts again (no reference is lost)."
    )
