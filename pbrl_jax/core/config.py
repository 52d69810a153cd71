"""The old import path `from pbrl_jax.core.config import Config, AlgoConfig, with_values` of version 0.1.0.

Each name is looked up in `pbrl_jax` on first access.
"""

import importlib
import warnings
from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(__name__.partition(".")[0]), name)
    if not _warned:
        _warned.append(name)
        warnings.warn(
            f"pbrl_jax.core.config has moved: write `from pbrl_jax import {name}, ...`.", FutureWarning, stacklevel=2
        )
    return value


#: Whether the warning has been given.
_warned: list[str] = []
