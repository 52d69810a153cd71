"""Settings of an algorithm, a loss or a reward that a run does not use, from what each of them declares.

They are refused: such a setting does not do what its name promises. What a switch beside a field turns off is harmless,
and `config.checks.unread_fields` names it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pbrl_jax.algos import ALGORITHMS
from pbrl_jax.algos.losses import LOSSES
from pbrl_jax.config.reward import RewardConfig
from pbrl_jax.config.serialize import command_line
from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.rewards.combine import REWARDS, reward_names


def check_read(config: Config) -> None:
    """Refuse settings that nothing in this run reads.

    Raises:
      ConfigError: names the settings, who reads them, and what to type.
    """
    algo = config.algo
    read = names_of(ALGORITHMS[algo.name].settings, LOSSES[algo.loss_type].settings)
    _refuse_unread("algo.name", algo.name, algo, read, ALGORITHMS)
    _refuse_unread("algo.loss_type", algo.loss_type, algo, read, LOSSES)
    used = [REWARDS[name].settings for name in reward_names(config.reward) if name in REWARDS]
    read = names_of(RewardConfig, *used)
    _refuse_unread("reward.functions", " ".join(config.reward.functions), config.reward, read, REWARDS)


def names_of(*kinds: type) -> set[str]:
    """The fields of settings classes."""
    return {field.name for kind in kinds for field in dataclasses.fields(kind)}


def _refuse_unread(path: str, chosen: str, section: Any, read: set[str], table: Mapping[str, Any]) -> None:
    """Refuse fields that were set, that an entry of `table` reads, and that are not in `read`."""
    known = names_of(*(entry.settings for entry in table.values()))
    unread = [field for field in dataclasses.fields(section)
              if field.name in known - read and getattr(section, field.name) != field.default]  # fmt: skip
    if not unread:
        return
    prefix = path.partition(".")[0]
    found = " and ".join(f"{prefix}.{field.name}={getattr(section, field.name)}" for field in unread)
    readers = {name: entry.settings for name, entry in table.items() if unread[0].name in names_of(entry.settings)}
    why = f"to {path} {chosen}"
    owner = next(kind for kind in next(iter(readers.values())).__mro__ if unread[0].name in kind.__annotations__)
    if "absent" in vars(owner):  # what is true of whatever lacks its fields
        why = f"here: {path} {chosen} {owner.absent}"
    defaults = " ".join(command_line(f"{prefix}.{field.name}", field.default) for field in unread)
    raise ConfigError(f"Settings {found} mean nothing {why}. Use {defaults}, or --{path} {' or '.join(readers)}.")
