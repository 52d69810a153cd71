"""Attention of one new token for each row to what the row has written, by Pallas: for a TPU and for a GPU.

Of each row, blocks of the cache behind its position or before its window are not read, whereas
`models.slots.block_attention` reads as far as the longest row, for all. Keys and values in eight bits are multiplied by
their steps inside the kernel.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.mesh.sharding import LOGICAL_AXES, on_each_device, partition_spec, row_shards
from pbrl_jax.models.attention import HIDDEN
from pbrl_jax.models.fused_attention import platform
from pbrl_jax.models.precision import wide_type

#: Positions of a block: on a TPU the first that divides those of the cache; on a GPU, where a block lies in registers.
TPU_BLOCKS, GPU_BLOCK = (256, 128), 64
#: Positions of the cache are a multiple of LANES, and on a TPU channels of a head too: the compiler would copy others.
#: SUBLANES is that of the arrays whose last axis is not that of positions.
LANES, SUBLANES = 128, 32
#: Queries of the smallest matrix product of a GPU, whose channels are a power of two, from so many on.
GPU_QUERIES = 16


class Softmax(NamedTuple):
    """Sums over the keys that were read so far, for queries [..., Q]: the largest score [..., Q, 1], and relative to it
    the denominator [..., Q, 1] and the weighted values [..., Q, C]."""

    top: Any
    total: Any
    values: Any

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype) -> "Softmax":
        """Of no key, for queries of this shape, [..., Q, C]."""
        one = (*shape[:-1], 1)
        return cls(jnp.full(one, HIDDEN, dtype), jnp.zeros(one, dtype), jnp.zeros(shape, dtype))

    def with_keys(self, query, cached: Sequence[Any], seen, softcap: float) -> "Softmax":
        """With the keys of a block.

        Args:
          query: [..., Q, C].
          cached: keys [..., C, L] and values [..., L, C]; where they are integers, the steps of both, [..., 1, L].
          seen: which keys a query sees, broadcasts to [..., Q, L].
          softcap: scores s become c tanh(s / c); 0: they stay.
        """
        key, value, *steps = cached
        wide = self.total.dtype
        key, value = (x if x.dtype == query.dtype else x.astype(query.dtype) for x in (key, value))
        scores = jnp.matmul(query, key, preferred_element_type=wide) * query.shape[-1] ** -0.5
        if steps:
            scores = scores * steps[0]
        if softcap:
            scores = softcap * jnp.tanh(scores / softcap)
        scores = jnp.where(seen, scores, HIDDEN)
        top = jnp.maximum(self.top, scores.max(axis=-1, keepdims=True))
        weights, before = jnp.exp(scores - top), jnp.exp(self.top - top)
        scaled = weights * steps[1] if steps else weights
        values = jnp.matmul(scaled.astype(value.dtype), value, preferred_element_type=wide)
        total = self.total * before + weights.sum(axis=-1, keepdims=True)
        return Softmax(top, total, self.values * before + values)


class Form(NamedTuple):
    """What a kernel is compiled for: the window of a local layer, the soft cap of scores, positions of a block."""

    window: int | None
    softcap: float
    block: int

    def first(self, position):
        """The first block that a row at this position sees."""
        return 0 if self.window is None else jnp.maximum(position - self.window + 1, 0) // self.block

    def seen(self, number, position, ndim: int):
        """Which positions of a block are seen, along the last of `ndim` axes."""
        place = number * self.block + jax.lax.broadcasted_iota(jnp.int32, (1,) * (ndim - 1) + (self.block,), ndim - 1)
        found = place <= position
        return found if self.window is None else found & (place > position - self.window)


def tpu_kernel(position_ref, query_ref, *refs, form: Form) -> None:
    """One block of one row, whose sums stay in memory from block to block."""
    *cached, out_ref, top_ref, total_ref, values_ref = refs
    sums_refs = Softmax(top_ref, total_ref, values_ref)
    position, turn = position_ref[pl.program_id(0)], pl.program_id(1)
    number = form.first(position) + turn

    def keep(sums: Softmax) -> None:
        for ref, x in zip(sums_refs, sums, strict=True):
            ref[...] = x

    @pl.when(turn == 0)
    def begin():
        keep(Softmax.empty(values_ref.shape, values_ref.dtype))

    @pl.when(number <= position // form.block)
    def read():
        sums = Softmax(*(ref[...] for ref in sums_refs))
        keep(sums.with_keys(query_ref[0], [ref[0] for ref in cached], form.seen(number, position, 3), form.softcap))

    @pl.when(turn == pl.num_programs(1) - 1)
    def end():
        out_ref[0] = (values_ref[...] / total_ref[...]).astype(out_ref.dtype)


def tpu_attention(query_XKGC, position_X, most, *cached, form: Form, interpret: bool = False):
    """The kernel of a TPU. A block that is not read has the number of the last one that is: it is not fetched again."""
    from jax.experimental.pallas import tpu as pltpu

    X, K, G, C = query_XKGC.shape
    L = cached[0].shape[3]
    size = next(size for size in TPU_BLOCKS if L % size == 0)
    form, most = form._replace(block=size), -(-most * form.block // size)
    if form.window is not None:
        most = jnp.minimum(most, -(-form.window // size) + 1)

    def at(axis: int):
        def index(row, turn, position_ref):
            position = position_ref[row]
            place = [row, 0, 0, 0]
            place[axis] = jnp.minimum(form.first(position) + turn, position // size)
            return tuple(place)

        return index

    steps = pl.BlockSpec((1, K, 1, size), at(3))
    blocks = [pl.BlockSpec((1, K, C, size), at(3)), pl.BlockSpec((1, K, size, C), at(2)), steps, steps]
    rows = pl.BlockSpec((1, K, G, C), lambda row, turn, position_ref: (row, 0, 0, 0))
    wide = wide_type(query_XKGC.dtype)
    sums = [pltpu.VMEM((K, G, width), wide) for width in (1, 1, C)]
    return pl.pallas_call(
        functools.partial(tpu_kernel, form=form),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, grid=(X, most), in_specs=[rows, *blocks[: len(cached)]], out_specs=rows,
            scratch_shapes=sums,
        ),
        out_shape=jax.ShapeDtypeStruct(query_XKGC.shape, query_XKGC.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
    )(position_X, query_XKGC, *cached)  # fmt: skip


def write_kernel(position_ref, *refs) -> None:
    """One row's new entry into the part of each array that holds its position."""
    count = len(refs) // 3
    position, wide = position_ref[pl.program_id(0)], jnp.float32
    for new_ref, old_ref, out_ref in zip(refs[:count], refs[count : 2 * count], refs[2 * count :], strict=True):
        lanes, whole = len(new_ref.shape) == 3, old_ref.dtype == jnp.int8
        for head in range(old_ref.shape[1]):
            old = old_ref[0, head].astype(wide)
            new = new_ref[0, :, head : head + 1] if lanes else new_ref[0, head]
            here = jax.lax.broadcasted_iota(jnp.int32, old.shape, int(lanes)) == position % old.shape[int(lanes)]
            both = jnp.where(here, new, old)
            out_ref[0, head] = (both.astype(jnp.int32) if whole else both).astype(out_ref.dtype)


def write_rows(position_X, *arrays, interpret: bool = False):
    """New entries in the caches of the rows, in place, at a row's own position: the compiler would loop over the rows.

    Args:
      arrays: of each array of a cache its new entries in float32, [X, K, 1, C] where the last axis but one is that of
        positions, and [X, C, K] where the last is; then the arrays.
    """
    from jax.experimental.pallas import tpu as pltpu

    count = len(arrays) // 2
    new, old = arrays[:count], arrays[count:]

    def given(x):
        return pl.BlockSpec((1, *x.shape[1:]), lambda row, position_ref: (row, *(0,) * (x.ndim - 1)))

    def part(new, old):
        (_, K, rows, columns), lanes = old.shape, new.ndim == 3
        size = (1, K, rows, LANES) if lanes else (1, K, SUBLANES, columns)

        def index(row, position_ref):
            number = position_ref[row] // (LANES if lanes else SUBLANES)
            return (row, 0, 0, number) if lanes else (row, 0, number, 0)

        return pl.BlockSpec(size, index)

    parts = [part(*both) for both in zip(new, old, strict=True)]
    return pl.pallas_call(
        write_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, grid=(len(position_X),), in_specs=[*map(given, new), *parts], out_specs=tuple(parts),
        ),
        out_shape=tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in old),
        input_output_aliases={1 + count + number: number for number in range(count)},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=interpret,
    )(position_X, *arrays)


def written_rows(position_X: Int[Array, "X"], entries: Sequence[Any], cached: Sequence[Any], interpret: bool = False):
    """The cached arrays of a layer with each row's new entry, for a TPU, on each device's rows and heads; in place.

    Args:
      entries, cached: as `cached` of decode_attention; of the entries there is one position.
    """
    new = [(x if place == 1 else jnp.swapaxes(x[..., 0], 1, 2)).astype(jnp.float32) for place, x in enumerate(entries)]
    run: Callable[..., Any] = functools.partial(write_rows, interpret=interpret)
    if not jax.sharding.get_abstract_mesh().empty:
        cut, rows = partition_spec("batch", "kv_heads"), partition_spec("batch")
        heads_last = partition_spec("batch", "none", "kv_heads")
        given = [cut if x.ndim == 4 else heads_last for x in new]
        run = on_each_device(run, (rows, *given, *(cut for _ in cached)), tuple(cut for _ in cached))
    return run(position_X, *new, *cached)


def gpu_kernel(position_ref, query_ref, *refs, form: Form) -> None:
    """All blocks of one row and key head."""
    *cached, out_ref = refs
    position, query = position_ref[0], query_ref[...]

    def read(number, sums: Softmax) -> Softmax:
        here = pl.ds(number * form.block, form.block)
        some = [ref[here, :] if place == 1 else ref[:, here] for place, ref in enumerate(cached)]
        return sums.with_keys(query, some, form.seen(number, position, 2), form.softcap)

    empty = Softmax.empty(query.shape, wide_type(query.dtype))
    sums = jax.lax.fori_loop(form.first(position), position // form.block + 1, read, empty)
    out_ref[...] = (sums.values / sums.total).astype(out_ref.dtype)


def gpu_attention(query_XKGC, position_X, _most, *cached, form: Form, interpret: bool = False):
    """The kernel of a GPU, with as many queries as its smallest product has."""
    from jax.experimental.pallas import triton

    X, K, G, _ = query_XKGC.shape
    query = jnp.pad(query_XKGC, ((0, 0), (0, 0), (0, -G % GPU_QUERIES), (0, 0)))

    def whole(x):
        return pl.BlockSpec((None, None, *x.shape[2:]), lambda row, head: (row, head, 0, 0))

    out = pl.pallas_call(
        functools.partial(gpu_kernel, form=form._replace(block=GPU_BLOCK)),
        grid=(X, K),
        in_specs=[pl.BlockSpec((1,), lambda row, head: (row,)), whole(query), *map(whole, cached)],
        out_specs=whole(query),
        out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
        compiler_params=triton.CompilerParams(),
        interpret=interpret,
    )(position_X, query, *cached)
    return out[:, :, :G]


#: Platform -> attention of queries [X, K, G, C] at positions [X] to the caches behind `most`, the number of blocks of
#: `form.block` up to the largest position.
KERNELS: dict[str, Callable[..., jax.Array]] = {"tpu": tpu_attention, "gpu": gpu_attention}


def decode_kernel(choice: str, query_X1HC: Float[Array, "X 1 H C"], key_XKCL) -> str | None:
    """The platform whose kernel computes this, or None: the portable form does.

    Args:
      choice: `policy.decode_attention` of the config; auto: the kernel of a TPU, where it takes such arrays.

    Raises:
      ConfigError: `pallas` for arrays or on a platform that no kernel takes.
    """
    (X, _, _, C), (K, L), found = query_X1HC.shape, key_XKCL.shape[1::2], platform()
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else mesh.shape[LOGICAL_AXES["kv_heads"]]
    one_device = not mesh.empty or jax.device_count() == 1  # the compiler cannot cut a kernel
    channels = {"tpu": C % LANES == 0, "gpu": C >= GPU_QUERIES and C.bit_count() == 1}.get(found, False)
    able = channels and L % LANES == 0 and one_device and X % row_shards() == 0 and K % shards == 0
    if choice == "pallas" and not able:
        raise ConfigError(
            f"policy.decode_attention is pallas, on {found!r} with {X} rows of {L} positions and {K} key heads of {C} "
            f"channels. It takes 'tpu' and 'gpu', rows and heads that divide over the mesh, positions in multiples of "
            f"{LANES}, channels in multiples of {LANES} (on a GPU a power of two). Use --policy.decode-attention auto."
        )
    return found if choice == "pallas" or (choice == "auto" and able and found == "tpu") else None


def decode_attention(
    name: str, query_X1HC: Float[Array, "X 1 H C"], cached: Sequence[Any], position_X: Int[Array, "X"], blocks,
    form: Form, interpret: bool = False,
) -> Float[Array, "X 1 H C"]:  # fmt: skip
    """One query for each row against its entries up to its position, on each device's rows and heads.

    Args:
      name: in KERNELS.
      cached: keys [X, K, C, positions] and values [X, K, positions, C]; steps [X, K, 1, positions] of both where they
        are integers.
      blocks: blocks of `form.block` positions up to the largest position.
      interpret: run it on any backend, slowly.
    """
    X, _, H, C = query_X1HC.shape
    K = cached[0].shape[1]
    query_XKGC = query_X1HC.reshape(X, K, H // K, C)
    run: Callable[..., jax.Array] = functools.partial(KERNELS[name], form=form, interpret=interpret)
    if not jax.sharding.get_abstract_mesh().empty:
        cut, rows = partition_spec("batch", "kv_heads"), partition_spec("batch")
        run = on_each_device(run, (cut, rows, partition_spec(), *(cut for _ in cached)), cut)
    return run(query_XKGC, position_X, blocks, *cached).reshape(X, 1, H, C)
