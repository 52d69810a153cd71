"""Saving: a checkpoint is complete or it is not there, and no save endangers an earlier one.

First the arrays are copied to the host, by orbax; after that they may be donated. Writing them, hashing the files and
all that follows can be done in another thread (`checkpoint.background`).

On a local disk: arrays and metadata go to `step_00000010.tmp-<random>/`, the manifest is staged in it, the folder gets
its final name, and the manifest's rename is the last act. Behind `gs://`, where nothing can be renamed, all goes to
the final name and the manifest is the last object. Only then are older checkpoints removed.
"""

import contextlib
import errno
import json
import logging
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from pbrl_jax.checkpoint import manifest
from pbrl_jax.checkpoint.restore import Kept, differs_from, kept_for_proof
from pbrl_jax.core import paths
from pbrl_jax.core.errors import CheckpointError, HostLost
from pbrl_jax.core.trees import nested
from pbrl_jax.core.version import __version__
from pbrl_jax.mesh.agree import exchange

_LOGGER = logging.getLogger(__name__)
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_SPACE_WORDS = ("No space left", "File too large", "Disk quota exceeded", "RESOURCE_EXHAUSTED")


def save_checkpoint(
    directory: str | os.PathLike, step: int, tree: Any, meta: dict[str, Any], keep: int, prove: bool = False
) -> epath.Path:
    """Saves `tree` and `meta` as checkpoint `step`, then removes all but the newest `keep` up to this step.

    Returns when the files are on disk, verified by name and size. It may run in any thread, one save at a time. On
    several hosts all call it; each writes and hashes its own arrays, and process 0 does the rest.

    Leftovers of killed saves are removed first. A damaged checkpoint of the same step is replaced. An intact one with
    equal `meta` is the same checkpoint, and is kept without another write.

    Args:
      directory: the `checkpoints` folder of the work directory; may be `gs://`.
      step: optimizer steps done; at least 0.
      tree: any pytree whose leaves are jax.Arrays (sharded or not, typed PRNG keys too) or NumPy arrays of a type
        that JAX has. Containers are not stored, only paths and values. Weak types become strong.
      meta: what else belongs to the state; anything JSON can hold (tuples come back as lists, keys as strings).
      keep: checkpoints that stay, this one included; at least 1.
      prove: open what was written again, as a restore does, and compare some arrays, before an older checkpoint goes.
        For the first save of a process: what may keep a checkpoint from being read (the path, the layout over devices
        and hosts, the library's version) does not change later.

    Returns:
      The folder of the checkpoint.

    Raises:
      CheckpointError: nothing that can be saved, a failed write (full disk), or one that cannot be read again. Earlier
        checkpoints stay valid.
    """
    for _ in save_in_parts(directory, step, tree, meta, keep, prove):
        pass
    return manifest.step_folder(paths.as_path(directory), step)


def save_in_parts(
    directory: str | os.PathLike, step: int, tree: Any, meta: dict[str, Any], keep: int, prove: bool = False
) -> Iterator[None]:
    """`save_checkpoint` as a generator. Where it yields, once, the arrays are copied and no longer needed; what is left
    may run in another thread. It ends without a yield where this very checkpoint exists."""
    if step < 0 or keep < 1:
        raise CheckpointError(f"Found step {step} and keep {keep}, expected step >= 0 and keep >= 1.")
    directory = paths.as_path(directory)
    folder = manifest.step_folder(directory, step)
    leaves = _checked_leaves(tree)
    record = _record(step, leaves, meta)
    with _as_checkpoint_error(folder, sum(leaf.size * leaf.dtype.itemsize for leaf in leaves.values())):
        name = manifest.first_process_decides(lambda: _prepare(directory, folder, record))
        if name is None:
            return
        working = directory / name
        kept = kept_for_proof(leaves) if prove else None
        written = _copy_arrays(working, leaves)
        del tree, leaves  # else they would stay on the devices beside those of the next step
        yield
        with _without_tracebacks():
            written()
        table = manifest.hashed_files(working)
        manifest.first_process_decides(lambda: _complete(working, folder, step, record, table))
    if kept is not None:
        _prove(folder, kept)
    manifest.first_process_decides(lambda: _remove_older(directory, step, keep))


def _checked_leaves(tree: Any) -> dict[str, Any]:
    """path -> array. What could not be restored bit by bit is refused before anything is written."""
    pairs = manifest.named_leaves(tree)
    for name, leaf in pairs:
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise CheckpointError(
                f"Cannot save {name or 'the tree'}: found {type(leaf).__name__}, expected an array. "
                "Wrap it in jnp.asarray with a dtype, or put it into meta."
            )
        if isinstance(leaf, np.ndarray) and not _jax_has(leaf.dtype):
            raise CheckpointError(
                f"Cannot save {name}: JAX has no {leaf.dtype} here. Convert it to a type JAX has, or put it into meta."
            )
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise CheckpointError(f"Cannot save {name}: its array was donated or deleted. Save before the next update.")
    leaves = dict(pairs)
    # Orbax joins names with dots, this package with slashes: no two leaves may meet in either.
    stored = {name.replace("/", ".") for name in leaves}
    if not leaves or "" in leaves or len(stored) < len(pairs):
        raise CheckpointError(
            f"Cannot save {len(pairs)} arrays under the names {sorted(leaves)[:5]}: expected a tree with at least one "
            "array, and names that stay different when `.` and `/` are not told apart. Rename its keys."
        )
    return leaves


def _jax_has(dtype: np.dtype) -> bool:
    """Whether a NumPy type passes through JAX unchanged (int64 does not, unless jax_enable_x64 is set)."""
    number = jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)
    return bool(number) and jax.dtypes.canonicalize_dtype(dtype) == dtype


def _record(step: int, leaves: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """The content of meta.json, as it will be read back."""
    record = {"version": __version__, "step": step, "leaves": manifest.leaf_table(leaves), "meta": meta}
    try:
        return json.loads(json.dumps(record, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The meta of checkpoint {step} does not fit into JSON: {error}.") from error


def _prepare(directory: epath.Path, folder: epath.Path, record: dict[str, Any]) -> str | None:
    """Clears what killed saves left behind; the name to write under, or None where this very checkpoint exists."""
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = [other for _, other in manifest.step_folders(directory) if not manifest.is_committed(other)]
    temporary = [entry for entry in directory.iterdir() if entry.name.startswith("step_") and ".tmp" in entry.name]
    for leftover in unfinished + temporary:
        _remove(leftover)
    if manifest.is_committed(folder) and manifest.damage(folder):
        folder.rmtree()
    if not manifest.is_committed(folder):
        # Writes of tensorstore outlive a save that failed. In a folder of its own, a new attempt never meets them.
        return folder.name if paths.is_remote(folder) else f"{folder.name}.tmp-{secrets.token_hex(4)}"
    existing = manifest.read_meta_file(folder)
    if existing != record:
        differing = [name for name in record["meta"] if existing["meta"].get(name) != record["meta"][name]]
        raise CheckpointError(
            f"{folder} is a complete checkpoint of this step with other contents "
            f"(meta: {', '.join(differing) or 'same'}; arrays: "
            f"{'same' if existing['leaves'] == record['leaves'] else 'others'}). It was left as it is. "
            "Resume from the newest checkpoint, or use another --workdir."
        )
    return None


def _copy_arrays(working: epath.Path, leaves: dict[str, Any]) -> Callable[[], None]:
    """Copies the arrays to the host and has orbax write them; returns what waits until they are written.

    Arrays without elements are left out, as orbax refuses them; PRNG keys are stored as their data.
    """
    stored = {
        name: jax.random.key_data(leaf) if manifest.is_prng_key(leaf) else jnp.asarray(leaf)
        for name, leaf in leaves.items()
        if math.prod(leaf.shape)
    }
    if not stored:
        return lambda: working.mkdir(parents=True) if jax.process_index() == 0 else None
    context = ocp.Context()
    # Weights and moments hardly compress (7 % at float32), and compressing costs a fifth of the time.
    context.array.saving.use_compression = False
    with context, _without_tracebacks():
        return ocp.save_async(paths.without_marks(working), nested(stored), checkpointable_name=manifest.STATE).result


def _complete(working: epath.Path, folder: epath.Path, step: int, record: dict[str, Any], table: dict) -> None:
    """Metadata, manifest, final name; the manifest's own name comes last."""
    paths.write_atomic(working / manifest.META, json.dumps(record, indent=1))
    table = table | {manifest.META: manifest.file_entry(working / manifest.META)}
    if paths.is_remote(folder):
        manifest.write_manifest(folder, step, table)
    else:
        manifest.write_manifest(working, step, table, manifest.STAGED_MANIFEST)
        paths.rename_synced(working, folder)
        paths.rename_synced(folder / manifest.STAGED_MANIFEST, folder / manifest.MANIFEST)
    reason = manifest.damage(folder, checksums=False)
    if reason:
        raise OSError(f"what was written reads back differently: {reason}")


def _prove(folder: epath.Path, kept: dict[str, Kept]) -> None:
    """Takes a checkpoint out of the count again where it cannot be read as it was written (CheckpointError)."""
    found = next(filter(None, exchange("proof", differs_from(folder, kept))), None)
    if found is not None:
        manifest.first_process_decides(lambda: manifest.uncommit(folder))
        raise CheckpointError(
            f"{folder} was written, but a restore from it would fail: {found}. It does not count; earlier "
            f"checkpoints in {folder.parent} are unchanged. Use a --workdir on another disk."
        )


def _remove_older(directory: epath.Path, step: int, keep: int) -> None:
    """Keeps the newest `keep` whole checkpoints up to `step`. Later ones are another story: they are not touched."""
    older = [folder for number, folder in manifest.step_folders(directory) if number < step]
    whole = [folder for folder in older if manifest.damage(folder, checksums=False) is None]
    for folder in set(older) - set(whole[: keep - 1]):
        _remove(folder)


def _remove(folder: epath.Path) -> None:
    """Removes a checkpoint or what is left of one. A failure costs space, not safety: it is only told."""
    try:
        if manifest.is_committed(folder):
            manifest.uncommit(folder)
        folder.rmtree()
    except OSError as error:
        _LOGGER.warning("%s is no longer needed but could not be removed: %s. Delete it by hand.", folder, error)


@contextlib.contextmanager
def _as_checkpoint_error(folder: epath.Path, needed: int) -> Iterator[None]:
    """Turns whatever a write raises (OSError, ValueError of tensorstore, ...) into one message, and frees the space.
    `needed`: bytes of the arrays."""
    free = _free_bytes(folder)
    try:
        yield
    except (CheckpointError, HostLost):
        raise
    except Exception as error:
        if jax.process_index() == 0:
            _discard(folder)
        cause = (str(error).splitlines() or [type(error).__name__])[0][:400]
        full = getattr(error, "errno", None) in _NO_SPACE or any(words in cause for words in _NO_SPACE_WORDS)
        if isinstance(error, MemoryError):
            cause, advice = f"this host has no memory left ({cause})", "Give the process more memory"
        elif full:
            advice = (
                "Free space on the disk, lower --train.save_total_limit, or move the work directory to another disk"
            )
        else:
            advice = "Check that the folder exists, can be written to, and that its disk is healthy"
        space = "" if free is None else f", {_bytes(free)} were free"
        raise CheckpointError(
            f"Could not save checkpoint {folder}: {cause}. The arrays need {_bytes(needed)}{space}. "
            f"Earlier checkpoints in {folder.parent} are unchanged. {advice}, then run the same command again."
        ) from error


def _discard(folder: epath.Path) -> None:
    """Removes what a failed save has written, as far as that works: the next save clears the rest."""
    with contextlib.suppress(OSError):
        for entry in folder.parent.iterdir():
            unfinished = entry == folder and not manifest.is_committed(folder)
            if unfinished or entry.name.startswith(f"{folder.name}.tmp"):
                entry.rmtree()


def _free_bytes(folder: epath.Path) -> int | None:
    """Free bytes of the disk below the nearest folder that exists; None where nobody can know."""
    if paths.is_remote(folder):
        return None
    existing = next((parent for parent in folder.parents if parent.exists()), None)
    return None if existing is None else shutil.disk_usage(existing).free


def _bytes(count: int) -> str:
    return f"{count:,} bytes"


@contextlib.contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Keeps orbax from logging the traceback of an error that is raised, and told, anyway.

    After an error that lasts: orbax's threads may still be writing into the folder, which is then removed.
    """
    logger = logging.getLogger("absl")

    def no_traceback(record: logging.LogRecord) -> bool:
        return not (record.exc_info and "orbax" in record.pathname)

    logger.addFilter(no_traceback)
    yield
    logger.removeFilter(no_traceback)
