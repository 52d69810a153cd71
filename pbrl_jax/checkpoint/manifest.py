"""What a checkpoint is on disk, and how damage to one is found.

    checkpoints/step_00000010/
      state/          arrays, written by orbax
      meta.json       version of this package, step, dtype and shape of every array, and what the caller adds (config,
                      cursor, fingerprints)
      manifest.json   size and SHA-256 of every other file, found by the host that wrote it; written last

Large objects of a store (`gs://`) have no SHA-256 there: the store checks what it keeps, and to read them again would
move a whole checkpoint over the network.

A folder without a manifest, or whose files differ from it, is not a checkpoint. Orbax alone notices neither a flipped
bit nor a file that is gone.
"""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from etils import epath

from pbrl_jax.core import paths
from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.trees import path_name
from pbrl_jax.mesh.agree import exchange, host, is_first

MANIFEST = "manifest.json"
STAGED_MANIFEST = "manifest.json.tmp"
"""A finished manifest that does not count yet: the checkpoint is being completed, or being removed."""
META = "meta.json"
STATE = "state"
FORMAT = 1

_STEP_FOLDER = re.compile(r"step_(\d{8,})")
_HASHING_THREADS = 4
_WRITER = re.compile(r"(?:^|/)(?:ocdbt\.)?process_(\d+)(?:/|$)")
"""Orbax's names of what a process writes alone; all else is process 0's."""
HASHED_OBJECT_BYTES = 1 << 20
"""Objects of a store are read again, and hashed, up to this size."""


def step_folder(directory: epath.Path, step: int) -> epath.Path:
    """`directory/step_00000010`."""
    return directory / f"step_{step:08d}"


def step_folders(directory: epath.Path) -> list[tuple[int, epath.Path]]:
    """(step, folder) of everything with a checkpoint's name, newest first, complete or not."""
    if not directory.exists():
        return []
    matches = [(_STEP_FOLDER.fullmatch(entry.name), entry) for entry in directory.iterdir()]
    return sorted(((int(match[1]), entry) for match, entry in matches if match), key=lambda pair: -pair[0])


def is_committed(folder: epath.Path) -> bool:
    """Whether the save of this folder came to its end; its files may still have been damaged since."""
    return (folder / MANIFEST).exists()


def was_interrupted(folder: epath.Path) -> bool:
    """Whether a missing manifest is the trace of a killed save, and not of damage.

    On a local disk a folder gets its final name with the manifest staged inside. An object store has no rename: there
    the manifest is simply the last object, and a folder without one was never complete.
    """
    return not is_committed(folder) and (paths.is_remote(folder) or (folder / STAGED_MANIFEST).exists())


def hashed_files(folder: epath.Path) -> dict[str, dict[str, Any]]:
    """Size and checksum of every file below `folder`, by its path in it. Each host reads the files that it wrote, which
    its system still has in memory; local ones are on the disk when this returns. All hosts call it.

    Raises:
      OSError: a host cannot read or sync its files.
    """
    table, failure = dict[str, dict[str, Any]](), None
    try:
        names = {_relative(file, folder): file for file in _files_below(folder)}
        own = {name: file for name, file in names.items() if _writer(name) == host()}
        with ThreadPoolExecutor(_HASHING_THREADS) as pool:
            table = dict(zip(own, pool.map(file_entry, own.values()), strict=True))
        if not paths.is_remote(folder):
            for parent in {file.parent for file in own.values()} | ({folder} if is_first() else set()):
                paths.sync_folder(parent)
    except OSError as error:  # the other hosts must not wait for this one
        failure = error
    answers = exchange("files", [table, None if failure is None else str(failure)])
    if failure is not None:
        raise failure
    for number, (entries, words) in enumerate(answers):
        if words is not None:
            raise OSError(f"host {number}: {words}")
        table |= entries
    return table


def file_entry(file: epath.Path) -> dict[str, Any]:
    """Size and checksum of a file, which is synced to the disk where it is local."""
    size = file.stat().length
    if paths.is_remote(file):
        return {"size": size, "sha256": paths.sha256_file(file) if size <= HASHED_OBJECT_BYTES else None}
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())
    return {"size": size, "sha256": paths.sha256_file(file)}


def write_manifest(folder: epath.Path, step: int, table: dict[str, dict[str, Any]], name: str = MANIFEST) -> None:
    """Writes the manifest of a checkpoint whose files are `table`."""
    content = json.dumps({"format": FORMAT, "step": step, "files": table}, indent=1)
    if paths.is_remote(folder):
        (folder / name).write_text(content)
        return
    paths.write_synced(folder / name, content.encode())
    paths.sync_folder(folder)


def uncommit(folder: epath.Path) -> None:
    """Takes a complete checkpoint out of the count, so that a removal killed half-way leaves no damaged one."""
    if paths.is_remote(folder):
        (folder / MANIFEST).unlink()
    else:
        paths.rename_synced(folder / MANIFEST, folder / STAGED_MANIFEST)


def damage(folder: epath.Path, checksums: bool = True) -> str | None:
    """Why `folder` is not a checkpoint, or None where it is one.

    Args:
      folder: a `step_...` folder. Files that the manifest does not name are of no interest.
      checksums: read every file that has one; without it only names and sizes are compared.
    """
    try:
        if not is_committed(folder):
            return f"no {MANIFEST}: its save was interrupted" if was_interrupted(folder) else f"{MANIFEST} is missing"
        table, reason = _read_table(folder)
        if reason:
            return reason
        for name, entry in table.items():
            if not (folder / name).exists():
                return f"{name} is missing"
            size = (folder / name).stat().length
            if size != entry["size"]:
                return f"{name} has {size} bytes, the manifest says {entry['size']}"
        if checksums:
            with ThreadPoolExecutor(_HASHING_THREADS) as pool:
                hashed = {name: entry for name, entry in table.items() if entry["sha256"] is not None}
                sums = pool.map(lambda name: paths.sha256_file(folder / name), hashed)
                for (name, entry), found in zip(hashed.items(), sums, strict=True):
                    if found != entry["sha256"]:
                        return f"{name} does not match its checksum"
    except OSError as error:
        return f"cannot be read: {error}"
    return None


def read_meta_file(folder: epath.Path) -> dict[str, Any]:
    """The content of meta.json: `step`, `leaves`, `meta`, and since 0.2.0 `version`.

    Raises:
      CheckpointError: missing, or not what a save writes.
    """
    try:
        record = json.loads((folder / META).read_text())
        if isinstance(record, dict) and {"step", "leaves", "meta"} <= record.keys():
            return record
        found = "JSON without step, leaves and meta"
    except (OSError, ValueError) as error:
        found = str(error)
    raise CheckpointError(
        f"{folder / META} cannot be used: {found}. Expected the metadata of a checkpoint. Delete the folder to go on "
        "from the checkpoint before it."
    )


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """(path, leaf) in tree order, paths like `params/layers/attn/q/kernel`. None and empty containers are no leaves."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(path_name(path), leaf) for path, leaf in flat]


def leaf_table(leaves: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """path -> {"dtype": "float32", "shape": [2, 3]}, of arrays or ShapeDtypeStructs; PRNG keys: "key<fry>"."""
    return {name: {"dtype": str(leaf.dtype), "shape": list(leaf.shape)} for name, leaf in leaves.items()}


def is_prng_key(leaf: Any) -> bool:
    """Whether a leaf (array or ShapeDtypeStruct) holds typed PRNG keys."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def first_process_decides(function) -> Any:
    """`function()` on process 0; its JSON-able value, or its error, reaches every process.

    So that all hosts pick the same checkpoint, and none waits for one that has stopped.
    """
    if jax.process_count() == 1:
        return function()
    outcome, failure = {}, None
    if jax.process_index() == 0:
        try:
            outcome = {"value": function()}
        except Exception as error:
            words = str(error) if isinstance(error, CheckpointError) else f"Process 0 failed: {error!r}"
            outcome, failure = {"error": words}, error
    outcome = exchange("checkpoint", outcome)[0]
    if failure is not None:
        raise failure
    if "error" in outcome:
        raise CheckpointError(outcome["error"])
    return outcome["value"]


def _files_below(folder: epath.Path) -> list[epath.Path]:
    files = []
    for entry in sorted(folder.iterdir()):
        files.extend(_files_below(entry) if entry.is_dir() else [entry])
    return files


def _relative(file: epath.Path, folder: epath.Path) -> str:
    return os.fspath(file)[len(os.fspath(folder).rstrip("/")) + 1 :]


def _writer(name: str) -> int:
    """The process that wrote a file of a checkpoint."""
    found = _WRITER.search(name)
    return int(found[1]) if found else 0


def _read_table(folder: epath.Path) -> tuple[dict[str, dict], str | None]:
    """(the manifest's files, None), or ({}, what is wrong with the manifest)."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except ValueError as error:
        return {}, f"{MANIFEST} is not readable JSON: {error}"
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return {}, f"{MANIFEST} does not list files"
    if manifest.get("format") != FORMAT:
        return {}, f"{MANIFEST} has format {manifest.get('format')!r}, expected {FORMAT}"
    step, table = manifest.get("step"), manifest["files"]
    if type(step) is not int or step_folder(folder.parent, step) != folder:
        return {}, f"{MANIFEST} is that of step {step!r}"
    whole = all(isinstance(entry, dict) and {"size", "sha256"} <= entry.keys() for entry in table.values())
    if META not in table or not whole:
        return {}, f"{MANIFEST} lacks {META}, or a size or checksum"
    return table, None
