"""Checks of a config against the declarations of its fields: types, closed sets, ranges, table names, dependencies."""

import ctypes
import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from pbrl_jax.config.fields import Rules, field_types
from pbrl_jax.config.supervised import STAGES
from pbrl_jax.config.tree import Config
from pbrl_jax.core.characters import CONTROL
from pbrl_jax.core.errors import ConfigError, nearest

#: Values that switch a field off, so that fields which depend on it are not read; see `Rules.only_with`.
OFF = (0, None, "", (), "off", "none")
#: Limits of int32 and of normal float32 numbers, the types that settings have on the device.
LARGEST_INTEGER, SMALLEST, LARGEST = 2**31 - 1, 1.2e-38, 3.4e38


def check_fields(config: Config) -> None:
    """Refuse values that their field's type, range or table does not allow.

    Raises:
      ConfigError: names the field, what it holds, and what is expected.
    """
    for field in dataclasses.fields(config):
        check_section(field.name, getattr(config, field.name))


def check_section(name: str, section: Any) -> None:
    """`check_fields` of one section."""
    kind: Any = type(section)
    hints = field_types(kind)
    for field in dataclasses.fields(section):
        path, value = f"{name}.{field.name}", getattr(section, field.name)
        for item in _values(path, value, hints[field.name]):
            _check_range(path, item, field.metadata["rules"])


def _values(path: str, value: Any, hint: Any) -> Iterator[Any]:
    """Yield the scalar values of a field after checking their type against `hint`; nothing for an allowed None."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return
        (hint,) = (argument for argument in arguments if argument is not type(None))
        yield from _values(path, value, hint)
    elif origin is tuple:
        if not isinstance(value, tuple):
            raise ConfigError(f"{path} is {value!r}; expected a tuple of {arguments[0].__name__}.")
        for item in value:
            yield from _values(path, item, arguments[0])
    elif origin is typing.Literal:
        _check_name(path, value, arguments)
        yield value
    elif type(value) is hint or (hint is float and type(value) is int):
        yield value
    else:
        raise ConfigError(f"{path} is {value!r} ({type(value).__name__}); expected {hint.__name__}.")


def _check_name(path: str, value: Any, names: tuple[str, ...]) -> None:
    if value not in names:
        known = ", ".join(name or "''" for name in names)
        raise ConfigError(f"{path} is {value!r}. Known: {known}.{nearest(str(value), names)}")


def _check_range(path: str, value: Any, rules: Rules) -> None:
    if rules.names:
        _check_name(path, value, tuple(rules.names))
    if isinstance(value, str) and (match := CONTROL.search(value)):
        raise ConfigError(f"{path} is {value!r}; expected text without the control character {match.group()!r}.")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise ConfigError(f"{path} has {value.bit_length()} bits; expected an integer of at most {LARGEST_INTEGER}.")
    # Programs compute in float32, where a value may round to an excluded bound or overflow.
    used = value if isinstance(value, int) else ctypes.c_float(value).value
    # All comparisons are false for NaN, which is therefore refused.
    inside = (
        (rules.at_least is None or value >= rules.at_least)
        and (rules.above is None or used > rules.above)
        and (rules.at_most is None or value <= rules.at_most)
        and (rules.below is None or used < rules.below)
    )
    if not (inside and math.isfinite(used)):
        reason = f": {rules.note}" if rules.note else ""
        raise ConfigError(f"{path} is {value}; expected {range_words(rules) or 'a finite number'}{reason}.")
    if value and not SMALLEST <= abs(value) <= LARGEST:
        raise ConfigError(f"{path} is {value}; expected 0, or a size from {SMALLEST} to {LARGEST} (float32).")


def range_words(rules: Rules) -> str:
    """The bounds in words: `from 0 to 1`, `at least 0`, `above 0 and below 1`; "" without bounds."""
    if rules.at_least is not None and rules.at_most is not None:
        return f"from {rules.at_least} to {rules.at_most}"
    words = ("at least", rules.at_least), ("above", rules.above), ("at most", rules.at_most), ("below", rules.below)
    return " and ".join(f"{word} {bound}" for word, bound in words if bound is not None)


def unread_fields(config: Config) -> list[str]:
    """One sentence for each field that was set although another field of its section switches it off."""
    sentences = []
    for part in dataclasses.fields(config):
        section = getattr(config, part.name)
        for field in dataclasses.fields(section):
            needs, value = field.metadata["rules"].only_with, getattr(section, field.name)
            if not needs or value == field.default:
                continue
            sibling, *values = needs
            state = getattr(section, sibling)
            if state not in values if values else state in OFF:
                wanted = f" {' or '.join(map(str, values))}" if values else ""
                sentences.append(
                    f"{part.name}.{field.name}={value} is not read: it belongs to {part.name}.{sibling}{wanted}, and "
                    f"that is {state!r}."
                )
    return sentences


def unread_sections(verb: str, arguments: Sequence[str]) -> list[str]:
    """One sentence for each section among the typed settings of a supervised stage that holds another verb's steps."""
    typed = dict.fromkeys(word.removeprefix("--").partition(".")[0] for word in arguments)
    return [
        f"--{section}.* is not read by pbrl {verb}, which reads --{STAGES[verb]}.*: it belongs to pbrl {owner}."
        for owner, section in {"train": "optim", **STAGES}.items()
        if verb in STAGES and section in typed and owner != verb
    ]
