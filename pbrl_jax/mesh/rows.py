"""The host that owns each row of a batch.

A row is on the devices of one shard of the `batch` axis. The host of that shard's first device owns the row: it
decodes, scores and logs it. If `tensor` spans hosts, several hosts hold the same row, and one of them owns it.
"""

import contextlib
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.mesh import agree
from pbrl_jax.mesh.sharding import batch_sharding, row_mesh, row_shards


def own_devices(mesh: Mesh) -> contextlib.AbstractContextManager:
    """A context in which computations use this host's devices of the mesh; with one host it does nothing."""
    return contextlib.nullcontext() if agree.host_count() == 1 else jax.set_mesh(row_mesh(mesh))


def row_owners(mesh: Mesh, rows: int) -> np.ndarray:
    """The number of the host that owns each of `rows` rows."""
    places = batch_sharding(mesh).devices_indices_map((rows,))
    owners = np.full(rows, -1)
    for device in mesh.devices.flat:
        index = places[device] or ()
        part = owners[index]
        part[part < 0] = device.process_index
    return owners


def owned_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """The rows that this host owns, in ascending order; all rows with one host."""
    return np.flatnonzero(row_owners(mesh, rows) == agree.host())


def held_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """The rows on this host's devices, in ascending order: its own rows and possibly others."""
    held = np.zeros(rows, bool)
    for index in batch_sharding(mesh).addressable_devices_indices_map((rows,)).values():
        held[index or ()] = True
    return np.flatnonzero(held)


def check_rows(section: str, rows: int, microbatch: int, mesh: Mesh | AbstractMesh) -> None:
    """Raise ConfigError if the batch of a supervised stage does not divide over its microbatches and the devices.

    Args:
      section: name of the config section with `batch_size` (`rows`; 0: filled up to whole microbatches) and
        `microbatch_size` (`microbatch`; 0: all).
    """
    shards = row_shards(mesh)
    part = microbatch or rows
    if not rows and part % shards:
        raise ConfigError(
            f"{section}.microbatch_size is {part}; expected a multiple of mesh data * fsdp = {shards} devices. Use "
            f"--{section}.microbatch-size {-(-part // shards) * shards}."
        )
    if rows % part or part % shards:
        field = "microbatch_size" if microbatch else "batch_size"
        least = shards if microbatch else -(-rows // shards) * shards
        raise ConfigError(
            f"{section}.{field} is {part}; expected a multiple of mesh data * fsdp = {shards} devices that divides "
            f"{section}.batch_size={rows}. Use --{section}.batch-size {-(-rows // least) * least}"
            + (f" --{section}.microbatch-size {least}." if microbatch else ", or a smaller mesh.data.")
        )


def rows_on_mesh(tree: Any, mesh: Mesh, rows: int) -> Any:
    """Global arrays of `rows` rows, sharded over devices, from the rows that this host holds (all with one host)."""
    sharding = batch_sharding(mesh)
    if agree.host_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x), (rows, *np.shape(x)[1:])), tree
    )


def fetch_rows(x: jax.Array, index: np.ndarray) -> np.ndarray:
    """Rows `index` of an array, from this host's devices; ValueError if these do not hold them."""
    rows = np.empty((len(index), *x.shape[1:]), x.dtype)
    missing = np.ones(rows.shape, bool)
    for shard in x.addressable_shards:
        first, past, _ = shard.index[0].indices(x.shape[0])
        inside = (index >= first) & (index < past)
        place = (inside, *shard.index[1:])
        if missing[place].any():
            rows[place] = np.asarray(shard.data)[index[inside] - first]
            missing[place] = False
    if missing.any():
        raise ValueError(f"Rows {index[missing.reshape(len(index), -1).any(axis=1)].tolist()} are on other hosts.")
    return rows
