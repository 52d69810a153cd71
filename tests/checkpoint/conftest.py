"""Small trees, and a second Python for what would hurt this one (kills, full disks, other device counts)."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pbrl_jax.core import paths
from pbrl_jax.core.records import PromptBatch, Rollout, TrainBatch, TrainState

REPOSITORY = Path(paths.__file__).parents[2]


@pytest.fixture
def small_tree():
    """step -> a tree of two arrays that tells its step."""
    return lambda step: {"w": jnp.arange(1000, dtype=jnp.float32) * step, "step": jnp.int32(step)}


@pytest.fixture
def full_tree():
    """Everything a run may save: typed records, optax states, a rollout, keys, bfloat16, None, empty containers."""
    params = {
        "params": {
            "layers": {"kernel": jax.random.normal(jax.random.key(1), (3, 4, 5)).astype(jnp.bfloat16)},
            "scale": jnp.float32(1 / 3),
            "bias": jnp.array([jnp.nan, jnp.inf, -0.0, 1e-45]),
        }
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = TrainState(params, optimizer.init(params), jnp.int32(7), jnp.int32(0))
    prompts = PromptBatch(jnp.ones((2, 3), jnp.int32), jnp.array([3, 1]), jnp.array([2**31 - 1, 0]))
    rollout = Rollout(jnp.zeros((4, 2), jnp.int32), jnp.ones(4, jnp.int32), jnp.full((4, 2), -0.1), jnp.ones(4, bool))
    return {
        "state": state,
        "buffer": TrainBatch(prompts, rollout, jnp.zeros(4), jnp.array([True, False, True, True])),
        "reference": None,
        "keys": (jax.random.key(3), jax.random.split(jax.random.key(4, impl="rbg"), 3), jax.random.PRNGKey(5)),
        "list": [jnp.uint8(255), None, {}, jnp.zeros((0, 3), jnp.float16)],
        "numpy": np.arange(6, dtype=np.int32).reshape(2, 3)[:, ::2],
    }


@pytest.fixture
def abstract():
    """tree -> the same tree of ShapeDtypeStructs without shardings."""
    return lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


@pytest.fixture
def same_bits():
    """Asserts equal structure, types, shapes and bytes (NaNs and signed zeros included)."""

    def check(one, other):
        assert jax.tree.structure(one) == jax.tree.structure(other)
        for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            assert left.dtype == right.dtype and left.shape == right.shape
            if jax.dtypes.issubdtype(left.dtype, jax.dtypes.prng_key):
                left, right = jax.random.key_data(left), jax.random.key_data(right)
            assert np.asarray(left).tobytes() == np.asarray(right).tobytes()

    return check


@pytest.fixture
def python():
    """Runs code in a Python of its own; its standard output. `devices` virtual CPU devices."""

    def run(code: str, *arguments: object, devices: int = 1) -> str:
        flags = (
            f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
            " --xla_cpu_collective_call_terminate_timeout_seconds=600"
        )
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
