"""Which host owns which rows, and reading rows from the devices that hold them."""

from types import SimpleNamespace
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from pbrl_jax import MeshConfig
from pbrl_jax.mesh import rows
from pbrl_jax.mesh.rows import fetch_rows, held_rows, own_devices, owned_rows, row_owners, rows_on_mesh
from pbrl_jax.mesh.sharding import make_mesh


class Places:
    """The rows of each device, as a sharding tells them."""

    def __init__(self, devices, rows):
        size = rows // len(devices)
        self.of = {id(x): slice(n * size, (n + 1) * size) for n, shard in enumerate(devices) for x in shard}

    def __getitem__(self, device):
        return (self.of[id(device)],)


def fake_mesh(monkeypatch, hosts):
    """A mesh [shards, tensor] of devices that lie on these hosts; a shard's devices hold the same rows."""
    devices = np.array([[SimpleNamespace(process_index=host) for host in shard] for shard in hosts], object)
    sharding = SimpleNamespace(devices_indices_map=lambda shape: Places(devices, shape[0]))
    monkeypatch.setattr(rows, "batch_sharding", lambda mesh: sharding)
    return Mock(spec=Mesh, devices=devices)


@pytest.mark.parametrize(
    ("hosts", "owners"),
    [
        ([[0], [0], [1], [1]], [0, 0, 0, 0, 1, 1, 1, 1]),
        ([[0], [1], [0], [1]], [0, 0, 1, 1, 0, 0, 1, 1]),
        ([[0, 1], [0, 1]], [0] * 8),
        ([[1, 0], [0, 1]], [1, 1, 1, 1, 0, 0, 0, 0]),
    ],
)
def test_every_row_has_one_owner(monkeypatch, hosts, owners):
    """The host of its shard's first device, also where a row lies on several hosts."""
    assert row_owners(fake_mesh(monkeypatch, hosts), 8).tolist() == owners


def test_a_host_alone_owns_and_holds_all():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert owned_rows(mesh, 6).tolist() == held_rows(mesh, 6).tolist() == list(range(6))
    with own_devices(mesh):
        assert jax.sharding.get_abstract_mesh().empty


@pytest.mark.serial
def test_rows_go_to_the_mesh_and_come_back():
    """Of arrays cut by rows, by rows and columns, and whole ones."""
    mesh = make_mesh(MeshConfig(2, 2, 2))
    values = np.arange(8 * 6, dtype=np.float32).reshape(8, 6)
    placed = rows_on_mesh({"rows": values, "none": None}, mesh, 8)["rows"]
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 6)}
    both = jax.device_put(values, jax.NamedSharding(mesh, jax.P(("data", "fsdp"), "tensor")))
    whole = jax.device_put(values, jax.NamedSharding(mesh, jax.P()))
    index = np.array([6, 1, 2])
    for array in (placed, both, whole, jax.numpy.asarray(values)):
        np.testing.assert_array_equal(fetch_rows(array, index), values[index])
    np.testing.assert_array_equal(fetch_rows(placed[:, 0], index), values[index, 0])


def test_rows_of_another_host_are_named():
    half = SimpleNamespace(index=(slice(0, 2),), data=np.zeros(2))
    array = Mock(spec=jax.Array, shape=(4,), ndim=1, dtype=np.float32, addressable_shards=[half])
    with pytest.raises(ValueError, match=r"\[3\] are on other hosts"):
        fetch_rows(array, np.array([1, 3]))
