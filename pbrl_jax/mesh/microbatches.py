"""Sums over microbatches on a mesh, of which the `data` axis may cross slow links."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from pbrl_jax.core.trees import sum_microbatches

DATA = "data"


def sum_over_data(tree: Any) -> Any:
    """The sum of a tree's leaves over the `data` axis."""
    return jax.lax.psum(tree, DATA)


def join_sums(total: Any) -> Any:
    """`((sum, (count, pairs, largest)), gradients)` over the `data` axis: sums, of `largest` the maximum."""
    (loss_sum, (count, pairs, largest)), grads = total
    loss_sum, count, pairs, grads = sum_over_data((loss_sum, count, pairs, grads))
    return (loss_sum, (count, pairs, jax.lax.pmax(largest, DATA))), grads


def data_sums(
    function: Callable[[Any, Any], Any],
    params: Any,
    rows: Any,
    groups: int,
    size: int,
    add: Callable[[Any, Any], Any] | None = None,
    join: Callable[[Any], Any] = sum_over_data,
) -> Any:
    """`function(params, rows)`, a tree of sums over rows, for `size` groups of rows at a time (0: all), added up.

    Each part of the `data` axis adds up its own microbatches, and the parts are joined once, after the last: left to
    the compiler, gradients would cross the axis at every microbatch. Sums take no more memory so, since each part has
    them in full either way. Other axes are the compiler's, as without microbatches; where two of them cut arrays, so is
    `data`, because XLA's partitioner (jaxlib 0.10.2) ends the process there with a failed check.

    Args:
      add: see `core.trees.sum_microbatches`.
      join: a part's total -> that of all, where not every leaf is a sum.
    """

    def local(params, rows, groups, size):
        return sum_microbatches(lambda piece: function(params, piece), rows, groups, size, add)

    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else mesh.shape[DATA]
    others = sum(count > 1 for axis, count in mesh.shape.items() if axis != DATA)
    if parts == 1 or others > 1 or not 0 < size < groups or groups % parts or size % parts:
        return local(params, rows, groups, size)

    def part(params, rows):
        return join(local(params, rows, groups // parts, size // parts))

    specs = PartitionSpec(), PartitionSpec(DATA)
    apart = jax.shard_map(part, in_specs=specs, out_specs=specs[0], axis_names={DATA}, check_vma=False)
    return apart(params, rows)
