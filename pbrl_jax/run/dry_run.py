"""`--dry-run`: check a configuration, open what it names, and say what it would do; no weights are loaded."""

from collections.abc import Mapping
from typing import Any

import jax

from pbrl_jax.config.serialize import to_json
from pbrl_jax.config.supervised import STAGES
from pbrl_jax.config.tree import Config
from pbrl_jax.core.characters import visible
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.paths import is_remote, work_dir
from pbrl_jax.run.check import batch_arithmetic
from pbrl_jax.run.check_verb import check_verb
from pbrl_jax.run.opened import opened


def main(verb: str, config: Config, workdir: str, devices: int | None, options: Mapping[str, Any]) -> None:
    """Validate, print the resolved configuration and the batch arithmetic, then what was found where it names data,
    tokenizers and models.

    Args:
      devices: check for a host with so many devices; None: for this one.
      options: of the verb beside the configuration, such as `replies` of `pbrl audit`.

    Raises:
      ConfigError: the verb cannot run there, or something that it reads cannot be opened.
    """
    count = jax.device_count() if devices is None else devices
    check_verb(verb, config, count)
    work = work_dir(workdir)
    if not is_remote(work.root) and work.root.exists() and not work.root.is_dir():
        raise ConfigError(f"--workdir {workdir} is a file. Name a folder.")
    print(to_json(config))
    if verb == "train":
        print(batch_arithmetic(config, count))
    elif verb in STAGES:
        stage = getattr(config, STAGES[verb])
        print(f"{stage.steps} optimizer steps, each on {stage.batch_size} rows.")
    found = opened(config, verb, work, options, count)
    for entry in found:
        if not entry.problem:
            print(visible(f"{entry.setting}: {entry.found}"))
    if problems := [entry for entry in found if entry.problem]:
        raise ConfigError("\n".join(f"{entry.setting}: {entry.problem}" for entry in problems))
