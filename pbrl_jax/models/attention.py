"""Attention kernels: one table, one signature.

A kernel maps queries [X, Q, H, C], keys and values [X, S, K, C] and a Visibility to the attended values [X, Q, H, C]
and the log of the softmax denominator [X, Q, H], so that attention over two sets of keys (a shared prompt and one
response) can be computed separately and merged exactly.
"""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pbrl_jax.core.errors import lookup
from pbrl_jax.models.precision import gradient_to, wide_type, widened

#: Score of a masked key. Finite, so that a query whose keys are all masked gives numbers and not NaN.
HIDDEN = -1e30

#: Number of (query, key) pairs above which `portable` uses the chunked kernel.
AUTO_CHUNK_PAIRS = 512 * 512
QUERY_CHUNK = 128


class Visibility(NamedTuple):
    """Which keys a query attends to; a field that is None sets no condition.

    A key is visible when it is valid, its position is not after the query's, its segment is the query's, and it is one
    of the last `window` positions up to the query's (which needs positions).
    """

    key_valid_XS: Bool[Array, "X S"] | None = None
    query_position_XQ: Int[Array, "X Q"] | None = None
    key_position_XS: Int[Array, "X S"] | None = None
    query_segment_XQ: Int[Array, "X Q"] | None = None
    key_segment_XS: Int[Array, "X S"] | None = None
    window: int | Int[Array, ""] | None = None

    def mask(self) -> Bool[Array, "X Q S"] | None:
        """The conditions as one array that broadcasts to [X, Q, S]; None when there are none."""
        conditions = []
        if self.key_valid_XS is not None:
            conditions.append(self.key_valid_XS[:, None, :])
        if self.query_position_XQ is not None and self.key_position_XS is not None:
            conditions.append(self.key_position_XS[:, None, :] <= self.query_position_XQ[:, :, None])
            if self.window is not None:
                oldest_XQ = self.query_position_XQ - self.window
                conditions.append(self.key_position_XS[:, None, :] > oldest_XQ[:, :, None])
        if self.query_segment_XQ is not None and self.key_segment_XS is not None:
            conditions.append(self.key_segment_XS[:, None, :] == self.query_segment_XQ[:, :, None])
        return functools.reduce(operator.and_, conditions) if conditions else None


def xla_attention(
    query_XQHC: Float[Array, "X Q H C"],
    key_XSKC: Float[Array, "X S K C"],
    value_XSKC: Float[Array, "X S K C"],
    visibility: Visibility,
    softcap: float = 0.0,
) -> tuple[Float[Array, "X Q H C"], Float[Array, "X Q H"]]:
    """Grouped-query attention with all scores at once, softmax in float32 or wider; for `softcap` see Kernel."""
    X, Q, H, C = query_XQHC.shape
    K = key_XSKC.shape[2]
    query = query_XQHC.reshape(X, Q, K, H // K, C)
    scores = jnp.einsum("xqkgc,xskc->xkgqs", query, key_XSKC, preferred_element_type=wide_type(query.dtype)) * C**-0.5
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    mask = visibility.mask()
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, HIDDEN)
    top = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    out = jnp.einsum("xkgqs,xskc->xqkgc", (weights / total).astype(value_XSKC.dtype), value_XSKC)
    lse = (jnp.log(total) + top)[..., 0]
    return out.reshape(X, Q, H, C), jnp.moveaxis(lse, 3, 1).reshape(X, Q, H)


def chunked_attention(
    query_XQHC, key_XSKC, value_XSKC, visibility: Visibility, softcap: float = 0.0, chunk: int = QUERY_CHUNK
):
    """`xla_attention` for one chunk of queries at a time; the backward pass recomputes each chunk's scores.

    Memory for scores falls from Q * S to chunk * S per head. Works on every backend.
    """
    X, Q = query_XQHC.shape[:2]
    padding = -Q % chunk
    count = (Q + padding) // chunk

    def split(x):
        if x is None:
            return None
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2), mode="edge")
        return jnp.moveaxis(x.reshape(X, count, chunk, *x.shape[2:]), 1, 0)

    wide_key, wide_value = widened(key_XSKC), widened(value_XSKC)

    @jax.checkpoint
    def one_chunk(queries):
        query, position, segment = queries
        seen = visibility._replace(query_position_XQ=position, query_segment_XQ=segment)
        key, value = gradient_to(key_XSKC, wide_key), gradient_to(value_XSKC, wide_value)
        return xla_attention(query, key, value, seen, softcap)

    queries = (split(query_XQHC), split(visibility.query_position_XQ), split(visibility.query_segment_XQ))
    out, lse = jax.lax.map(one_chunk, queries)

    def join(x):
        return jnp.moveaxis(x, 0, 1).reshape(X, count * chunk, *x.shape[3:])[:, :Q]

    return join(out), join(lse)


def portable_attention(query_XQHC, key_XSKC, value_XSKC, visibility: Visibility, softcap: float = 0.0):
    """All scores at once while they are small, chunked otherwise."""
    pairs = query_XQHC.shape[1] * key_XSKC.shape[1]
    kernel = xla_attention if pairs <= AUTO_CHUNK_PAIRS else chunked_attention
    return kernel(query_XQHC, key_XSKC, value_XSKC, visibility, softcap)


#: Kernels by name. Those of pbrl_jax.models.fused_attention give no differentiable log-denominator: where one is
#: needed, and where `auto` takes none of them, `portable` replaces them.
KERNELS = {
    "portable": portable_attention,
    "xla": xla_attention,
    "chunked": chunked_attention,
} | dict.fromkeys(("auto", "cudnn", "splash"), portable_attention)


class Kernel(NamedTuple):
    """A kernel whose scores s become c tanh(s / c) with c = `softcap`; fused kernels are replaced by `portable`."""

    name: str
    softcap: float


def attend(kernel: str | Kernel, query_XQHC, key_XSKC, value_XSKC, visibility: Visibility):
    """Run the kernel called so (ConfigError for an unknown one)."""
    name, softcap = kernel if isinstance(kernel, Kernel) else (kernel, 0.0)
    return lookup(KERNELS, name, "attention kernel")(query_XQHC, key_XSKC, value_XSKC, visibility, softcap)


def merge_attention(first, second) -> jax.Array:
    """Attention over two disjoint sets of keys, from the (values, log-denominator) of each.

    softmax over the union = the two softmaxes weighted by their shares of the denominator.
    """
    (out_a, lse_a), (out_b, lse_b) = first, second
    share_a = jax.nn.sigmoid(lse_a - lse_b)[..., None]
    wide = out_a * share_a + out_b * (1 - share_a)
    return wide.astype(out_a.dtype)
