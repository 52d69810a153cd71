"""From token states to one unit vector per text: special tokens, pooling, linear maps.

Definitions are those of sentence-transformers' modules; sums in float32 or wider.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pbrl_jax.core.errors import lookup
from pbrl_jax.models.layers import Projection, apply, gelu
from pbrl_jax.models.precision import states_at, widened
from pbrl_jax.models.specs import DenseSpec

#: Name in a DenseSpec -> function; the names are those of torch's modules in small letters.
ACTIVATIONS = {
    "identity": lambda x: x,
    "tanh": jnp.tanh,
    "relu": nn.relu,
    "sigmoid": nn.sigmoid,
    "gelu": gelu,
}


def add_special_ids(
    tokens_BS: Int[Array, "B S"], mask_BS: Bool[Array, "B S"], begin_ids: tuple[int, ...], end_ids: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """The texts between their special tokens: (tokens, mask), len(begin_ids) + len(end_ids) longer.

    The rows must be right-padded, unless there are no special tokens. `end_ids` follow each row's last real token.
    """
    if not begin_ids and not end_ids:
        return tokens_BS, mask_BS
    before, behind = len(begin_ids), len(end_ids)
    begin_B = jnp.broadcast_to(jnp.asarray(begin_ids, tokens_BS.dtype)[None], (len(tokens_BS), before))
    padded = jnp.concatenate([begin_B, jnp.pad(tokens_BS, ((0, 0), (0, behind)))], axis=1)
    slot_1S = jnp.arange(padded.shape[1])[None]
    end_B1 = before + mask_BS.sum(axis=1, keepdims=True)
    for place, token in enumerate(end_ids):
        padded = jnp.where(slot_1S == end_B1 + place, token, padded)
    return padded, slot_1S < end_B1 + behind


def init_dense(key: jax.Array, maps: tuple[DenseSpec, ...], width: int) -> dict:
    """Random parameters of the maps of a pooled vector of `width` channels."""
    params = {}
    for index, one in enumerate(maps):
        key, own = jax.random.split(key)
        module = Projection((one.width,), use_bias=one.bias)
        params[f"dense_{index}"] = module.init(own, jnp.zeros((1, width)))["params"]
        width = one.width
    return params


def apply_dense(params, maps: tuple[DenseSpec, ...], pooled: Float[Array, "B D"]) -> Float[Array, "B E"]:
    """The maps one after another, each followed by its activation."""
    for index, one in enumerate(maps):
        pooled = apply(Projection((one.width,), use_bias=one.bias), params[f"dense_{index}"], pooled)
        pooled = lookup(ACTIVATIONS, one.activation, "activation")(pooled)
    return pooled


def mean_pooling(hidden_BSD: Float[Array, "B S D"], mask_BS: Bool[Array, "B S"]) -> Float[Array, "B D"]:
    """Mean of the real tokens; a row without any gives zeros."""
    wide = widened(hidden_BSD)
    total = jnp.where(mask_BS[..., None], wide, 0.0).sum(axis=1)
    return total / jnp.maximum(mask_BS.sum(axis=1, keepdims=True), 1)


def cls_pooling(hidden_BSD, mask_BS) -> Float[Array, "B D"]:
    """The first real token."""
    return states_at(hidden_BSD, jnp.argmax(mask_BS, axis=1))


def last_pooling(hidden_BSD, mask_BS) -> Float[Array, "B D"]:
    """The last real token."""
    return states_at(hidden_BSD, mask_BS.shape[1] - 1 - jnp.argmax(mask_BS[:, ::-1], axis=1))


POOLINGS = {"mean": mean_pooling, "cls": cls_pooling, "last": last_pooling}


def pool(name: str, hidden_BSD, mask_BS) -> Float[Array, "B D"]:
    """Pool by name (ConfigError for an unknown one)."""
    return lookup(POOLINGS, name, "pooling")(hidden_BSD, mask_BS)


def unit_vectors(x: Float[Array, "*rows E"]) -> Float[Array, "*rows E"]:
    """x / max(|x|, 1e-12), in float32 or wider; zero vectors stay zero, with finite gradients."""
    wide = widened(x)
    squared = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return wide * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))
