"""The store of English references: what the expert wrote, and apart from it the vectors of those texts.

  <directory>/references.jsonl              one reference a line, under a key of all that it depends on
  <directory>/vectors/<encoder>.npz         SHA-256 of a text -> its unit vector, one file for each encoder
  <directory>/vectors/<encoder>.npz.sha256

So another encoder embeds the texts anew and asks the expert nothing, and another expert, template, sampling or seed
shares no reference with this one. The folder may be behind `gs://`.
"""

import hashlib
import io
import json
import logging
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from pbrl_jax.core.config import PivotConfig
from pbrl_jax.core.errors import DataError
from pbrl_jax.core.paths import append_json_lines, as_path, is_remote, write_atomic
from pbrl_jax.core.records import Reference

EMBED_BATCH = 256
"""Texts given to the encoder at a time."""
SAVE_EVERY = 4096
"""Fewest new vectors that are saved while more are to come."""
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

    Every call reads the disk; the object remembers nothing. One process writes at a time.

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

    def vector_path(self, encoder_key: str) -> epath.Path:
        """The file of an encoder's vectors."""
        return self.directory / "vectors" / f"{_sha256(encoder_key)[:32]}.npz"

    def add_references(self, references: Sequence[StoredReference]) -> None:
        """Appends references, on the disk when this returns. A key that is there already keeps its first reference."""
        if not self.writes or not references:
            return
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
        whole or not at all, whenever the file would double and at the end, also when `embed` fails on a later batch.

        Args:
          encoder_key: names all that a vector depends on besides its text (weights, pooling and projection, prefix,
            length), such as `Encoder.key`. Its SHA-256 names the file.
          texts: N texts, without the encoder's prefix.
          embed: takes at most EMBED_BATCH texts, puts the prefix before them, returns [n, E].

        Raises:
          DataError: a damaged cache, an `embed` of another width than the cache, a vector that is not finite or zero.
        """
        path = self.vector_path(encoder_key)
        blocks = [_load_vectors(path)]
        cached = set(blocks[0][0])
        wanted = {_digest(text): text for text in texts if text.strip()}
        # Shortest first: a batch then holds texts of one length, and little padding is encoded.
        new = sorted((item for item in wanted.items() if item[0] not in cached), key=lambda item: len(item[1]))
        count = saved = len(cached)
        try:
            for start in range(0, len(new), EMBED_BATCH):
                batch = new[start : start + EMBED_BATCH]
                block_NE = _unit_vectors(embed([text for _, text in batch]), len(batch))
                _check_width(block_NE, blocks[-1][1], path)
                blocks.append(([digest for digest, _ in batch], block_NE))
                count += len(batch)
                if count - saved >= max(saved, SAVE_EVERY):
                    self._save(path, blocks)
                    saved = count
        finally:
            if count > saved:
                self._save(path, blocks)
        return _gather(blocks, texts)

    def _save(self, path: epath.Path, blocks: list[tuple[list[bytes], np.ndarray]]) -> None:
        if self.writes:
            _save_vectors(path, blocks)

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


def open_store(pivot: PivotConfig, workdir: str | os.PathLike, writes: bool = True) -> PivotStore:
    """The store of a run: `pivot.path`, or `pivots/` in the work directory where that is empty or names a file of
    references (`pivot.source` file)."""
    own = not pivot.path or pivot.source == "file"
    return PivotStore(as_path(workdir) / "pivots" if own else pivot.path, writes)


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


def _load_vectors(path: epath.Path) -> tuple[list[bytes], np.ndarray]:
    """Text digests and vectors of a cache file; ([], [0, 0]) where there is none."""
    if not path.exists():
        return [], np.zeros((0, 0), np.float32)
    content = path.read_bytes()
    checksums = _checksum_path(path)
    accepted = checksums.read_text().split() if checksums.exists() else []
    if hashlib.sha256(content).hexdigest() not in accepted:
        raise _broken_vectors(path, f"does not match its checksum in {checksums.name}")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            digests, vectors_NE = arrays["digests"], arrays["vectors"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _broken_vectors(path, f"cannot be read ({error})") from error
    if digests.dtype != np.uint8 or digests.ndim != 2 or digests.shape[1] != 32:
        raise _broken_vectors(path, f"has digests {digests.dtype}{list(digests.shape)}, expected uint8[N, 32]")
    if vectors_NE.dtype != np.float32 or vectors_NE.ndim != 2 or len(vectors_NE) != len(digests):
        found = f"{vectors_NE.dtype}{list(vectors_NE.shape)}"
        raise _broken_vectors(path, f"has vectors {found}, expected float32[{len(digests)}, E]")
    if not np.allclose(np.linalg.norm(vectors_NE, axis=1), 1.0, atol=1e-3):
        raise _broken_vectors(path, "has vectors that are not finite or not of length 1")
    return [digest.tobytes() for digest in digests], vectors_NE


def _save_vectors(path: epath.Path, blocks: list[tuple[list[bytes], np.ndarray]]) -> None:
    digests = [np.frombuffer(digest, np.uint8) for block in blocks for digest in block[0]]
    vectors_NE = np.concatenate([block_NE for _, block_NE in blocks if len(block_NE)])
    buffer = io.BytesIO()
    np.savez(buffer, digests=np.stack(digests), vectors=vectors_NE)
    content = buffer.getvalue()
    new = hashlib.sha256(content).hexdigest()
    old = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
    # Both are good until the rename is done: a writer killed in between leaves the old file or the new one.
    write_atomic(_checksum_path(path), f"{new}\n{old}\n")
    write_atomic(path, content)
    write_atomic(_checksum_path(path), f"{new}\n")


def _checksum_path(path: epath.Path) -> epath.Path:
    return path.parent / f"{path.name}.sha256"


def _broken_vectors(path: epath.Path, what: str) -> DataError:
    return DataError(
        f"{path} {what}. Delete that file; the same command then embeds its texts again (no reference is lost)."
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


def _check_width(block_NE: np.ndarray, before_NE: np.ndarray, path: epath.Path) -> None:
    if len(before_NE) and block_NE.shape[1] != before_NE.shape[1]:
        widths = f"has vectors of width {before_NE.shape[1]}, but the encoder gives {block_NE.shape[1]}"
        raise _broken_vectors(path, widths)


def _gather(blocks: list[tuple[list[bytes], np.ndarray]], texts: Sequence[str]) -> np.ndarray:
    """The vectors of `texts`, zero for white space."""
    index = {digest: row for row, digest in enumerate(digest for block in blocks for digest in block[0])}
    width = blocks[-1][1].shape[1]
    known_NE = np.concatenate([block_NE for _, block_NE in blocks if len(block_NE)] or [np.zeros((0, width))])
    out_NE = np.zeros((len(texts), width), np.float32)
    rows = [n for n, text in enumerate(texts) if text.strip()]
    out_NE[rows] = known_NE[[index[_digest(texts[n])] for n in rows]]
    return out_NE


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
