"""What a run starts from: parameters to train, frozen ones, and a critic, on the mesh."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from pbrl_jax.config.tree import Config, LoraConfig
from pbrl_jax.mesh.offload import check_host_memory, in_host_memory
from pbrl_jax.mesh.once import jit_once
from pbrl_jax.mesh.sharding import place, tree_shardings
from pbrl_jax.models.decoder import decoder_axes, init_decoder
from pbrl_jax.models.logprobs import init_value_head
from pbrl_jax.models.lora import adapter_axes, frozen_params, init_adapters, merge_adapters
from pbrl_jax.models.precision import cast_matrices
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.rewards.combine import policy_users
from pbrl_jax.train.experiment import Experiment
from pbrl_jax.train.optimizer import make_critic_optimizer
from pbrl_jax.train.trained import Frozen
from pbrl_jax.weights.folders import abstract_tree
from pbrl_jax.weights.policies import Policy, StartPolicy, let_go


def trainable(policy: Policy, config: Config) -> tuple[Any, tuple]:
    """(parameters to train, their axes table): the policy's, or new adapters drawn from train.seed."""
    if not config.lora.rank:
        return policy.params, decoder_axes(policy.spec)
    make = jit_once(functools.partial(new_adapters, spec=policy.spec, config=config))
    return make(jax.random.key(config.train.seed)), adapter_axes(policy.spec, config.lora)


def taken(policy: Policy, config: Config, keeps: bool) -> tuple[Any, tuple, bool]:
    """(parameters to train, their axes table, whether a state is to take their arrays: nothing else holds them then).

    Args:
      keeps: the policy's parameters are read beside those that are trained.
    """
    params, axes = trainable(policy, config)
    if not isinstance(policy, StartPolicy) or keeps:
        return params, axes, False
    policy.release()
    return params, axes, True


def trained_shapes(spec: DecoderSpec, config: Config) -> tuple[Any, tuple]:
    """`trainable` as shapes; nothing is loaded."""
    if not config.lora.rank:
        return abstract_tree(init_decoder, spec), decoder_axes(spec)
    make = functools.partial(new_adapters, spec=spec, config=config)
    return jax.eval_shape(make, jax.random.key(0)), adapter_axes(spec, config.lora)


def check_layout(spec: DecoderSpec, config: Config, mesh: Mesh | AbstractMesh) -> None:
    """Refuse parameters that do not divide over the mesh, and adapters that the policy cannot have (ConfigError)."""
    tree_shardings(abstract_tree(init_decoder, spec), decoder_axes(spec), mesh)
    if config.lora.rank:
        tree_shardings(*trained_shapes(spec, config), mesh)


def new_adapters(key: jax.Array, spec: DecoderSpec, config: Config) -> Any:
    """Adapters of a policy, of which the shapes alone are needed."""
    shapes = abstract_tree(init_decoder, spec)
    return init_adapters(key, shapes, spec, config.lora)


def merged_params(trained: Any, base: Any, lora: LoraConfig) -> Any:
    """The parameters of a policy without adapters, for export and for the next stage."""
    return jax.jit(functools.partial(merge_adapters, lora=lora))(base, trained) if lora.rank else trained


def start_params(policy: Policy, config: Config, mesh: Mesh) -> Any:
    """The start policy's parameters on the mesh, as they are kept frozen: quantised where lora.quantization says so,
    other matrices in the type that train.frozen_dtype names; without a copy where neither changes them."""
    placed = place(policy.params, tree_shardings(policy.params, decoder_axes(policy.spec), mesh))
    quantizes = config.lora.rank and config.lora.quantization != "none"
    narrow = policy.spec.dtype if narrows_frozen(policy.spec, config) else None
    if not quantizes and narrow is None:
        return placed

    def frozen(params):
        params = frozen_params(params, policy.spec, config.lora, narrow) if quantizes else params
        return params if narrow is None else cast_matrices(params, narrow)

    return jax.jit(frozen)(placed)


def narrows_frozen(spec: DecoderSpec, config: Config) -> bool:
    """Whether frozen matrices are held in a compute type narrower than float32."""
    return config.train.frozen_dtype == "compute" and jnp.dtype(spec.dtype).itemsize < 4


def keeps_start(config: Config) -> bool:
    """Whether a run reads the start policy beside what it trains: as reference, beside adapters, or in a reward."""
    return bool(config.algo.beta > 0 or config.lora.rank or policy_users(config.reward))


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


def kept_start(experiment: Experiment) -> Frozen:
    """`frozen_of` the start policy, whose parameters as they were loaded are then let go; where rewards ask it,
    `as_rewards_read` does so."""
    config, policy = experiment.config, experiment.policy
    frozen = frozen_of(policy, config, experiment.mesh)
    if not policy_users(config.reward):
        let_go(policy)
    return frozen


def as_rewards_read(experiment: Experiment, frozen: Frozen) -> Experiment:
    """The experiment with the start policy that its rewards ask, in the arrays of the reference or of the base where
    these are on the devices. The parameters as they were loaded are let go."""
    config, policy = experiment.config, experiment.policy
    if not policy_users(config.reward):
        return experiment
    shared = None if "reference" in config.train.offload else frozen.reference
    shared = shared if frozen.base is None else frozen.base
    asked = policy._replace(params=start_params(policy, config, experiment.mesh) if shared is None else shared)
    let_go(policy)
    return experiment._replace(policy=asked)


def new_critic(width: int, config: Config) -> dict[str, Any]:
    """{"params", "opt_state"} of a value head before its first update."""
    params = init_value_head(width)
    return {"params": params, "opt_state": make_critic_optimizer(config).init(params)}
