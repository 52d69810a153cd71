"""What lies around an encoder's token states: special tokens before them, linear maps after pooling."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pbrl_jax.core.errors import lookup
from pbrl_jax.models.layers import Projection, apply, gelu
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


def dense_modules(maps: tuple[DenseSpec, ...]) -> list[tuple[str, Projection]]:
    """(parameter name, module) of each map."""
    return [(f"dense_{i}", Projection((one.width,), use_bias=one.bias)) for i, one in enumerate(maps)]


def dense_axes(maps: tuple[DenseSpec, ...]) -> tuple:
    """The axis rules of the maps: replicated, as the whole encoder is."""
    kernels = tuple((rf"dense_{i}/kernel", ("none", "none")) for i in range(len(maps)))
    return kernels + tuple((rf"dense_{i}/bias", ("none",)) for i, one in enumerate(maps) if one.bias)


def init_dense(key: jax.Array, maps: tuple[DenseSpec, ...], width: int) -> dict:
    """Random parameters of the maps of a pooled vector of `width` channels."""
    params = {}
    for name, module in dense_modules(maps):
        key, own = jax.random.split(key)
        params[name] = module.init(own, jnp.zeros((1, width)))["params"]
        width = module.features[0]
    return params


def apply_dense(params, maps: tuple[DenseSpec, ...], pooled: Float[Array, "B D"]) -> Float[Array, "B E"]:
    """The maps one after another, each followed by its activation."""
    for (name, module), one in zip(dense_modules(maps), maps, strict=True):
        pooled = lookup(ACTIVATIONS, one.activation, "activation")(apply(module, params[name], pooled))
    return pooled
