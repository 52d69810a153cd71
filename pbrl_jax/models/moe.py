"""Mixture of experts: a router sends each token to a few of many feed-forwards (Shazeer et al. 2017, arXiv 1701.06538).

Tokens are sorted by expert, and each expert's rows are multiplied by its matrices alone (pbrl_jax.models.grouped), so
the cost is that of the chosen experts. On a mesh each device sorts its own rows.
"""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Int

from pbrl_jax.core.errors import lookup
from pbrl_jax.mesh.sharding import LOGICAL_AXES, on_each_device, partition_spec
from pbrl_jax.models.grouped import group_items, grouped_dot
from pbrl_jax.models.layers import ACTIVATIONS, Projection
from pbrl_jax.models.precision import widened


def choose_experts(
    logits: Float[Array, "*rows experts"], count: int, normalized: bool
) -> tuple[Float[Array, "*rows chosen"], Int[Array, "*rows chosen"]]:
    """Weights and numbers of each token's `count` most probable experts (Qwen3-MoE's rule, in float32 or wider)."""
    weight, expert = jax.lax.top_k(jax.nn.softmax(widened(logits), axis=-1), count)
    return weight / weight.sum(axis=-1, keepdims=True) if normalized else weight, expert


def expert_sum(x_XLD, weight_XLk, expert_XLk, gate_EDF, up_EDF, down_EFD, *, activation: str) -> Float[Array, "X L D"]:
    """Each token's chosen experts, added up with their weights."""
    X, L, D = x_XLD.shape
    count = expert_XLk.shape[-1]
    groups = group_items(expert_XLk.reshape(-1), gate_EDF.shape[0])  # item = token * count + choice
    rows = widened(x_XLD).reshape(X * L, D).at[groups.item_of_slot // count].get(mode="fill", fill_value=0)
    rows = rows.astype(x_XLD.dtype)
    gate = lookup(ACTIVATIONS, activation, "activation")(grouped_dot(rows, gate_EDF, groups))
    down = grouped_dot(gate * grouped_dot(rows, up_EDF, groups), down_EFD, groups)
    by_choice = down.at[groups.slot_of_item].get(unique_indices=True).reshape(X, L, count, D)
    return (widened(by_choice) * weight_XLk[..., None]).sum(axis=2).astype(x_XLD.dtype)


def on_each_shard(function, x, weight, expert, gate, up, down):
    """`function` on each device's rows and part of the feed-forward width; on all of both without a mesh.

    Without `shard_map`, the sort over all tokens would gather them on every device.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function(x, weight, expert, gate, up, down)
    rows, inner = partition_spec("batch", "none", "none"), partition_spec("none", "none", "ffn")

    def local(*inputs):
        return jax.lax.psum(function(*inputs), LOGICAL_AXES["ffn"])

    specs = (rows, rows, rows, inner, inner, partition_spec("none", "ffn", "none"))
    return on_each_device(local, specs, rows)(x, weight, expert, gate, up, down)


class Kernel(nn.Module):
    """One matrix per expert, in the given compute type."""

    shape: tuple[int, int, int]

    @nn.compact
    def __call__(self, dtype):
        init = nn.initializers.normal(0.5 * self.shape[1] ** -0.5)
        return self.param("kernel", init, self.shape).astype(dtype)


class RoutedMLP(nn.Module):
    """sum over the chosen experts e of weight_e * down_e(activation(gate_e(x)) * up_e(x)), for each token."""

    ffn: int
    experts: int
    experts_per_token: int
    normalized: bool
    activation: str = "silu"

    @nn.compact
    def __call__(self, x_XLD):
        E, D, F = self.experts, x_XLD.shape[-1], self.ffn
        logits = Projection((E,), name="router")(x_XLD)
        weight, expert = choose_experts(logits, self.experts_per_token, self.normalized)
        shapes = {"gate": (E, D, F), "up": (E, D, F), "down": (E, F, D)}
        kernels = [Kernel(shape, name=name)(x_XLD.dtype) for name, shape in shapes.items()]
        function = functools.partial(expert_sum, activation=self.activation)
        return on_each_shard(function, x_XLD, weight, expert, *kernels)
