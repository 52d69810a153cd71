"""Layouts: how the tokens of a row attend to one another.

The decoder is the same for a plain causal batch, a prompt shared by several responses, and one decoding step against
cached keys; the layout of the tokens differs. A layout is a pytree of index arrays with one method,
`attend(kernel, query, key, value, cache, layer, reach)`, which returns the attended values and the cache.
"""

from dataclasses import field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from pbrl_jax.core.records import pytree
from pbrl_jax.models.attention import Visibility, attend, merge_attention
from pbrl_jax.models.fused_attention import fused_causal, fused_kernel
from pbrl_jax.models.precision import widened

#: Window, and whether a layer is local, of layers that are known to be global.
GLOBAL = (None, False)
#: Window of a global layer where layers of both kinds are scanned: longer than any sequence.
UNLIMITED = 2**29


class Reach(NamedTuple):
    """The window of a layer: the last `window` positions, the query's own included, where the layer is `local`.

    Distances are in positions of the text: padding between a prompt and its response does not count.
    """

    window: int
    #: Traced in a scan over layers of both kinds.
    local: bool | Bool[Array, ""]
    positions_XL: Int[Array, "X L"]

    @property
    def kinds(self) -> tuple[int, bool | Array]:
        """(window, whether the layer is local), as fused kernels take them."""
        return self.window, self.local

    @property
    def limit(self) -> int | Int[Array, ""]:
        """The window, or UNLIMITED for a global layer."""
        return self.window if self.local is True else jnp.where(self.local, self.window, UNLIMITED)


@pytree
class Causal:
    """A right-padded batch; each token attends to itself and the valid tokens before it.

    With a cache, keys and values are also written at positions 0..L-1 (prefill), and attended to as it holds them.
    """

    valid_XL: Bool[Array, "X L"]

    def attend(self, kernel, query, key, value, cache, layer, reach: Reach | None = None):
        X, L = query.shape[:2]
        stored = cache if cache is None else cache.write(layer, 0, key, value)
        key, value = (key, value) if cache is None else cache.held(layer, key, value)
        if fused := fused_kernel(kernel, query, key):
            return fused_causal(fused, query, key, value, self.valid_XL, *(reach.kinds if reach else GLOBAL)), stored
        position = jnp.broadcast_to(jnp.arange(L)[None], (X, L))
        seen = Visibility(self.valid_XL, position, position, window=reach and reach.limit)
        out, _ = attend(kernel, query, key, value, seen)
        return out, stored


@pytree
class Packed:
    """Several texts per row, one after another; a token attends to itself and the tokens before it in its text."""

    segment_XL: Int[Array, "X L"]

    def attend(self, kernel, query, key, value, cache, layer, reach: Reach | None = None):
        if fused_kernel(kernel, query, key) == "splash":
            numbered = self.segment_XL + 1  # 0 is padding there
            return fused_causal("splash", query, key, value, numbered, *(reach.kinds if reach else GLOBAL)), cache
        index = jnp.broadcast_to(jnp.arange(query.shape[1])[None], self.segment_XL.shape)
        seen = Visibility(None, index, index, self.segment_XL, self.segment_XL, reach and reach.limit)
        out, _ = attend(kernel, query, key, value, seen)
        return out, cache


@pytree
class SharedPrefix:
    """Rows of one prompt followed by `streams` response streams of equal length: [prompt | stream 0 | stream 1 ...].

    The prompt attends within itself; each stream attends to the prompt and causally to itself. Several responses may
    be packed into a stream: `segment_XSR` then numbers them, from 0 to `segments` - 1, and a token attends only to its
    segment. The prompt is computed once for all streams.

    A fused kernel computes a stream in one call, with the keys of the prompt before its own; of a packed stream, which
    Splash alone takes, with those of the prompt once for each segment. Windows in packed streams, where the distance to
    the prompt is another in each segment, have no fused form.
    """

    prompt_valid_XT: Bool[Array, "X T"]
    segment_XSR: Int[Array, "X streams R"] | None
    streams: int = field(metadata={"static": True})
    segments: int = field(default=1, metadata={"static": True})

    def attend(self, kernel, query, key, value, cache, layer, reach: Reach | None = None):
        T = self.prompt_valid_XT.shape[1]
        own = Causal(self.prompt_valid_XT)
        prompt_out, _ = own.attend(kernel, query[:, :T], key[:, :T], value[:, :T], None, layer, reach)
        if query.shape[1] == T:
            return prompt_out, cache
        fused = self.fused_kernel(kernel, query, key, reach)
        out = self._fused(fused, query, key, value, reach) if fused else self._merged(kernel, query, key, value, reach)
        return jnp.concatenate([prompt_out, out], axis=1), cache

    def fused_kernel(self, kernel, query, key, reach: Reach | None) -> str | None:
        """The fused kernel that takes the streams, or None."""
        fused = fused_kernel(kernel, self._own(query), self._own(key))
        unable = self.segment_XSR is not None and (fused == "cudnn" or reach is not None)
        return None if unable else fused

    def _own(self, x):
        """Of [X, T + S * R, ...] the streams' part, [X * S, R, ...]."""
        own = x[:, self.prompt_valid_XT.shape[1] :]
        return own.reshape(x.shape[0] * self.streams, -1, *x.shape[2:])

    def _fused(self, name: str, query, key, value, reach: Reach | None):
        """The streams' attended values, [X, S * R, H, C], in one call."""
        valid_XT, copies = self.prompt_valid_XT, 1 if self.segment_XSR is None else self.segments
        T = valid_XT.shape[1]
        # The prompt is moved next to the response, so that distances of keys are those in the text.
        start_X1 = T - valid_XT.sum(axis=1, keepdims=True)
        place_XT = jnp.arange(T)[None] - start_X1

        def before(x_XT):
            """The prompt's part for each copy in each stream; a sum over these in the gradient is a wide one."""
            moved = jax.vmap(lambda x, place: x[jnp.maximum(place, 0)])(x_XT, place_XT)
            wide = jnp.broadcast_to(widened(moved)[:, None, None], (len(moved), self.streams, copies, *moved.shape[1:]))
            return wide.reshape(len(moved) * self.streams, copies * T, *moved.shape[2:]).astype(x_XT.dtype)

        def keys(x):
            return jnp.concatenate([before(x[:, :T]), self._own(x)], axis=1)

        number = jnp.arange(1, copies + 1)[None, :, None]
        prompt_segment = jnp.where((place_XT >= 0)[:, None], number, 0).reshape(-1, copies * T)
        rows = len(prompt_segment) * self.streams
        own_XR = jnp.ones((rows, self._own(key).shape[1]), jnp.int32)
        if self.segment_XSR is not None:
            own_XR = self.segment_XSR.reshape(rows, -1) + 1
        segment_XS = jnp.concatenate([jnp.repeat(prompt_segment, self.streams, axis=0), own_XR], axis=1)
        kinds = reach.kinds if reach else GLOBAL
        out = fused_causal(name, self._own(query), keys(key), keys(value), segment_XS, *kinds)
        return out.reshape(query.shape[0], -1, *out.shape[2:])

    def _merged(self, kernel, query, key, value, reach: Reach | None):
        """The streams' attended values, [X, S * R, H, C]: those of the prompt and the own ones, merged."""
        (X, T), S = self.prompt_valid_XT.shape, self.streams
        prompt_seen = Visibility(self.prompt_valid_XT)
        if reach is not None:
            at = reach.positions_XL
            prompt_seen = Visibility(self.prompt_valid_XT, at[:, T:], at[:, :T], window=reach.limit)
        to_prompt = attend(kernel, query[:, T:], key[:, :T], value[:, :T], prompt_seen)
        own_query, own_key, own_value = (self._own(x) for x in (query, key, value))
        R = own_query.shape[1]
        index = jnp.broadcast_to(jnp.arange(R)[None], (X * S, R))
        segment = None if self.segment_XSR is None else self.segment_XSR.reshape(X * S, R)
        seen = Visibility(None, index, index, segment, segment, reach and reach.limit)
        out, lse = attend(kernel, own_query, own_key, own_value, seen)
        to_own = (out.reshape(X, S * R, *out.shape[2:]), lse.reshape(X, S * R, lse.shape[-1]))
        return merge_attention(to_prompt, to_own)
