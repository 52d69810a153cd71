"""Passes over a rollout batch as programs of one microbatch each, whose bucket the host chooses (train.microbatches).

The gradient of every microbatch is added to the same sums, which are divided once. Where batches are not packed, one
program makes the whole pass.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pbrl_jax.config.tree import Config
from pbrl_jax.core.records import TrainBatch, TrainState
from pbrl_jax.mesh.agree import host_array
from pbrl_jax.mesh.ahead import Variants
from pbrl_jax.mesh.offload import fetched
from pbrl_jax.mesh.sharding import place, row_shards
from pbrl_jax.models.packing import Bucket
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.train.microbatches import (
    Microbatch,
    Packing,
    group_samples,
    groups_at,
    on_rows,
    packing_of,
    plan_microbatches,
)
from pbrl_jax.train.programs import (
    apply_minibatch,
    by_microbatch,
    minibatch_index,
    minibatches,
    reference_first,
    reference_logp,
    update_context,
    update_minibatch,
)
from pbrl_jax.train.trained import Frozen
from pbrl_jax.train.update import (
    Targets,
    UpdateContext,
    add_sums,
    advantage_targets,
    gradient_of,
    in_parts,
    rows_gradient,
)

RowFunction = Callable[[TrainState, Frozen, TrainBatch, UpdateContext], jax.Array]
"""(state, frozen, rows, context) -> an array [B, R] of the rows."""


def planned(
    config: Config, packing: Packing, batch: TrainBatch, index: np.ndarray | None = None, mask_BR: Any = None
) -> list[Microbatch]:
    """The microbatches of a batch, or of the prompts `index` of it; the same on every host.

    Args:
      mask_BR: the tokens in the loss, where groups without one can be left out.
    """
    lengths_XG = host_array(batch.rollout.lengths_B).reshape(-1, group_samples(config))
    groups = len(lengths_XG)
    idle_X = None if mask_BR is None else ~np.asarray(host_array(mask_BR).reshape(groups, -1).any(axis=1))
    if index is not None:
        parts = config.algo.num_generations // group_samples(config)
        index = (index[:, None] * parts + np.arange(parts)).reshape(-1)
    return plan_microbatches(lengths_XG, packing, index, idle_X)


def whole_program(function: Callable, config: Config, donated: tuple[int, ...] = ()) -> Variants:
    """`function(*args)` as a program without buckets."""

    def call(*args, bucket: None):
        return function(*args)

    return variants(jax.jit(call, static_argnames="bucket", donate_argnums=donated), config, (None,))


def variants(program: jax.stages.Wrapped, config: Config, buckets: tuple[Bucket | None, ...]) -> Variants:
    """The program of each bucket; compiled when called where arrays have 4 bits, whose layout a program that was
    compiled before refuses (jax 0.10)."""
    return Variants(program, buckets, config.lora.quantization not in ("int4", "nf4"))


def make_policy_update(spec: DecoderSpec, config: Config) -> Callable:
    """`(state, frozen, batch, targets) -> (state, metrics)`, gradient and optimizer step; the state is donated.

    Called inside the mesh of the run.
    """
    packing = packing_of(spec, config, row_shards())
    if packing is not None:
        return PackedUpdate(spec, config, packing)
    return whole_program(functools.partial(update_minibatch, context=update_context(spec, config)), config, (0,))


class PackedUpdate:
    """The update of packed batches: the gradient of each microbatch, added up, and one optimizer step."""

    def __init__(self, spec: DecoderSpec, config: Config, packing: Packing):
        self._spec, self._config, self._packing = spec, config, packing
        self._piece = jax.jit(self._gradient, static_argnames="bucket")  # traced once for its shapes and its program
        apply = functools.partial(apply_minibatch, context=update_context(spec, config))
        self._apply = whole_program(apply, config, (0,))
        self._zeros: Callable | None = None
        self._add: Variants | None = None

    def _gradient(self, state: TrainState, frozen: Frozen, batch: TrainBatch, targets: Targets, index, bucket: Bucket):
        parts, context = in_parts(batch, update_context(self._spec, self._config, bucket))
        rows = groups_at((parts, targets), index, parts.prompts.lengths_P.shape[0])
        return rows_gradient(*gradient_of(state, frozen, targets), state.beta, rows, context=context)

    def prepare(self, args: tuple, needed: Any = ()) -> None:
        """Begin to compile for (state, frozen, batch, targets), arrays or their shapes; `needed` is not read."""
        everywhere = args[0].step.sharding
        index = jax.ShapeDtypeStruct((self._packing.size,), jnp.int32, sharding=everywhere)
        sums = self._make((*args, index), self._packing.buckets[-1])
        assert self._add is not None
        self._add.prepare((sums, *args, index), self._packing.buckets[-1:])
        self._apply.prepare((args[0], *args[2:], sums), (None,))

    def _make(self, args: tuple, bucket: Bucket) -> Any:
        """The zeros that sums begin with, whose shapes are returned, and the program that adds to them; sums lie as the
        parameters do."""
        state, shapes = args[0], jax.eval_shape(functools.partial(self._piece, bucket=bucket), *args)
        trained, _ = gradient_of(state, args[1], args[3])
        lie = (state.step.sharding, jax.tree.map(lambda x: x.sharding, trained))
        self._zeros = jax.jit(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), out_shardings=lie)

        def add(sums, *args, bucket: Bucket):
            return add_sums(sums, self._piece(*args, bucket=bucket))

        program = jax.jit(add, static_argnames="bucket", donate_argnums=0, out_shardings=lie)
        self._add = variants(program, self._config, self._packing.buckets)
        placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lie[0]), shapes[0])
        own = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes[1], lie[1])
        return placed, own

    def __call__(self, state: TrainState, frozen: Frozen, batch: TrainBatch, targets: Targets):
        config, groups = self._config, batch.prompts.lengths_P.shape[0]
        chosen = None
        if minibatches(config) > 1:
            chosen = np.asarray(minibatch_index(int(host_array(state.step)), groups, config))
        skips = config.algo.mask_zero_std_groups
        plan = planned(config, self._packing, batch, chosen, targets.mask_BR if skips else None)
        indices = [place(part.groups, state.step.sharding) for part in plan]
        args = (state, frozen, batch, targets)
        if self._add is None or self._zeros is None:
            self._make((*args, indices[0]), plan[0].bucket)
        assert self._add is not None and self._zeros is not None
        sums = self._zeros()
        self._add.prepare((sums, *args, indices[0]), [part.bucket for part in plan])
        self._apply.prepare((state, batch, targets, sums), (None,))
        for part, index in zip(plan, indices, strict=True):
            sums = self._add(sums, *args, index, bucket=part.bucket)
        return self._apply(state, batch, targets, sums)


def make_rows(spec: DecoderSpec, config: Config, function: RowFunction) -> Callable:
    """`(state, frozen, batch) -> rows_BR` of all rows of a batch. Called inside the mesh of the run."""
    packing = packing_of(spec, config, row_shards())

    def whole(state: TrainState, frozen: Frozen, batch: TrainBatch) -> jax.Array:
        parts, context = in_parts(batch, update_context(spec, config))
        return by_microbatch(functools.partial(function, state, frozen), parts, context)

    def piece(state: TrainState, frozen: Frozen, batch: TrainBatch, rows_BR, index, bucket: Bucket) -> jax.Array:
        parts, context = in_parts(batch, update_context(spec, config, bucket))
        groups = parts.prompts.lengths_P.shape[0]
        found_BR = function(state, frozen, groups_at(parts, index, groups), context)
        rows_XR = rows_BR.reshape(groups, -1).at[index].set(found_BR.reshape(len(index), -1).astype(rows_BR.dtype))
        return on_rows(rows_XR.reshape(rows_BR.shape))

    if packing is None:
        return whole_program(whole, config)
    program = variants(jax.jit(piece, static_argnames="bucket"), config, packing.buckets)

    def rows(state: TrainState, frozen: Frozen, batch: TrainBatch) -> jax.Array:
        plan, rows_BR = planned(config, packing, batch), batch.rollout.logp_BR  # every row is written anew
        indices = [place(part.groups, state.step.sharding) for part in plan]
        program.prepare((state, frozen, batch, rows_BR, indices[0]), [part.bucket for part in plan])
        for part, index in zip(plan, indices, strict=True):
            rows_BR = program(state, frozen, batch, rows_BR, index, bucket=part.bucket)
        return rows_BR

    return rows


def make_targets(spec: DecoderSpec, config: Config) -> Callable:
    """`(state, frozen, batch) -> Targets`; the reference's log-probs before them where they are to be made first."""
    advantages = jax.jit(functools.partial(advantage_targets, config=config))
    rows = make_rows(spec, config, reference_logp) if reference_first(config) else None

    def targets(state: TrainState, frozen: Frozen, batch: TrainBatch) -> Targets:
        if rows is None:
            return advantages(state, batch, None)
        here = dataclasses.replace(frozen, reference=fetched(frozen.reference))
        return advantages(state, batch, rows(state, here, batch))

    return targets
