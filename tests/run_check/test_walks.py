"""Walks: a loss, an algorithm with a setting and a reward with a setting, each added by one file and one table line.

Nothing else of the package knows them, and still their names are checked and shown in `--help`, their settings have
ranges, go into config.json and come back, are refused where nothing reads them, and the run trains with them.
"""

import importlib.util
import sys

import numpy as np
import pytest
from source_tree import ROOT
from tiny_policy import largest_difference, quick_compiles  # noqa: F401  the second is a fixture

import pbrl_jax
from pbrl_jax.algos import ALGORITHMS, Algorithm
from pbrl_jax.algos.losses import LOSSES, Loss, token_mean
from pbrl_jax.config.serialize import from_json, to_json
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.paths import read_json_lines, work_dir
from pbrl_jax.rewards.combine import REWARDS, Reward
from pbrl_jax.run.assemble import build_experiment
from pbrl_jax.run.check import validate
from pbrl_jax.run.config_file import load_config, override
from pbrl_jax.train.loop import train

TINY = str(ROOT / "configs" / "tiny_cpu.py")
#: Two small steps in which rewards differ, so that something is learnt.
TWO_STEPS = (
    "--reward.language-gate", "off", "--train.max-steps", "2", "--data.limit", "4", "--algo.beta", "0",
    "--optim.learning-rate", "0.01", "--log.no-tensorboard", "--log.no-entropy", "--train.no-packed",
)  # fmt: skip

SIGNS = '''
"""Only the direction of an advantage counts."""
import jax.numpy as jnp

def signs(logp_BR, ratio_BR, adv_BR, config):
    return -ratio_BR * jnp.sign(adv_BR), {}
'''

POWER = '''
"""Advantages raised to a power."""
from dataclasses import dataclass

import jax.numpy as jnp

from pbrl_jax.algos.advantages import group_advantages
from pbrl_jax.config.algo import AlgoConfig
from pbrl_jax.config.fields import identity


@dataclass(frozen=True)
class PowerConfig(AlgoConfig):
    power: float = identity(1.0, at_least=0, at_most=3)
    """Exponent of an advantage; its sign stays."""


def estimate(groups, value_BR=None, *, config: PowerConfig):
    adv_PG = group_advantages(groups.net_reward_PG, groups.valid_PG, scale="none", epsilon=0.0)
    return (jnp.sign(adv_PG) * jnp.abs(adv_PG) ** config.power).reshape(-1), None
'''

BREVITY = '''
"""Short responses are better."""
from dataclasses import dataclass

import jax.numpy as jnp

from pbrl_jax.config.fields import identity
from pbrl_jax.config.reward import RewardConfig
from pbrl_jax.core.records import Scores


@dataclass(frozen=True)
class BrevityConfig(RewardConfig):
    free_tokens: int = identity(4, at_least=1)
    """Tokens that cost nothing."""


def make_brevity(config: BrevityConfig, assets):
    def score(inputs):
        over_B = jnp.maximum(jnp.asarray(inputs.lengths_B) - config.free_tokens, 0)
        return Scores(-over_B / 10.0, jnp.ones(len(over_B), bool), {})

    return score
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Source text -> the module that it is, imported from a file."""

    def load(source: str):
        file = tmp_path / "added.py"
        file.write_text(source)
        spec = importlib.util.spec_from_file_location("added", file)
        made = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "added", made)
        spec.loader.exec_module(made)
        return made

    return load


def configured(*arguments: str):
    return override(load_config(TINY), [*TWO_STEPS, *arguments], "pbrl train")


def help_text(capsys) -> str:
    with pytest.raises(SystemExit):
        override(load_config(TINY), ["--help"], "pbrl train")
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def trained(config, folder):
    """(start parameters, end parameters, rows of the log) of a run of two steps."""
    experiment = build_experiment(config, work_dir(folder))
    state = train(experiment, quiet=True).state
    assert state.step == 2 and state.skipped == 0
    return experiment.policy.params, state.params, read_json_lines(experiment.work.metrics)


def goes_through_json(config, tmp_path) -> None:
    assert from_json(to_json(config), type(config)) == config
    file = tmp_path / "config.json"
    file.write_text(to_json(config))
    assert load_config(str(file)) == config


def test_a_loss(module, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(LOSSES, "signs", Loss(module(SIGNS).signs, token_mean))
    assert "dapo, cispo, sapo, gpg, signs." in help_text(capsys)
    with pytest.raises(ConfigError, match="algo.loss_type is 'sings'.*Did you mean 'signs'"):
        validate(configured("--algo.loss-type", "sings"), 1)
    with pytest.raises(ConfigError, match="algo.delta=3.0 mean nothing here: algo.loss_type signs does not clip"):
        validate(configured("--algo.loss-type", "signs", "--algo.delta", "3"), 1)
    config = configured("--algo.loss-type", "signs")
    goes_through_json(config, tmp_path)
    before, after, rows = trained(config, tmp_path / "run")
    assert largest_difference(before, after) > 1e-3
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
    assert not any(name.startswith("clip_ratio") for name in rows[0]), "that is the clipped losses' metric"


def test_an_algorithm_with_a_setting(module, monkeypatch, capsys, tmp_path):
    before_it = pbrl_jax.Config
    file = module(POWER)
    monkeypatch.setitem(ALGORITHMS, "power", Algorithm(file.estimate, file.PowerConfig, compares_groups=True))
    assert pbrl_jax.Config is pbrl_jax.Config is not before_it and issubclass(pbrl_jax.AlgoConfig, file.PowerConfig)
    shown = help_text(capsys)
    assert "--algo.power FLOAT Exponent of an advantage; its sign stays. From 0 to 3. (default: 1.0)" in shown
    assert "ppo, opo, gpg, power." in shown
    for value in ("-1", "5", "nan"):
        with pytest.raises(ConfigError, match=r"algo.power is .*; expected from 0 to 3"):
            validate(configured("--algo.name", "power", "--algo.power", value), 1)
    with pytest.raises(ConfigError, match="algo.power=2.0 mean nothing to algo.name grpo.*--algo.name power"):
        validate(configured("--algo.power", "2"), 1)
    with pytest.raises(ConfigError, match="a group needs two samples"):
        validate(configured("--algo.name", "power", "--algo.num-generations", "1"), 1)
    config = configured("--algo.name", "power", "--algo.power", "2")
    assert config.algo.power == 2.0
    goes_through_json(config, tmp_path)
    before, after, rows = trained(config, tmp_path / "run")
    assert largest_difference(before, after) > 1e-3
    assert all(row["advantages/std"] > 0 for row in rows)
    monkeypatch.undo()
    assert pbrl_jax.Config is before_it and not hasattr(pbrl_jax.AlgoConfig(), "power")


def test_a_reward_with_a_setting(module, monkeypatch, capsys, tmp_path):
    file = module(BREVITY)
    monkeypatch.setitem(REWARDS, "brevity", Reward(file.make_brevity, settings=file.BrevityConfig))
    shown = help_text(capsys)
    assert "--reward.free-tokens INT Tokens that cost nothing. At least 1. (default: 4)" in shown
    assert "hybrid, brevity, package.module:function." in shown
    for value in ("0", "-3"):
        with pytest.raises(ConfigError, match="reward.free_tokens is .*; expected at least 1"):
            validate(configured("--reward.functions", "brevity", "--reward.free-tokens", value), 1)
    with pytest.raises(ConfigError, match="reward.free_tokens=6 mean nothing to reward.functions cosine"):
        validate(configured("--reward.free-tokens", "6"), 1)
    with pytest.raises(ConfigError, match="Unknown reward 'brevty'.*Did you mean 'brevity'"):
        validate(configured("--reward.functions", "brevty"), 1)
    config = configured("--reward.functions", "brevity", "--reward.free-tokens", "2")
    goes_through_json(config, tmp_path)
    before, after, rows = trained(config, tmp_path / "run")
    assert largest_difference(before, after) > 1e-3
    # Each token above the two free ones costs a tenth.
    assert rows[0]["rewards/brevity/mean"] == pytest.approx(-(rows[0]["completions/mean_length"] - 2) / 10, rel=1e-3)
