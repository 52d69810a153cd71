"""From token states to one vector per text.

Definitions are those of sentence-transformers' Pooling; sums in float32 or wider.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pbrl_jax.core.errors import lookup


def mean_pooling(hidden_BSD: Float[Array, "B S D"], mask_BS: Bool[Array, "B S"]) -> Float[Array, "B D"]:
    """Mean of the real tokens; a row without any gives zeros."""
    wide = hidden_BSD.astype(jnp.promote_types(hidden_BSD.dtype, jnp.float32))
    total = jnp.where(mask_BS[..., None], wide, 0.0).sum(axis=1)
    return total / jnp.maximum(mask_BS.sum(axis=1, keepdims=True), 1)


def cls_pooling(hidden_BSD, mask_BS) -> Float[Array, "B D"]:
    """The first real token."""
    first = jnp.argmax(mask_BS, axis=1)
    return jnp.take_along_axis(hidden_BSD, first[:, None, None], axis=1)[:, 0]


def last_pooling(hidden_BSD, mask_BS) -> Float[Array, "B D"]:
    """The last real token."""
    last = mask_BS.shape[1] - 1 - jnp.argmax(mask_BS[:, ::-1], axis=1)
    return jnp.take_along_axis(hidden_BSD, last[:, None, None], axis=1)[:, 0]


POOLINGS = {"mean": mean_pooling, "cls": cls_pooling, "last": last_pooling}


def pool(name: str, hidden_BSD, mask_BS) -> Float[Array, "B D"]:
    """Pool by name (ConfigError for an unknown one)."""
    return lookup(POOLINGS, name, "pooling")(hidden_BSD, mask_BS)


def unit_vectors(x: Float[Array, "*rows E"]) -> Float[Array, "*rows E"]:
    """x / max(|x|, 1e-12), in float32 or wider; zero vectors stay zero, with finite gradients."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squared = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return wide * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))
