"""The compiler's level on machines that have only CPUs."""

import os

import jax
import numpy as np
import pytest

from pbrl_jax.cli import main
from pbrl_jax.core import compiling

OWN = "--xla_backend_optimization_level=2"


@pytest.mark.parametrize("platforms, installed, before, after", [
    ("", "", "", f"{compiling.LEVEL}=1"),
    ("", "", "--xla_dump_to=there", f"--xla_dump_to=there {compiling.LEVEL}=1"),
    ("", "", OWN, OWN),
    ("", "libtpu", "", ""),
    ("", "jax_plugins", "", ""),
    ("cuda", "", "", ""),
    ("cpu", "libtpu", "", f"{compiling.LEVEL}=1"),
])  # fmt: skip
def test_only_where_jax_has_cpus_alone(monkeypatch, platforms, installed, before, after):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setenv("XLA_FLAGS", before)
    monkeypatch.setattr(compiling, "find_spec", lambda name: name == installed or None)
    compiling.compile_for_cpu()
    assert os.environ["XLA_FLAGS"] == after


def test_every_verb_has_it(monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "")
    assert main(["completion", "bash"]) == 0
    assert os.environ["XLA_FLAGS"] == f"{compiling.LEVEL}=1"


def test_the_values_are_the_same():
    def draw(key, x):
        normal = jax.random.normal(key, (24, 40))
        return normal, jax.nn.softmax(x @ normal), jax.random.truncated_normal(key, -2, 2, (3, 16))

    lowered = jax.jit(draw).lower(jax.random.key(3), np.ones((8, 24), np.float32))
    low, default = (
        lowered.compile({compiling.LEVEL.removeprefix("--"): level})(jax.random.key(3), np.ones((8, 24), np.float32))
        for level in (1, 3)
    )
    assert jax.tree.all(jax.tree.map(np.array_equal, low, default))
