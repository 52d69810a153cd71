"""What a run trains: all of a policy's weights, or adapters beside frozen ones (models.lora).

The state holds what is trained. `frozen` is the tree of the start policy's parameters: the reference of the KL, and
with adapters the weights that they stand beside.
"""

import functools
from typing import Any

import jax
from jax.sharding import Mesh

from pbrl_jax.config.tree import Config, LoraConfig
from pbrl_jax.mesh.sharding import place, tree_shardings
from pbrl_jax.models.decoder import decoder_axes
from pbrl_jax.models.lora import adapter_axes, frozen_params, init_adapters, joined, merged
from pbrl_jax.weights.policies import Policy

#: All weights are trained.
NO_ADAPTERS = LoraConfig()


def trainable(policy: Policy, config: Config) -> tuple[Any, tuple]:
    """(parameters to train, their axes table): the policy's, or new adapters drawn from train.seed."""
    if not config.lora.rank:
        return policy.params, decoder_axes(policy.spec)
    make = functools.partial(init_adapters, spec=policy.spec, lora=config.lora)
    return jax.jit(make)(jax.random.key(config.train.seed), policy.params), adapter_axes(policy.spec, config.lora)


def whole(trained: Any, frozen: Any, lora: LoraConfig) -> Any:
    """The parameters of a forward pass; traceable."""
    return joined(frozen, trained, lora) if lora.rank else trained


def placed_frozen(policy: Policy, config: Config, mesh: Mesh) -> Any:
    """The start policy's parameters on the mesh, without a copy where they lie there already; quantised where
    lora.quantization says so."""
    placed = place(policy.params, tree_shardings(policy.params, decoder_axes(policy.spec), mesh))
    if not config.lora.rank or config.lora.quantization == "none":
        return placed
    return jax.jit(functools.partial(frozen_params, spec=policy.spec, lora=config.lora))(placed)


def plain(trained: Any, frozen: Any, lora: LoraConfig) -> Any:
    """The parameters as a policy without adapters has them: merged, for export and for the next stage."""
    return jax.jit(functools.partial(merged, lora=lora))(frozen, trained) if lora.rank else trained
