"""Heads on the decoder's last hidden states other than the vocabulary's."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def init_value_head(width: int) -> dict[str, Float[Array, "..."]]:
    """A linear value head that gives 0 everywhere, which is the mean of whitened returns."""
    return {"kernel": jnp.zeros((width,), jnp.float32), "bias": jnp.zeros((), jnp.float32)}


def state_values(head, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows"]:
    """The value of each state from its (normalised) hidden state, in float32 or wider."""
    wide = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
    return wide @ head["kernel"] + head["bias"]
