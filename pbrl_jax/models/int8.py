"""Eight bits for sampling: integers from -127 to 127, times a step that those share which a product adds up.

The step is that of one output of a product, or of one cached key or value: it multiplies the product, and no array of
dequantised numbers is made.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pbrl_jax.core.records import pytree
from pbrl_jax.models.precision import widened

#: Largest magnitude of the integers.
LARGEST = 127
#: Where all numbers are smaller, they become 0.
SMALLEST = 1e-30


@pytree
class Int8Array:
    """`integers * step`; an axis along which the step is the same is of size 1 in it."""

    integers: Int[Array, "..."]
    step: Float[Array, "..."]


def int8_array(x: jax.Array, axes: tuple[int, ...]) -> Int8Array:
    """The nearest integers, with one step, in float32 or wider, for all numbers along `axes`: the largest of them
    becomes 127, and no other is off by more than half a step."""
    wide = widened(x)
    step = jnp.maximum(jnp.abs(wide).max(axis=axes, keepdims=True), SMALLEST) / LARGEST
    return Int8Array(jnp.round(wide / step).astype(jnp.int8), step)
