"""PPO end to end on the smallest config: it trains, its critic learns, and it resumes inside a cycle bit by bit."""

import json

import jax
import numpy as np
import pytest
from shared_programs import programs_made_once
from tiny_policy import largest_difference, quick_compiles  # noqa: F401  the second is a fixture

from configs.tiny_cpu import get_config
from pbrl_jax import Config, with_values
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.paths import work_dir
from pbrl_jax.run.assemble import build_experiment
from pbrl_jax.train import loop
from pbrl_jax.train.fused import check_fusable

STEPS = 4


MADE: dict = {}
"""Programs of the run and of its resumed twin."""


def ppo(**sections) -> Config:
    algo = {"name": "ppo", "kl_in": "reward", "kl_estimator": "k1", "num_iterations": 2, "critic_learning_rate": 1e-2,
            **sections.pop("algo", {})}  # fmt: skip
    train = {"max_steps": STEPS, "save_steps": 50, "packed": False, **sections.pop("train", {})}
    return with_values(get_config(), data={"limit": 4}, log={"tensorboard": False}, train=train, algo=algo, **sections)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    experiment = build_experiment(ppo(), work_dir(tmp_path_factory.mktemp("ppo") / "run"))
    with programs_made_once(MADE):
        return experiment, loop.train(experiment)


def rows_of(work) -> list[dict]:
    return [json.loads(line) for line in work.metrics.read_text().splitlines()]


def test_policy_and_critic_move(trained):
    experiment, position = trained
    state = position.state
    assert largest_difference(state.params, experiment.policy.params) > 1e-4 and state.skipped == 0
    assert np.abs(state.critic["params"]["kernel"]).max() > 1e-3
    assert state.params.keys() == experiment.policy.params.keys()
    rows = rows_of(experiment.work)
    names = ("critic/value_loss", "critic/value_mean", "critic/return_mean", "critic/value_clip_ratio", "kl", "loss")
    assert all(np.isfinite(row[name]) for row in rows for name in names)
    assert rows[0]["critic/value_mean"] == 0 and rows[-1]["critic/value_mean"] != 0
    # The second step on a rollout batch sees its values of sampling time, so that the loss of the same returns falls.
    assert rows[1]["critic/return_mean"] == pytest.approx(rows[0]["critic/return_mean"], abs=1e-6)
    assert rows[1]["critic/value_loss"] < rows[0]["critic/value_loss"]


def test_resume_inside_a_cycle_is_bit_exact(trained, tmp_path):
    experiment, whole = trained
    part = experiment._replace(config=with_values(experiment.config, train={"max_steps": 3}), work=work_dir(tmp_path))
    with programs_made_once(MADE):
        assert loop.train(part).step == 3
        again = loop.train(part._replace(config=experiment.config))
    assert again.step == STEPS
    jax.tree.map(np.testing.assert_array_equal, again.state, whole.state)


def test_the_critic_can_go_first(trained, tmp_path):
    config = ppo(algo={"value_pretrain_steps": 2, "num_iterations": 1, "kl_target": 0.1}, train={"max_steps": 2})
    experiment = trained[0]._replace(config=config, work=work_dir(tmp_path))
    state = loop.train(experiment).state
    assert largest_difference(state.params, experiment.policy.params) == 0
    assert np.abs(state.critic["params"]["kernel"]).max() > 1e-3 and state.step == 2
    assert state.beta == np.float32(config.algo.beta), "a KL of 0 says nothing of a policy that is held"


def test_ppo_is_not_fused():
    with pytest.raises(ConfigError, match="algo.name ppo"):
        check_fusable(ppo(algo={"num_iterations": 1}, train={"fused": True}), True)
