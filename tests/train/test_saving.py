"""Saves of a run beside its steps: what goes on, what waits, and what a failure ends."""

import errno
import json
import threading

import pytest

from configs.tiny_cpu import get_config
from pbrl_jax import Config, with_values
from pbrl_jax.checkpoint import list_checkpoints, manifest
from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.paths import read_json_lines, work_dir
from pbrl_jax.logs.metrics import MetricWriter
from pbrl_jax.run.assemble import build_experiment
from pbrl_jax.train import loop
from pbrl_jax.train.step import Position, Record, Run

STEPS = 5


def tiny(**train) -> Config:
    train = {"max_steps": STEPS, "save_steps": 2, **train}
    return with_values(get_config(), data={"limit": 4}, log={"tensorboard": False}, train=train)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return build_experiment(tiny(), work_dir(tmp_path_factory.mktemp("saving") / "run"))


def steps_saved(experiment) -> list[int]:
    return [step for step, _ in list_checkpoints(experiment.work.checkpoints)]


def scripted_run(before):
    """make_run: steps that call `before(step)` and change nothing."""

    def make(experiment, frozen):
        def take(run, position):
            step = position.step + 1
            before(step)
            return position._replace(step=step, cursor={"batch": step}), Record(step, {"loss": 0.0}, None, {})

        return Run(experiment, frozen, None, None, take)

    return make


def test_steps_go_on_while_a_save_is_written(experiment, tmp_path, monkeypatch):
    """The save of step 2 does not end before step 4 is made, where the next one waits for it."""
    reached, release, seen, hashed = threading.Event(), threading.Event(), [], manifest.hashed_files

    def slow(folder):
        reached.set()
        assert release.wait(60)
        return hashed(folder)

    def before(step):
        if step == 4:
            assert reached.wait(60)
            seen.extend(steps_saved(experiment))
            release.set()

    monkeypatch.setattr(manifest, "hashed_files", slow)
    monkeypatch.setattr(loop, "make_run", scripted_run(before))
    experiment = experiment._replace(config=tiny(), work=work_dir(tmp_path))
    assert loop.train(experiment, quiet=True).step == STEPS and seen == []
    assert steps_saved(experiment) == [5, 4, 2]


def test_a_save_that_fails_ends_the_run_at_the_next_step(experiment, tmp_path, monkeypatch):
    """With its one message, and the checkpoint before it; the failure of the last one does not pass either."""
    hashed, failing = manifest.hashed_files, {"step_00000004"}

    def full(folder):
        if any(name in str(folder) for name in failing):
            raise OSError(errno.ENOSPC, "No space left on device")
        return hashed(folder)

    def before(step):
        for thread in threading.enumerate():
            if thread.name == "save":
                thread.join()

    monkeypatch.setattr(manifest, "hashed_files", full)
    monkeypatch.setattr(loop, "make_run", scripted_run(before))
    experiment = experiment._replace(config=tiny(max_steps=9), work=work_dir(tmp_path))
    with pytest.raises(CheckpointError, match="step_00000004: .*No space left on device.*Free space"):
        loop.train(experiment, quiet=True)
    assert steps_saved(experiment) == [2]
    rows = [json.loads(line) for line in experiment.work.metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] in ([1, 2, 3, 4], [1, 2, 3, 4, 5])
    failing = {"step_00000009"}
    with pytest.raises(CheckpointError, match="step_00000009: .*No space left on device"):
        loop.train(experiment, quiet=True)
    assert not experiment.work.final.exists()
    failing = {}
    assert loop.train(experiment, quiet=True).step == 9


@pytest.mark.parametrize("cadence, kept", [(1, [1, 3, 5]), (2, [1, 3, 5]), (4, [3, 5]), (50, [5])])
def test_samples_of_rollouts_with_several_updates(experiment, tmp_path, monkeypatch, cadence, kept):
    """Rollouts of steps 1, 3 and 5 with two updates each: that of a row is kept, whichever update the row is of."""
    written = []
    monkeypatch.setattr(loop, "write_samples", lambda _root, step, rows, _count: written.append((step, len(rows))))
    config = with_values(tiny(logging_steps=cadence, max_steps=6), algo={"num_iterations": 2})
    run = Run(experiment._replace(config=config, work=work_dir(tmp_path)), None, None, None, None)
    with MetricWriter(tmp_path, quiet=True) as writer:
        steps = loop.Loop(run, writer, None, Position(0, None, {}, None))
        for step in range(1, 7):
            rows = [{}] * 3 if step % 2 else []
            monkeypatch.setattr(loop, "read_record", lambda _record, _tokenizer, rows=rows: ({"loss": 0.0}, rows))
            steps.write((Record(step, {}, None, {}), {}))
    assert written == [(step, 3) for step in kept]
    rows = [row["step"] for row in read_json_lines(tmp_path / "metrics.jsonl")]
    assert rows == [step for step in range(1, 7) if step % cadence == 0 or step == 6]
