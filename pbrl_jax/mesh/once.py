"""Programs that run once, as those that draw parameters, or on few numbers: what counts is their compilation."""

import os
from collections.abc import Callable
from typing import Any

import jax

LEVEL = "xla_backend_optimization_level"


def jit_once(function: Callable, **options: Any) -> jax.stages.Wrapped:
    """`jax.jit` for a program that runs once, or on few numbers.

    On a CPU, XLA's default unrolls the random numbers of each small parameter, which takes seconds; its level 1 draws
    the same values and compiles in a third of the time. Programs of steps stay at the default: at level 1 their
    elementwise operations use fewer cores. A level in XLA_FLAGS comes first.
    """
    cheap = jax.default_backend() == "cpu" and LEVEL not in os.environ.get("XLA_FLAGS", "")
    return jax.jit(function, compiler_options={LEVEL: 1} if cheap else None, **options)
