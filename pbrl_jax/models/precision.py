"""What is summed in float32 where the compute type is narrower.

Matrix products of half-precision arrays add their terms in float32 and round the result once. Other sums do not: the
gradient of indexing (a scatter-add), of broadcasting (a reduction) and of an array that every turn of a loop reads
(accumulated turn by turn) has the type of the array. In bfloat16 a sum stops growing at about 256 equal terms.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pbrl_jax.core.trees import map_with_path

#: Last names of the parameters that every forward pass casts to the compute type first, so that casting them once
#: computes the same; norms and biases, which stay wide, adapters and quantised kernels have other names.
MATRICES = ("kernel", "embed", "lm_head")


def cast_matrices(params: Any, dtype: Any) -> Any:
    """Parameters with their matrices in the compute type: the same responses and log-probs from less memory."""

    def cast(path: str, leaf):
        plain = path.split("/")[-1] in MATRICES and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if plain else leaf

    return map_with_path(cast, params)


def wide_type(dtype: Any) -> jnp.dtype:
    """float32, or `dtype` where it is wider."""
    return jnp.promote_types(dtype, jnp.float32)


def widened(x: jax.Array) -> jax.Array:
    """`x` in float32 or wider."""
    return x.astype(wide_type(x.dtype))


@jax.custom_vjp
def gradient_to(narrow: jax.Array, wide: jax.Array) -> jax.Array:
    """`narrow`, whose gradient goes to `wide` in the type of `wide`; the values of `wide` are not read.

    For an array that a loop reads at every turn: made narrow once, outside the loop, its gradient would be accumulated
    in its own type. Called inside the loop with both, the gradient is accumulated in that of `wide`.
    """
    return narrow


def _forward(narrow, wide):
    return narrow, jnp.zeros((), wide.dtype)


def _backward(kind, gradient):
    return None, gradient.astype(kind.dtype)


gradient_to.defvjp(_forward, _backward)


def states_at(states_XLD: Float[Array, "X L D"], position_X: Int[Array, " X"]) -> Float[Array, "X D"]:
    """One position of each row. The indices are promised to be unique, so no sum is made in the gradient."""
    return states_XLD.at[jnp.arange(states_XLD.shape[0]), position_X].get(unique_indices=True)
