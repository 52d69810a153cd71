"""Programs that run once: the same values, and the compiler's level."""

import jax
import numpy as np
import pytest

from pbrl_jax.mesh import once


def draw(key):
    wide, deep = jax.random.split(key)
    return jax.random.normal(wide, (24, 60)) * 24**-0.5, jax.random.truncated_normal(deep, -2, 2, (3, 16, 16))


@pytest.mark.parametrize("flags, level", [("", {once.LEVEL: 1}), ("--xla_backend_optimization_level=2", None)])
def test_a_level_of_ones_own_comes_first(monkeypatch, flags, level):
    asked, jit = [], jax.jit
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(jax, "jit", lambda function, compiler_options: asked.append(compiler_options) or jit(function))
    once.jit_once(draw)
    assert asked == [level]


def test_parameters_are_those_of_the_default_level(monkeypatch):
    key = jax.random.key(3)
    monkeypatch.setenv("XLA_FLAGS", "")
    by_default = jax.jit(draw).lower(key).compile({once.LEVEL: 3})(key)
    assert jax.tree.all(jax.tree.map(np.array_equal, once.jit_once(draw)(key), by_default))
