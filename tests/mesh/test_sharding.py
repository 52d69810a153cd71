"""Meshes and the table from logical to mesh axes. Computation on eight devices is in tests/train/test_sharded.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from pbrl_jax import MeshConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.mesh.sharding import (
    DECODING_AXES,
    LOGICAL_AXES,
    MESH_AXES,
    across_slices,
    batch_sharding,
    constrain,
    inference_mesh,
    make_mesh,
    mesh_shape,
    partition_spec,
    replicated,
    sequence_axis,
    tree_shardings,
)
from pbrl_jax.models.decoder import decoder_axes, init_decoder
from pbrl_jax.models.specs import DECODERS, tiny_decoder


def paper_mesh(*shape) -> Mesh:
    """A mesh to plan on: one device standing in for all of them."""
    return Mesh(np.full(shape, jax.devices()[0]), MESH_AXES)


def test_devices_of_an_inference_are_named_as_they_are_typed():
    with pytest.raises(ConfigError, match=r"^--fsdp 3 --tensor 1 does not fit \d devices. Use --fsdp F"):
        inference_mesh(3, 1)


@pytest.mark.parametrize(
    "sizes, devices, shape",
    [
        ((-1, 1, 1), 1, (1, 1, 1)),
        ((-1, 2, 2), 8, (2, 2, 2)),
        ((2, -1, 1), 8, (2, 4, 1)),
        ((1, 1, -1), 4, (1, 1, 4)),
        ((2, 2, 2), 8, (2, 2, 2)),
    ],
)
def test_mesh_shape(sizes, devices, shape):
    assert mesh_shape(MeshConfig(*sizes), devices) == shape


@pytest.mark.parametrize(
    "sizes, devices, message",
    [
        ((-1, 3, 1), 8, r"mesh.fsdp=3.*8 devices.*dividing 8: 1, 2, 4 or 8\."),
        ((2, 2, 1), 8, r"mesh.data=2, mesh.fsdp=2, mesh.tensor=1 does not fit 8 devices"),
        ((4, 4, 1), 8, "does not fit 8 devices: it needs 16 or more"),
        ((-1, -1, 1), 8, "at most one may be -1"),
        ((-1, -1, 1), 8, "use --mesh.data 1 beside --mesh.fsdp -1"),
        ((0, 1, 1), 8, "each must be positive"),
        ((-2, 1, 1), 8, "each must be positive"),
    ],
)
def test_impossible_meshes_are_refused(sizes, devices, message):
    with pytest.raises(ConfigError, match=message):
        mesh_shape(MeshConfig(*sizes), devices)


def test_make_mesh():
    mesh = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    assert mesh.axis_names == MESH_AXES and mesh.size == 1
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_partition_specs():
    assert partition_spec("batch") == PartitionSpec(("data", "fsdp"))
    assert partition_spec("layers", "width", "heads", "none") == PartitionSpec(None, "fsdp", "tensor", None)
    assert {axis for axes in LOGICAL_AXES.values() if axes for axis in np.atleast_1d(axes)} == set(MESH_AXES)
    mesh = paper_mesh(2, 2, 2)
    assert batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))
    assert replicated(mesh).is_fully_replicated


@pytest.mark.parametrize("preset", ["llama31_8b", "qwen3_32b"])
def test_large_models_are_cut_over_the_whole_mesh(preset):
    """On 2 x 8 x 4 devices every matrix of a large model is in 32 parts, so a device holds 1/32, norms apart."""
    spec = DECODERS[preset]
    shapes = jax.eval_shape(functools.partial(init_decoder, spec=spec), jax.random.key(0))
    shardings = tree_shardings(shapes, decoder_axes(spec), paper_mesh(2, 8, 4))
    held = jax.tree.map(lambda leaf, sharding: np.prod(sharding.shard_shape(leaf.shape)) / leaf.size, shapes, shardings)
    for path, share in jax.tree_util.tree_leaves_with_path(held):
        assert share == (1.0 if "scale" in str(path) else 1 / 32), path


def test_an_axis_that_does_not_divide_is_named():
    spec = tiny_decoder()
    shapes = jax.eval_shape(functools.partial(init_decoder, spec=spec), jax.random.key(0))
    with pytest.raises(ConfigError, match=r"layers/key/kernel.*'kv_heads' of size 2.*'tensor' of 4.*mesh.tensor"):
        tree_shardings(shapes, decoder_axes(spec), paper_mesh(1, 2, 4))


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh is laid out by."""

    id: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "a chip"
    process_index: int = 0


def test_only_the_data_axis_crosses_slices():
    """Two slices of four, whose devices come mixed."""
    chips = [Chip(number, number % 2) for number in range(8)]
    for shape in ((2, 4, 1), (4, 1, 2), (2, 2, 2)):
        laid = across_slices(chips, shape, 2)
        slices = np.vectorize(lambda place, laid=laid: laid.flat[place].slice_index)(np.arange(8).reshape(shape))
        assert laid.shape == shape and (slices == slices[:, :1, :1]).all(), "fsdp and tensor stay within a slice"
        assert slices[: shape[0] // 2].max() == 0 and slices[shape[0] // 2 :].min() == 1
        assert sorted(chip.id for chip in laid.flat) == list(range(8))
    with pytest.raises(ConfigError, match=r"mesh.data=1 does not divide over 2 slices of 4 chips.*--mesh.data 2"):
        make_mesh(MeshConfig(1, 8, 1), [dataclasses.replace(chip, platform="tpu") for chip in chips])


def test_tables_of_training_and_of_decoding():
    """While decoding, matrices are whole along fsdp and cut along tensor."""
    assert partition_spec("layers", "width", "ffn") == PartitionSpec(None, "fsdp", "tensor")
    assert partition_spec("layers", "width", "ffn", table=DECODING_AXES) == PartitionSpec(None, None, "tensor")
    assert partition_spec("batch", table=DECODING_AXES) == partition_spec("batch")


def test_positions_are_cut_where_they_divide():
    assert sequence_axis(8) == "none", "no mesh"
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1, 1, 4), MESH_AXES)):
        assert [sequence_axis(length) for length in (8, 6, 1)] == ["sequence", "none", "none"]


def test_constrain_needs_no_mesh():
    x = jnp.ones((2, 3, 4))
    assert constrain(x, "batch", "none", "none") is x
    with jax.set_mesh(make_mesh(MeshConfig(), devices=jax.devices()[:1])):
        text = str(jax.make_jaxpr(lambda x: constrain(x, "batch", "none", "none"))(x))
    assert "sharding_constraint" in text
