"""Config <-> JSON, and the comparison of two configs.

Reports, evaluations and resumed runs read `config.json`; they never need the Python file that a config came from. Files
of older versions are converted (see `config.older`).
"""

import dataclasses
import json
import math
import shlex
import types
import typing
from typing import Any, NamedTuple

from pbrl_jax.config.fields import field_types
from pbrl_jax.config.older import FIRST_VERSION, current_defaults, current_names, number
from pbrl_jax.config.tree import AnyConfig, Config
from pbrl_jax.core.errors import ConfigError, did_you_mean
from pbrl_jax.core.version import __version__


def to_json(config: Config) -> str:
    """The config as indented JSON: `version` (of this package), then the sections in field order, and a final newline.

    Tuples become lists, None becomes null.
    """
    return json.dumps({"version": __version__} | dataclasses.asdict(config), indent=2, ensure_ascii=False) + "\n"


def from_json(
    text: str,
    kind: type[AnyConfig] = Config,  # type: ignore[assignment]  # mypy takes no default for a type variable
    notes: list[str] | None = None,
) -> AnyConfig:
    """The config that `to_json` wrote: `from_json(to_json(config), type(config)) == config`.

    A key that the file lacks takes its default, and a renamed one is read under its new name.

    Args:
      kind: the class to make, `pbrl_jax.Config` for all settings of a run; fields are checked against their type
        annotations.
      notes: receives one sentence that lists missing and renamed keys, if there are any.

    Raises:
      ConfigError: not JSON, an unknown or repeated key, or a value of another type than the field's.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise ConfigError(
            f"The config is not JSON: {error}. Expected the content of a config.json that a run wrote."
        ) from error
    version = value.pop("version", FIRST_VERSION) if isinstance(value, dict) else FIRST_VERSION
    if not isinstance(version, str) or not number(version):
        raise ConfigError(f"The config's version is {version!r}; expected one such as {__version__!r}.")
    sections = [field.name for field in dataclasses.fields(kind)]
    if isinstance(value, dict) and not value.keys() & set(sections):
        raise ConfigError(f"Missing key {sections[0]!r} and all other sections: this is no config.json of a run.")
    reader = _Reader(version, [], [])
    config = reader.section(kind, value, "")
    if notes is not None and (changes := reader.changes()):
        notes.append(changes)
    return config


def check_round_trip(config: Any) -> None:
    """Refuse a config that would be read back differently from its config.json: its run could not be resumed.

    Raises:
      ConfigError: a value of another type than its field's, such as a list for a tuple.
    """
    try:
        again = from_json(to_json(config), type(config))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"The config cannot be saved as JSON: {error}. Use numbers and strings.") from error
    for section in dataclasses.fields(config):
        given, read = getattr(config, section.name), getattr(again, section.name)
        if type(given) is not type(read):
            found, expected = type(given).__name__, type(read).__name__
            raise ConfigError(f"Section {section.name!r} is a {found}, expected a {expected}.")
        for field in dataclasses.fields(read):
            value, saved = getattr(given, field.name), getattr(read, field.name)
            if not _same(value, saved):
                raise ConfigError(
                    f"Found {value!r} ({type(value).__name__}) for {section.name}.{field.name}, expected "
                    f"{saved!r} ({type(saved).__name__}). Write it so in the experiment file."
                )


def identity_differences(saved: Config, current: Config) -> dict[str, tuple[Any, Any]]:
    """Identity fields with another value: `{"algo.beta": (0.01, 0.02)}` is (saved, current), in field order.

    Operational fields (cadence, mesh, paths) never appear: they may change between two runs of one experiment.
    """
    differences = {}
    for section in dataclasses.fields(saved):
        before, after = getattr(saved, section.name), getattr(current, section.name)
        for field in dataclasses.fields(before):
            values = getattr(before, field.name), getattr(after, field.name)
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


def _same(left: Any, right: Any) -> bool:
    """Equality with NaN equal to NaN, so that a config equals itself."""
    both_nan = isinstance(left, float) and isinstance(right, float) and math.isnan(left) and math.isnan(right)
    return both_nan or left == right


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"The config names {', '.join(repeated)} more than once in one section. Keep one of them.")
    return dict(pairs)


class _Reader(NamedTuple):
    """Reads the sections of one file; collects renamed fields and fields that the file lacks."""

    version: str
    renamed: list[str]
    added: list[str]

    def changes(self) -> str:
        """One sentence about the collected fields; "" without any."""
        added = [f"new settings take their defaults: {', '.join(self.added)}"] if self.added else []
        changes = [*self.renamed, *added]
        return f"config.json was written by pbrl_jax {self.version}; {'; '.join(changes)}." if changes else ""

    def section(self, cls: type, value: Any, path: str) -> Any:
        """A dataclass from a JSON object; `path` ("", "algo") names it in messages."""
        where = f"section {path!r}" if path else "the config"
        if not isinstance(value, dict):
            raise ConfigError(f"Found {_found(value)} for {where}, expected a JSON object with its fields.")
        hints, prefix = field_types(cls), f"{path}." if path else ""
        value, renamed = current_names(path, value)
        value, changed = current_defaults(path, value, self.version)
        self.renamed.extend(renamed + changed)
        for name in value:
            if name not in hints:
                other = self.version != __version__
                raise ConfigError(
                    f"Unknown key {prefix + name!r} in {where}"
                    + (f", written by pbrl_jax {self.version} (this is {__version__})" if other else "")
                    + f". {did_you_mean(name, hints)} "
                    + ("Install that version, or remove the key." if other else "Correct the key, or remove it.")
                )
        values = {}
        for field in dataclasses.fields(cls):
            name = prefix + field.name
            if field.name in value:
                values[field.name] = self.typed(hints[field.name], value[field.name], name)
            else:
                default = field.default
                shown = "" if dataclasses.is_dataclass(default) else f"={json.dumps(default, ensure_ascii=False)}"
                self.added.append(name + shown)
        return cls(**values)

    def typed(self, hint: Any, value: Any, path: str) -> Any:
        """`value` as a field's type: a section, a tuple, an optional, or one of str, bool, int, float."""
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            return self.section(hint, value, path)
        if origin in (types.UnionType, typing.Union):
            if value is None and type(None) in arguments:
                return None
            (hint,) = (argument for argument in arguments if argument is not type(None))
            return self.typed(hint, value, path)
        if origin is tuple:
            if not isinstance(value, list):
                raise ConfigError(f"Found {_found(value)} for {path}, expected a list of {_words(arguments[0])}.")
            return tuple(self.typed(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(value))
        if hint is float and type(value) is int and value.bit_length() < 1024:  # a larger one overflows a double
            return float(value)
        if origin is typing.Literal:  # `config.checks` checks the value
            return self.typed(type(arguments[0]), value, path)
        # type(), not isinstance: True is an instance of int.
        if type(value) is not hint:
            raise ConfigError(f"Found {_found(value)} for {path}, expected {_words(hint)}.")
        return value


def _words(hint: Any) -> str:
    """A type in messages: `float`, `'mean' or 'max'`."""
    return " or ".join(map(repr, typing.get_args(hint))) if typing.get_args(hint) else hint.__name__


def _found(value: Any) -> str:
    return f"{json.dumps(value, ensure_ascii=False)[:80]} ({type(value).__name__})"
