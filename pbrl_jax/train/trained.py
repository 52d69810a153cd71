"""What a run trains and what it keeps frozen: all of a policy's weights or adapters beside frozen ones (models.lora),
and PPO's value head on the policy's own trunk.

The value head's parameters and moments are kept beside the policy's and not among them, so that a trained policy is
exported, loaded and evaluated like any other. The value loss reaches the trunk with weight `vf_coef`.
"""

import dataclasses
import functools
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from pbrl_jax.algos.ppo import PpoConfig
from pbrl_jax.config.fields import settings_of
from pbrl_jax.config.tree import Config, LoraConfig
from pbrl_jax.core.records import pytree
from pbrl_jax.core.trees import all_finite, select
from pbrl_jax.mesh.offload import check_host_memory, in_host_memory
from pbrl_jax.mesh.sharding import place, tree_shardings
from pbrl_jax.models.decoder import decoder_axes
from pbrl_jax.models.logprobs import init_value_head
from pbrl_jax.models.lora import adapter_axes, frozen_params, init_adapters, join_adapters, merge_adapters
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.weights.policies import Policy

#: All weights are trained.
NO_ADAPTERS = LoraConfig()


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


def trainable(policy: Policy, config: Config) -> tuple[Any, tuple]:
    """(parameters to train, their axes table): the policy's, or new adapters drawn from train.seed."""
    if not config.lora.rank:
        return policy.params, decoder_axes(policy.spec)
    make = functools.partial(init_adapters, spec=policy.spec, lora=config.lora)
    return jax.jit(make)(jax.random.key(config.train.seed), policy.params), adapter_axes(policy.spec, config.lora)


def forward_params(trained: Any, base: Any, lora: LoraConfig) -> Any:
    """The parameters of a forward pass; `base` are the weights beside adapters. Traceable."""
    return join_adapters(base, trained, lora) if lora.rank else trained


def merged_params(trained: Any, base: Any, lora: LoraConfig) -> Any:
    """The parameters of a policy without adapters, for export and for the next stage."""
    return jax.jit(functools.partial(merge_adapters, lora=lora))(base, trained) if lora.rank else trained


def start_params(policy: Policy, config: Config, mesh: Mesh) -> Any:
    """The start policy's parameters on the mesh, without a copy where they are there already; quantised where
    lora.quantization says so."""
    placed = place(policy.params, tree_shardings(policy.params, decoder_axes(policy.spec), mesh))
    if not config.lora.rank or config.lora.quantization == "none":
        return placed
    return jax.jit(functools.partial(frozen_params, spec=policy.spec, lora=config.lora))(placed)


def frozen_of(policy: Policy, config: Config, mesh: Mesh) -> Frozen:
    """The reference and the base of a run, on the mesh; the reference in the host's memory where it is offloaded."""
    keeps_reference, adapters = config.algo.beta > 0, bool(config.lora.rank)
    if not keeps_reference and not adapters:
        return Frozen()
    params = start_params(policy, config, mesh)
    base = params if adapters else None
    if "reference" in config.train.offload:
        check_host_memory(mesh.devices.flat[0])
        params = jax.device_put(params, in_host_memory(jax.tree.map(lambda x: x.sharding, params)))
    return Frozen(params if keeps_reference else None, base)


def critic_optimizer(config: Config) -> optax.GradientTransformation:
    """The run's optimizer at the critic's learning rate."""
    rate = settings_of(config.algo, PpoConfig).critic_learning_rate
    return make_optimizer(dataclasses.replace(config.optim, learning_rate=rate))


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
