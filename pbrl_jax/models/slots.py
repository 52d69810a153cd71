"""Cached keys and values, and the layouts of decoding.

In slots, each row's prompt and response lie one behind the other, each row at a position of its own. Attention goes
through the cache block by block, up to the longest row that is in use, so that one compiled program serves every
length, and reads no further than it must. In a traced rollout (`SharedStep`) the rows of a prompt share its keys.
"""

from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from pbrl_jax.core.records import pytree
from pbrl_jax.models.attention import Kernel
from pbrl_jax.models.decode_attention import Form, Softmax, decode_attention, decode_kernel, written_rows
from pbrl_jax.models.int8 import int8_array
from pbrl_jax.models.layouts import Reach
from pbrl_jax.models.precision import wide_type

#: Positions of the cache that attention reads at a time.
BLOCK = 128


@pytree
class LayerCache:
    """Keys [X, K, C, positions] and values [X, K, positions, C] of a layer; where they are integers, the step of each
    key and of each value.

    Positions come last in the keys: the products of one query with all keys are then four times as fast on a CPU.
    """

    key: Shaped[Array, "X K C L"]
    value: Shaped[Array, "X K L C"]
    key_step: Float[Array, "X K 1 L"] | None = None
    value_step: Float[Array, "X K 1 L"] | None = None

    @property
    def axes(self) -> "LayerCache":
        """The axis of positions in each array, from the last."""
        return LayerCache(*(-1, -2) if self.key_step is None else (-1, -2, -1, -1))

    def entries(self, key_XSKC, value_XSKC) -> "LayerCache":
        """New keys and values in the form of this cache."""
        key, value = jnp.moveaxis(key_XSKC, 1, 3), jnp.moveaxis(value_XSKC, 1, 2)
        if self.key_step is None:
            return LayerCache(key.astype(self.key.dtype), value.astype(self.value.dtype))
        keys, values = int8_array(key, (2,)), int8_array(value, (3,))
        return LayerCache(keys.integers, values.integers, keys.step, jnp.swapaxes(values.step, 2, 3))

    def written(self, position, new: "LayerCache") -> "LayerCache":
        """With new entries from `position` on; the arrays may be those of one row, without the axis of rows."""

        def put(part, new, axis: int):
            place: list[Any] = [0] * part.ndim
            place[axis] = position
            return jax.lax.dynamic_update_slice(part, new, place)

        return jax.tree.map(put, self, new, self.axes)

    def grown(self, positions: int) -> "LayerCache":
        """With room for so many positions; those there are stay."""

        def pad(part, axis: int):
            room = [(0, 0)] * part.ndim
            room[axis] = (0, positions - part.shape[axis])
            return jnp.pad(part, room)

        return jax.tree.map(pad, self, self.axes)

    def block(self, start, size: int) -> "LayerCache":
        """`size` positions from `start` on."""
        return jax.tree.map(lambda part, axis: jax.lax.dynamic_slice_in_dim(part, start, size, axis), self, self.axes)


@pytree
class SlotCache:
    """The cached keys and values, one LayerCache a layer."""

    layers: tuple[LayerCache, ...]

    @property
    def positions(self) -> int:
        """Positions that there is room for; in slots a multiple of BLOCK or less than one."""
        return self.layers[0].value.shape[2]

    def changed(self, index: int, layer: LayerCache) -> "SlotCache":
        """The cache with another layer."""
        return SlotCache((*self.layers[:index], layer, *self.layers[index + 1 :]))

    def held(self, index: int, key_XSKC, value_XSKC) -> tuple[jax.Array, jax.Array]:
        """Keys and values as they are when they were written: in eight bits, the nearest ones of these."""
        if self.layers[index].key_step is None:
            return key_XSKC, value_XSKC
        both = [(x.dtype, int8_array(x, (3,))) for x in (key_XSKC, value_XSKC)]
        key, value = ((found.integers * found.step).astype(dtype) for dtype, found in both)
        return key, value

    def write(self, index: int, position, key_XSKC, value_XSKC) -> "SlotCache":
        """New entries of one layer, for every row at the same `position` and behind it."""
        layer = self.layers[index]
        return self.changed(index, layer.written(position, layer.entries(key_XSKC, value_XSKC)))

    def grown(self, positions: int) -> "SlotCache":
        """The cache with room for so many positions a row."""
        return SlotCache(tuple(layer.grown(positions) for layer in self.layers))

    def write_rows(self, index: int, position_X, key_X1KC, value_X1KC, by_kernel: bool = False) -> "SlotCache":
        """One new entry of one layer for each row, at its own position; `by_kernel`: by that of a TPU."""
        layer = self.layers[index]
        new = layer.entries(key_X1KC, value_X1KC)
        if by_kernel:
            written = written_rows(position_X, jax.tree.leaves(new), jax.tree.leaves(layer))
            return self.changed(index, LayerCache(*written))
        return self.changed(index, jax.vmap(LayerCache.written)(layer, position_X, new))


def slot_positions(tokens: int) -> int:
    """Positions of a cache that holds so many tokens a row: whole blocks, where there is more than one."""
    return tokens if tokens <= BLOCK else -(-tokens // BLOCK) * BLOCK


def empty_slots(spec, rows: int, positions: int) -> SlotCache:
    """A cache of zeros, in eight bits where the spec's kv_dtype says so, else in its compute type."""
    K, C, wide = spec.kv_heads, spec.head_dim, wide_type(spec.dtype)
    kind, stepped = (jnp.int8, 2) if spec.kv_dtype == "int8" else (spec.dtype, 0)
    shapes = [(rows, K, C, positions), (rows, K, positions, C)]

    def layer() -> LayerCache:
        steps = (jnp.zeros((rows, K, 1, positions), wide) for _ in range(stepped))
        return LayerCache(*(jnp.zeros(shape, kind) for shape in shapes), *steps)

    return SlotCache(tuple(layer() for _ in range(spec.layers)))


def block_attention(kernel, query_XQHC, cache: LayerCache, position_XQ, blocks, reach: Reach | None) -> jax.Array:
    """Queries against the entries of a cache up to their own position, [X, Q, H, C].

    Args:
      kernel: gives the soft cap of scores, if there is one.
      position_XQ: position of each query in the cache.
      blocks: blocks of the cache that are read, at least up to the largest position.
      reach: limits a local layer to its window.
    """
    X, Q, H, C = query_XQHC.shape
    K, positions = cache.key.shape[1], cache.key.shape[3]
    query = jnp.moveaxis(query_XQHC.reshape(X, Q, K, H // K, C), 1, 3).reshape(X, K, H // K * Q, C)
    size = min(BLOCK, positions)

    def seen(start):
        place = start + jnp.arange(size)[None, None]
        found = place <= position_XQ[..., None]
        return found if reach is None else found & (place > position_XQ[..., None] - reach.limit)

    def read(number, sums: Softmax) -> Softmax:
        start = number * size
        # The heads that share a key are the outer part of the axis of queries.
        mask = jnp.tile(seen(start), (1, H // K, 1))[:, None]
        return sums.with_keys(query, jax.tree.leaves(cache.block(start, size)), mask, softcap_of(kernel))

    sums = Softmax.empty(query.shape, wide_type(query.dtype))
    sums = read(0, sums) if positions <= BLOCK else jax.lax.fori_loop(0, blocks, read, sums)
    out = (sums.values / sums.total).astype(query.dtype)
    return jnp.moveaxis(out.reshape(X, K, H // K, Q, C), 3, 1).reshape(X, Q, H, C)


def softcap_of(kernel: str | Kernel) -> float:
    """The soft cap of scores that a kernel is called with; 0 for none."""
    return kernel.softcap if isinstance(kernel, Kernel) else 0.0


@pytree
class SlotStep:
    """One new token for each row, written at the row's own position and attending to what the row holds up to it.

    Positions of the text are positions of the cache. `kernel` is the spec's decode_attention.
    """

    position_X: Int[Array, "X"]
    blocks: Int[Array, ""]
    kernel: str = field(default="portable", metadata={"static": True})

    def attend(self, kernel, query, key, value, cache: SlotCache, layer: int, reach: Reach | None = None):
        name = decode_kernel(self.kernel, query, cache.layers[layer].key)
        cache = cache.write_rows(layer, self.position_X, key, value, by_kernel=name == "tpu")
        own = cache.layers[layer]
        if name:
            form = Form(reach and reach.window, softcap_of(kernel), BLOCK)
            return decode_attention(name, query, jax.tree.leaves(own), self.position_X, self.blocks, form), cache
        return block_attention(kernel, query, own, self.position_X[:, None], self.blocks, reach), cache


@pytree
class PromptPart:
    """A part of right-padded prompts: tokens from `start` on, behind those that the cache holds already."""

    start: Int[Array, ""]

    def attend(self, kernel, query, key, value, cache: SlotCache, layer: int, reach: Reach | None = None):
        X, Q = query.shape[:2]
        cache = cache.write(layer, self.start, key, value)
        place = jnp.broadcast_to(self.start + jnp.arange(Q)[None], (X, Q))
        blocks = (self.start + Q + BLOCK - 1) // BLOCK
        return block_attention(kernel, query, cache.layers[layer], place, blocks, reach), cache


@pytree
class SharedStep:
    """One new token for each of B = P * G rows, against the keys of its prompt, shared by G rows, and its own.

    The prompts' cache is only read; the step's keys and values are written into the carried cache at `slot`, the same
    for all rows. Positions of a prompt's keys are those of the text; a row's query has the position of its token.
    """

    prompt: SlotCache
    lengths_P: Int[Array, "P"]
    slot: Int[Array, ""]

    def attend(self, kernel, query, key, value, cache: SlotCache, layer: int, reach: Reach | None = None):
        cache = cache.write(layer, self.slot, key, value)
        own, shared = cache.layers[layer], self.prompt.layers[layer]
        (B, _, H, C), P, K = query.shape, len(self.lengths_P), own.key.shape[1]
        G, cap = B // P, softcap_of(kernel)
        place_T, place_S = (jnp.arange(n)[None, None, None] for n in (self.prompt.positions, cache.positions))
        of_prompt, of_row = place_T < self.lengths_P[:, None, None, None], place_S <= self.slot
        if reach is not None:
            at_PG = jnp.repeat(reach.positions_XL.reshape(P, G), H // K, axis=1)
            of_prompt = of_prompt & (place_T > at_PG[:, None, :, None] - reach.limit)
            of_row = of_row & (place_S > self.slot - reach.limit)
        # The rows of a prompt are the outer part of the axis of queries, the heads that share a key the inner one.
        together = jnp.moveaxis(query.reshape(P, G, K, H // K, C), 1, 2).reshape(P, K, G * (H // K), C)
        sums = Softmax.empty(together.shape, wide_type(query.dtype))
        sums = sums.with_keys(together, jax.tree.leaves(shared), of_prompt, cap)

        def apart(x):
            return jnp.moveaxis(x.reshape(P, K, G, H // K, -1), 1, 2).reshape(B, K, H // K, -1)

        sums = Softmax(*map(apart, sums)).with_keys(query.reshape(B, K, H // K, C), jax.tree.leaves(own), of_row, cap)
        return (sums.values / sums.total).astype(query.dtype).reshape(B, 1, H, C), cache
