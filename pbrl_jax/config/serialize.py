"""Config <-> JSON, and what makes two configs two experiments.

Reports, evaluations and resumed runs read `config.json`; they never need the Python file a config came from.
"""

import dataclasses
import json
import math
import shlex
import types
import typing
from typing import Any

from pbrl_jax.config.tree import AnyConfig, Config
from pbrl_jax.core.errors import ConfigError, did_you_mean


def to_json(config: Config) -> str:
    """The config as indented JSON, in field order, with a final newline. Tuples become lists, None becomes null."""
    return json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False) + "\n"


def from_json(text: str, kind: type[AnyConfig] = Config) -> AnyConfig:
    """The Config that `to_json` wrote: `from_json(to_json(config), type(config)) == config`.

    Args:
      kind: the class to make, `pbrl_jax.Config` for all settings that a run may have.

    Raises:
      ConfigError: not JSON, an unknown, missing or repeated key, or a value of another type than the field's.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"The config is not JSON: {error}. Expected the content of a config.json that a run wrote."
        ) from error
    return _section(kind, value, "")


def identity_differences(saved: Config, current: Config) -> dict[str, tuple[Any, Any]]:
    """Identity fields with another value: `{"algo.beta": (0.01, 0.02)}` is (saved, current), in field order.

    Operational fields (cadence, mesh, paths) never appear: they may change between two runs of one experiment.
    """
    differences = {}
    for section in dataclasses.fields(Config):
        one, other = getattr(saved, section.name), getattr(current, section.name)
        for field in dataclasses.fields(one):
            values = getattr(one, field.name), getattr(other, field.name)
            if field.metadata["kind"] == "identity" and not _same(*values):
                differences[f"{section.name}.{field.name}"] = values
    return differences


def command_line(name: str, value: Any) -> str:
    """The override that sets a field: `--algo.beta 0.01`, `--reward.functions cosine answer`, `--train.no-fused`."""
    if isinstance(value, bool):
        section, _, field = name.rpartition(".")
        return f"--{name}" if value else f"--{section}.no-{field.replace('_', '-')}"
    words = value if isinstance(value, tuple) else (value,)
    return " ".join([f"--{name}", *(shlex.quote(str(word)) for word in words)])


def _same(one: Any, other: Any) -> bool:
    """Equality in which a NaN equals a NaN, so that a config is never unlike itself."""
    both_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    return both_nan or one == other


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"The config names {', '.join(repeated)} more than once in one section. Keep one of them.")
    return dict(pairs)


def _section(cls: type, value: Any, path: str) -> Any:
    """A dataclass from a JSON object; `path` ("", "algo") names it in messages."""
    where = f"section {path!r}" if path else "the config"
    if not isinstance(value, dict):
        raise ConfigError(f"Found {_found(value)} for {where}, expected a JSON object with its fields.")
    hints = typing.get_type_hints(cls)
    prefix = f"{path}." if path else ""
    for name in value:
        if name not in hints:
            raise ConfigError(f"Unknown key {prefix + name!r} in {where}. {did_you_mean(name, hints)}")
    for field in dataclasses.fields(cls):
        if field.name not in value:
            default = field.default
            advice = "" if dataclasses.is_dataclass(default) else f"; its default is {json.dumps(default)}"
            raise ConfigError(
                f"Missing key {prefix + field.name!r} in {where}. Found: {', '.join(value) or 'nothing'}. "
                f"Add {field.name!r}{advice}."
            )
    return cls(**{name: _typed(hints[name], item, prefix + name) for name, item in value.items()})


def _typed(hint: Any, value: Any, path: str) -> Any:
    """`value` as the type of a field: a section, a tuple, an optional, or one of str, bool, int, float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:  # which of them, `config.checks` says
        return _typed(type(arguments[0]), value, path)
    if dataclasses.is_dataclass(hint):
        return _section(hint, value, path)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (hint,) = (argument for argument in arguments if argument is not type(None))
        return _typed(hint, value, path)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"Found {_found(value)} for {path}, expected a list of {arguments[0].__name__}.")
        return tuple(_typed(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(value))
    if hint is float and type(value) is int:
        return float(value)
    # type(), not isinstance: true is an int to Python and must not pass for one here.
    if type(value) is not hint:
        raise ConfigError(f"Found {_found(value)} for {path}, expected {hint.__name__}.")
    return value


def _found(value: Any) -> str:
    return f"{json.dumps(value, ensure_ascii=False)[:80]} ({type(value).__name__})"
