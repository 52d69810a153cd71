"""Restoring: the newest checkpoint that is whole, and only into the experiment it came from."""

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from itertools import starmap
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from pbrl_jax.checkpoint import manifest, older
from pbrl_jax.config.serialize import command_line, identity_differences
from pbrl_jax.config.tree import Config
from pbrl_jax.core import paths
from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.trees import nested
from pbrl_jax.mesh.agree import host_array

_LOGGER = logging.getLogger(__name__)
PROVED, PROVED_BYTES = 3, 1 << 26
"""A save is proved by up to PROVED + 1 arrays, from the smallest to the largest of at most PROVED_BYTES."""
_PRNG_IMPLEMENTATIONS = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}


class Restored(NamedTuple):
    """A checkpoint that was loaded, and the newer ones that could not be: (folder, reason).

    `version` is the one that wrote it.
    """

    step: int
    tree: Any
    meta: dict[str, Any]
    folder: epath.Path
    skipped: list[tuple[str, str]]
    version: str


def restore_latest(
    directory: str | os.PathLike, abstract_tree: Any | Callable[[dict], Any], *, partial: bool = False
) -> Restored | None:
    """Loads the newest checkpoint of which every byte is as it was written.

    Damaged ones are skipped, and named in the result. On several hosts all call it; process 0 chooses.

    Args:
      directory: the `checkpoints` folder of the work directory; may be `gs://`.
      abstract_tree: as in `restore_checkpoint`.
      partial: as in `restore_checkpoint`.

    Returns:
      None where no checkpoint was ever completed: no folder, or only traces of a save that was killed.

    Raises:
      CheckpointError: there are checkpoints and every one is damaged (a run must not silently start afresh); or as in
        `restore_checkpoint`.
    """
    choice = manifest.first_process_decides(lambda: _newest_whole(paths.as_path(directory)))
    if choice["folder"] is None:
        return None
    folder = paths.as_path(choice["folder"])
    restored = _load(folder, abstract_tree, partial)
    return restored._replace(skipped=[(name, reason) for name, reason in choice["skipped"]])


def restore_checkpoint(
    folder: str | os.PathLike, abstract_tree: Any | Callable[[dict], Any], *, partial: bool = False
) -> Restored:
    """Loads one checkpoint, verified before.

    Args:
      folder: a `step_...` folder.
      abstract_tree: tree of jax.ShapeDtypeStruct (or arrays) that says structure, shape, dtype and sharding of the
        result; or a function of the checkpoint's `meta` that makes it. The sharding may be of another mesh than that
        of the save. Without a sharding an array goes to the first device. Arrays that `older.ADDED` names may be
        missing in a checkpoint of an older version.
      partial: leave out arrays of the checkpoint that `abstract_tree` does not name (an evaluation needs no optimizer).

    Raises:
      CheckpointError: the checkpoint is damaged, holds other arrays, or could not be read.
    """
    folder = paths.as_path(folder)
    reason = manifest.first_process_decides(lambda: manifest.damage(folder))
    if reason:
        raise CheckpointError(f"{folder} is not a whole checkpoint: {reason}. Restore another one.")
    return _load(folder, abstract_tree, partial)


def read_meta(folder: str | os.PathLike) -> dict[str, Any]:
    """The `meta` that was given to save_checkpoint; nothing is verified, no array is read."""
    return manifest.read_meta_file(paths.as_path(folder))["meta"]


def saved_leaves(folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """path -> {"dtype", "shape"} of every array in a checkpoint; nothing is verified, no array is read."""
    return manifest.read_meta_file(paths.as_path(folder))["leaves"]


def list_checkpoints(directory: str | os.PathLike) -> list[tuple[int, epath.Path]]:
    """(step, folder) of the checkpoints whose save came to its end, newest first; their files are not verified."""
    found = manifest.step_folders(paths.as_path(directory))
    return [(step, folder) for step, folder in found if manifest.is_committed(folder)]


def params_sha256(params: Any) -> str:
    """Hex SHA-256 of every leaf's path, dtype, shape and C-order bytes, in sorted path order.

    Each leaf adds the line `path dtype d0,d1` and then its bytes (little-endian). Paths are those inside `params`:
    `{"params": {"head": {"kernel": x}}}` has `params/head/kernel`. Arrays on several hosts are gathered, one at a time,
    so all hosts must call it.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(manifest.named_leaves(params), key=lambda pair: pair[0]):
        array = host_array(leaf)
        digest.update(f"{name} {array.dtype} {','.join(map(str, array.shape))}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def check_same_experiment(
    saved_config: Config, config: Config, saved_fingerprints: dict[str, str], fingerprints: dict[str, str]
) -> None:
    """Refuses to continue a checkpoint as another experiment.

    Args:
      saved_config: config of the checkpoint.
      config: config of this run; operational fields may differ.
      saved_fingerprints: name (`dataset`, `pivots`) -> fingerprint, of the checkpoint.
      fingerprints: the same of this run.

    Raises:
      CheckpointError: lists every identity field and fingerprint that differs, and how to go on.
    """
    fields = identity_differences(saved_config, config)
    names = sorted(saved_fingerprints.keys() | fingerprints.keys())
    prints = [name for name in names if saved_fingerprints.get(name) != fingerprints.get(name)]
    if not fields and not prints:
        return
    lines = [f"  {name}: saved {saved!r}, now {now!r}" for name, (saved, now) in fields.items()]
    for name in prints:
        saved, now = (given.get(name, "nothing") for given in (saved_fingerprints, fingerprints))
        lines.append(f"  fingerprint of {name}: saved {saved}, now {now}")
    back = [command_line(name, saved) for name, (saved, _) in fields.items()]
    back += [f"the {name} it was made with" for name in prints]
    raise CheckpointError(
        "The work directory holds a checkpoint of another experiment. These differ:\n"
        + "\n".join(lines)
        + f"\nUse another --workdir, or go on with it as it was: {', '.join(back)}."
    )


def _newest_whole(directory: epath.Path) -> dict[str, Any]:
    """{"folder": the newest intact one or None, "skipped": the newer ones, with the reason}."""
    skipped: list[tuple[str, str]] = []
    interrupted_only = True
    for _, folder in manifest.step_folders(directory):
        reason = manifest.damage(folder)
        if reason is None:
            return {"folder": str(folder), "skipped": skipped}
        interrupted_only &= manifest.was_interrupted(folder)
        skipped.append((str(folder), reason))
    if not interrupted_only:
        listed = "\n".join(f"  {folder}: {reason}" for folder, reason in skipped)
        raise CheckpointError(
            f"Every checkpoint in {directory} is damaged:\n{listed}\nRestore one of them from a backup, or start anew: "
            "delete the folder, or use another --workdir."
        )
    for folder, reason in skipped:
        _LOGGER.warning("%s is skipped: %s. No save was ever completed here.", folder, reason)
    return {"folder": None, "skipped": skipped}


def _load(folder: epath.Path, abstract_tree: Any, partial: bool) -> Restored:
    record = manifest.read_meta_file(folder)
    abstract = abstract_tree(record["meta"]) if callable(abstract_tree) else abstract_tree
    wanted = dict(manifest.named_leaves(abstract))
    for name, leaf in wanted.items():
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise CheckpointError(f"{name}: found {type(leaf).__name__}, expected an array or a jax.ShapeDtypeStruct.")
    version = older.written_by(record)
    filled = older.fill_in(record["leaves"], version, wanted)
    present = {name: leaf for name, leaf in wanted.items() if name not in filled}
    _check_leaves(folder, record["leaves"], manifest.leaf_table(present), partial, version)
    try:
        leaves = _read_arrays(folder, present, partial) | filled
    except Exception as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0][:400]
        raise CheckpointError(
            f"The checkpoint {folder} has the right checksums but could not be read: {cause}. Check the mesh and the "
            "memory of the devices, and that orbax-checkpoint is no older than at the save."
        ) from error
    tree = jax.tree.unflatten(jax.tree.structure(abstract), [leaves[name] for name in wanted])
    if (told := older.describe(version, filled, record["meta"])) and jax.process_index() == 0:
        _LOGGER.warning("%s", told)
    return Restored(record["step"], tree, record["meta"], folder, [], version)


class Kept(NamedTuple):
    """What a save is proved by: an array's shape, type and sharding, and copies of the shards of this process."""

    target: jax.ShapeDtypeStruct
    shards: list[np.ndarray]


def kept_for_proof(leaves: Mapping[str, Any]) -> dict[str, Kept]:
    """A few of the arrays that are about to be saved, copied: the arrays themselves may be donated meanwhile."""
    arrays = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, jax.Array) and leaf.size}
    by_size = sorted(arrays, key=lambda name: (arrays[name].nbytes, name))
    small = [name for name in by_size if arrays[name].nbytes <= PROVED_BYTES] or by_size[:1]
    chosen = {small[at * (len(small) - 1) // PROVED]: None for at in range(PROVED + 1)} if small else {}
    wanted = {name: arrays[name] for name in chosen}
    return {
        name: Kept(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), _shard_bytes(leaf))
        for name, leaf in wanted.items()
    }


def differs_from(folder: epath.Path, kept: Mapping[str, Kept]) -> str | None:
    """What keeps a checkpoint, just written, from being restored as it was; None where nothing does.

    A few arrays are read as a restore reads them. Each process compares its own shards.
    """
    try:
        found = _read_arrays(folder, {name: one.target for name, one in kept.items()}, partial=True)
    except Exception as error:  # of orbax and tensorstore, of many kinds
        return f"it cannot be read: {(str(error).splitlines() or [type(error).__name__])[0][:400]}"
    other = [
        name
        for name, one in kept.items()
        if not all(starmap(np.array_equal, zip(_shard_bytes(found[name]), one.shards, strict=True)))
    ]
    return f"{', '.join(other)} reads back with other values" if other else None


def _shard_bytes(array: jax.Array) -> list[np.ndarray]:
    """A copy of the bytes of each shard that this process holds."""
    data = jax.random.key_data(array) if manifest.is_prng_key(array) else array
    return [np.array(shard.data).reshape(-1).view(np.uint8) for shard in data.addressable_shards]


def _check_leaves(folder: epath.Path, saved: dict, wanted: dict, partial: bool, version: str) -> None:
    """Orbax would convert another dtype silently; here every array must be what it was."""
    problems = [f"{name} is not in the checkpoint" for name in wanted if name not in saved]
    if not partial:
        problems += [f"{name} is in the checkpoint only" for name in saved if name not in wanted]
    for name in wanted:
        if name in saved and saved[name] != wanted[name]:
            one, other = (f"{entry['dtype']}{entry['shape']}" for entry in (saved[name], wanted[name]))
            problems.append(f"{name}: saved {one}, expected {other}")
    if problems:
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CheckpointError(
            f"{folder}, written by pbrl_jax {version}, holds other arrays than this run:\n  "
            + "\n  ".join(problems[:10])
            + more
            + "\nUse another --workdir, or the model and optimizer it was saved with."
        )


def _read_arrays(folder: epath.Path, wanted: dict[str, Any], partial: bool) -> dict[str, jax.Array]:
    """path -> array of the wanted shape, dtype and sharding."""
    targets = {name: _target(name, leaf) for name, leaf in wanted.items()}
    stored = {name: target for name, target in targets.items() if target.size}
    leaves = {}
    if stored:
        context = ocp.Context()
        context.pytree.loading.partial_load = partial
        with context:
            loaded = ocp.load(paths.without_marks(folder), nested(stored), checkpointable_name=manifest.STATE)
        leaves = dict(manifest.named_leaves(loaded))
    for name, target in targets.items():
        if name not in leaves:
            leaves[name] = jnp.zeros(target.shape, target.dtype, device=target.sharding)
        if manifest.is_prng_key(wanted[name]):
            leaves[name] = jax.random.wrap_key_data(leaves[name], impl=_PRNG_IMPLEMENTATIONS[str(wanted[name].dtype)])
    return leaves


def _target(name: str, leaf: Any) -> jax.ShapeDtypeStruct:
    """What orbax shall read for a leaf: with a sharding, and key data for PRNG keys."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        if jax.process_count() > 1:
            raise CheckpointError(f"{name} has no sharding, which several hosts need. Give its ShapeDtypeStruct one.")
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    data = leaf
    if manifest.is_prng_key(leaf):
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)
