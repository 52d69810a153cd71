"""Settings of the algorithm that cannot run, each answered with what to type."""

import pytest

from pbrl_jax import Config, with_values
from pbrl_jax.algos.losses import LOSSES, ClipConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.run.check import validate

TWO_REWARDS = {"functions": ("cosine", "answer"), "reward_weights": (1.0, 0.5)}

REFUSED = {
    "cispo without its bound": ({"loss_type": "cispo"}, "Use --algo.epsilon-high 5.0"),
    "cispo with a distance": ({"loss_type": "cispo", "epsilon_high": 0.28}, "Use --algo.epsilon-high 5.0"),
    "delta on a gate": ({"loss_type": "sapo", "delta": 2.0}, "sapo does not clip"),
    "delta below the clip": ({"epsilon_high": 0.5, "delta": 1.3}, "more than 1 \\+ epsilon_high = 1.5"),
    "gpg off-policy": ({"loss_type": "gpg", "num_iterations": 2}, "no importance ratio.*Use --algo.num-iterations 1"),
    "correction off-policy": (
        {"importance_sampling_mode": "token_mask", "num_iterations": 2},
        "has left behind.*Use --algo.num-iterations 1",
    ),
    "bounds crossed": ({"importance_sampling_clip_min": 4.0}, "above algo.importance_sampling_clip_max 3.0"),
    "a target without KL": ({"kl_target": 0.1, "beta": 0.0}, "keeps no reference. Use --algo.beta"),
    "two places of the KL": ({"kl_in": "reward", "use_bias_correction_kl": True}, "algo.kl_in is reward"),
    "an unknown place": ({"kl_in": "rewards"}, "Did you mean 'reward'"),
    "a baseline nobody reads": ({"name": "opo", "leave_one_out": True}, "leave_one_out=True mean nothing to.*opo"),
    "a floor nobody reads": ({"name": "gpg", "min_reward_std": 0.1}, "min_reward_std=0.1 mean nothing"),
    "a discount nobody reads": ({"gamma": 0.9}, "gives every token of a response the same advantage"),
    "one sample": ({"num_generations": 1}, "a group needs two samples"),
    "one sample of OPO": ({"num_generations": 1, "name": "opo", "scale_rewards": "none"}, "a group needs two samples"),
    "one sample and no scale": ({"num_generations": 1, "scale_rewards": "none"}, "a group needs two samples"),
    "one reward": ({"multi_objective_aggregation": "normalize_then_sum"}, "needs two reward functions.*there is 1"),
    "not a number": ({"entropy_coef": float("nan")}, "algo.entropy_coef is nan"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    algo, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        validate(with_values(Config(), algo=algo), 1)


def test_separate_rewards_exclude_what_they_do_themselves():
    for other in ({"kl_in": "reward"}, {"scale_rewards": "none"}, {"leave_one_out": True}):
        algo = {"multi_objective_aggregation": "normalize_then_sum", **other}
        with pytest.raises(ConfigError, match="scales rewards by itself"):
            validate(with_values(Config(), algo=algo, reward=TWO_REWARDS), 1)


ACCEPTED = (
    {},
    {"loss_type": "cispo", "epsilon_high": 5.0},
    {"loss_type": "gpg", "name": "gpg"},
    {"delta": 4.0, "num_iterations": 4},
    {"name": "reinforce_plus_plus", "num_generations": 1, "gamma": 0.99, "kl_in": "reward"},
    {"importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    {"importance_sampling_mode": "sequence_mask", "importance_sampling_clip_max": None},
    {"kl_target": 0.05},
    *({"loss_type": name, "epsilon_high": 0.28} for name, loss in LOSSES.items() if loss.settings is ClipConfig),
)


@pytest.mark.parametrize("algo", ACCEPTED, ids=str)
def test_accepted(algo):
    validate(with_values(Config(), algo=algo), 1)


def test_separate_rewards_are_accepted():
    algo = {"multi_objective_aggregation": "normalize_then_sum"}
    validate(with_values(Config(), algo=algo, reward=TWO_REWARDS), 1)
