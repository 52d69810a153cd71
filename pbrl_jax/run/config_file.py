"""Experiment files (Python, YAML, a saved config.json, or a shipped one by name) and overrides."""

import ast
import dataclasses
import functools
import importlib.util
import inspect
import json
import sys
import textwrap
import traceback
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from pbrl_jax.config.checks import range_words
from pbrl_jax.config.older import current_names, with_current_names
from pbrl_jax.config.serialize import check_round_trip, from_json
from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import ConfigError, PbrlError, did_you_mean
from pbrl_jax.core.paths import as_path, is_remote
from pbrl_jax.core.version import __version__
from pbrl_jax.core.yaml_text import read_yaml
from pbrl_jax.run.check import TABLES
from pbrl_jax.run.settings import as_config, config_class

EXPECTED = "a Python file with get_config(), a YAML file of sections, or a saved config.json"
YAML = (".yaml", ".yml")
BASE = "base"
"""Key of a YAML file: the config that it changes, a shipped one's name or a file beside it."""


def shipped_configs() -> dict[str, Path]:
    """Name -> file of the configs that come with the package: `quickstart`, `paper/lora`, `machines/...`."""
    package = Path(__file__).parents[1]
    roots = [root for root in (package / "configs", package.parent / "configs") if root.is_dir()]
    return {
        file.relative_to(root).with_suffix("").as_posix(): file for root in roots[:1] for file in root.glob("**/*.py")
    }


def config_path(path: str) -> Path:
    """The file that `path` names: itself, or a shipped config by its name, with or without `configs/` and `.py`.

    Raises:
      ConfigError: neither; lists the names.
    """
    if (file := Path(path)).is_file():
        return file
    known = shipped_configs()
    name = path.removeprefix("configs/").removesuffix(".py")
    if name not in known:
        names = [f"configs/{name}.py" for name in known] if path.endswith(".py") else known
        raise ConfigError(f"No config at {path!r}; expected {EXPECTED}, or the name of a shipped one. "
                          f"{did_you_mean(path, names)}")  # fmt: skip
    return known[name]


def merged(config: Config, sections: Mapping[str, Any], place: str) -> Config:
    """`config` with the fields of `sections`, {section: {field: value}}, lists standing for tuples.

    Raises:
      ConfigError: an unknown section or field, or a value of another type; `place` is where it was found.
    """
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    try:
        for name, fields in sections.items():
            if name not in values:
                raise ConfigError(f"Unknown section {name!r}. {did_you_mean(str(name), values)}")
            if not isinstance(fields, Mapping):
                raise ConfigError(f"Section {name!r} is {fields!r}; expected its fields, such as data: {{limit: 8}}.")
            values[name] |= current_names(name, dict(fields))[0]
        return from_json(json.dumps(values | {"version": __version__}), type(config))
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{place}: {error}") from error


def _of_yaml(file: Path, above: tuple[Path, ...] = ()) -> Config:
    """The Config of a YAML file: {section: {field: value}} over the defaults, or over the config that `base` names."""
    try:
        sections = read_yaml(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is not YAML: {error}") from error
    if not isinstance(sections, dict):
        raise ConfigError(f"{file} holds a {type(sections).__name__}; expected sections, such as train: {{seed: 1}}.")
    base = sections.pop(BASE, None)
    if base is None:
        return merged(config_class()(), sections, str(file))
    beside, above = file.parent / str(base), (*above, file.resolve())
    start = beside if beside.is_file() else config_path(str(base))
    if start.resolve() in above:
        raise ConfigError(f"{file}: base names {base}, which leads back to this file. Name another.")
    yaml = start.suffix in YAML
    return merged(_of_yaml(start, above) if yaml else load_config(str(start)), sections, str(file))


def load_config(path: str) -> Config:
    """The Config of an experiment file (`get_config()`, or YAML), a saved config.json, or a shipped one by name.

    Raises:
      ConfigError: no such file, an error in it, no get_config, or something else than a Config comes out.
    """
    file = config_path(path)
    if file.suffix in YAML:
        return _of_yaml(file)
    if file.suffix == ".json":
        notes: list[str] = []
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not UTF-8: {error}. Expected a config.json that a run wrote.") from error
        config = from_json(text, config_class(), notes)
        print("".join(f"{path}: {note}\n" for note in notes), end="", file=sys.stderr)
        return config
    module_spec = importlib.util.spec_from_file_location(file.stem, file)
    if file.suffix != ".py" or module_spec is None or module_spec.loader is None:
        raise ConfigError(f"{path!r} is no config. Expected {EXPECTED}.")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ConfigError(f"{path} has no get_config(). Write `def get_config() -> Config:` in it.")
        config = module.get_config()
    except PbrlError:
        raise
    except (Exception, SystemExit) as error:  # an experiment file is code and may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == file.resolve()]
        place = f"{path}, line {lines[-1]}" if lines else path
        raise ConfigError(f"{place}: {type(error).__name__}: {error}. Correct the file.") from error
    if not isinstance(config, Config):
        raise ConfigError(f"get_config() of {path} gave a {type(config).__name__}, expected pbrl_jax.Config.")
    config = as_config(config)
    check_round_trip(config)
    return config


def run_config(source: str) -> Config | None:
    """The Config of the run whose work directory `source` is, or None: another folder, or a hub id."""
    root = as_path(source)
    if is_remote(root) or not ((root / "config.json").exists() and (root / "policy").exists()):
        return None
    return load_config(str(root / "config.json"))


def override(config: Config, arguments: Sequence[str], program: str) -> Config:
    """The config with `--section.field value` overrides; an unknown key ends the program with the nearest name.

    A field's name in an older version is taken too, and the new one is said.
    """
    arguments, renamed = with_current_names(arguments, dataclasses.asdict(config))
    print("".join(f"{sentence}; the old name still works.\n" for sentence in renamed), end="", file=sys.stderr)
    default = config_class()()
    sections = {type(getattr(default, field.name)): field.name for field in dataclasses.fields(default)}
    registry = ConstructorRegistry()
    registry.struct_rule(functools.partial(_section_spec, sections))
    return tyro.cli(config_class(), default=config, args=arguments, prog=program, registry=registry)


def _section_spec(sections: dict[type, str], info: StructTypeInfo) -> StructConstructorSpec | None:
    """How tyro builds a section, with help that says what values are allowed; None for other types."""
    section: Any = info.type
    if section not in sections:
        return None

    hints, words = typing.get_type_hints(section), field_words(section)
    return StructConstructorSpec(
        section,
        tuple(
            StructFieldSpec(
                name=field.name,
                type=hints[field.name],
                default=getattr(info.default, field.name),
                helptext=" ".join(filter(None, (
                    words.get(field.name), allowed_values(f"{sections[section]}.{field.name}", field)
                ))),
            )
            for field in dataclasses.fields(section)
        ),
    )  # fmt: skip


def allowed_values(path: str, field: dataclasses.Field) -> str:
    """What a field may hold, for its help: the names of its table, its range; closed sets are shown by the parser."""
    rules = field.metadata["rules"]
    table = TABLES.get(path)
    names = list(rules.names) if table is None else [name for name in (*table.table, *table.more) if name]
    if names:
        return f"Known: {', '.join(names)}."
    limits = range_words(rules)
    return f"{limits[0].upper()}{limits[1:]}." if limits else ""


@functools.cache
def field_words(kind: type) -> dict[str, str]:
    """Field -> the string below it in the source of its class."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        if "__annotations__" not in cls.__dict__:
            continue
        try:
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        except (OSError, TypeError):  # made at run time: its fields are those of its bases
            continue
        body = definition.body if isinstance(definition, ast.ClassDef) else []
        for line, following in zip(body, body[1:], strict=False):
            match line, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                    found[name] = " ".join(words.split())
    return found
