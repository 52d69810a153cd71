"""The configuration that users see: every section, with the own settings of each algorithm, loss and reward.

`Config`, `AlgoConfig` and `RewardConfig` are made from the tables ALGORITHMS, LOSSES and REWARDS when they are asked
for, and are the same classes for as long as the tables name the same settings. They are subclasses of those in
`config.tree` and of every settings class, so that an algorithm may be given the whole section.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

from pbrl_jax.algos import ALGORITHMS
from pbrl_jax.algos.losses import LOSSES
from pbrl_jax.config import tree
from pbrl_jax.config.algo import AlgoConfig as BaseAlgo
from pbrl_jax.config.reward import RewardConfig as BaseReward
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.rewards.combine import REWARDS


def settings_classes() -> dict[str, tuple[type, ...]]:
    """Section -> the settings classes that its tables name, each once, in the tables' order."""
    algos = [algorithm.settings for algorithm in ALGORITHMS.values()] + [loss.settings for loss in LOSSES.values()]
    rewards = [reward.settings for reward in REWARDS.values()]
    return {"algo": _without_bases(BaseAlgo, algos), "reward": _without_bases(BaseReward, rewards)}


def config_class() -> type[tree.Config]:
    """The Config of the tables as they are now."""
    return _config_class(**settings_classes())


@functools.cache
def _config_class(algo: tuple[type, ...], reward: tuple[type, ...]) -> type[tree.Config]:
    sections = {"algo": _joined(BaseAlgo, algo), "reward": _joined(BaseReward, reward)}
    return dataclasses.make_dataclass(
        "Config",
        [(name, kind, dataclasses.field(default=kind())) for name, kind in sections.items()],
        bases=(tree.Config,), frozen=True, namespace={"__module__": __name__, "__doc__": tree.Config.__doc__},
    )  # fmt: skip


def _joined(base: type, classes: tuple[type, ...]) -> type:
    """A dataclass with the fields of all `classes`, those of `base` first."""
    _refuse_two_meanings(base, classes)
    bases = (*reversed(classes), base) if classes else (base,)
    namespace = {"__module__": __name__, "__doc__": base.__doc__}
    return dataclasses.make_dataclass(base.__name__, [], bases=bases, frozen=True, namespace=namespace)


def _refuse_two_meanings(base: type, classes: Iterable[type]) -> None:
    """A ConfigError where two classes declare a field of one name."""
    declared: dict[str, type] = {}
    kinds: Iterable[Any] = dict.fromkeys(part for own in classes for part in own.__mro__ if issubclass(part, base))
    for kind in kinds:
        for name in {field.name for field in dataclasses.fields(kind)} & kind.__annotations__.keys():
            other = declared.setdefault(name, kind)
            if other is not kind:
                raise ConfigError(
                    f"{kind.__name__} and {other.__name__} both declare the setting {name!r}. Give it another name, "
                    "or let one class extend the other."
                )


def _without_bases(base: type, classes: Iterable[type]) -> tuple[type, ...]:
    """The classes in order, each once, without those that another one extends."""
    kinds = [kind for kind in dict.fromkeys(classes) if kind is not base]
    for kind in kinds:
        if not issubclass(kind, base):
            raise ConfigError(f"The settings class {kind.__name__} must extend {base.__name__}.")
    return tuple(k for k in kinds if not any(other is not k and issubclass(other, k) for other in kinds))


def as_config(config: tree.Config) -> tree.Config:
    """`config` as an instance of `config_class()`: its sections may be of a settings class, or made before a table
    changed. What is no section at all stays, for `check_round_trip` to refuse."""
    default = config_class()()
    sections = {part.name: getattr(config, part.name) for part in dataclasses.fields(default)}
    for name, base in (("algo", BaseAlgo), ("reward", BaseReward)):
        section, own = sections[name], getattr(default, name)
        if isinstance(section, base) and type(section) is not type(own):
            shared = {field.name for field in dataclasses.fields(own)} & {f.name for f in dataclasses.fields(section)}
            sections[name] = dataclasses.replace(own, **{field: getattr(section, field) for field in shared})
    return type(default)(**sections)


def __getattr__(name: str) -> Any:
    if name == "Config":
        return config_class()
    if name in ("AlgoConfig", "RewardConfig"):
        return type(getattr(config_class()(), name.removesuffix("Config").lower()))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
