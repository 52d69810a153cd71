"""What a run trains and what it keeps frozen, as an update sees it.

Trained are all of a policy's weights or adapters beside frozen ones (models.lora), and PPO's value head on the policy's
own trunk. The head's parameters and moments are kept beside the policy's and not among them, so that a trained policy
is exported, loaded and evaluated like any other. The value loss reaches the trunk with weight `vf_coef`.
"""

from typing import Any

import optax

from pbrl_jax.config.tree import LoraConfig
from pbrl_jax.core.records import pytree
from pbrl_jax.core.trees import all_finite, select
from pbrl_jax.models.lora import join_adapters


@pytree
class Trained:
    """What a gradient is taken of: a policy's parameters or its adapters, and a value head where there is one."""

    policy: Any
    value_head: Any = None


@pytree
class Frozen:
    """What never changes: the parameters of the reference policy (None without a KL term), and the weights that
    adapters are trained beside (None without adapters). With both, they are the same arrays."""

    reference: Any = None
    base: Any = None


def forward_params(trained: Any, base: Any, lora: LoraConfig) -> Any:
    """The parameters of a forward pass; `base` are the weights beside adapters. Traceable."""
    return join_adapters(base, trained, lora) if lora.rank else trained


def update_critic(critic: dict[str, Any], grads, optimizer: optax.GradientTransformation) -> dict[str, Any]:
    """One optimizer step of the head; a gradient that is not finite changes nothing."""
    finite = all_finite(grads)
    updates, opt_state = optimizer.update(grads, critic["opt_state"], critic["params"])
    new = {"params": optax.apply_updates(critic["params"], updates), "opt_state": opt_state}
    return select(finite, new, critic)
