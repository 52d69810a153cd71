"""Microbatches of groups of about equal length, each packed into the cheapest bucket that holds it (models.packing).

Groups are sorted by their tokens, so that few slots are empty beside the longest group of a microbatch. On a mesh every
device has the same number of groups of each microbatch, and so the same shapes; the order is of all groups of a batch,
and the same on every host.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pbrl_jax.config.tree import Config
from pbrl_jax.core.trees import take_groups
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

    index: np.ndarray
    bucket: Bucket


def group_samples(config: Config) -> int:
    """Rows of a group in the update: those of a prompt, or of a part of them."""
    return config.train.microbatch_samples or config.algo.num_generations


def packing_of(spec: DecoderSpec, config: Config, shards: int, coarse: bool = False) -> Packing | None:
    """How updates of a run are packed; None where train.packed is off or the batches are too small to gain by it.

    Args:
      shards: devices that hold different rows; each has as many groups of every microbatch.
      coarse: few buckets in any case.
    """
    G, R = group_samples(config), config.rollout.max_completion_length
    prompts = config.algo.minibatch_prompts or config.train.prompts_per_step
    groups = prompts * config.algo.num_generations // G
    limit, least = config.train.microbatch_prompts or groups, LEAST_SLOTS * shards
    if not config.train.packed or limit * G * R < least or limit % shards:
        return None
    even = [n for n in range(shards, limit + 1, shards) if groups % n == 0 and groups <= n * MOST_MICROBATCHES]
    size = min((n for n in even if n * G * R >= least), default=limit)
    ratio = 2**-0.5 if size * G * R >= FINE_SLOTS * shards and not coarse else 0.5
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


def sorted_groups(lengths_XG: jax.Array, size: int) -> jax.Array:
    """The order in which `core.trees.split_microbatches` gives the microbatches of `plan_microbatches`; traceable."""
    order = jnp.argsort(lengths_XG.sum(axis=1), stable=True)
    return order.reshape(-1, size).T.reshape(-1)


def cheapest_bucket(lengths_XG: jax.Array, buckets: tuple[Bucket, ...]) -> jax.Array:
    """The index of the first bucket that every group fits; the last one holds any. Traceable."""
    held = [place_rows(lengths_XG, bucket)[2].all() for bucket in buckets[:-1]]
    return jnp.argmax(jnp.stack([*held, jnp.bool_(True)]))


def on_rows(tree: Any) -> Any:
    """Arrays laid out by their leading axis, as a batch is."""
    return jax.tree.map(lambda x: constrain(x, "batch", *["none"] * (x.ndim - 1)), tree)


def groups_at(tree: Any, index: jax.Array, groups: int) -> Any:
    """The groups `index` of a batch, laid out as a batch is."""
    return on_rows(take_groups(tree, index, groups))
