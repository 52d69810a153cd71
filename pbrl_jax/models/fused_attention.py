"""Causal attention by the hardware's own kernels: cuDNN on a GPU, Splash (Pallas) on a TPU.

They are used where a token attends to itself and the valid tokens before it: prefill, prompts, plain batches. Where
attention over two sets of keys is merged, the gradient of the log-denominator is needed, which neither gives (cuDNN's
backward pass ignores it, Splash raises): there the kernels of pbrl_jax.models.attention are used.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.mesh.sharding import partition_spec

#: Lanes of Splash, and the largest block of queries and keys that it takes at a time.
SPLASH_LANES, SPLASH_BLOCK = 128, 512


def require_backend(kernel: str, backend: str) -> None:
    """Raise ConfigError unless this process computes on `backend`."""
    found = jax.default_backend()
    if found != backend:
        raise ConfigError(
            f"Attention kernel {kernel!r} needs a {backend.upper()}; this process computes on {found!r}. "
            "Use --policy.attention auto."
        )


def cudnn_attention(
    query_XLHC: Float[Array, "X L H C"],
    key_XLKC: Float[Array, "X L K C"],
    value_XLKC: Float[Array, "X L K C"],
    valid_XL: Bool[Array, "X L"],
    window: int | None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "X L H C"]:
    """Flash attention of cuDNN, for right-padded rows in half precision (`implementation` is jax.nn's own switch)."""
    if implementation == "cudnn":
        require_backend("cudnn", "gpu")
        if query_XLHC.dtype not in (jnp.bfloat16, jnp.float16) or query_XLHC.shape[-1] % 8:
            raise ConfigError(
                "Attention kernel 'cudnn' takes half precision and heads of a multiple of 8 channels; found "
                f"{query_XLHC.dtype} and {query_XLHC.shape[-1]}. "
                "Use --policy.dtype bfloat16, or --policy.attention auto."
            )
    lengths_X = valid_XL.sum(axis=1).astype(jnp.int32)
    return jax.nn.dot_product_attention(
        query_XLHC, key_XLKC, value_XLKC,
        is_causal=True, query_seq_lengths=lengths_X, key_value_seq_lengths=lengths_X,
        local_window_size=None if window is None else (window - 1, 0), implementation=implementation,
    )  # fmt: skip


def splash_attention(query_XLHC, key_XLKC, value_XLKC, valid_XL, window: int | None, interpret: bool = False):
    """Splash attention of Pallas on each device's rows and heads; `interpret` runs it on any backend, slowly."""
    if not interpret:
        require_backend("splash", "tpu")
    local = functools.partial(_splash_rows, window=window, interpret=interpret)
    if not jax.sharding.get_abstract_mesh().empty:
        heads, kv_heads = (partition_spec("batch", "none", name, "none") for name in ("heads", "kv_heads"))
        rows = partition_spec("batch", "none")
        # Pallas kernels carry no information on the mesh axes over which their results vary.
        local = jax.shard_map(local, in_specs=(heads, kv_heads, kv_heads, rows), out_specs=heads, check_vma=False)
    return local(query_XLHC, key_XLKC, value_XLKC, valid_XL)


def _splash_rows(query, key, value, valid, window: int | None, interpret: bool):
    """Splash over the rows of one device, padded to full blocks; padding is a separate segment."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    L, H, C = query.shape[1:]
    block = min(SPLASH_BLOCK, L + -L % SPLASH_LANES)
    total = L + -L % block
    shape = (total, total)
    mask = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * H), block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
    )

    def heads_first(x):
        return jnp.swapaxes(jnp.pad(x, ((0, 0), (0, total - L), (0, 0), (0, 0))), 1, 2)

    def one_row(query, key, value, segment):
        return kernel(query, key, value, splash.SegmentIds(segment, segment))

    segment = jnp.pad(valid, ((0, 0), (0, total - L))).astype(jnp.int32)
    scaled = (query * C**-0.5).astype(query.dtype)
    out = jax.vmap(one_row)(heads_first(scaled), heads_first(key), heads_first(value), segment)
    return jnp.swapaxes(out, 1, 2)[:, :L]


#: Kernel name -> causal attention without a log-denominator.
FUSED: dict[str, Callable[..., jax.Array]] = {"cudnn": cudnn_attention, "splash": splash_attention}


def fused_causal(name: str, query, key, value, valid, window: int | None, local) -> Float[Array, "X L H C"]:
    """The fused kernel `name`, with the window where `local`; `local` is traced in a scan over layers of both kinds."""
    kernel = FUSED[name]
    if window is None or local is True:
        return kernel(query, key, value, valid, window)
    return jax.lax.cond(
        local, lambda *inputs: kernel(*inputs, window), lambda *inputs: kernel(*inputs, None), query, key, value, valid
    )
