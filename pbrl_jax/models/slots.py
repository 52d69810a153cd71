"""A cache of slots: each row's prompt and response one behind the other, each row at a position of its own.

Attention goes through the cache block by block, up to the longest row that is in use, so that one compiled program
serves every length, and reads no further than it must.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pbrl_jax.core.records import pytree
from pbrl_jax.models.attention import HIDDEN, Kernel
from pbrl_jax.models.layouts import Reach
from pbrl_jax.models.precision import wide_type

#: Positions of the cache that attention reads at a time.
BLOCK = 128


@pytree
class SlotCache:
    """Keys [X, K, C, positions] and values [X, K, positions, C], one array a layer.

    Positions come last in the keys: the products of one query with all keys are then four times as fast on a CPU.
    """

    key: tuple[Float[Array, "X K C L"], ...]
    value: tuple[Float[Array, "X K L C"], ...]

    @property
    def positions(self) -> int:
        """Positions that there is room for, a multiple of BLOCK or less than one."""
        return self.value[0].shape[2]

    def changed(self, index: int, key, value) -> "SlotCache":
        """The cache with other arrays of one layer."""
        keys, values = self.key, self.value
        return SlotCache((*keys[:index], key, *keys[index + 1 :]), (*values[:index], value, *values[index + 1 :]))

    def write(self, index: int, position, key_XSKC, value_XSKC) -> "SlotCache":
        """New entries of one layer, for every row at the same `position` and behind it."""
        key, value = self.key[index], self.value[index]
        new_key, new_value = jnp.moveaxis(key_XSKC, 1, 3), jnp.moveaxis(value_XSKC, 1, 2)
        key = jax.lax.dynamic_update_slice(key, new_key.astype(key.dtype), (0, 0, 0, position))
        value = jax.lax.dynamic_update_slice(value, new_value.astype(value.dtype), (0, 0, position, 0))
        return self.changed(index, key, value)

    def write_rows(self, index: int, position_X, key_X1KC, value_X1KC) -> "SlotCache":
        """One new entry of one layer for each row, at its own position."""

        def put(key, value, position, new_key, new_value):
            key = jax.lax.dynamic_update_slice(key, new_key[0, :, :, None].astype(key.dtype), (0, 0, position))
            value = jax.lax.dynamic_update_slice(value, new_value[0, :, None].astype(value.dtype), (0, position, 0))
            return key, value

        rows = jax.vmap(put)(self.key[index], self.value[index], position_X, key_X1KC, value_X1KC)
        return self.changed(index, *rows)


def slot_positions(tokens: int) -> int:
    """Positions of a cache that holds so many tokens a row: whole blocks, where there is more than one."""
    return tokens if tokens <= BLOCK else -(-tokens // BLOCK) * BLOCK


def empty_slots(spec, rows: int, positions: int) -> SlotCache:
    """A cache of zeros in the spec's compute type."""
    key, value = (rows, spec.kv_heads, spec.head_dim, positions), (rows, spec.kv_heads, positions, spec.head_dim)
    return SlotCache(*(tuple(jnp.zeros(shape, spec.dtype) for _ in range(spec.layers)) for shape in (key, value)))


class Softmax(NamedTuple):
    """Sums over the keys that were read so far: the largest score, and relative to it the denominator and the weighted
    values."""

    top: jax.Array
    total: jax.Array
    values: jax.Array


def block_attention(kernel, query_XQHC, key_XKCL, value_XKLC, position_XQ, blocks, reach: Reach | None) -> jax.Array:
    """Queries against the entries of a cache up to their own position, [X, Q, H, C].

    Args:
      kernel: gives the soft cap of scores, if there is one.
      position_XQ: position of each query in the cache.
      blocks: blocks of the cache that are read, at least up to the largest position.
      reach: limits a local layer to its window.
    """
    X, Q, H, C = query_XQHC.shape
    K, positions = key_XKCL.shape[1], key_XKCL.shape[3]
    softcap = kernel.softcap if isinstance(kernel, Kernel) else 0.0
    query = jnp.moveaxis(query_XQHC.reshape(X, Q, K, H // K, C), 1, 3).reshape(X, K, H // K * Q, C)
    wide, size = wide_type(query.dtype), min(BLOCK, positions)

    def seen(start):
        place = start + jnp.arange(size)[None, None]
        found = place <= position_XQ[..., None]
        return found if reach is None else found & (place > position_XQ[..., None] - reach.limit)

    def read(number, sums: Softmax) -> Softmax:
        start = number * size
        key = jax.lax.dynamic_slice_in_dim(key_XKCL, start, size, 3)
        value = jax.lax.dynamic_slice_in_dim(value_XKLC, start, size, 2)
        scores = jnp.einsum("xkqc,xkcs->xkqs", query, key, preferred_element_type=wide) * C**-0.5
        if softcap:
            scores = softcap * jnp.tanh(scores / softcap)
        # The heads that share a key are the outer part of the axis of queries.
        mask = jnp.tile(seen(start), (1, H // K, 1))[:, None]
        scores = jnp.where(mask, scores, HIDDEN)
        top = jnp.maximum(sums.top, scores.max(axis=-1))
        weights, before = jnp.exp(scores - top[..., None]), jnp.exp(sums.top - top)
        values = jnp.einsum("xkqs,xksc->xkqc", weights.astype(value.dtype), value, preferred_element_type=wide)
        return Softmax(
            top, sums.total * before + weights.sum(axis=-1), sums.values * before[..., None] + values
        )

    shape = (X, K, H // K * Q)
    sums = Softmax(jnp.full(shape, HIDDEN, wide), jnp.zeros(shape, wide), jnp.zeros((*shape, C), wide))
    sums = read(0, sums) if positions <= BLOCK else jax.lax.fori_loop(0, blocks, read, sums)
    out = (sums.values / sums.total[..., None]).astype(value_XKLC.dtype)
    return jnp.moveaxis(out.reshape(X, K, H // K, Q, C), 3, 1).reshape(X, Q, H, C)


@pytree
class SlotStep:
    """One new token for each row, written at the row's own position and attending to what the row holds up to it.

    Positions of the text are positions of the cache.
    """

    position_X: Int[Array, "X"]
    blocks: Int[Array, ""]

    def attend(self, kernel, query, key, value, cache: SlotCache, layer: int, reach: Reach | None = None):
        cache = cache.write_rows(layer, self.position_X, key, value)
        place = self.position_X[:, None]
        return block_attention(kernel, query, cache.key[layer], cache.value[layer], place, self.blocks, reach), cache


@pytree
class PromptPart:
    """A part of right-padded prompts: tokens from `start` on, behind those that the cache holds already."""

    start: Int[Array, ""]

    def attend(self, kernel, query, key, value, cache: SlotCache, layer: int, reach: Reach | None = None):
        X, Q = query.shape[:2]
        cache = cache.write(layer, self.start, key, value)
        place = jnp.broadcast_to(self.start + jnp.arange(Q)[None], (X, Q))
        blocks = (self.start + Q + BLOCK - 1) // BLOCK
        return block_attention(kernel, query, cache.key[layer], cache.value[layer], place, blocks, reach), cache
