"""How much XLA optimises on a machine without an accelerator."""

import os
from importlib.util import find_spec

LEVEL = "--xla_backend_optimization_level"


def compile_for_cpu() -> None:
    """Where JAX has only CPUs, compile at level 1, unless XLA_FLAGS has a level. To be called before JAX computes.

    The values are the same, bit by bit, and rollouts and updates as fast as at the default (3). Small programs, such
    as those that draw parameters, whose loops the default unrolls, compile in a third of the time.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    platforms = os.environ.get("JAX_PLATFORMS", "")
    only_cpus = platforms == "cpu" if platforms else not (find_spec("jax_plugins") or find_spec("libtpu"))
    if only_cpus and LEVEL not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {LEVEL}=1".strip()
