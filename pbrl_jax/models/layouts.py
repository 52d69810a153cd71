"""How the tokens of a row attend to one another.

The decoder is the same for every use; what differs is the layout of its tokens: a plain causal batch, a prompt shared
by several responses, or one decoding step against cached keys. A layout is a pytree of index arrays with one method,
`attend(kernel, query, key, value, cache, layer)`, which returns the attended values and the cache.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pbrl_jax.core.records import pytree
from pbrl_jax.models.attention import Visibility, attend, merge_attention


@pytree
class KVCache:
    """Keys and values of all layers, [N, rows, K, positions, C]: heads before positions, as the products want them."""

    key: Float[Array, "N X K S C"]
    value: Float[Array, "N X K S C"]

    def layer(self, index, positions: int | None = None) -> tuple[jax.Array, jax.Array]:
        """One layer's first `positions` keys and values (all without a number), [rows, positions, K, C]."""
        N, X, K, S, C = self.key.shape
        size, start = (1, X, K, S if positions is None else positions, C), (index, 0, 0, 0, 0)
        key, value = (jax.lax.dynamic_slice(part, start, size)[0] for part in (self.key, self.value))
        return jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)

    def write(self, index, position, key_XSKC, value_XSKC) -> "KVCache":
        """The cache with new entries at (layer, every row, position...); in place where the compiler may."""
        start = (index, 0, 0, position, 0)

        def put(part, new):
            return jax.lax.dynamic_update_slice(part, jnp.swapaxes(new, 1, 2)[None].astype(part.dtype), start)

        return KVCache(put(self.key, key_XSKC), put(self.value, value_XSKC))


def empty_cache(spec, rows: int, positions: int) -> KVCache:
    """A cache of zeros in the spec's compute type."""
    shape = (spec.layers, rows, spec.kv_heads, positions, spec.head_dim)
    return KVCache(jnp.zeros(shape, spec.dtype), jnp.zeros(shape, spec.dtype))


@pytree
class Causal:
    """A right-padded batch; each token sees itself and the valid tokens before it.

    With a cache, keys and values are also written at positions 0..L-1 (prefill).
    """

    valid_XL: Bool[Array, "X L"]

    def attend(self, kernel, query, key, value, cache, layer):
        X, L = query.shape[:2]
        position = jnp.broadcast_to(jnp.arange(L)[None], (X, L))
        seen = Visibility(self.valid_XL, position, position)
        out, _ = attend(kernel, query, key, value, seen)
        return out, cache if cache is None else cache.write(layer, 0, key, value)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SharedPrefix:
    """Rows of one prompt followed by `streams` response streams of equal length: [prompt | stream 0 | stream 1 ...].

    The prompt attends within itself; each stream attends to the prompt and causally to itself. Several responses may
    be packed into a stream: `segment_XSR` then numbers them, and a token sees only its own segment. The prompt's
    share of every layer is computed once for all streams.
    """

    prompt_valid_XT: Bool[Array, "X T"]
    segment_XSR: Int[Array, "X streams R"] | None
    streams: int = field(metadata={"static": True})

    def attend(self, kernel, query, key, value, cache, layer):
        X, T = self.prompt_valid_XT.shape
        S, L = self.streams, query.shape[1]
        R = (L - T) // S
        if L == T:
            return Causal(self.prompt_valid_XT).attend(kernel, query, key, value, cache, layer)

        def own(x):
            return x[:, T:].reshape(X * S, R, *x.shape[2:])

        prompt_out, _ = Causal(self.prompt_valid_XT).attend(
            kernel, query[:, :T], key[:, :T], value[:, :T], None, layer
        )
        to_prompt = attend(kernel, query[:, T:], key[:, :T], value[:, :T], Visibility(self.prompt_valid_XT))
        index = jnp.broadcast_to(jnp.arange(R)[None], (X * S, R))
        segment = None if self.segment_XSR is None else self.segment_XSR.reshape(X * S, R)
        seen = Visibility(None, index, index, segment, segment)
        out, lse = attend(kernel, own(query), own(key), own(value), seen)
        to_own = (out.reshape(X, S * R, *out.shape[2:]), lse.reshape(X, S * R, lse.shape[-1]))
        return jnp.concatenate([prompt_out, merge_attention(to_prompt, to_own)], axis=1), cache


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeStep:
    """One new token for each of B = P * G rows, against the prompt's keys (shared by G rows) and the row's own.

    `prompt` is read only; the step's keys and values go into the carried cache at `slot`, of which the first `window`
    positions are looked at.
    """

    prompt: KVCache
    prompt_valid_PT: Bool[Array, "P T"]
    slot: Int[Array, ""]
    window: int = field(metadata={"static": True})

    def attend(self, kernel, query, key, value, cache, layer):
        P = self.prompt_valid_PT.shape[0]
        B, _, H, C = query.shape
        cache = cache.write(layer, self.slot, key, value)
        prompt_key, prompt_value = self.prompt.layer(layer)
        grouped = query.reshape(P, B // P, H, C)
        out, lse = attend(kernel, grouped, prompt_key, prompt_value, Visibility(self.prompt_valid_PT))
        own_key, own_value = cache.layer(layer, self.window)
        written = jnp.broadcast_to((jnp.arange(self.window) <= self.slot)[None], (B, self.window))
        to_own = attend(kernel, query, own_key, own_value, Visibility(written))
        return merge_attention((out.reshape(B, 1, H, C), lse.reshape(B, 1, H)), to_own), cache
