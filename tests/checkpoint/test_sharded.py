"""Saved by 8 devices, restored by 8 (in the process that saved), 4 and 1: the mesh is operational."""

import json

COMMON = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from pbrl_jax.checkpoint import params_sha256, restore_latest, save_checkpoint

def tree_on(shape):
    mesh = jax.make_mesh(shape, ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    specs = {"both": ("fsdp", "tensor"), "rows": ("fsdp", None), "columns": (None, "tensor"), "whole": (),
             "keys": ("fsdp",)}
    return {name: NamedSharding(mesh, PartitionSpec(*spec)) for name, spec in specs.items()}

def values():
    numbers = jax.random.normal(jax.random.key(0), (16, 24))
    return {"both": numbers, "rows": numbers.astype(jnp.bfloat16), "columns": (numbers * 100).astype(jnp.int32),
            "whole": numbers[0, 0], "keys": jax.random.split(jax.random.key(9), 8)}

def restored_checksum(directory, shape):
    shardings = tree_on(shape)
    abstract = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(values),
        shardings)
    tree = restore_latest(directory, abstract).tree
    for name, value in values().items():
        assert tree[name].sharding.is_equivalent_to(shardings[name], value.ndim), name
        assert len(tree[name].sharding.device_set) == shape[0] * shape[1], name
        raw = [jax.random.key_data(x) if name == "keys" else x for x in (value, tree[name])]
        assert np.asarray(raw[0]).tobytes() == np.asarray(raw[1]).tobytes(), name
    tree.pop("keys")
    return params_sha256(tree)
"""
SAVE = (
    COMMON
    + """
assert jax.device_count() == 8
placed = jax.tree.map(jax.device_put, values(), tree_on((4, 2)))
assert len(placed["both"].sharding.device_set) == 8 and not placed["both"].is_fully_replicated
save_checkpoint(sys.argv[1], 10, placed, {}, keep=1)
placed.pop("keys")
print(params_sha256(placed))
print(restored_checksum(sys.argv[1], (2, 4)))
"""
)
RESTORE = COMMON + "print(restored_checksum(sys.argv[1], tuple(json.loads(sys.argv[2]))))"


def test_restore_on_other_meshes(tmp_path, python):
    saved, *restored = python(SAVE, tmp_path, devices=8).splitlines()
    for devices, shape in ((4, [1, 4]), (1, [1, 1])):
        restored += python(RESTORE, tmp_path, json.dumps(shape), devices=devices).splitlines()
    assert restored == [saved] * 3
