"""Causal attention by the hardware's own kernels: cuDNN on a GPU, Splash (Pallas) on a TPU.

No scores are written to memory. The queries are those of the last positions of the keys, so that one call serves plain
rows, and a response against the keys of its prompt and its own, [prompt | response]. Neither kernel gives a
log-denominator with a gradient (cuDNN's backward pass ignores it, Splash raises), so attention over two sets of keys
that is merged afterwards, as in decoding, uses the kernels of pbrl_jax.models.attention.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.mesh.sharding import LOGICAL_AXES, on_each_device, partition_spec, row_shards

#: Lanes of Splash, and the largest block of queries and keys that it takes at a time.
SPLASH_LANES, SPLASH_BLOCK = 128, 512
#: Named scope of a Splash call, by which the plan counts its products: Splash gives the compiler no cost.
PAIRS_SCOPE = "attention_pairs_{}"


def platform() -> str:
    """The platform of the mesh that is set, whose devices need not be present; without one, this process's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def require_backend(kernel: str, backend: str) -> None:
    """Raise ConfigError unless this process computes on `backend`."""
    found = platform()
    if found != backend:
        raise ConfigError(
            f"Attention kernel {kernel!r} needs a {backend.upper()}; the program is for {found!r}. "
            "Use --policy.attention auto."
        )


def fused_kernel(kernel, query_XQHC, key_XSKC) -> str | None:
    """The fused kernel that computes this, or None: one that is asked for, or for `auto` that of the platform where it
    takes such arrays (half precision, rows and heads that divide over the mesh, a block of queries or more)."""
    if kernel != "auto":
        return kernel if kernel in FUSED else None
    name, (rows, queries, heads, channels) = {"tpu": "splash", "gpu": "cudnn"}.get(platform()), query_XQHC.shape
    if name is None or query_XQHC.dtype not in (jnp.bfloat16, jnp.float16) or queries < SPLASH_LANES:
        return None
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty and jax.device_count() > 1:
        return None  # arrays may lie on several devices, and the compiler cannot cut a kernel
    shards = 1 if mesh.empty else mesh.shape[LOGICAL_AXES["heads"]]
    divides = rows % row_shards() == 0 and heads % shards == 0 and key_XSKC.shape[2] % shards == 0
    return name if divides and (name == "splash" or cudnn_takes(channels)) else None


def cudnn_takes(channels: int) -> bool:
    """Whether cuDNN has flash attention for heads of so many channels on this process's GPU."""
    capability = tuple(int(part) for part in str(jax.local_devices()[0].compute_capability).split("."))
    return capability >= (8, 0) and channels % 8 == 0 and channels <= (256 if capability >= (9, 0) else 128)


def cudnn_attention(
    query_XQHC: Float[Array, "X Q H C"],
    key_XSKC: Float[Array, "X S K C"],
    value_XSKC: Float[Array, "X S K C"],
    segment_XS: Shaped[Array, "X S"],
    window: int | None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "X Q H C"]:
    """Flash attention of cuDNN in half precision (`implementation` is jax.nn's own switch); arguments as in FUSED.

    cuDNN knows no queries of the last positions alone and padding on the right only: rows are shifted to the left, and
    queries that nobody reads stand for those of the positions before, which costs S - Q more queries a row.
    """
    if implementation == "cudnn":
        require_backend("cudnn", "gpu")
        if query_XQHC.dtype not in (jnp.bfloat16, jnp.float16) or query_XQHC.shape[-1] % 8:
            raise ConfigError(
                "Attention kernel 'cudnn' takes half precision and heads of a multiple of 8 channels; found "
                f"{query_XQHC.dtype} and {query_XQHC.shape[-1]}. "
                "Use --policy.dtype bfloat16, or --policy.attention auto."
            )
    before = key_XSKC.shape[1] - query_XQHC.shape[1]
    query, key, value = jnp.pad(query_XQHC, ((0, 0), (before, 0), (0, 0), (0, 0))), key_XSKC, value_XSKC
    lengths_X = segment_XS.sum(axis=1).astype(jnp.int32)
    if before:
        start_X = jnp.argmax(segment_XS, axis=1)
        query, key, value = (shifted(x, -start_X) for x in (query, key, value))
    out = jax.nn.dot_product_attention(
        query, key, value, is_causal=True, query_seq_lengths=lengths_X, key_value_seq_lengths=lengths_X,
        local_window_size=None if window is None else (window - 1, 0), implementation=implementation,
    )  # fmt: skip
    return shifted(out, start_X)[:, before:] if before else out


def shifted(x_XLHC: Float[Array, "X L H C"], by_X: Int[Array, " X"]) -> Float[Array, "X L H C"]:
    """Each row moved to the right by its own number of positions, around the end."""
    return jax.vmap(lambda x, by: jnp.roll(x, by, axis=0))(x_XLHC, by_X)


def splash_attention(query_XQHC, key_XSKC, value_XSKC, segment_XS, window: int | None, interpret: bool = False):
    """Splash attention of Pallas on each device's rows and heads; `interpret` runs it on any backend, slowly.

    Arguments as in FUSED; `segment_XS` may number several segments.
    """
    if not interpret:
        require_backend("splash", "tpu")
    local: Callable = functools.partial(_splash_rows, window=window, interpret=interpret)
    if not jax.sharding.get_abstract_mesh().empty:
        heads, kv_heads = (partition_spec("batch", "none", name, "none") for name in ("heads", "kv_heads"))
        rows = partition_spec("batch", "none")
        local = on_each_device(local, (heads, kv_heads, kv_heads, rows), heads)
    return local(query_XQHC, key_XSKC, value_XSKC, segment_XS)


def splash_block(length: int) -> int:
    """Block of Splash for so many positions: large ones are fast, small ones add less padding."""
    return min(range(SPLASH_LANES, SPLASH_BLOCK + 1, SPLASH_LANES), key=lambda b: -(-length // b) * (b + SPLASH_LANES))


def block_pairs(queries: int, keys: int, blocks: tuple[int, int], offset: int, window: int | None) -> int:
    """(query, key) pairs of the blocks that hold a visible one."""
    first_q = np.arange(0, queries, blocks[0])[:, None] + offset
    first_k = np.arange(0, keys, blocks[1])[None]
    visible = first_k < first_q + blocks[0]
    if window is not None:
        visible &= first_k + blocks[1] - 1 > first_q - window
    return int(visible.sum()) * blocks[0] * blocks[1]


def splash_pairs(queries: int, keys: int, window: int | None) -> int:
    """(query, key) pairs that Splash computes of a row and head."""
    blocks = splash_block(queries), splash_block(keys)
    return block_pairs(queries, keys, blocks, keys - queries, window)


def _splash_rows(query, key, value, segment, window: int | None, interpret: bool):
    """Splash over the rows of one device, padded to full blocks."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (Q, H, C), S = query.shape[1:], key.shape[1]
    block, block_kv = splash_block(Q), splash_block(S)
    shape = (Q + -Q % block, S + -S % block_kv)
    # No query sees a key after its own position, and so none sees the padding.
    causal = masks.CausalMask(shape, S - Q)
    mask = causal if window is None else masks.LocalMask(shape, (window - 1, 0), S - Q)
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block_kv, block_q_dkv=block, block_kv_dkv=block_kv, block_q_dq=block,
        block_kv_dq=block_kv,
    )  # fmt: skip
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * H), block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
    )

    def padded(x, total):
        return jnp.pad(x, ((0, 0), (0, total - x.shape[1]), *((0, 0) for _ in x.shape[2:])))

    def one_row(query, key, value, query_segment, key_segment):
        return kernel(query, key, value, splash.SegmentIds(query_segment, key_segment))

    segment = segment.astype(jnp.int32)
    arrays = (padded((query * C**-0.5).astype(query.dtype), shape[0]), padded(key, shape[1]), padded(value, shape[1]))
    with jax.named_scope(PAIRS_SCOPE.format(splash_pairs(Q, S, window))):
        query, key, value = (jnp.swapaxes(x, 1, 2) for x in arrays)
        out = jax.vmap(one_row)(query, key, value, padded(segment[:, S - Q :], shape[0]), padded(segment, shape[1]))
    return jnp.swapaxes(out, 1, 2)[:, :Q]


#: Kernel name -> causal attention of queries [X, Q, H, C], those of the last Q of S positions, to keys and values
#: [X, S, K, C]. Arguments: the three, segment_XS, and the window or None. A query sees the keys of its own segment; 0
#: or False is padding, on the right of a row of queries and keys, on the left where the keys are more. The segment is
#: one for cuDNN, any number for Splash.
FUSED: dict[str, Callable[..., jax.Array]] = {"cudnn": cudnn_attention, "splash": splash_attention}


def fused_causal(name: str, query, key, value, segment, window: int | None, local) -> Float[Array, "X Q H C"]:
    """The fused kernel `name`, with the window where `local`; `local` is traced in a scan over layers of both kinds."""
    kernel = FUSED[name]
    if window is None or local is True:
        return kernel(query, key, value, segment, window)
    inputs = query, key, value, segment
    return jax.lax.cond(local, lambda *inputs: kernel(*inputs, window), lambda *inputs: kernel(*inputs, None), *inputs)
