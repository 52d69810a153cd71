"""Meshes, and the tables from logical axes to mesh axes: one for training, one for decoding.

Models name the logical axes of each parameter; the tables map these to mesh axes. Compiled code is plain `jax.jit`
with NamedSharding: the compiler inserts the collectives.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from pbrl_jax.config.tree import MeshConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.trees import map_with_path, match_rules

MESH_AXES = ("data", "fsdp", "tensor")

LOGICAL_AXES: dict[str, Any] = {
    "batch": ("data", "fsdp"),
    "gathered": "data",
    "vocab": "tensor",
    "width": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "ffn": "tensor",
    "sequence": "tensor",
    "layers": None,
    "none": None,
}
"""Logical axis -> mesh axes, in training. `batch` is the leading axis of rows and prompt groups, `gathered` the same
where the rows of all devices along fsdp are gathered; `sequence` is the position axis of hidden states between layers,
sharded over the same devices as heads and ffn."""

DECODING_AXES = LOGICAL_AXES | {"width": None}
"""For decoding: parameters are not sharded over fsdp (see rollout.weights)."""

SHARED_AXES = ("tensor", "fsdp")


def mesh_shape(config: MeshConfig, device_count: int) -> tuple[int, int, int]:
    """Sizes of the three mesh axes, with -1 resolved.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices; names sizes that do.
    """
    sizes = [config.data, config.fsdp, config.tensor]
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        given = dict(zip(MESH_AXES, sizes, strict=True))
        raise ConfigError(
            f"mesh sizes {given}: each must be positive; at most one may be -1. "
            "mesh.data is -1 by default: use --mesh.data 1 beside --mesh.fsdp -1 or --mesh.tensor -1."
        )
    count = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and device_count % count == 0:
        sizes[sizes.index(-1)] = device_count // count
        count = device_count
    if count != device_count:
        wanted = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
        raise ConfigError(
            f"{wanted} does not fit {device_count} devices{f': it needs {count} or more' * (count > device_count)}. "
            f"Use --mesh.data -1 --mesh.fsdp F --mesh.tensor T with F * T dividing {device_count}: "
            f"{divisors(device_count)}."
        )
    data, fsdp, tensor = sizes
    return data, fsdp, tensor


def divisors(number: int) -> str:
    """The divisors of a number up to 64, as text: `1, 2, 4 or 8`."""
    *others, last = [str(size) for size in range(1, min(number, 64) + 1) if number % size == 0]
    return f"{', '.join(others)} or {last}" if others else last


def make_mesh(config: MeshConfig, devices=None) -> Mesh:
    """The mesh `data, fsdp, tensor` over all (or the given) devices.

    Devices of a slice are ordered by its topology. With several slices only the `data` axis crosses the slow links
    between them.

    Raises:
      ConfigError: as mesh_shape, or a data axis that does not divide over the slices of a TPU.
    """
    devices = jax.devices() if devices is None else devices
    shape, types = mesh_shape(config, len(devices)), (AxisType.Auto,) * len(MESH_AXES)
    slices = slice_count(devices)
    if slices > 1 and shape[0] % slices == 0:
        return Mesh(across_slices(devices, shape, slices), MESH_AXES, axis_types=types)
    if devices[0].platform == "tpu":
        check_slices(shape[0], slices, len(devices))
    return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices)


def slice_count(devices: Iterable) -> int:
    """Number of TPU slices that devices belong to; 1 for other devices."""
    return len({getattr(device, "slice_index", None) for device in devices})


def check_slices(data: int, slices: int, chips: int) -> None:
    """Raise ConfigError where the `data` axis does not divide over the slices of a TPU."""
    if data % slices:
        raise ConfigError(
            f"mesh.data={data} does not divide over {slices} slices of {chips // slices} chips; links between slices "
            f"are too slow for fsdp and tensor. Use --mesh.data {slices} --mesh.fsdp -1."
        )


def inference_mesh(fsdp: int, tensor: int) -> Mesh | None:
    """All devices, their rest along `data`; None for a single one.

    Raises:
      ConfigError: they do not divide the number of devices; in the words of the command line.
    """
    count = jax.device_count()
    if count % (fsdp * tensor):
        raise ConfigError(
            f"--fsdp {fsdp} --tensor {tensor} does not fit {count} devices. Use --fsdp F --tensor T with F * T "
            f"dividing {count}: {divisors(count)}."
        )
    return make_mesh(MeshConfig(-1, fsdp, tensor)) if count > 1 else None


def across_slices(devices: Sequence, shape: tuple[int, int, int], slices: int) -> np.ndarray:
    """Devices of several slices in the shape of the mesh, slice after slice along the first axis."""
    within = (shape[0] // slices, *shape[1:])
    return mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices)


def partition_spec(*logical: str, table: Mapping[str, Any] = LOGICAL_AXES) -> PartitionSpec:
    """PartitionSpec of an array with these logical axes; without mesh axes over which the program is already apart."""
    apart = jax.sharding.get_abstract_mesh().manual_axes

    def left(axes):
        if isinstance(axes, tuple):
            return tuple(axis for axis in axes if axis not in apart) or None
        return None if axes in apart else axes

    return PartitionSpec(*(left(table[name]) for name in logical))


def on_each_device(function: Callable, in_specs, out_specs) -> Callable:
    """`function` of each device's part of its arguments, on the mesh set by `jax.set_mesh`; also within `data_sums`.

    Unchecked: Pallas kernels and loops do not say over which mesh axes their results vary.
    """
    mesh = jax.sharding.get_abstract_mesh()
    together = set(mesh.axis_names) - set(mesh.manual_axes)
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, axis_names=together, check_vma=False)


def tree_shardings(tree: Any, rules, mesh: Mesh | AbstractMesh) -> Any:
    """A NamedSharding for each parameter, from the model's AXES table.

    Args:
      tree: parameters, or their shapes.
      rules: (path pattern, logical axes) pairs.
      mesh: the mesh.

    Raises:
      ConfigError: a parameter without a rule, a rule without a parameter, or an axis that does not divide over its mesh
        axis.
    """

    def sharding(path: str, leaf, logical):
        spec = partition_spec(*logical)
        for size, name, axes in zip(leaf.shape, logical, spec, strict=True):
            shards = math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))
            if size % shards:
                raise ConfigError(
                    f"{path}: axis {name!r} of size {size} does not divide over mesh axis {axes!r} of {shards}. "
                    f"Choose a mesh.{axes} that divides {size}: {divisors(size)}."
                )
        return NamedSharding(mesh, spec)

    return map_with_path(sharding, tree, match_rules(tree, rules))


def place(tree: Any, shardings: Any) -> Any:
    """The arrays with these shardings. Every host passes the same arrays, of which only its own shards are copied."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def put(x, sharding):
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.jit(lambda x: x, out_shardings=sharding)(x)
        return jax.make_array_from_callback(np.shape(x), sharding, np.asarray(x).__getitem__)

    return jax.tree.map(put, tree, shardings)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that is replicated on all devices."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of the leading axis over the `batch` axes."""
    return NamedSharding(mesh, partition_spec("batch"))


def row_mesh(mesh: Mesh) -> Mesh:
    """A mesh of this process's devices, all along its data axis; for a replicated model."""
    devices = np.array(mesh.local_devices).reshape(-1, 1, 1)
    return Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def tensor_parallel_axes(size: int) -> dict[str, Any]:
    """The table of one axis of parameters of this size while decoding tensor-parallel over fsdp too: sharded over both
    mesh axes if they divide it."""
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in SHARED_AXES)
    sharded = SHARED_AXES if size % shards == 0 else "tensor"
    return DECODING_AXES | dict.fromkeys(("vocab", "heads", "kv_heads", "ffn"), sharded)


def constrain(x: jax.Array, *logical: str, table: Mapping[str, Any] = LOGICAL_AXES) -> jax.Array:
    """Constrain a value's sharding if a mesh is set (`jax.set_mesh`)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(*logical, table=table))


def sequence_axis(length: int) -> str:
    """The logical axis of `length` positions: `sequence` if its mesh axis divides them, else `none`."""
    mesh = jax.sharding.get_abstract_mesh()
    return "none" if mesh.empty or length % mesh.shape[LOGICAL_AXES["sequence"]] else "sequence"


def row_shards(mesh: Mesh | AbstractMesh | None = None) -> int:
    """Number of devices with different rows, on this mesh or the one set by `jax.set_mesh`; 1 without a mesh."""
    used = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    if used.empty:
        return 1
    apart = () if mesh is not None else jax.sharding.get_abstract_mesh().manual_axes
    return math.prod(used.shape[axis] for axis in LOGICAL_AXES["batch"] if axis not in apart)


def row_parts() -> int:
    """Number of parts of the rows that a program inside `microbatches.data_sums` sees one of; elsewhere 1."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in LOGICAL_AXES["batch"] if axis in mesh.manual_axes)


def vocab_shards() -> int:
    """Number of parts of the vocabulary on the mesh set by `jax.set_mesh`; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[LOGICAL_AXES["vocab"]]
