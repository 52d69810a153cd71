"""Experiment files and overrides: `configs/x.py` plus `--section.field value`."""

import ast
import dataclasses
import functools
import importlib.util
import inspect
import sys
import textwrap
import traceback
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from pbrl_jax.config.checks import range_words
from pbrl_jax.config.older import with_current_names
from pbrl_jax.config.serialize import check_round_trip, from_json
from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import ConfigError, PbrlError, did_you_mean
from pbrl_jax.core.paths import as_path, is_remote
from pbrl_jax.run.check import TABLES
from pbrl_jax.run.settings import as_config, config_class


def load_config(path: str) -> Config:
    """The Config of an experiment file (`get_config()`), or of a saved config.json.

    Raises:
      ConfigError: no such file, an error in it, no get_config, or something else than a Config comes out.
    """
    file = Path(path)
    if not file.is_file():
        known = [str(p) for p in sorted(Path("configs").glob("*.py"))]
        hint = did_you_mean(path, known) if known else "Give a Python file with get_config(), or a saved config.json."
        raise ConfigError(f"No config at {path!r}. {hint}")
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
        raise ConfigError(f"{path!r} is no config. Expected a Python file with get_config(), or a saved config.json.")
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
    registry = ConstructorRegistry()
    registry.struct_rule(_section_spec)
    return tyro.cli(config_class(), default=config, args=arguments, prog=program, registry=registry)


def _section_spec(info: StructTypeInfo) -> StructConstructorSpec | None:
    """How tyro builds a section, with help that says what values are allowed; None for other types."""
    sections = {type(getattr(config_class()(), field.name)): field.name for field in dataclasses.fields(Config)}
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
