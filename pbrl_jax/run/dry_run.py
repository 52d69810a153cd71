"""`--dry-run`: check a configuration, open what it names, and say what it would do; no weights are loaded."""

import jax

from pbrl_jax.config.serialize import to_json
from pbrl_jax.config.tree import Config
from pbrl_jax.core.characters import visible
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.run.assemble import check_start
from pbrl_jax.run.check import batch_arithmetic
from pbrl_jax.run.opened import opened


def main(config: Config, devices: int | None = None) -> None:
    """Validate, print the resolved configuration and the batch arithmetic, then what was found where it names data,
    tokenizers and models.

    Args:
      devices: check for a host with so many devices; None: for this one.

    Raises:
      ConfigError: the configuration cannot run there, or something that it names cannot be opened.
    """
    count = jax.device_count() if devices is None else devices
    check_start(config, count)
    print(to_json(config))
    print(batch_arithmetic(config, count))
    found = opened(config)
    for entry in found:
        if not entry.problem:
            print(visible(f"{entry.setting}: {entry.found}"))
    if problems := [entry for entry in found if entry.problem]:
        raise ConfigError("\n".join(f"{entry.setting}: {entry.problem}" for entry in problems))
