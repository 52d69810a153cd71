"""Products of groups of rows, each group with its own matrix.

TPUs support this natively (`jax.lax.ragged_dot`). Elsewhere XLA computes a dense product of every row with every
matrix: here the rows of a group are arranged in blocks, and each block is multiplied by its group's matrix alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pbrl_jax.models.precision import wide_type

#: Bounds of the rows per block, which is about the average size of a group.
SMALLEST_BLOCK, LARGEST_BLOCK = 8, 128


class Groups(NamedTuple):
    """An arrangement of M items in which those of a group are contiguous: vectors of integers."""

    #: Item at each slot of the sorted layout; M (no item) where a slot is empty.
    item_of_slot: jax.Array
    slot_of_item: jax.Array
    #: Items of each group.
    sizes: jax.Array
    #: None: slots are the sorted items, without blocks.
    group_of_block: jax.Array | None


def group_items(group_M: jax.Array, groups: int, blocks: bool | None = None) -> Groups:
    """Sort items by group (a vector of numbers below `groups`).

    Args:
      blocks: pad each group to full blocks; None: unless the hardware needs no blocks.
    """
    M = group_M.shape[0]
    order = jnp.argsort(group_M)
    sizes = jnp.bincount(group_M, length=groups).astype(jnp.int32)
    if not (jax.default_backend() != "tpu" if blocks is None else blocks):
        return Groups(order, jnp.argsort(order), sizes, None)
    block = min(LARGEST_BLOCK, max(SMALLEST_BLOCK, 1 << (M // groups).bit_length()))
    most = (M + min(groups, M) * (block - 1)) // block
    of_group = -(-sizes // block)
    ends = jnp.cumsum(of_group)
    group_of_block = jnp.minimum(jnp.searchsorted(ends, jnp.arange(most), side="right"), groups - 1)
    sorted_group = group_M[order]
    rank = jnp.arange(M) - (jnp.cumsum(sizes) - sizes)[sorted_group]
    slot = (ends - of_group)[sorted_group] * block + rank
    item_of_slot = jnp.full(most * block, M, order.dtype).at[slot].set(order)
    slot_of_item = jnp.zeros(M, slot.dtype).at[order].set(slot)
    return Groups(item_of_slot, slot_of_item, sizes, group_of_block)


def grouped_dot(
    rows: Float[Array, "slots D"], matrices: Float[Array, "groups D F"], groups: Groups
) -> Float[Array, "slots F"]:
    """Each slot's row times the matrix of its group; rows of empty slots must be zero."""
    if groups.group_of_block is None:
        return jax.lax.ragged_dot(rows, matrices, groups.sizes)
    blocked = rows.reshape(groups.group_of_block.shape[0], -1, rows.shape[-1])
    return _block_dot(blocked, matrices, groups.group_of_block).reshape(rows.shape[0], -1)


@jax.custom_vjp
def _block_dot(rows_nbD, matrices_EDF, group_n):
    """One block at a time, with one matrix per block."""
    return jax.lax.map(lambda block: block[0] @ matrices_EDF[block[1]], (rows_nbD, group_n))


def _forward(rows_nbD, matrices_EDF, group_n):
    return _block_dot(rows_nbD, matrices_EDF, group_n), (rows_nbD, matrices_EDF, group_n)


def _backward(saved, tangent_nbF):
    """Written by hand: JAX's own derivative adds an array of all matrices for every block."""
    rows_nbD, matrices_EDF, group_n = saved
    rows = jax.lax.map(lambda block: block[0] @ matrices_EDF[block[1]].T, (tangent_nbF, group_n))
    wide = wide_type(matrices_EDF.dtype)

    def add(total, block):
        row, tangent, group = block
        return total.at[group].add(jnp.matmul(row.T, tangent, preferred_element_type=wide)), None

    matrices, _ = jax.lax.scan(add, jnp.zeros(matrices_EDF.shape, wide), (rows_nbD, tangent_nbF, group_n))
    return rows, matrices.astype(matrices_EDF.dtype), None


_block_dot.defvjp(_forward, _backward)
