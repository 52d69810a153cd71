"""Rollouts that are sampled one step early: with which parameters, beside what, and after a stop."""

import json
import threading

import jax
import numpy as np
import pytest
from shared_programs import programs_made_once
from tiny_policy import quick_compiles  # noqa: F401

from configs.tiny_cpu import get_config
from pbrl_jax import Config, with_values
from pbrl_jax.checkpoint import list_checkpoints, read_meta
from pbrl_jax.core.errors import ConfigError, RewardError
from pbrl_jax.core.paths import work_dir
from pbrl_jax.run.assemble import build_experiment
from pbrl_jax.run.check import validate
from pbrl_jax.train import hosted, loop
from pbrl_jax.train.rollout_ahead import step_ahead
from pbrl_jax.train.start import frozen_of
from pbrl_jax.train.step import train_step

STEPS = 4
SECONDS = 120
MADE: dict = {}


def tiny(ahead: int = 1, **sections) -> Config:
    train = {"max_steps": STEPS, "save_steps": 50, "packed": False, "rollout_ahead": ahead, **sections.pop("train", {})}
    return with_values(get_config(), data={"limit": 4}, log={"tensorboard": False}, train=train, **sections)


def rows_of(experiment) -> list[dict]:
    rows = [json.loads(line) for line in experiment.work.metrics.read_text().splitlines()]
    return [{name: x for name, x in row.items() if not name.startswith(("step_time", "time/"))} for row in rows]


def first_of(params) -> float:
    return float(jax.tree.leaves(params)[0].ravel()[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(experiment, what happened): a whole run whose rewards wait until the next rollout has begun."""
    events, begun, lock = [], [threading.Event() for _ in range(STEPS + 1)], threading.Lock()
    make_rollout, make_scoring = hosted.make_rollout, hosted.make_scoring

    def watched_rollout(experiment):
        rollout = make_rollout(experiment)

        def call(params, drawn):
            with lock:
                events.append(("rollout", drawn.step, first_of(params)))
            begun[drawn.step].set()
            return rollout(params, drawn)

        return call

    def watched_scoring(experiment):
        score = make_scoring(experiment)

        def call(rollout, drawn):
            assert begun[drawn.step + 1].wait(SECONDS), "the next rollout runs beside"
            with lock:
                events.append(("reward", drawn.step, threading.current_thread() is threading.main_thread()))
            return score(rollout, drawn)

        return call

    experiment = build_experiment(tiny(), work_dir(tmp_path_factory.mktemp("ahead") / "run"))
    with pytest.MonkeyPatch.context() as patch, programs_made_once(MADE):
        patch.setattr(hosted, "make_rollout", watched_rollout)
        patch.setattr(hosted, "make_scoring", watched_scoring)
        position = loop.train(experiment, quiet=True)
    return experiment, events, position


def test_each_rollout_is_sampled_with_the_parameters_before_the_update_beside_it(whole):
    """And the first with those that it updates; rewards are computed beside the rollouts, in a thread of their own."""
    _, events, position = whole
    sampled = {step: parameter for kind, step, parameter in events if kind == "rollout"}
    assert [event[1] for event in events if event[0] == "rollout"] == list(range(STEPS + 1))
    assert [event[1:] for event in events if event[0] == "reward"] == [(step, False) for step in range(STEPS)]
    assert sampled[0] == sampled[1] and len(set(sampled.values())) == STEPS
    assert first_of(position.state.params) not in sampled.values() and position.pending is not None


def test_the_correction_is_on(whole):
    """The first batch is the policy's own, the others are an update older."""
    ratios = [abs(row["sampling/importance_sampling_ratio/mean"] - 1) for row in rows_of(whole[0])]
    gaps = [row["sampling/logp_difference/mean"] for row in rows_of(whole[0])]
    assert ratios[0] < 1e-5 < 1e-4 < min(gaps[1:]) and gaps[0] < 1e-5 < max(ratios[1:])


def test_stopped_failed_and_extended_runs_are_the_undisturbed_one(whole, tmp_path, monkeypatch):
    """Bit by bit: what is pending is in the checkpoint."""
    experiment = whole[0]._replace(work=work_dir(tmp_path / "run"))
    shorter = experiment._replace(config=with_values(experiment.config, train={"max_steps": 1}))
    make = hosted.make_scoring

    def make_failing(experiment):
        score = make(experiment)

        def failing(rollout, drawn):
            if drawn.step == 2:
                raise RewardError("the third batch")
            return score(rollout, drawn)

        return failing

    with programs_made_once(MADE):
        loop.train(shorter, quiet=True)
        with monkeypatch.context() as patch, pytest.raises(RewardError, match="the third batch"):
            patch.setattr(hosted, "make_scoring", make_failing)
            loop.train(experiment, quiet=True)
        (step, folder), *_ = list_checkpoints(experiment.work.checkpoints)
        assert step == 2 and read_meta(folder)["pending"]
        position = loop.train(experiment, quiet=True)
    jax.tree.map(np.testing.assert_array_equal, position.state, whole[2].state)
    jax.tree.map(np.testing.assert_array_equal, position.pending, whole[2].pending)
    assert experiment.work.final.read_text() == whole[0].work.final.read_text()
    assert rows_of(experiment) == rows_of(whole[0])


def test_with_several_updates_on_a_rollout(whole, tmp_path):
    """The next rollout is as old as the first of them; a run that stops between two goes on bit by bit."""
    config = tiny(algo={"num_iterations": 2})
    ends = []
    for name, stops in (("once", (STEPS,)), ("stopped", (1, 3, STEPS))):
        experiment = whole[0]._replace(work=work_dir(tmp_path / name))
        for stop in stops:
            config = with_values(config, train={"max_steps": stop})
            with programs_made_once(MADE):
                position = loop.train(experiment._replace(config=config), quiet=True)
            assert position.pending is not None and (position.batch is None) == (stop % 2 == 0)
        ends.append((position.state, position.pending, rows_of(experiment)))
    jax.tree.map(np.testing.assert_array_equal, ends[0][:2], ends[1][:2])
    assert ends[0][2] == ends[1][2]


def test_without_it_no_step_meets_its_code(whole):
    for ahead, step in ((0, train_step), (1, step_ahead)):
        experiment = whole[0]._replace(config=tiny(ahead))
        with programs_made_once(MADE):
            run = loop.make_run(experiment, frozen_of(experiment.policy, experiment.config, experiment.mesh))
        assert run.take is step


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"train": {"fused": True}, "reward": {"language_gate": "tokens"}}, "Use --train.no-fused"),
        ({"algo": {"importance_sampling_mode": "off"}}, "nothing would correct it"),
        ({"algo": {"max_sampling_rounds": 3}}, "algo.max_sampling_rounds is 3"),
    ],
)
def test_what_cannot_be_sampled_early_is_refused(sections, words):
    with pytest.raises(ConfigError, match=f"train.rollout_ahead is 1, .*{words}"):
        validate(tiny(**sections), 1)
