"""References on disk: append-only Parquet shards and an index.

  <folder>/index.json               {"next": 17, "shards": [{file, rows, bytes, level, digest}], ...}
  <folder>/shard_00000016.parquet   key binary [16], digest binary [32], then the fields of a StoredReference

Every batch is a shard. MERGED shards of one level are merged into one of the next level: a million references written
16 at a time are stored in about a hundred files, and each was written about four times. Only shards in the index count,
and the index is replaced atomically after the shard is written: a writer killed at any point leaves at most an unlisted
file, which the next writer overwrites. The pages of a shard have checksums. The folder may be on `gs://`.
"""

import contextlib
import io
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
from etils import epath

from pbrl_jax.core.errors import DataError
from pbrl_jax.core.paths import is_remote, sync_folder, write_atomic, write_synced
from pbrl_jax.pivots.references import Origin, StoredReference, sha256

MERGED = 16
"""Number of consecutive shards of one level that are merged into one of the next level."""
MERGED_BYTES = 1 << 26
"""Maximum size in memory of shards that are merged."""
GROUP_ROWS = 4096
"""Rows of a shard that are read at a time."""
INDEX = "index.json"
SCHEMA = pyarrow.schema(
    [("key", pyarrow.binary(16)), ("digest", pyarrow.binary(32))]
    + [(name, pyarrow.string()) for name in ("question", "expert", "revision", "template")]
    + [("temperature", pyarrow.float64()), ("max_tokens", pyarrow.int64()), ("seed", pyarrow.int64())]
    + [("reasoning", pyarrow.string()), ("answer", pyarrow.string()), ("verified", pyarrow.bool_())]
)
FIELDS = tuple(SCHEMA.names[2:])
"""The columns of a StoredReference, those of its origin first."""


class Shard(NamedTuple):
    """A shard's entry in the index: `bytes` is its size in memory, `level` the number of merges, `digest` the sum of
    its rows' digests."""

    file: str
    rows: int
    bytes: int
    level: int
    digest: str

    @property
    def number(self) -> int:
        """The number in its file name."""
        return int(self.file.removeprefix("shard_").removesuffix(".parquet"))


class Shards:
    """The shards of a folder. The keys of shards are cached, as a shard never changes.

    Attributes:
      listed: the shards of the index at the last `refresh`.
      notes: the other entries of the index, by name.
      damaged: shards that could not be read, with the error; `drop_damaged` handles them.
    """

    def __init__(self, folder: epath.Path):
        self.folder = folder
        self.listed: tuple[Shard, ...] = ()
        self.notes: dict[str, Any] = {}
        self.damaged: dict[Shard, Exception] = {}
        self._places: dict[bytes, int] = {}  # key -> shard number << 32 | row

    def refresh(self) -> None:
        """Read the index, and the keys of new shards."""
        before, (self.listed, self.notes) = set(self.listed), self._read_index()
        if before - set(self.listed):
            kept = {shard.number for shard in self.listed if shard in before}
            self._places = {key: place for key, place in self._places.items() if place >> 32 in kept}
        for shard in self.listed:
            if shard not in before and (keys := self._read(shard, ["key"])) is not None:
                self._add_places(shard, keys)

    def drop_damaged(self, writes: bool) -> None:
        """Read the index again, and leave out the damaged shards that it still lists, with a warning; shards that it no
        longer lists were merged meanwhile. With `writes` (only for writers) their files are renamed and removed from
        the index."""
        damaged, self.damaged = self.damaged, {}
        self.refresh()
        for shard, error in damaged.items():
            if shard not in self.listed:
                continue
            path = self.folder / shard.file
            logging.getLogger(__name__).warning(
                "%s is damaged or gone (%s): its %d references count as missing and are written again.",
                path, error, shard.rows,
            )  # fmt: skip
            self._places = {key: place for key, place in self._places.items() if place >> 32 != shard.number}
            if writes:
                if path.exists():
                    path.rename(f"{path}.damaged")
                self._save(tuple(other for other in self.listed if other != shard))

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return _binary(key) in self._places

    def __iter__(self) -> Iterator[str]:
        return (key.hex() for key in list(self._places))

    @property
    def digest(self) -> str:
        """Digest of all keys and texts, independent of their order."""
        return add_digests(shard.digest for shard in self.listed)

    def rows(self, keys: Iterable[str], columns: Sequence[str]) -> Iterator[tuple]:
        """(key, value of each column) of those of the keys that are stored, shard by shard."""
        by_shard: dict[int, list[tuple[int, str]]] = {}
        for key in dict.fromkeys(keys):
            place = self._places.get(_binary(key))
            if place is not None:
                by_shard.setdefault(place >> 32, []).append((place & 0xFFFFFFFF, key))
        for shard in self.listed:
            if shard.number not in by_shard:
                continue
            with self._record_damage(shard), self._open(shard) as file:
                pairs_of_shard = sorted(by_shard[shard.number])
                for group, pairs in itertools.groupby(pairs_of_shard, lambda pair: pair[0] // GROUP_ROWS):
                    rows, row_keys = zip(*pairs, strict=True)
                    table = file.read_row_group(group, list(columns)).take([row % GROUP_ROWS for row in rows])
                    yield from zip(row_keys, *(table.column(name).to_numpy().tolist() for name in columns), strict=True)

    def append(self, references: Iterable[StoredReference], **notes: Any) -> None:
        """Add a shard with the references whose keys are new, synced to disk, and notes to the index. One writer at a
        time."""
        fresh: dict[bytes, StoredReference] = {}
        for stored in references:
            if (key := _binary(stored.key)) not in self._places:
                fresh.setdefault(key, stored)
        for name in self.notes.pop("replaced", ()):
            (self.folder / name).unlink(missing_ok=True)
        self.notes |= notes
        if fresh:
            self._write(_table(fresh), 0, ())
        elif notes:
            self._save(self.listed)

    def merge(self) -> None:
        """Merge the last shards while MERGED of them have the same level. Their files stay until the next `append`, for
        concurrent readers. One writer at a time."""
        while len(last := self.listed[-MERGED:]) == MERGED and len({shard.level for shard in last}) == 1:
            tables = [] if sum(shard.bytes for shard in last) > MERGED_BYTES else map(self._read, last)
            readable = [table for table in tables if table is not None]
            if len(readable) < MERGED:
                return
            self._write(pyarrow.concat_tables(readable), last[0].level + 1, last)

    def _write(self, table: pyarrow.Table, level: int, replaced: Sequence[Shard]) -> None:
        """Write a new shard, which replaces the shards `replaced` at the end of the list."""
        number, content = self.notes.get("next", 0), io.BytesIO()
        pyarrow.parquet.write_table(
            table, content, row_group_size=GROUP_ROWS, compression="zstd", write_page_checksum=True,
            use_dictionary=["expert", "revision", "template"],
        )  # fmt: skip
        shard = _index_entry(f"shard_{number:08d}.parquet", table, level)
        self.folder.mkdir(parents=True, exist_ok=True)
        if is_remote(self.folder):
            (self.folder / shard.file).write_bytes(content.getvalue())
        else:
            write_synced(self.folder / shard.file, content.getvalue())
            sync_folder(self.folder)
        old = [*self.notes.get("replaced", ()), *(shard.file for shard in replaced)]
        self.notes |= {"next": number + 1, "replaced": old}
        self._save((*self.listed[: len(self.listed) - len(replaced)], shard))
        self._add_places(shard, table)

    def _save(self, listed: tuple[Shard, ...]) -> None:
        index = self.notes | {"shards": [shard._asdict() for shard in listed]}
        write_atomic(self.folder / INDEX, json.dumps(index, indent=1))
        self.listed = listed

    def _add_places(self, shard: Shard, table: pyarrow.Table) -> None:
        first, keys = shard.number << 32, _values(table, "key", 16)
        self._places.update(zip(keys, range(first, first + len(keys)), strict=True))

    def _read_index(self) -> tuple[tuple[Shard, ...], dict[str, Any]]:
        path = self.folder / INDEX
        if path.exists():
            try:
                notes = json.loads(path.read_text())
                return tuple(Shard(**record) for record in notes.pop("shards")), notes
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                logging.getLogger(__name__).warning("%s is damaged (%s); rebuilt from the shards.", path, error)
        return self._rebuild_index() if self.folder.exists() else ((), {})

    def _rebuild_index(self) -> tuple[tuple[Shard, ...], dict[str, Any]]:
        """The index from the files of shards. A shard without new keys was merged, or is the result of a merge."""
        shards: list[Shard] = []
        seen: set[bytes] = set()
        number = -1
        for path in sorted(self.folder.glob("shard_*.parquet")):
            shard = Shard(path.name, 0, 0, 0, "")
            number, table = shard.number, self._read(shard)
            if table is None:
                error = self.damaged.pop(shard)
                logging.getLogger(__name__).warning("%s is not whole and is ignored (%s).", path, error)
            elif not (keys := set(_values(table, "key", 16))) <= seen:
                seen |= keys
                shards.append(_index_entry(path.name, table, 0))
        return tuple(shards), {"next": number + 1}

    def _read(self, shard: Shard, columns: Sequence[str] = tuple(SCHEMA.names)) -> pyarrow.Table | None:
        table = None
        with self._record_damage(shard), self._open(shard) as file:
            table = file.read(list(columns))
        return table

    @contextlib.contextmanager
    def _open(self, shard: Shard) -> Iterator[pyarrow.parquet.ParquetFile]:
        with _Readable((self.folder / shard.file).open("rb")) as file:
            yield pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)

    @contextlib.contextmanager
    def _record_damage(self, shard: Shard) -> Iterator[None]:
        """Leave the block at the first error of a damaged or missing file, and record the error in `damaged`."""
        try:
            yield
        except (OSError, pyarrow.ArrowException) as error:
            # Errors with an errno come from the disk or the network; pyarrow's errors of damaged files have none.
            if getattr(error, "errno", None) and not isinstance(error, FileNotFoundError):
                raise
            self.damaged[shard] = error


class _Readable(io.RawIOBase):
    """A file with all methods that pyarrow needs; files of object stores lack some."""

    def __init__(self, file):
        self.file = file

    def readinto(self, buffer) -> int:
        content = self.file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        self.file.seek(offset, whence)
        return self.file.tell()

    def tell(self) -> int:
        return self.file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()


def stored_reference(values: Sequence[Any]) -> StoredReference:
    """A reference from the values of FIELDS."""
    width = len(Origin._fields)
    return StoredReference(Origin(*values[:width]), *values[width:])


def row_digest(key: str, reasoning: str, answer: str) -> str:
    """Hex digest of a reference. `verified` is left out: it follows from the text and the gold answers of the data."""
    return sha256([key, reasoning, answer])


def add_digests(digests: Iterable[str]) -> str:
    """The sum of 256-bit hex numbers: a digest of rows that does not depend on their order."""
    return f"{sum(int(digest, 16) for digest in digests) % 2**256:064x}"


def _index_entry(file: str, table: pyarrow.Table, level: int) -> Shard:
    digests = (digest.hex() for digest in _values(table, "digest", 32))
    return Shard(file, len(table), table.nbytes, level, add_digests(digests))


def _table(references: dict[bytes, StoredReference]) -> pyarrow.Table:
    rows = [(*stored.origin, *stored[1:]) for stored in references.values()]
    digests = [bytes.fromhex(row_digest(key.hex(), stored.reasoning, stored.answer))
               for key, stored in references.items()]  # fmt: skip
    columns = [list(references), digests, *map(list, zip(*rows, strict=True))]
    try:
        return pyarrow.table(columns, schema=SCHEMA)
    except (pyarrow.ArrowException, UnicodeEncodeError) as error:
        raise DataError(f"One of {len(rows)} references is not text and numbers as expected: {error}.") from error


def _values(table: pyarrow.Table, column: str, width: int) -> list[bytes]:
    """The binary values of a column; much faster than `to_pylist`."""
    chunks = [chunk.buffers()[1][width * chunk.offset : width * (chunk.offset + len(chunk))].to_pybytes()
              for chunk in table.column(column).chunks if len(chunk)]  # fmt: skip
    return [chunk[at : at + width] for chunk in chunks for at in range(0, len(chunk), width)]


def _binary(key: str) -> bytes:
    """A key in its stored form; b"", which is never stored, for an invalid key."""
    try:
        return bytes.fromhex(key)
    except ValueError:
        return b""
