"""Declarations of config fields: kind (identity or operational), range, allowed names, and when the field is read."""

import functools
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar


@dataclass(frozen=True)
class Rules:
    """Constraints on a field's value, checked by `config.checks` and shown in `--help`.

    A closed set of values is the field's own `Literal` type.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    names: Iterable[str] = ()
    """The table whose entries the value may name, if the section's package can import it."""
    only_with: tuple = ()
    """(sibling, *values): the field is read only if the sibling has one of these values; without values, if the sibling
    is on (not 0, None, empty, off or none)."""
    note: str = ""
    """Reason for the range, shown in the error message."""


def identity(default, **rules) -> Any:
    """A field that defines the experiment; `rules` are those of `Rules`."""
    return field(default=default, metadata={"kind": "identity", "rules": Rules(**rules)})


def operational(default, **rules) -> Any:
    """A field that changes how an experiment runs, never what it computes; `rules` are those of `Rules`."""
    return field(default=default, metadata={"kind": "operational", "rules": Rules(**rules)})


#: Field name -> type, of a section class.
field_types = functools.cache(typing.get_type_hints)


Settings = TypeVar("Settings")


def settings_of(section: Any, kind: type[Settings]) -> Settings:
    """Cast a section of `pbrl_jax.Config` to one of the settings classes that it extends, for type checkers."""
    if not isinstance(section, kind):
        raise TypeError(f"{type(section).__name__} has no settings of {kind.__name__}. Make it with pbrl_jax.Config.")
    return section
