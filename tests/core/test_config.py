"""Experiment files of the first version import their settings from `pbrl_jax.core.config`."""

import importlib
import warnings

import pytest

import pbrl_jax
from pbrl_jax.core import config as old


def test_the_old_name_gives_the_new_classes_and_says_so_once():
    importlib.reload(old)
    with pytest.warns(FutureWarning, match="from pbrl_jax import Config"):
        from pbrl_jax.core.config import Config
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from pbrl_jax.core.config import AlgoConfig, OptimConfig, with_values
    assert Config is pbrl_jax.Config and OptimConfig is pbrl_jax.OptimConfig
    assert with_values(Config(), algo={"lam": 0.9}).algo == AlgoConfig(lam=0.9)


def test_what_never_was_there():
    with pytest.raises(ImportError, match="NoConfig"):
        from pbrl_jax.core.config import NoConfig  # noqa: F401
