"""The train state: made, sharded, and described before anything is allocated."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pbrl_jax.core.records import TrainState
from pbrl_jax.mesh.offload import check_host_memory, in_host_memory
from pbrl_jax.mesh.sharding import place, replicated, tree_shardings


def new_state(
    params: Any, optimizer: optax.GradientTransformation, beta: float | None = None, critic: Any = None
) -> TrainState:
    """A state before its first update.

    Args:
      beta: where a KL weight that adapts begins; None where it is constant.
      critic: of an algorithm that has one, from `train.trained.new_critic`.
    """
    adapting = None if beta is None else jnp.float32(beta)
    return TrainState(params, optimizer.init(params), jnp.int32(0), jnp.int32(0), adapting, critic, jnp.int32(0))


def state_shardings(
    params: Any, optimizer: optax.GradientTransformation, axes, mesh: Mesh, beta: float | None = None,
    critic: Any = None, offload: bool = False,
) -> TrainState:  # fmt: skip
    """Shardings of a whole state; optimizer moments lie where their parameters lie.

    Args:
      params: parameters or their shapes.
      axes: the model's (path pattern, logical axes) table.
      beta, critic: as in `new_state`; a critic, being small, lies everywhere.
      offload: moments lie in the host's memory.

    Raises:
      ConfigError: offload on a platform without such a memory.
    """
    param_shardings = tree_shardings(params, axes, mesh)
    if offload:
        check_host_memory(mesh.devices.flat[0])
    everywhere = replicated(mesh)
    opt_shardings = optax.tree_utils.tree_map_params(
        optimizer,
        lambda leaf, sharding: leaf if _is_masked(leaf) else sharding,
        jax.eval_shape(optimizer.init, params),
        in_host_memory(param_shardings) if offload else param_shardings,
        transform_non_params=lambda _leaf: everywhere,
        is_leaf=_is_masked,
    )
    adapting, head = jax.tree.map(lambda _leaf: everywhere, (beta, critic))
    shardings: list[Any] = [param_shardings, opt_shardings, everywhere, everywhere, adapting, head, everywhere]
    return TrainState(*shardings)


def state_shapes(
    params: Any, optimizer: optax.GradientTransformation, axes, mesh: Mesh, beta: float | None = None,
    critic: Any = None, offload: bool = False,
) -> TrainState:  # fmt: skip
    """A fresh state on the mesh as shapes with shardings; nothing is allocated. Arguments as of `state_shardings`."""
    shapes = jax.eval_shape(lambda given, head: new_state(given, optimizer, beta, head), params, critic)
    shardings = state_shardings(params, optimizer, axes, mesh, beta, critic, offload)
    return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, shardings)


def _is_masked(node) -> bool:
    """Whether a parameter has no moment here, because another optimizer of the chain has it."""
    return isinstance(node, optax.MaskedNode)


def place_state(
    params: Any, optimizer: optax.GradientTransformation, axes, mesh: Mesh, beta: float | None = None,
    critic: Any = None, offload: bool = False, donate: bool = False,
) -> TrainState:  # fmt: skip
    """A fresh state on the mesh.

    Args:
      donate: the state takes the parameters' arrays, which the caller gives up; else they are copied, and the caller's
        stay valid after the state is donated.
    """
    shardings = state_shardings(params, optimizer, axes, mesh, beta, critic, offload)

    def start(params):
        return new_state(params if donate else jax.tree.map(jnp.copy, params), optimizer, beta, critic)

    if jax.process_count() > 1 or donate:
        params = place(params, shardings.params)
    return jax.jit(start, out_shardings=shardings, donate_argnums=0 if donate else ())(params)


def abstract_state(tree: Any) -> Any:
    """Shapes, types and shardings of a tree of arrays: what a restore needs."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
