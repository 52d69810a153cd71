"""Masked reductions: means, spreads and counts over valid entries.

Masked entries may hold anything, NaN and infinity included. They are replaced before any arithmetic, so that neither
the value nor the gradient depends on them. Half-precision input is reduced in float32; float64 stays float64. A
reduction over no valid entry is 0, because invalid rows and empty groups are common: check the count too.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

Axis = int | tuple[int, ...] | None


def where_valid(values: Shaped[Array, "*shape"], mask: Bool[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`values` with zeros where `mask` is false, in float32 or wider."""
    clean = jnp.where(mask, values, 0)
    return clean.astype(jnp.promote_types(clean.dtype, jnp.float32))


def divide_or_zero(total: Shaped[Array, "*shape"], count: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`total / count`, and 0 where `count` is 0; for accumulated sums and counts."""
    empty = count == 0
    return jnp.where(empty, 0.0, total / jnp.where(empty, 1, count))


def masked_count(mask: Bool[Array, "..."], axis: Axis = None, keepdims: bool = False, dtype=jnp.float32):
    """Number of valid entries, as a float of `dtype` (float32 counts are exact up to 2**24)."""
    return jnp.sum(mask, axis=axis, keepdims=keepdims, dtype=dtype)


def masked_sum(values: Shaped[Array, "*shape"], mask: Bool[Array, "*shape"], axis: Axis = None, keepdims: bool = False):
    """Sum of the valid entries along `axis` (all axes by default)."""
    return jnp.sum(where_valid(values, mask), axis=axis, keepdims=keepdims)


def masked_mean(
    values: Shaped[Array, "*shape"], mask: Bool[Array, "*shape"], axis: Axis = None, keepdims: bool = False
):
    """Mean of the valid entries along `axis`; 0 where there is none."""
    total = masked_sum(values, mask, axis, keepdims)
    return divide_or_zero(total, masked_count(mask, axis, keepdims, total.dtype))


def masked_variance(
    values: Shaped[Array, "*shape"],
    mask: Bool[Array, "*shape"],
    axis: Axis = None,
    keepdims: bool = False,
    *,
    ddof: int = 0,
):
    """Variance of the valid entries along `axis`: squared deviations from their mean over (count - ddof).

    Computed in two passes, so that a large mean costs no precision. 0 where at most `ddof` entries are valid.
    """
    centred = where_valid(values, mask) - masked_mean(values, mask, axis, keepdims=True)
    total = masked_sum(jnp.square(centred), mask, axis, keepdims)
    freedom = masked_count(mask, axis, keepdims, total.dtype) - ddof
    return divide_or_zero(total, jnp.maximum(freedom, 0))


def masked_std(
    values: Shaped[Array, "*shape"],
    mask: Bool[Array, "*shape"],
    axis: Axis = None,
    keepdims: bool = False,
    *,
    ddof: int = 0,
):
    """Square root of `masked_variance`; its gradient at zero variance is 0 (that of jnp.sqrt is infinite)."""
    variance = masked_variance(values, mask, axis, keepdims, ddof=ddof)
    flat = variance == 0
    return jnp.where(flat, 0.0, jnp.sqrt(jnp.where(flat, 1.0, variance)))


def masked_range(
    values: Shaped[Array, "*shape"], mask: Bool[Array, "*shape"], axis: Axis = None, keepdims: bool = False
):
    """Largest minus smallest valid entry along `axis`; 0 where there is none.

    It is exactly 0 for equal entries, whose variance can be above zero by a rounding error.
    """
    wide = where_valid(values, mask)
    top = jnp.max(wide, axis=axis, keepdims=keepdims, where=mask, initial=-jnp.inf)
    bottom = jnp.min(wide, axis=axis, keepdims=keepdims, where=mask, initial=jnp.inf)
    some = jnp.any(mask, axis=axis, keepdims=keepdims)
    return jnp.where(some, top, 0.0) - jnp.where(some, bottom, 0.0)
