"""Paths of a run, on a local disk or at `gs://`, and atomic writes.

A local file is written under a temporary name, synced and renamed, so that a reader sees the old content or the new
one. An object store has no rename, but shows an object only when its write has ended.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable
from typing import Any, NamedTuple

from etils import epath

from pbrl_jax.core.errors import ConfigError, DataError

#: Wildcards of glob patterns. Orbax searches a checkpoint's parts by pattern, so a path must not contain them.
PATTERN_MARKS = "*?["
#: Bytes read at a time where a file is streamed.
CHUNK_BYTES = 1 << 20


def as_path(path: str | os.PathLike) -> epath.Path:
    """An absolute path; `~` is the home folder, `gs://bucket/...` stays as it is.

    Raises:
      ConfigError: an empty path, or an address that is no path.
    """
    if (scheme := os.fspath(path).partition("://")[0]) in ("hf", "http", "https", "file"):
        raise ConfigError(
            f"{os.fspath(path)!r}: {scheme}:// cannot be read. Give a path, gs://bucket/..., or owner/name for what is "
            "on the hub."
        )
    if not os.fspath(path):
        raise ConfigError(
            "Found an empty path, expected a folder or file such as runs/first or gs://bucket/runs/first."
        )
    named = epath.Path(path)
    return named if is_remote(named) else epath.Path(os.path.abspath(named.expanduser()))


def is_remote(path: str | os.PathLike) -> bool:
    """Whether `path` names an object in a store (`gs://...`) and not a local file."""
    return "://" in os.fspath(path)


class WorkDir(NamedTuple):
    """The paths inside a work directory; nothing is created or read."""

    root: epath.Path
    #: The resolved config of the run.
    config: epath.Path
    #: One JSON object for each logged step.
    metrics: epath.Path
    #: One JSON object for each evaluation during training, including the one before the first step.
    evaluations: epath.Path
    #: Folder of sampled responses.
    samples: epath.Path
    #: Folder of `step_00000010/` checkpoints.
    checkpoints: epath.Path
    #: Folder of TensorBoard event files.
    tensorboard: epath.Path
    #: Step, parameter checksum and metrics of a finished run.
    final: epath.Path

    def samples_of(self, step: int) -> epath.Path:
        """The file of the sampled responses of `step`."""
        return self.samples / f"step_{step}.jsonl"


def work_dir(path: str | os.PathLike) -> WorkDir:
    """The layout of the work directory at `path`.

    Raises:
      ConfigError: a remote path with one of PATTERN_MARKS, where orbax would not find its checkpoints.
    """
    root = as_path(path)
    if is_remote(root) and set(os.fspath(root)) & set(PATTERN_MARKS):
        raise ConfigError(f"--workdir {os.fspath(root)!r} holds one of {' '.join(PATTERN_MARKS)}. Name another folder.")
    names = "config.json", "metrics.jsonl", "evaluations.jsonl", "samples", "checkpoints", "tensorboard", "final.json"
    return WorkDir(root, *(root / name for name in names))


def without_marks(path: epath.Path) -> epath.Path:
    """A path to the same file or folder whose parent has no PATTERN_MARKS: if the parent has some, a symbolic link to
    it in the temporary folder is used. The link has the same name on all hosts, and is not removed."""
    parent = os.fspath(path.parent)
    if is_remote(path) or not set(parent) & set(PATTERN_MARKS):
        return path
    link = os.path.join(tempfile.gettempdir(), f"pbrl-{hashlib.sha256(parent.encode()).hexdigest()[:16]}")
    with contextlib.suppress(FileExistsError):
        os.symlink(parent, link)
    if os.path.realpath(link) != os.path.realpath(parent):
        raise ConfigError(f"{link!r} is no link to {parent!r}. Remove it, or name another --workdir.")
    return epath.Path(link) / path.name


def write_atomic(path: str | os.PathLike, data: str | bytes) -> None:
    """Writes a small file atomically; parent folders are created. One writer at a time per path.

    Raises:
      OSError: the disk is full or the folder is not writable; an existing file is then unchanged.
    """
    file = as_path(path)
    content = data.encode() if isinstance(data, str) else data
    file.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(file):
        file.write_bytes(content)
        return
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(file))
    # A fixed name, so that a file left by a killed writer is overwritten by the next write.
    temporary = f"{os.fspath(file)}.tmp"
    try:
        write_synced(temporary, content)
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise
    rename_synced(temporary, file)


def write_synced(path: str | os.PathLike, content: bytes) -> None:
    """Writes a local file and syncs it, not atomically (see `write_atomic`)."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def rename_synced(old: str | os.PathLike, new: str | os.PathLike) -> None:
    """Renames a local file or folder within its folder, and syncs the folder."""
    os.replace(old, new)
    sync_folder(os.path.dirname(os.fspath(new)))


def sync_folder(folder: str | os.PathLike) -> None:
    """Syncs the entries of a local folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: str | os.PathLike) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with as_path(path).open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def parse_json(text: str | bytes) -> Any:
    """`json.loads` that raises ValueError for any invalid text, including JSON that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def is_model_config(config: Any) -> bool:
    """Whether the content of a `config.json` is a Hugging Face model's, not a run's."""
    return isinstance(config, dict) and not {"model_type", "architectures"}.isdisjoint(config)


HALF_A_CHARACTER = "half of a character (an escape \\ud800 to \\udfff alone)"
"""What a text holds that `encodes` refuses."""


def encodes(value: Any) -> bool:
    """Whether the text in a JSON value can be written as UTF-8: JSON may hold half of a character."""
    try:
        (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode()
    except UnicodeEncodeError:
        return False
    return True


def append_json_lines(path: str | os.PathLike, rows: Iterable[dict[str, Any]]) -> None:
    """Appends one JSON object per line, in one write; parent folders are created.

    Scalar arrays become numbers; a number that is not finite becomes null. An incomplete last line, left by a killed
    process, is removed first. An object in a store cannot be appended to and is rewritten: collect rows, and append
    rarely.
    """
    file = as_path(path)
    content = _json_lines(rows)
    if not content:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(file):
        before = file.read_bytes() if file.exists() else b""
        file.write_bytes(_complete_lines(before) + content)
        return
    if not _ends_a_line(file):
        write_atomic(file, _complete_lines(file.read_bytes()))
    with open(file, "ab") as opened:
        opened.write(content)


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a log of JSON lines; [] if it does not exist. An incomplete last line, left by a killed process, is
    skipped.

    Raises:
      DataError: a line that is not a JSON object.
    """
    file = as_path(path)
    return [row for _, row in _numbered(file, _complete_lines(file.read_bytes()))] if file.exists() else []


def numbered_json_lines(path: str | os.PathLike) -> list[tuple[int, dict[str, Any]]]:
    """(line number from 1, row) of a user's JSON lines file; [] if it does not exist.

    Raises:
      DataError: a line, also an incomplete last one, that is not a JSON object.
    """
    file = as_path(path)
    return _numbered(file, file.read_bytes()) if file.exists() else []


def _numbered(file: epath.Path, content: bytes) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DataError(f"{file}, line {number}, is not JSON: {error}. Delete the line, or the file.") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}: found {type(row).__name__}, expected a JSON object.")
        if b"\\u" in line and not encodes(row):
            raise DataError(f"{file}, line {number}, holds {HALF_A_CHARACTER}. Correct or remove the line.")
        rows.append((number, row))
    return rows


def read_json_object(path: str | os.PathLike) -> dict[str, Any]:
    """The JSON object of a file; {} if there is no file.

    Raises:
      DataError: the file is not JSON, or holds another JSON value.
    """
    file = as_path(path)
    if not file.exists():
        return {}
    try:
        value = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}. Delete it, or let the same command write it again.") from error
    if not isinstance(value, dict):
        raise DataError(f"{file} holds a {type(value).__name__}; expected a JSON object.")
    return value


def write_json_lines(path: str | os.PathLike, rows: Iterable[dict[str, Any]]) -> None:
    """Replaces the rows of a JSON lines file, atomically."""
    write_atomic(path, _json_lines(rows))


def _ends_a_line(path: epath.Path) -> bool:
    """Whether a local file is absent, empty, or ends with a newline."""
    if not path.exists() or os.path.getsize(path) == 0:
        return True
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _complete_lines(content: bytes) -> bytes:
    """The content without an incomplete last line. A last line of valid JSON gets its missing newline instead."""
    lines, newline, last = content.rpartition(b"\n")
    try:
        parse_json(last)
    except ValueError:
        return lines + newline
    return content + b"\n"


def _json_lines(rows: Iterable[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()


def _plain(value: Any) -> Any:
    """`value` converted to JSON types."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
