"""References on disk: Parquet shards that are only ever added to, and an index.

  <folder>/index.json               {"next": 17, "shards": [{file, rows, bytes, level, digest}], ...}
  <folder>/shard_00000016.parquet   key binary [16], digest binary [32], then the fields of a StoredReference

Every batch is a shard. MERGED shards of one level become one of the next, so that a million references written 16 at a
time lie in about a hundred files, and each was written about four times. A shard counts from the moment that the index
lists it, and the index is replaced last and whole: a writer killed at any point leaves a file that nothing lists, and
the next one overwrites it. The pages of a shard have checksums. The folder may be behind `gs://`.
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
"""Neighbouring shards of one level that become one of the next."""
MERGED_BYTES = 1 << 26
"""Size in memory of what is merged, at most."""
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
    """What the index says of a shard: its size in memory, how often it was merged, the sum of its rows' digests."""

    file: str
    rows: int
    bytes: int
    level: int
    digest: str

    @property
    def number(self) -> int:
        """The number in its name."""
        return int(self.file.removeprefix("shard_").removesuffix(".parquet"))


class Shards:
    """The shards of a folder. The object remembers the keys of those that it has seen, which never change.

    Attributes:
      listed: the shards as `refresh` found them.
      notes: what else the index says, by name.
      damaged: shards that could not be read, and why; `settle` says so.
    """

    def __init__(self, folder: epath.Path):
        self.folder = folder
        self.listed: tuple[Shard, ...] = ()
        self.notes: dict[str, Any] = {}
        self.damaged: dict[Shard, Exception] = {}
        self._places: dict[bytes, int] = {}  # key -> its shard's number, in the lower 32 bits its row

    def refresh(self) -> None:
        """Read the index, and the keys of shards that are new in it."""
        before, (self.listed, self.notes) = set(self.listed), self._read_index()
        if before - set(self.listed):
            kept = {shard.number for shard in self.listed if shard in before}
            self._places = {key: place for key, place in self._places.items() if place >> 32 in kept}
        for shard in self.listed:
            if shard not in before and (keys := self._read(shard, ["key"])) is not None:
                self._add_places(shard, keys)

    def settle(self, writes: bool) -> None:
        """Read the index again after damage was met. A shard that it no longer lists was merged meanwhile. One that it
        lists is named and left out; with `writes`, which only a writer may say, it is put aside for good."""
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
        """Digest of all keys and texts, whatever their order."""
        return add_digests(shard.digest for shard in self.listed)

    def rows(self, keys: Iterable[str], columns: Sequence[str]) -> Iterator[tuple]:
        """(key, value of each column) of those of the keys that are there, shard by shard."""
        wanted: dict[int, list[tuple[int, str]]] = {}
        for key in dict.fromkeys(keys):
            place = self._places.get(_binary(key))
            if place is not None:
                wanted.setdefault(place >> 32, []).append((place & 0xFFFFFFFF, key))
        for shard in self.listed:
            if shard.number not in wanted:
                continue
            with self._noting_damage(shard), self._opened(shard) as file:
                for group, pairs in itertools.groupby(sorted(wanted[shard.number]), lambda pair: pair[0] // GROUP_ROWS):
                    rows, own = zip(*pairs, strict=True)
                    table = file.read_row_group(group, list(columns)).take([row % GROUP_ROWS for row in rows])
                    yield from zip(own, *(table.column(name).to_numpy().tolist() for name in columns), strict=True)

    def append(self, references: Iterable[StoredReference], **notes: Any) -> None:
        """Adds a shard of those references whose key is new, on the disk when this returns, and notes to the index.
        One writer at a time."""
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
        """Merge the last shards while MERGED of them have one level. Their files stay until the next `append`, for
        those who read meanwhile. One writer at a time."""
        while len(last := self.listed[-MERGED:]) == MERGED and len({shard.level for shard in last}) == 1:
            tables = [] if sum(shard.bytes for shard in last) > MERGED_BYTES else map(self._read, last)
            whole = [table for table in tables if table is not None]
            if len(whole) < MERGED:
                return
            self._write(pyarrow.concat_tables(whole), last[0].level + 1, last)

    def _write(self, table: pyarrow.Table, level: int, replaced: Sequence[Shard]) -> None:
        """A new shard, in place of the last ones where `replaced` names them."""
        number, content = self.notes.get("next", 0), io.BytesIO()
        pyarrow.parquet.write_table(
            table, content, row_group_size=GROUP_ROWS, compression="zstd", write_page_checksum=True,
            use_dictionary=["expert", "revision", "template"],
        )  # fmt: skip
        shard = _described(f"shard_{number:08d}.parquet", table, level)
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
                logging.getLogger(__name__).warning("%s is damaged (%s): the shards tell the same.", path, error)
        return self._found_shards() if self.folder.exists() else ((), {})

    def _found_shards(self) -> tuple[tuple[Shard, ...], dict[str, Any]]:
        """The index as the shards tell it. One whose keys all lie in others was merged, or came out of a merge."""
        found: list[Shard] = []
        known: set[bytes] = set()
        number = -1
        for path in sorted(self.folder.glob("shard_*.parquet")):
            shard = Shard(path.name, 0, 0, 0, "")
            number, table = shard.number, self._read(shard)
            if table is None:
                why = self.damaged.pop(shard)
                logging.getLogger(__name__).warning("%s is not whole and counts for nothing (%s).", path, why)
            elif not (keys := set(_values(table, "key", 16))) <= known:
                known |= keys
                found.append(_described(path.name, table, 0))
        return tuple(found), {"next": number + 1}

    def _read(self, shard: Shard, columns: Sequence[str] = tuple(SCHEMA.names)) -> pyarrow.Table | None:
        table = None
        with self._noting_damage(shard), self._opened(shard) as file:
            table = file.read(list(columns))
        return table

    @contextlib.contextmanager
    def _opened(self, shard: Shard) -> Iterator[pyarrow.parquet.ParquetFile]:
        with _Readable((self.folder / shard.file).open("rb")) as file:
            yield pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)

    @contextlib.contextmanager
    def _noting_damage(self, shard: Shard) -> Iterator[None]:
        """Where the file of a shard is damaged or gone, the block ends there, and `damaged` names it."""
        try:
            yield
        except (OSError, pyarrow.ArrowException) as error:
            # pyarrow's own errors have no errno; what has one, of the disk or the network, is no damage.
            if getattr(error, "errno", None) and not isinstance(error, FileNotFoundError):
                raise
            self.damaged[shard] = error


class _Readable(io.RawIOBase):
    """A file as pyarrow needs it: those of object stores lack some methods."""

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
    """The sum of hex numbers of 256 bits: a digest of rows whatever their order."""
    return f"{sum(int(digest, 16) for digest in digests) % 2**256:064x}"


def _described(file: str, table: pyarrow.Table, level: int) -> Shard:
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
    """A column of binary values as bytes; much faster than `to_pylist`."""
    chunks = [chunk.buffers()[1][width * chunk.offset : width * (chunk.offset + len(chunk))].to_pybytes()
              for chunk in table.column(column).chunks if len(chunk)]  # fmt: skip
    return [chunk[at : at + width] for chunk in chunks for at in range(0, len(chunk), width)]


def _binary(key: str) -> bytes:
    """A key as it is stored; what is no key is found nowhere."""
    try:
        return bytes.fromhex(key)
    except ValueError:
        return b""
