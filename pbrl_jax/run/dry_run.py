"""`--dry-run`: check a configuration and say what it would do, without loading anything."""

import jax

from pbrl_jax.config.serialize import to_json
from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.run.assemble import check_start
from pbrl_jax.run.check import batch_arithmetic


def main(config: Config, devices: int | None = None) -> None:
    """Validate, then print the resolved configuration and the batch arithmetic.

    Args:
      devices: check for a host with so many devices; None: for this one.

    Raises:
      ConfigError: the configuration cannot run there.
    """
    if devices is not None and devices < 1:
        raise ConfigError(f"--devices is {devices}; expected at least 1.")
    count = jax.device_count() if devices is None else devices
    check_start(config, count)
    print(to_json(config))
    print(batch_arithmetic(config, count))
