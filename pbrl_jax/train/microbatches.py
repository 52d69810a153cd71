"""Microbatches of groups of about equal length, each packed into the cheapest bucket that holds it (models.packing).

Groups are sorted by their tokens, so that few slots are empty beside the longest group of a microbatch. Groups none of
whose tokens is in the loss, as those that `algo.mask_zero_std_groups` leaves out, are not computed. On a mesh every
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
        Smaller ones have one, unpacked, where groups may be left out.
    """
    G, R = group_samples(config), config.rollout.max_completion_length
    prompts = config.algo.minibatch_prompts or config.train.prompts_per_step
    groups = prompts * config.algo.num_generations // G
    limit, least = config.train.microbatch_prompts or groups, LEAST_SLOTS * shards
    enough = FINE_SLOTS * shards if traced else least
    skips = config.algo.mask_zero_std_groups
    if not config.train.packed or limit * G * R < (least if skips else enough) or limit % shards:
        return None
    even = [n for n in range(shards, limit + 1, shards) if groups % n == 0 and groups <= n * MOST_MICROBATCHES]
    size = min((n for n in even if n * G * R >= least), default=limit)
    if limit * G * R < enough:
        return Packing(size, (Bucket(G, R),)) if size < groups else None
    ratio = 2**-0.5 if size * G * R >= FINE_SLOTS * shards and not traced else 0.5
    buckets = packed_buckets(G, R, slot_cost(spec, config.rollout.max_prompt_length), ratio)
    useful = tuple(bucket for bucket in buckets if size * bucket.slots >= least // 8)
    return Packing(size, useful) if len(useful) > 1 or (skips and size < groups) else None


def plan_microbatches(
    lengths_XG: np.ndarray, packing: Packing, chosen: np.ndarray | None = None, idle_X: np.ndarray | None = None
) -> list[Microbatch]:
    """The microbatches of a batch; on the host.

    Args:
      lengths_XG: tokens of every row.
      chosen: numbers of the groups that take part; None: all.
      idle_X: groups without a token in the loss; some of them fill the microbatches of the others, and there is one
        microbatch at least.
    """
    chosen = np.arange(len(lengths_XG)) if chosen is None else chosen
    order = chosen[np.argsort(lengths_XG[chosen].sum(axis=1), kind="stable")]
    if idle_X is not None:
        busy = ~idle_X[order]
        room = max(-(-busy.sum() // packing.size), 1) * packing.size - busy.sum()
        order = order[busy | (np.cumsum(~busy) <= room)]
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
        order = self._ordered(group_lengths(batch).sum(axis=1))
        piece = functools.partial(self._in_bucket, function, context=context)
        groups = len(order)
        rows_BR = map_microbatches(piece, groups_at(batch, order, groups), groups, self.packing.size)
        return groups_at(rows_BR, jnp.argsort(order), groups)

    def sums(self, function: Callable, rows: tuple[TrainBatch, Any], context: Any, add: Callable) -> Any:
        """`function(rows, context)`, of a batch and its targets, added up over the microbatches with a token in the
        loss."""
        batch, targets = rows
        tokens_P = group_lengths(batch).sum(axis=1)
        groups, size = len(tokens_P), self.packing.size
        busy_P = targets.mask_BR.reshape(groups, -1).any(axis=1)
        order = self._ordered(jnp.where(busy_P, tokens_P, jnp.iinfo(jnp.int32).max))
        piece = functools.partial(self._in_bucket, function, context=context)
        used = (busy_P.sum() + size - 1) // size
        return sum_microbatches(piece, groups_at(rows, order, groups), groups, size, add, used)

    def _ordered(self, rank_P: jax.Array) -> jax.Array:
        """The order in which `split_microbatches` gives microbatches sorted by rank."""
        return jnp.argsort(rank_P, stable=True).reshape(-1, self.packing.size).T.reshape(-1)

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
