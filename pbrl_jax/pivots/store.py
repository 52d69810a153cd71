"""The store of English references: what the expert wrote, and apart from it the vectors of those texts.

  <directory>/references/           references under keys of all that they depend on, see pivots.shards
  <directory>/vectors/<encoder>/    SHA-256 of a text -> its unit vector, see pivots.vectors

So another encoder embeds the texts anew and asks the expert nothing, and another expert, template, sampling or seed
shares no reference with this one. The folder may be behind `gs://`.
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
"""Texts given to the encoder at a time."""
SAVE_EVERY = 4096
"""New vectors after which they are saved: rows of a shard."""
CONVERTED_AT_A_TIME = 1 << 15
"""References of an earlier version's file that become one shard."""


class PivotStore:
    """References and their vectors in a folder. Nothing is created before something is written.

    Every call sees what other processes have added. On a local disk writers take turns; behind gs:// there is one. The
    `references.jsonl` of earlier versions is converted once, and stays as it is.

    Args:
      directory: local, or `gs://bucket/...`.
      writes: False for all processes of a run but the first. They read, and embed what they miss, but save nothing.
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
        """Appends references, on the disk when this returns. A key that is there already keeps its first reference."""
        if not self.writes or not references:
            return
        if self._older is None:
            self._refresh()
        with locked(self.directory):
            self._shards.refresh()
            self._shards.append(references)
            self._shards.merge()

    def references(self, keys: Iterable[str] | None = None) -> dict[str, StoredReference]:
        """Those of the references under `keys` that are there, in the order of `keys`; of all, where it is None.

        Raises:
          DataError: a broken line in the file of an earlier version. A shard that is damaged is no error: it is left
            out, which is logged, and so its references are `missing`.
        """
        older = self._refresh()
        keys = list(dict.fromkeys((*self._shards, *older))) if keys is None else list(keys)
        found = older | {key: stored_reference(values) for key, *values in self._rows(keys, FIELDS)}
        return {key: found[key] for key in keys if key in found}

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys without a reference, each once, in their order. Raises as `references` does."""
        older = self._refresh()
        return [key for key in dict.fromkeys(keys) if key not in self._shards and key not in older]

    def fingerprint(self, keys: Iterable[str] | None = None) -> str:
        """Hex digest of keys and texts, whatever their order; of all references, or of those under `keys`. The index
        and the shards hold digests: no text is read."""
        older = self._refresh()
        if keys is None and not older:
            return self._shards.digest
        keys = set((*self._shards, *older) if keys is None else keys)
        digests = {key: digest.hex() for key, digest in self._rows(keys, ["digest"])}
        rows = {key: stored for key, stored in older.items() if key in keys and key not in digests}
        return add_digests([*digests.values(), *(row_digest(k, s.reasoning, s.answer) for k, s in rows.items())])

    def _rows(self, keys: Collection[str], columns: Sequence[str]) -> Iterator[tuple]:
        """Rows of the shards; all of them once more where a shard was merged or put aside meanwhile."""
        yield from self._shards.rows(keys, columns)
        while self._shards.damaged:
            self._settle()
            yield from self._shards.rows(keys, columns)

    def _settle(self) -> None:
        with locked(self.directory) if self.writes else contextlib.nullcontext():
            self._shards.settle(self.writes)

    def _refresh(self) -> dict[str, StoredReference]:
        """Look at the disk. Returns what is in the file of an earlier version, and not in shards: a store that writes
        converts it."""
        self._shards.refresh()
        while self._shards.damaged:
            self._settle()
        if self._older is None:
            self._older = self._read_older()
        return self._older

    def _read_older(self) -> dict[str, StoredReference]:
        path = self.directory / "references.jsonl"
        if not path.exists() or self._shards.notes.get("converted") == (size := path.stat().length):
            return {}
        if self.writes:
            with contextlib.suppress(PermissionError):  # a store of somebody else's is read as it is
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
        """Unit vectors of texts, float32 [N, E]. Equal texts are embedded once, and those in the cache not at all.

        A text of white space has no direction: its vector is zero, and no encoder is asked. New vectors are saved
        every SAVE_EVERY and at the end, also when `embed` fails on a later batch.

        Args:
          encoder_key: names all that a vector depends on besides its text (weights, pooling and projection, prefix,
            length), such as `Encoder.key`. Its SHA-256 names the folder.
          texts: N texts, without the encoder's prefix.
          embed: takes at most EMBED_BATCH texts, puts the prefix before them, returns [n, E].

        Raises:
          DataError: a damaged cache or another encoder's, an `embed` of another width than the cache, a vector that
            is not finite or zero.
        """
        folder = self.vector_folder(encoder_key)
        _refuse_old_form(folder)
        cache = read_cache(folder, encoder_key)
        wanted = {_digest(text): text for text in texts if text.strip()}
        # Shortest first: a batch then holds texts of one length, and little padding is encoded.
        new = sorted((item for item in wanted.items() if item[0] not in cache.places), key=lambda item: len(item[1]))
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
        """Write what was made beyond the first `saved`; how many are saved now."""
        new = list(made.items())[saved:]
        if self.writes and new:
            with locked(self.directory):
                append_vectors(folder, encoder_key, [digest for digest, _ in new], np.stack([v for _, v in new]))
        return len(made)


@contextlib.contextmanager
def locked(folder: epath.Path) -> Iterator[None]:
    """One writer of a local folder at a time; the lock of a killed process goes with it. Where the disk has no locks
    nobody waits."""
    if is_remote(folder):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_store(pivot: PivotConfig, workdir: str | os.PathLike, writes: bool = True) -> PivotStore:
    """The store of a run: `pivot.store`, or `pivots/` in the work directory where that is empty."""
    return PivotStore(pivot.store or as_path(workdir) / "pivots", writes)


def _refuse_old_form(folder: epath.Path) -> None:
    """Say what to do with the one file of vectors that earlier versions wrote (DataError)."""
    old = folder.parent / f"{folder.name}.npz"
    if old.exists():
        raise DataError(
            f"{old} holds vectors in a form that is no longer read: expected safetensors shards in {folder}. Type "
            f"`rm {old}`; the same command then embeds its texts again (no reference is lost)."
        )


def _unit_vectors(vectors: Any, count: int) -> np.ndarray:
    """What an encoder gave for `count` texts, as float32 of length 1."""
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
