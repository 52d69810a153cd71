"""A description of the devices of a run, and of accelerators that JAX cannot use."""

import logging
import os

import jax

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.version import __version__

EXTRAS = {"NVIDIA GPU": "cuda", "TPU": "tpu"}
"""Accelerator, as named in JAX's warning about one that it cannot use -> extra with the missing packages."""


class _Unused(logging.Filter):
    """Removes JAX's warnings about accelerators that it cannot use, and records their kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        kinds = [kind for kind in EXTRAS if f"{kind} may be present" in record.getMessage()]
        self.kinds += kinds
        return not kinds


def devices_line() -> str:
    """`pbrl_jax 0.2.0, jax 0.10.2 on 8 tpu devices (TPU v5 lite)`, and a line for each accelerator that is not used.

    Raises:
      ConfigError: JAX_PLATFORMS names a platform that is not installed.
    """
    unused, logger = _Unused(), logging.getLogger("jax._src.xla_bridge")
    logger.addFilter(unused)
    try:
        devices = jax.devices()
    except RuntimeError as error:
        raise ConfigError(missing(os.environ.get("JAX_PLATFORMS", ""), str(error))) from error
    finally:
        logger.removeFilter(unused)
    count = f"{len(devices)} {devices[0].platform} device{'s' if len(devices) > 1 else ''}"
    lines = [f"pbrl_jax {__version__}, jax {jax.__version__} on {count} ({devices[0].device_kind})."]
    for kind in unused.kinds:
        lines.append(f"This machine has an {kind}, which is not used: pip install -e '.[{EXTRAS[kind]}]'"
                     .replace("an TPU", "a TPU"))  # fmt: skip
    return "\n".join(lines)


def missing(platforms: str, error: str) -> str:
    """The error message for a JAX_PLATFORMS that is not available, with the command that helps."""
    extra = next(
        (extra for extra in EXTRAS.values() if extra in platforms or (extra == "cuda" and "gpu" in platforms)), ""
    )
    advice = f"pip install -e '.[{extra}]', or unset JAX_PLATFORMS" if extra else "Unset JAX_PLATFORMS"
    return f"JAX_PLATFORMS={platforms} is not available: {error.splitlines()[0][:200]}. {advice}."
