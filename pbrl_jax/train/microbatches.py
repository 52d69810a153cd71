"""Microbatches of groups of about equal length, each packed into the cheapest bucket that holds it (models.packing).

Groups are sorted by their tokens, so that few slots are empty beside the longest group of a microbatch. On a mesh every
device has the same number of groups of each microbatch, and so the same shapes; the order is of all groups of a batch,
and the same on every host.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pbrl_jax.config.tree import Config
from pbrl_jax.core.records import TrainBatch
from pbrl_jax.core.trees import map_microbatches, sum_microbatches, take_groups
from pbrl_jax.mesh.sharding import constrain
from pbrl_jax.models.packing import Bucket, fits, packed_buckets, place_rows, slot_cost
from pbrl_jax.models.specs import DecoderSpec

#: Microbatches that a batch is cut into at most.
MOST_MICROBATCHES = 16
#: Response slots of a full-length microbatch on each device, at least: fewer do not fill the hardware, and a batch of
#: fewer is not packed.
LEAST_SLOTS = 1024
#: From so many slots on, buckets are finer: each is a program to compile.
FINE_SLOTS = 16_384


class Packing(NamedTuple):
    """How a batch is packed: groups of a microbatch, and the buckets by rising cost, the last one unpacked."""

    size: int
    buckets: tuple[Bucket, ...]


class Microbatch(NamedTuple):
    """Numbers of its groups, [size], and their bucket."""

    groups: np.ndarray
    bucket: Bucket


def group_samples(config: Config) -> int:
    """Rows of a group in the update: those of a prompt, or of a part of them."""
    return config.train.microbatch_samples or config.algo.num_generations


def packing_of(spec: DecoderSpec, config: Config, shards: int, traced: bool = False) -> Packing | None:
    """How updates of a run are packed; None where train.packed is off or the batches are too small to gain by it.

    Args:
      shards: devices that hold different rows; each has as many groups of every microbatch.
      traced: one program holds all buckets and is compiled before the first step: few buckets, and large batches only.
    """
    G, R = group_samples(config), config.rollout.max_completion_length
    prompts = config.algo.minibatch_prompts or config.train.prompts_per_step
    groups = prompts * config.algo.num_generations // G
    limit, least = config.train.microbatch_prompts or groups, LEAST_SLOTS * shards
    enough = FINE_SLOTS * shards if traced else least
    if not config.train.packed or limit * G * R < enough or limit % shards:
        return None
    even = [n for n in range(shards, limit + 1, shards) if groups % n == 0 and groups <= n * MOST_MICROBATCHES]
    size = min((n for n in even if n * G * R >= least), default=limit)
    ratio = 2**-0.5 if size * G * R >= FINE_SLOTS * shards and not traced else 0.5
    buckets = packed_buckets(G, R, slot_cost(spec, config.rollout.max_prompt_length), ratio)
    useful = tuple(bucket for bucket in buckets if size * bucket.slots >= least // 8)
    return Packing(size, useful) if len(useful) > 1 else None


def plan_microbatches(lengths_XG: np.ndarray, packing: Packing, chosen: np.ndarray | None = None) -> list[Microbatch]:
    """The microbatches of a batch; on the host.

    Args:
      lengths_XG: tokens of every row.
      chosen: numbers of the groups that take part; None: all.
    """
    chosen = np.arange(len(lengths_XG)) if chosen is None else chosen
    order = chosen[np.argsort(lengths_XG[chosen].sum(axis=1), kind="stable")]
    held = np.stack([fits(lengths_XG[order], bucket) for bucket in packing.buckets])
    found = []
    for at in range(0, len(order), packing.size):
        part = slice(at, at + packing.size)
        bucket = next(b for b, inside in zip(packing.buckets, held, strict=True) if inside[part].all())
        found.append(Microbatch(order[part].astype(np.int32), bucket))
    return found


def on_rows(tree: Any) -> Any:
    """Arrays laid out by their leading axis, as a batch is."""
    return jax.tree.map(lambda x: constrain(x, "batch", *["none"] * (x.ndim - 1)), tree)


def groups_at(tree: Any, index: jax.Array, groups: int) -> Any:
    """The groups `index` of a batch, laid out as a batch is."""
    return on_rows(take_groups(tree, index, groups))


class ChosenBuckets(NamedTuple):
    """The microbatches of `plan_microbatches` in a traced program, which chooses among the buckets; a field of
    `train.update.UpdateContext`."""

    packing: Packing

    def rows(self, function: Callable, batch: TrainBatch, context: Any) -> jax.Array:
        """`function(batch, context)`, rows on its leading axis, of every microbatch with its bucket."""
        groups, order = self._ordered(batch)
        piece = functools.partial(self._in_bucket, function, context=context)
        rows_BR = map_microbatches(piece, groups_at(batch, order, groups), groups, self.packing.size)
        return groups_at(rows_BR, jnp.argsort(order), groups)

    def sums(self, function: Callable, rows: tuple, context: Any, add: Callable) -> Any:
        """`function(rows, context)` of every microbatch of a tuple that begins with a batch, added up."""
        groups, order = self._ordered(rows[0])
        piece = functools.partial(self._in_bucket, function, context=context)
        return sum_microbatches(piece, groups_at(rows, order, groups), groups, self.packing.size, add)

    def _ordered(self, batch: TrainBatch) -> tuple[int, jax.Array]:
        """(number of groups, the order in which `split_microbatches` gives sorted microbatches)."""
        lengths_PG = group_lengths(batch)
        order = jnp.argsort(lengths_PG.sum(axis=1), stable=True)
        return len(lengths_PG), order.reshape(-1, self.packing.size).T.reshape(-1)

    def _in_bucket(self, function: Callable, rows: Any, context: Any) -> Any:
        """`function(rows, context)` with the first bucket that every group fits; the last one holds any."""
        lengths_PG = group_lengths(rows[0] if isinstance(rows, tuple) else rows)
        held = [place_rows(lengths_PG, bucket)[2].all() for bucket in self.packing.buckets[:-1]]
        index = jnp.argmax(jnp.stack([*held, jnp.bool_(True)]))
        contexts = [context._replace(bucket=bucket, packed=None) for bucket in self.packing.buckets]
        return jax.lax.switch(index, [functools.partial(function, context=one) for one in contexts], rows)


def group_lengths(batch: TrainBatch) -> jax.Array:
    """Tokens of the rows of every group, [P, G]."""
    return batch.rollout.lengths_B.reshape(batch.prompts.lengths_P.shape[0], -1)
