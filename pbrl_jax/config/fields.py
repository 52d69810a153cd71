"""What a field of a configuration says of itself: its kind, its range, its names, and when it is read."""

import functools
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar


@dataclass(frozen=True)
class Rules:
    """What a value must satisfy; `config.checks` holds it to that, and `--help` shows it.

    Closed sets are `Literal` types of the field itself.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    names: Iterable[str] = ()
    """A table that the value names an entry of, where it lies in the field's own room or below."""
    only_with: tuple = ()
    """(sibling, *values): the field is read only where its sibling has one of these values; without values, where the
    sibling is on (not 0, None, empty, off or none)."""
    note: str = ""
    """Why the range is what it is, for the message."""


def identity(default, **rules) -> Any:
    """A field that defines the experiment; `rules` are those of `Rules`."""
    return field(default=default, metadata={"kind": "identity", "rules": Rules(**rules)})


def operational(default, **rules) -> Any:
    """A field that changes how an experiment runs, never what it computes; `rules` are those of `Rules`."""
    return field(default=default, metadata={"kind": "operational", "rules": Rules(**rules)})


#: The types of a section's fields, by name.
field_types = functools.cache(typing.get_type_hints)


Settings = TypeVar("Settings")


def settings_of(section: Any, kind: type[Settings]) -> Settings:
    """A section of `pbrl_jax.Config` as one of the settings classes that it extends, for type checkers."""
    if not isinstance(section, kind):
        raise TypeError(f"{type(section).__name__} has no settings of {kind.__name__}. Make it with pbrl_jax.Config.")
    return section
