"""A small resumable loop for the supervised stages: batches by step number, checkpoints, progress."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from pbrl_jax.checkpoint import BackgroundSaver, Restored, restore_latest
from pbrl_jax.config.tree import GuardConfig
from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.paths import WorkDir
from pbrl_jax.core.records import STATE_FINITE, TrainState
from pbrl_jax.core.stopping import Interrupted
from pbrl_jax.logs.metrics import MetricWriter
from pbrl_jax.logs.progress import Progress
from pbrl_jax.mesh.sharding import batch_sharding
from pbrl_jax.train.finite import check_update
from pbrl_jax.train.signals import stop_requested
from pbrl_jax.train.state import abstract_state


class Stage(NamedTuple):
    """One supervised stage: what it is called, how long it is, and where it writes.

    `fingerprint` identifies its data and settings: a checkpoint of another one is refused.
    """

    name: str
    steps: int
    save_steps: int
    fingerprint: str
    part: tuple[int, int] | None = None
    max_skipped: int = GuardConfig.max_skipped_updates
    """Updates in a row whose gradients are not finite, after which it ends."""
    earlier: str = ""
    """A fingerprint that checkpoints of the same stage may also have."""


def shared_step(step_function: Callable, state: TrainState) -> Callable:
    """The compiled step of a state on a mesh; the new state lies as this one, which is donated."""
    return jax.jit(step_function, donate_argnums=0, out_shardings=(jax.tree.map(lambda x: x.sharding, state), None))


def run_stage(stage: Stage, work: WorkDir, mesh: Mesh, state: TrainState, step_function: Callable,
              batch_at: Callable[[int], Any], frozen: Any = None) -> TrainState:  # fmt: skip
    """Train from the last checkpoint (or from `state`) to `stage.steps`; the devices of the mesh share each batch.

    Args:
      step_function: (state, batch), and `frozen` where there is such, -> (state, metrics).
      batch_at: step -> batch, a pure function.

    Raises:
      CheckpointError: the work directory holds a checkpoint of other data or settings.
      NotFiniteError: the state, or too many gradients in a row, are not finite; the last checkpoint stays.
      Interrupted: SIGTERM or SIGINT came; the state was saved first.
    """

    def abstract(meta):
        if meta.get("fingerprint") not in (stage.fingerprint, stage.earlier):
            raise CheckpointError(
                f"{work.root} holds a checkpoint of other data, settings or of another command, expected one of this "
                f"{stage.name}. Use another --workdir, or remove it."
            )
        shapes = abstract_state(state)
        jax.tree.map(lambda x: x.delete(), state)  # what is restored takes its place
        return shapes

    take, beside = shared_step(step_function, state), () if frozen is None else (frozen,)
    restored, start, streaks = restore_latest(work.checkpoints, abstract), 0, dict[str, int]()
    if restored is not None:
        announce(restored)
        state, start = restored.tree, restored.step

    with (
        jax.set_mesh(mesh),
        MetricWriter(work.root, resume_step=start, max_steps=stage.steps, quiet=True) as writer,
        Progress(stage.name, stage.steps, done=start, part=stage.part) as progress,
        BackgroundSaver() as saver,
    ):
        metrics = dict[str, Any]()
        for step in range(start, stage.steps):
            saver.ended()  # raises where a save has failed
            before = metrics
            state, metrics = take(state, jax.device_put(batch_at(step), batch_sharding(mesh)), *beside)
            done, stopping = step + 1, stop_requested()
            if step > start:  # read while this step runs
                check_update(step, before, streaks, stage.max_skipped)
            if done % 20 == 0 or done == stage.steps:
                told = {name: value for name, value in metrics.items() if name != STATE_FINITE}
                shown = {name: float(value) for name, value in jax.device_get(told).items()}
                writer.write(done, shown)
                progress.advance(done - progress.done, note=f"loss {shown['loss']:.3f}")
            if done % stage.save_steps == 0 or done == stage.steps or stopping:
                check_update(done, metrics, dict(streaks), stage.max_skipped)
                writer.flush()
                meta = {"fingerprint": stage.fingerprint}
                saver.start(work.checkpoints, done, state, meta, keep=2)
            if stopping and done < stage.steps:
                saver.wait()
                raise Interrupted("Stopped, saved. The same command goes on from here.")
    return state


def announce(restored: Restored) -> None:
    """Say where a run goes on, and which checkpoints were damaged."""
    for folder, reason in restored.skipped:
        print(f"Skipped a damaged checkpoint: {folder}: {reason}")
    print(f"Resuming from {restored.folder.name}.")
