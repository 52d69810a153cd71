"""Experiment files and overrides: `configs/x.py` plus `--section.field value`."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import tyro

from pbrl_jax.core.config import Config
from pbrl_jax.core.errors import ConfigError, did_you_mean
from pbrl_jax.core.serialize import from_json


def load_config(path: str) -> Config:
    """The Config of an experiment file (`get_config()`), or of a saved config.json.

    Raises:
      ConfigError: no such file, no get_config in it, or something else than a Config comes out.
    """
    file = Path(path)
    if not file.is_file():
        known = [str(p) for p in sorted(Path("configs").glob("*.py"))]
        raise ConfigError(f"No config at {path!r}. {did_you_mean(path, known)}")
    if file.suffix == ".json":
        return from_json(file.read_text(encoding="utf-8"))
    module_spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} has no get_config(). Write `def get_config() -> Config:` in it.")
    config = module.get_config()
    if not isinstance(config, Config):
        raise ConfigError(f"get_config() of {path} gave a {type(config).__name__}, expected pbrl_jax.Config.")
    return config


def override(config: Config, arguments: Sequence[str], program: str) -> Config:
    """The config with `--section.field value` overrides; an unknown key ends the program with the nearest name."""
    return tyro.cli(Config, default=config, args=list(arguments), prog=program)
