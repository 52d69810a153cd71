"""Many programs in one MLIR context.

For each program that it lowers, JAX makes a context and loads all dialects into it: with thousands of small programs
that is a sixth of the time of these tests. What is lowered is the same.
"""

import threading

from jax._src.interpreters import mlir

PROGRAMS = 100
"""Programs of a context. It keeps their types and locations, so another one follows."""


def reuse_contexts() -> None:
    """Lower up to PROGRAMS programs of a thread in one context; nothing where this JAX makes them elsewhere."""
    make, own = getattr(mlir, "make_ir_context", None), threading.local()
    if make is None:
        return

    def context():
        left = getattr(own, "left", 0)
        if not left:
            own.context, left = make(), PROGRAMS
        own.left = left - 1
        return own.context

    mlir.make_ir_context = context
