"""A rollout over a fixed number of slots: when a row ends, its slot takes the next row.

The host decides between segments of tokens, from the rows that are done, so that all hosts of a run decide the same.
What a row samples depends on its key and its prompt alone, whatever the number of slots and the order of rows.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pbrl_jax.core.records import PromptBatch, Rollout, SamplingParams
from pbrl_jax.core.stopping import Interrupted
from pbrl_jax.mesh.agree import host_array
from pbrl_jax.mesh.ahead import Program, compile_later, compile_needed, in_background, shape_of
from pbrl_jax.mesh.sharding import batch_sharding, place, row_shards
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.rollout.slots import Admissions, SlotPrograms, Slots, Staged, Until, slot_programs

#: The last rows run in fewer slots, divided by SHRINK again and again, down to FEWEST_SLOTS.
SHRINK, FEWEST_SLOTS = 4, 8
#: Share of the slots that must have ended before a segment ends for their next rows.
ENDED_SHARE = 1 / 8


class Ended(NamedTuple):
    """A row that has ended: the device that holds it, by its place along the axis of rows, and its number there."""

    device: int
    row: int


class Queue:
    """Which rows wait and which are in slots, on each of D devices; on the host.

    Args:
      prompts_D: prompts of each device, whose rows are numbered on the device.
      samples: rows of a prompt.
      slots: slots of a device.
    """

    def __init__(self, prompts_D: np.ndarray, samples: int, slots: int) -> None:
        self.samples, self.prompts_at_once = samples, -(-slots // samples)
        self.rows_D = prompts_D * samples
        self.next_D = np.zeros_like(prompts_D)
        self.first_D = np.full_like(prompts_D, -self.prompts_at_once)
        self.held_DS = np.full((len(prompts_D), slots), -1)

    @property
    def waiting(self) -> bool:
        """Whether a row has no slot yet."""
        return bool((self.rows_D > self.next_D).any())

    @property
    def running_D(self) -> np.ndarray:
        """Rows in the slots of each device."""
        return (self.held_DS >= 0).sum(axis=1)

    def stage(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(first prompt to be run, whether it must be run now) of each device, where one has both a free slot and a
        waiting row whose prompt was not run; None where no device has."""
        run_D = self.next_D >= (self.first_D + self.prompts_at_once) * self.samples
        fresh_D = run_D & (self.rows_D > self.next_D) & (self.held_DS < 0).any(axis=1)
        self.first_D = np.where(fresh_D, self.next_D // self.samples, self.first_D)
        return (self.first_D.astype(np.int32), fresh_D) if fresh_D.any() else None

    def admit(self) -> Admissions | None:
        """Waiting rows whose prompts were run, into free slots; None where there are none."""
        D, S = self.held_DS.shape
        moves_DS3, count_D = np.zeros((D, S, 3), np.int32), np.zeros(D, np.int32)
        ends_D = np.minimum(self.rows_D, (self.first_D + self.prompts_at_once) * self.samples)
        for device, held_S in enumerate(self.held_DS):
            free = np.flatnonzero(held_S < 0)[: max(0, ends_D[device] - self.next_D[device])]
            rows = self.next_D[device] + np.arange(len(free))
            places = rows - self.first_D[device] * self.samples
            moves_DS3[device, : len(free)] = np.stack([free, rows, places], axis=1)
            held_S[free], count_D[device] = rows, len(free)
        self.next_D = self.next_D + count_D
        return Admissions(moves_DS3.reshape(D * S, 3), count_D) if count_D.any() else None

    def end(self, done_S: np.ndarray) -> list[Ended]:
        """Free the slots whose rows are done."""
        done_DS = done_S.reshape(self.held_DS.shape) & (self.held_DS >= 0)
        rows_D = [held_S[done_S].tolist() for held_S, done_S in zip(self.held_DS, done_DS, strict=True)]
        found = [Ended(device, row) for device, rows in enumerate(rows_D) for row in rows]
        self.held_DS[done_DS] = -1
        return found

    def narrow(self, slots: int) -> np.ndarray:
        """Go on in `slots` slots a device: the numbers of the slots that are kept, [D * slots], -1 for a free one."""
        index_DS = np.full((len(self.held_DS), slots), -1, np.int32)
        held_DS = np.full(index_DS.shape, -1)
        for device, held_S in enumerate(self.held_DS):
            used = np.flatnonzero(held_S >= 0)
            index_DS[device, : len(used)], held_DS[device, : len(used)] = used, held_S[used]
        self.held_DS = held_DS
        return index_DS.reshape(-1)


def slot_sizes(slots: int, rows: int, devices: int = 1) -> tuple[int, ...]:
    """Numbers of slots of a device in which a rollout of `rows` rows may run, largest first.

    Args:
      slots: on all devices together; 0: one for each row.
      devices: that hold different rows.
    """
    sizes, fewest = [max(1, -(-min(slots or rows, rows) // devices))], max(1, FEWEST_SLOTS // devices)
    while sizes[-1] > 2 * fewest:
        sizes.append(max(fewest, -(-sizes[-1] // SHRINK)))
    return tuple(sizes)


def until(queue: Queue, sizes: tuple[int, ...], steps: int) -> Until:
    """When the next segment ends: where rows wait, as soon as enough slots are free; then, as soon as the rows that are
    left fit into fewer slots."""
    if queue.waiting:
        running = queue.running_D.sum()
        return Until(np.int32(steps), np.int32(running - max(1, int(queue.held_DS.size * ENDED_SHARE))), np.int32(0))
    smaller = [size for size in sizes if size < queue.held_DS.shape[1]]
    return Until(np.int32(steps), np.int32(0), np.int32(smaller[0] if smaller else 0))


def mesh_of(prompts: PromptBatch) -> Mesh | None:
    """The mesh that is set (`jax.set_mesh`), or that of the prompts; None on one device."""
    mesh: Any = jax.sharding.get_mesh()
    if not mesh.empty:
        return mesh
    return getattr(getattr(prompts.tokens_PT, "sharding", None), "mesh", None)


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """Inside, programs are traced and run for the mesh."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def compiled_segment(programs: SlotPrograms, mesh: Mesh | None, shapes: tuple) -> Callable:
    """The segment for arguments of these shapes; later calls of it find what was compiled here."""
    with on_mesh(mesh):
        return programs.segment.lower(*shapes).compile()


class Refill(NamedTuple):
    """Rollouts over `slots` slots (0: one for each row), in segments of at most `segment_length` tokens."""

    programs: SlotPrograms
    samples: int
    segment_length: int
    slots: int
    #: Shape -> number of slots -> its segment, where it is compiled ahead of its first call.
    warm: dict[Any, dict[int, Program]]

    def rollout(self, params, prompts: PromptBatch, key, sampling: SamplingParams, should_stop=None) -> Rollout:
        """The rollout. After each segment the host calls `should_stop()`.

        Raises:
          Interrupted: `should_stop()` is true.
        """
        running = Running(self, mesh_of(prompts), prompts, key, sampling)
        for _ in running.steps(params, should_stop, ahead=True):
            pass
        running.warm_up()
        return running.out

    def steps(self, params, prompts: PromptBatch, key, sampling: SamplingParams, should_stop=None,
              prompts_D: np.ndarray | None = None, prompt_length: int = 0
              ) -> Iterator[tuple[Rollout, list[Ended]]]:  # fmt: skip
        """(what was sampled so far, the rows that ended since) when the first rows are in their slots and after every
        segment. The arrays of a rollout are gone when the next one is asked for.

        Args:
          prompts_D: prompts of each device that are to be answered, its first ones; default: all.
          prompt_length: slots hold prompts of so many tokens, where these are shorter: rollouts of several padded
            lengths then share the programs of a segment.
        """
        running = Running(self, mesh_of(prompts), prompts, key, sampling, prompts_D, prompt_length)
        return running.steps(params, should_stop)


class Running:
    """A rollout while it runs: its arrays, and the queue of its rows."""

    queue: Queue
    params: Any
    keys_B: Any
    slots: Slots
    out: Rollout
    staged: Staged | None = None
    begun: dict[int, Program]
    """Number of slots -> the segment that is compiled beside the programs of the first rollout of a shape."""

    def __init__(self, refill: Refill, mesh: Mesh | None, prompts: PromptBatch, key, sampling: SamplingParams,
                 prompts_D: np.ndarray | None = None, prompt_length: int = 0) -> None:  # fmt: skip
        self.refill, self.programs, self.mesh = refill, refill.programs, mesh
        self.prompts, self.key, self.sampling, self.begun = prompts, key, sampling, {}
        devices = row_shards(mesh) if mesh is not None else 1
        P, T = prompts.tokens_PT.shape
        self.prompt_length = max(T, prompt_length)
        self.sizes = slot_sizes(refill.slots, P * refill.samples, devices)
        self.queue = Queue(np.full(devices, P // devices) if prompts_D is None else prompts_D, refill.samples,
                           self.sizes[0])  # fmt: skip

    def steps(self, params, should_stop=None, ahead=False) -> Iterator[tuple[Rollout, list[Ended]]]:
        """See `Refill.steps`; at least one segment runs. `ahead`: `_begin_segment` once the slots are made."""
        yield self.first(params, ahead)
        going = True
        while going:
            found = self.step()
            if should_stop is not None and should_stop():
                raise Interrupted
            yield found
            going = self.queue.waiting or bool(self.queue.running_D.any())

    def first(self, params, ahead=False) -> tuple[Rollout, list[Ended]]:
        """The first rows in their slots; see `steps`."""
        with self._on_mesh():
            self.params = self.programs.lay(params)
            self.keys_B = self.programs.keys_of(self.key, self.prompts.row_ids_P)
            rows = self.sizes[0] * len(self.queue.held_DS)
            self.slots, self.out = self.programs.empty(
                self.prompts, self.keys_B, rows=rows, prompt_length=self.prompt_length
            )
            if ahead:
                self._begin_segment()
            self._fill()
            return self._look()

    def step(self) -> tuple[Rollout, list[Ended]]:
        """Rows into free slots, and a segment of tokens."""
        with self._on_mesh():
            self._fill()
            for size in self.sizes if not self.queue.waiting else ():
                if self.queue.running_D.max() <= size < self.queue.held_DS.shape[1]:
                    self._narrow(size)  # one size after another: each move is compiled once
            self._decode(self.refill.segment_length)
            return self._look()

    def _on_mesh(self) -> contextlib.AbstractContextManager:
        return on_mesh(self.mesh)

    @property
    def shape(self) -> tuple[tuple[int, ...], int, Mesh | None]:
        """What segments are compiled for, besides the model."""
        return self.sizes, self.slots.cache.positions, self.mesh

    def _placed(self, tree: Any) -> Any:
        """Host arrays with one part a device."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        sharding = batch_sharding(self.mesh)
        return place(tree, jax.tree.map(lambda _: sharding, tree))

    def _fill(self) -> None:
        while self.queue.waiting:
            if (moves := self.queue.admit()) is not None and self.staged is not None:
                self.slots = self.programs.admit(self.slots, self.staged, self._placed(moves))
            if (needed := self.queue.stage()) is None:
                return
            self._stage(*needed)
        self.staged = None

    def _stage(self, first_D: np.ndarray, fresh_D: np.ndarray) -> None:
        programs, count = self.programs, self.queue.prompts_at_once
        prompts, keys_N = programs.picked(self.prompts, self.keys_B, self._placed(first_D), count=count)
        if fresh_D.all():
            self.staged = None
        new = programs.start(self.params, prompts, keys_N, self.sampling)
        self.staged = new if self.staged is None else programs.kept(self.staged, new, self._placed(fresh_D))

    def warm_up(self) -> None:
        """Once for each shape, compile the programs of the smaller numbers of slots that this rollout did not need:
        moves now, segments beside the steps. A later rollout waits for the segment that it needs."""
        if self.shape in self.refill.warm:
            return
        segments = self.refill.warm[self.shape] = dict(self.begun)
        with self._on_mesh():
            for size in self.sizes:
                if size < self.queue.held_DS.shape[1]:
                    self._narrow(size)
                    segments[size] = self._segment()
        compile_later(segments.values())

    def _begin_segment(self) -> None:
        """Begin to compile the segment of all slots beside the first rollout's other programs."""
        if self.shape not in self.refill.warm and in_background():
            self.begun = {self.sizes[0]: self._segment()}
            compile_needed(self.begun.values())

    def _segment(self) -> Program:
        given = (self.params, self.slots, self.sampling, until(self.queue, self.sizes, 0))
        shapes = jax.tree.map(shape_of, given)
        return Program(functools.partial(compiled_segment, self.programs, self.mesh, shapes))

    def _narrow(self, size: int) -> None:
        """Move the rows into `size` slots a device; each layer's old arrays are let go before the next's are made."""
        index_S = self._placed(self.queue.narrow(size))

        def one(part):
            new = self.programs.narrowed(part, index_S)
            part.delete()
            return new

        cache = jax.tree.map(one, self.slots.cache)
        self.slots = Slots(self.programs.narrowed_rows(self.slots.rows, index_S), cache)

    def _decode(self, steps: int) -> None:
        segments = self.begun or self.refill.warm.get(self.shape, {})
        if (program := segments.get(self.queue.held_DS.shape[1])) is not None:
            program.wait()
        end = until(self.queue, self.sizes, steps)
        self.slots = self.programs.segment(self.params, self.slots, self.sampling, end)

    def _look(self) -> tuple[Rollout, list[Ended]]:
        self.out, done_S = self.programs.retired(self.out, self.slots.rows)
        return self.out, self.queue.end(host_array(done_S))


def make_programs(spec: DecoderSpec, samples: int, max_length: int, segment_length: int, weights: str = "whole",
                  slots: int = 0) -> Refill:  # fmt: skip
    """Rollouts of `samples` responses a prompt of at most `max_length` tokens.

    Args:
      segment_length: most tokens between two looks of the host.
      weights, slots: as `rollout.weights` and `rollout.slots` of the config.

    `rollout` compiles nothing after its first call for a shape.
    """
    spec = replace(spec, remat="none")  # nothing is differentiated: other settings share the programs
    return Refill(slot_programs(spec, samples, max_length, weights), samples, segment_length, slots, {})


def make_generate(spec: DecoderSpec, samples: int, max_length: int, segment_length: int, weights: str = "whole",
                  slots: int = 0) -> Callable[..., Rollout]:  # fmt: skip
    """`(params, prompts, key, sampling, should_stop=None) -> Rollout`: `Refill.rollout`, as training uses it."""
    return make_programs(spec, samples, max_length, segment_length, weights, slots).rollout
