"""PPO's critic: a value head on the policy's own trunk, with moments of its own.

The head's parameters lie beside the policy's and not among them, so that a trained policy is exported, loaded and
evaluated like any other. The value loss reaches the trunk with weight `vf_coef`.
"""

import dataclasses
from typing import Any

import optax

from pbrl_jax.config.tree import Config
from pbrl_jax.core.trees import all_finite, select
from pbrl_jax.models.heads import init_value_head
from pbrl_jax.train.optimizer import make_optimizer


def critic_optimizer(config: Config) -> optax.GradientTransformation:
    """The run's optimizer at the critic's learning rate."""
    return make_optimizer(dataclasses.replace(config.optim, learning_rate=config.algo.critic_learning_rate))


def new_critic(width: int, config: Config) -> dict[str, Any]:
    """{"params", "opt_state"} of a value head before its first update."""
    params = init_value_head(width)
    return {"params": params, "opt_state": critic_optimizer(config).init(params)}


def update_critic(critic: dict[str, Any], grads, config: Config) -> dict[str, Any]:
    """One optimizer step of the head; a gradient that is not finite changes nothing."""
    finite = all_finite(grads)
    updates, opt_state = critic_optimizer(config).update(grads, critic["opt_state"], critic["params"])
    new = {"params": optax.apply_updates(critic["params"], updates), "opt_state": opt_state}
    return select(finite, new, critic)
