"""The store of English references: what the expert wrote, and apart from it the vectors of those texts.

  <directory>/references.jsonl      one reference a line, under a key of all that it depends on
  <directory>/vectors/<encoder>/    SHA-256 of a text -> its unit vector, see pivots.vectors

So another encoder embeds the texts anew and asks the expert nothing, and another expert, template, sampling or seed
shares no reference with this one. The folder may be behind `gs://`.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from pbrl_jax.config.tree import PivotConfig
from pbrl_jax.core.errors import DataError
from pbrl_jax.core.paths import append_json_lines, as_path, is_remote
from pbrl_jax.core.records import Reference
from pbrl_jax.pivots.vectors import append_vectors, check_width, gather, read_cache

EMBED_BATCH = 256
"""Texts given to the encoder at a time."""
SAVE_EVERY = 4096
"""New vectors after which they are saved: rows of a shard."""
_WRITE_AGAIN = "`pbrl pivots CONFIG` writes what is missing again."


class Origin(NamedTuple):
    """All that a reference depends on."""

    question: str
    expert: str
    """The expert's name: a folder or a hub id."""
    revision: str
    """Fingerprint of the expert's weights and tokenizer, or its revision at the hub."""
    template: str
    """How the question was put to the expert, `{question}` standing for it."""
    temperature: float
    max_tokens: int
    seed: int

    @property
    def key(self) -> str:
        """32 hex digits of the SHA-256 of the fields."""
        return _sha256(list(self._replace(temperature=float(self.temperature))))[:32]


class StoredReference(NamedTuple):
    """One reference and where it comes from. `verified` is None where no gold answer was known."""

    origin: Origin
    reasoning: str
    answer: str
    verified: bool | None = None

    @property
    def key(self) -> str:
        return self.origin.key

    @property
    def reference(self) -> Reference:
        """The two parts that rewards look at."""
        return Reference(self.reasoning, self.answer)


class PivotStore:
    """References and their vectors in a folder. Nothing is created before something is written.

    Every call reads the disk; the object remembers nothing. On a local disk writers take turns; behind gs:// there is
    one.

    Args:
      directory: local, or `gs://bucket/...`.
      writes: False for all processes of a run but the first. They read, and embed what they miss, but save nothing.
    """

    def __init__(self, directory: str | os.PathLike, writes: bool = True):
        self.directory = as_path(directory)
        self.writes = writes

    @property
    def path(self) -> epath.Path:
        """The file of references."""
        return self.directory / "references.jsonl"

    def vector_folder(self, encoder_key: str) -> epath.Path:
        """The folder of an encoder's vectors."""
        return self.directory / "vectors" / _sha256(encoder_key)[:32]

    def add_references(self, references: Sequence[StoredReference]) -> None:
        """Appends references, on the disk when this returns. A key that is there already keeps its first reference."""
        if not self.writes or not references:
            return
        with locked(self.directory):
            append_json_lines(self.path, [_row(reference) for reference in references])
            if not is_remote(self.path):
                with open(self.path, "rb") as file:
                    os.fsync(file.fileno())

    def references(self, keys: Iterable[str]) -> dict[str, StoredReference]:
        """Those of the references under `keys` that are there, in the order of `keys`.

        Raises:
          DataError: a line that is broken. A last line that a killed writer left half-written is no error: it is left
            out, which is logged, and so it is `missing`.
        """
        found = self._read()
        return {key: found[key] for key in keys if key in found}

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The keys without a reference, each once, in their order. Raises as `references` does."""
        found = self._read()
        return [key for key in dict.fromkeys(keys) if key not in found]

    def fingerprint(self, keys: Iterable[str] | None = None) -> str:
        """Hex digest of keys and texts, whatever their order; of all references, or of those under `keys`.

        `verified` is left out: it follows from the text and the gold answers of the data.
        """
        found = self._read() if keys is None else self.references(keys)
        return _sha256(sorted([key, stored.reasoning, stored.answer] for key, stored in found.items()))

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

    def _read(self) -> dict[str, StoredReference]:
        """All references by key; of two lines with one key the first counts."""
        if not self.path.exists():
            return {}
        lines = self.path.read_bytes().split(b"\n")
        found: dict[str, StoredReference] = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            if number == len(lines) and not _is_json(line):
                logging.getLogger(__name__).warning(
                    "%s, line %d, is cut short, as by a killed writer: that reference counts as missing and is "
                    "written again.", self.path, number,
                )  # fmt: skip
                continue
            stored = _stored(line, f"{self.path}, line {number}")
            found.setdefault(stored.key, stored)
        return found


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


def _row(stored: StoredReference) -> dict[str, Any]:
    origin = stored.origin._replace(temperature=float(stored.origin.temperature))
    row = {"key": stored.key, **origin._asdict()}
    row |= {"reasoning": stored.reasoning, "answer": stored.answer, "verified": stored.verified}
    return row | {"checksum": _sha256(row)[:32]}


def _stored(line: bytes, place: str) -> StoredReference:
    """The reference of one line.

    Raises:
      DataError: no JSON, other fields or types, or a checksum or key that does not belong to the content.
    """
    try:
        row = json.loads(line)
    except ValueError as error:
        raise _broken_line(place, f"is not JSON ({error})") from error
    if not isinstance(row, dict) or set(row) != _FIELDS:
        names = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise _broken_line(place, f"has {names}, expected an object of {sorted(_FIELDS)}")
    if _sha256({name: value for name, value in row.items() if name != "checksum"})[:32] != row["checksum"]:
        raise _broken_line(place, "does not match its checksum: it was changed after it was written")
    origin = Origin(*(row[name] for name in Origin._fields))
    texts = (*origin[:4], row["reasoning"], row["answer"])
    if not all(isinstance(text, str) for text in texts) or row["verified"] not in (True, False, None):
        raise _broken_line(place, "has a value of another type than `pbrl pivots` writes")
    if origin.key != row["key"]:
        raise _broken_line(place, f"has the key {row['key']!r}, but its fields have the key {origin.key!r}")
    return StoredReference(origin, row["reasoning"], row["answer"], row["verified"])


_FIELDS = {"key", *Origin._fields, "reasoning", "answer", "verified", "checksum"}


def _broken_line(place: str, what: str) -> DataError:
    return DataError(f"{place}, {what}. Delete that line, or the whole file; {_WRITE_AGAIN}")


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


def _sha256(value: Any) -> str:
    """Hex digest of a JSON value, whatever the order of its names."""
    content = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
