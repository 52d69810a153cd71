"""The store of English references: the expert's texts and, separately, their vectors.

  <directory>/references/           references by a key of everything that they depend on, see pivots.shards
  <directory>/vectors/<encoder>/    SHA-256 of a text -> its unit vector, see pivots.vectors

So a new encoder only embeds the stored texts, and references of different experts, templates, sampling settings or
seeds are kept apart. The folder may be on `gs://`.
"""

import contextlib
import fcntl
import hashlib
import itertools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from pbrl_jax.config.tree import PivotConfig
from pbrl_jax.core.errors import DataError
from pbrl_jax.core.paths import as_path, is_remote
from pbrl_jax.pivots.older import read_older
from pbrl_jax.pivots.references import Origin as Origin  # named with the store
from pbrl_jax.pivots.references import StoredReference, sha256
from pbrl_jax.pivots.shards import FIELDS, Shards, add_digests, row_digest, stored_reference
from pbrl_jax.pivots.vectors import append_vectors, check_width, gather, read_cache

EMBED_BATCH = 256
"""Texts per call of the encoder."""
SAVE_EVERY = 4096
"""Number of new vectors that are saved as one shard."""
CONVERTED_AT_A_TIME = 1 << 15
"""References of an earlier version's file that are converted to one shard."""


class PivotStore:
    """References and their vectors in a folder, which is created by the first write.

    Every call sees the additions of other processes. On a local disk several writers may take turns; on gs:// only one
    is allowed. The `references.jsonl` of earlier versions is converted once, and is not changed.

    Args:
      directory: local, or `gs://bucket/...`.
      writes: False for all processes of a run but the first: they read, and embed missing texts, but save nothing.
    """

    def __init__(self, directory: str | os.PathLike, writes: bool = True):
        self.directory = as_path(directory)
        self.writes = writes
        self._shards = Shards(self.path)
        self._older: dict[str, StoredReference] | None = None

    @property
    def path(self) -> epath.Path:
        """The folder of references."""
        return self.directory / "references"

    def vector_folder(self, encoder_key: str) -> epath.Path:
        """The folder of an encoder's vectors."""
        return self.directory / "vectors" / sha256(encoder_key)[:32]

    def add_references(self, references: Sequence[StoredReference]) -> None:
        """Append references, synced to disk. A stored key keeps its first reference."""
        if not self.writes or not references:
            return
        if self._older is None:
            self._refresh()
        with locked(self.directory):
            self._shards.refresh()
            self._shards.append(references)
            self._shards.merge()

    def references(self, keys: Iterable[str] | None = None) -> dict[str, StoredReference]:
        """The stored references of `keys`, in their order; None: all references.

        Raises:
          DataError: a broken line in the file of an earlier version. A damaged shard is left out with a warning, so
            that its references are `missing`.
        """
        older = self._refresh()
        keys = list(dict.fromkeys((*self._shards, *older))) if keys is None else list(keys)
        stored = older | {key: stored_reference(values) for key, *values in self._rows(keys, FIELDS)}
        return {key: stored[key] for key in keys if key in stored}

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys without a reference, each once, in their order. Raises as `references`."""
        older = self._refresh()
        return [key for key in dict.fromkeys(keys) if key not in self._shards and key not in older]

    def fingerprint(self, keys: Iterable[str] | None = None) -> str:
        """Hex digest of keys and texts, independent of their order, of all references or of those of `keys`. It is
        computed from stored digests; no text is read."""
        older = self._refresh()
        if keys is None and not older:
            return self._shards.digest
        keys = set((*self._shards, *older) if keys is None else keys)
        digests = {key: digest.hex() for key, digest in self._rows(keys, ["digest"])}
        rows = {key: stored for key, stored in older.items() if key in keys and key not in digests}
        return add_digests([*digests.values(), *(row_digest(k, s.reasoning, s.answer) for k, s in rows.items())])

    def _rows(self, keys: Collection[str], columns: Sequence[str]) -> Iterator[tuple]:
        """Rows of the shards; all of them again if a shard was merged or dropped meanwhile."""
        yield from self._shards.rows(keys, columns)
        while self._shards.damaged:
            self._drop_damaged()
            yield from self._shards.rows(keys, columns)

    def _drop_damaged(self) -> None:
        with locked(self.directory) if self.writes else contextlib.nullcontext():
            self._shards.drop_damaged(self.writes)

    def _refresh(self) -> dict[str, StoredReference]:
        """Read the index. Returns the references of an earlier version's file that are not in shards: none for a store
        that writes, which converts the file."""
        self._shards.refresh()
        while self._shards.damaged:
            self._drop_damaged()
        if self._older is None:
            self._older = self._read_older()
        return self._older

    def _read_older(self) -> dict[str, StoredReference]:
        path = self.directory / "references.jsonl"
        if not path.exists() or self._shards.notes.get("converted") == (size := path.stat().length):
            return {}
        if self.writes:
            with contextlib.suppress(PermissionError):  # without write permission the file is read without conversion
                self._convert(path, size)
                return {}
        return {stored.key: stored for stored in reversed(list(read_older(path)))}

    def _convert(self, path: epath.Path, size: int) -> None:
        with locked(self.directory):
            self._shards.refresh()
            rows, before = read_older(path), len(self._shards)
            while batch := list(itertools.islice(rows, CONVERTED_AT_A_TIME)):
                self._shards.append(batch)
            self._shards.append((), converted=size)
        count = len(self._shards) - before
        print(f"Converted {path} of an earlier version: {count} references are now in {self.path} as well.")

    def vectors(self, encoder_key: str, texts: Sequence[str], embed: Callable[[list[str]], Any]) -> np.ndarray:
        """Unit vectors of texts, float32 [N, E]. Equal texts are embedded once, and cached ones are not embedded.

        The vector of a text of white space is zero, without a call of `embed`. New vectors are saved every SAVE_EVERY
        and at the end, also if `embed` fails on a later batch.

        Args:
          encoder_key: identifies everything that a vector depends on besides its text (weights, pooling and projection,
            prefix, length), such as `Encoder.key`. Its SHA-256 is the name of the folder.
          texts: N texts, without the encoder's prefix.
          embed: takes at most EMBED_BATCH texts, adds the prefix, returns [n, E].

        Raises:
          DataError: a damaged cache or another encoder's, an `embed` of another width than the cache, a vector that
            is not finite or zero.
        """
        folder = self.vector_folder(encoder_key)
        _refuse_old_form(folder)
        cache = read_cache(folder, encoder_key)
        by_digest = {_digest(text): text for text in texts if text.strip()}
        # Sorted by length, so that a batch has little padding.
        new = sorted((item for item in by_digest.items() if item[0] not in cache.places), key=lambda item: len(item[1]))
        made: dict[bytes, np.ndarray] = {}
        width, saved = cache.width, 0
        try:
            for start in range(0, len(new), EMBED_BATCH):
                batch = new[start : start + EMBED_BATCH]
                block_NE = _unit_vectors(embed([text for _, text in batch]), len(batch))
                check_width(folder, width, block_NE.shape[1])
                width = block_NE.shape[1]
                made |= zip((digest for digest, _ in batch), block_NE, strict=True)
                if len(made) - saved >= SAVE_EVERY:
                    saved = self._save(folder, encoder_key, made, saved)
        finally:
            self._save(folder, encoder_key, made, saved)
        digests = [_digest(text) if text.strip() else b"" for text in texts]
        out_NE = np.zeros((len(texts), width), np.float32)
        if old := [row for row, digest in enumerate(digests) if digest in cache.places]:
            out_NE[old] = gather(cache, [digests[row] for row in old])
        for row, digest in enumerate(digests):
            if digest in made:
                out_NE[row] = made[digest]
        return out_NE

    def _save(self, folder: epath.Path, encoder_key: str, made: dict[bytes, np.ndarray], saved: int) -> int:
        """Write the new vectors after the first `saved`. Returns the number of saved vectors."""
        new = list(made.items())[saved:]
        if self.writes and new:
            with locked(self.directory):
                append_vectors(folder, encoder_key, [digest for digest, _ in new], np.stack([v for _, v in new]))
        return len(made)


@contextlib.contextmanager
def locked(folder: epath.Path) -> Iterator[None]:
    """A context with a lock for writers of a local folder; the lock of a killed process is released. File systems
    without locks are not locked."""
    if is_remote(folder):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_store(pivot: PivotConfig, workdir: str | os.PathLike, writes: bool = True) -> PivotStore:
    """The store of a run: `pivot.store`, or `pivots/` in the work directory if that is empty."""
    return PivotStore(pivot.store or as_path(workdir) / "pivots", writes)


def _refuse_old_form(folder: epath.Path) -> None:
    """Raise DataError for the single file of vectors of earlier versions."""
    old = folder.parent / f"{folder.name}.npz"
    if old.exists():
        raise DataError(
            f"{old} holds vectors in a form that is no longer read: expected safetensors shards in {folder}. Type "
            f"`rm {old}`; the same command then embeds its texts again (no reference is lost)."
        )


def _unit_vectors(vectors: Any, count: int) -> np.ndarray:
    """An encoder's vectors of `count` texts, as float32 unit vectors [count, E]; DataError for invalid ones."""
    vectors_NE = np.asarray(vectors, np.float32)
    if vectors_NE.ndim != 2 or len(vectors_NE) != count or not vectors_NE.shape[1]:
        raise DataError(
            f"The encoder gave an array {list(vectors_NE.shape)} for {count} texts, expected [{count}, E]. "
            "Check `embed`, or encoder.source."
        )
    norms_N = np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    bad_N = ~np.isfinite(norms_N[:, 0]) | (norms_N[:, 0] == 0)
    if bad_N.any():
        raise DataError(
            f"The encoder gave {bad_N.sum()} vectors of {count} that are not finite or zero; they were not saved. "
            "Check the encoder's weights (encoder.source), then run the same command."
        )
    return vectors_NE / norms_N


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
