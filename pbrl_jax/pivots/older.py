"""The store of versions 0.1.0 and 0.2.0: a JSON lines file of references, with a checksum in each line."""

import json
import logging
from collections.abc import Iterator

from etils import epath

from pbrl_jax.core.errors import DataError
from pbrl_jax.pivots.references import Origin, StoredReference, sha256

_FIELDS = {"key", *Origin._fields, "reasoning", "answer", "verified", "checksum"}


def read_older(path: epath.Path) -> Iterator[StoredReference]:
    """The references of such a file, line by line. An incomplete last line, as of a killed writer, is left out with a
    warning.

    Raises:
      DataError: a broken line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip() and not (not line.endswith(b"\n") and _cut(line, f"{path}, line {number},")):
                yield _stored(line, f"{path}, line {number}")


def _cut(line: bytes, place: str) -> bool:
    try:
        json.loads(line)
        return False
    except ValueError:
        logging.getLogger(__name__).warning(
            "%s is cut short, as by a killed writer: that reference counts as missing and is written again.", place
        )
        return True


def _stored(line: bytes, place: str) -> StoredReference:
    """The reference of one line.

    Raises:
      DataError: no JSON, other fields or types, or a checksum or key that does not match the content.
    """
    try:
        row = json.loads(line)
    except ValueError as error:
        raise _broken(place, f"is not JSON ({error})") from error
    if not isinstance(row, dict) or set(row) != _FIELDS:
        names = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise _broken(place, f"has {names}, expected an object of {sorted(_FIELDS)}")
    if sha256({name: value for name, value in row.items() if name != "checksum"})[:32] != row["checksum"]:
        raise _broken(place, "does not match its checksum: it was changed after it was written")
    origin = Origin(*(row[name] for name in Origin._fields))
    texts = (*origin[:4], row["reasoning"], row["answer"])
    if not all(isinstance(text, str) for text in texts) or row["verified"] not in (True, False, None):
        raise _broken(place, "has a value of another type than `pbrl pivots` writes")
    if (key := sha256(list(origin))[:32]) != row["key"]:  # without normalisation of the question
        raise _broken(place, f"has the key {row['key']!r}, but its fields have the key {key!r}")
    return StoredReference(origin, row["reasoning"], row["answer"], row["verified"])


def _broken(place: str, what: str) -> DataError:
    return DataError(
        f"{place}, {what}. Delete that line, or the whole file; `pbrl pivots CONFIG` writes what is missing again."
    )
