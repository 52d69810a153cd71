"""The collapse guard: what is out of range, for how long, and that a run warns, stops, saves and remembers."""

import dataclasses
import functools
import json
import math
import re
import shutil

import jax
import numpy as np
import pytest
from shared_programs import programs_made_once
from tiny_policy import largest_difference, quick_compiles  # noqa: F401  the second is a fixture

from configs.tiny_cpu import get_config
from pbrl_jax import GuardConfig, with_values
from pbrl_jax.checkpoint import list_checkpoints, read_meta, restore_checkpoint
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.paths import work_dir
from pbrl_jax.logs.metrics import MetricWriter
from pbrl_jax.run.assemble import build_experiment
from pbrl_jax.run.check import validate
from pbrl_jax.train import iterations, loop
from pbrl_jax.train.guard import (
    Bound,
    CollapseError,
    bounds,
    broken_bounds,
    failed_in_a_row,
    most_steps_back,
    steps_back,
    watch,
)
from pbrl_jax.train.programs import minibatch_index
from pbrl_jax.train.recovery import recover
from pbrl_jax.train.restart import new_position, restore, save
from pbrl_jax.train.state import abstract_state
from pbrl_jax.train.step import Position, Record, Run, Scored
from pbrl_jax.train.trained import Frozen

ALL = GuardConfig(
    min_language_share=0.9, min_mean_length=4, max_clipped_ratio=0.5, min_entropy=0.1, min_reward_std=0.01, max_kl=2.0
)
HEALTHY = {
    "language/consistency": 0.95, "completions/mean_length": 20.0, "completions/clipped_ratio": 0.1, "entropy": 1.0,
    "reward_std": 0.2, "kl": 0.05,
}  # fmt: skip
COLLAPSED = {
    "language/consistency": 0.2, "completions/mean_length": 1.0, "completions/clipped_ratio": 0.9, "entropy": 0.01,
    "reward_std": 0.0, "kl": 9.0,
}  # fmt: skip


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4, 0.6, 0.7])
def test_a_share_of_invalid_rewards_at_the_bound_is_no_failure(share):
    """A tenth more is."""
    config = with_values(get_config(), guard={"max_invalid_share": share, "patience": 3})
    invalid = round(10 * share)
    assert failed_in_a_row(config, 1, 5, np.arange(10) >= invalid) == 0
    assert failed_in_a_row(config, 1, 5, np.arange(10) > invalid) == 2


def test_every_watched_metric_is_judged_by_itself():
    assert broken_bounds(ALL, HEALTHY) == {} and len(bounds(ALL)) == len(HEALTHY) == 6
    for name, value in COLLAPSED.items():
        assert broken_bounds(ALL, HEALTHY | {name: value}).keys() == {name}
        assert broken_bounds(ALL, HEALTHY | {name: math.nan}).keys() == {name}
        assert broken_bounds(GuardConfig(), HEALTHY | {name: value}) == {}
    assert broken_bounds(ALL, {}) == {}
    assert broken_bounds(ALL, COLLAPSED)["kl"] == "kl is 9, expected at most 2"
    assert broken_bounds(ALL, COLLAPSED)["entropy"] == "entropy is 0.01, expected at least 0.1"


def test_only_a_lasting_break_is_told():
    guard, streaks = GuardConfig(max_kl=1.0, patience=3), {}
    told = [watch(guard, streaks, step, {"kl": kl}) for step, kl in enumerate([2, 2, 0, 2, 2, 2, 2, 2, 2, 0])]
    assert [bool(text) for text in told] == [False] * 5 + [True] + [False] * 2 + [True, False]
    assert "Step 5: kl is 2, expected at most 1, for at least 3 steps in a row" in told[5]
    assert streaks == {"kl": 0}
    assert watch(guard, streaks, 9, {"reward": 1.0}) is None


def test_metrics_of_a_rollout_are_judged_once():
    """In the step that sampled it; further updates on it have the same numbers, and count for kl and entropy alone."""
    streaks = {}
    for step in range(6):
        watch(dataclasses.replace(ALL, patience=9), streaks, step, COLLAPSED, sampled=step % 3 == 0)
    assert streaks == {name: 6 if name in ("kl", "entropy") else 2 for name in COLLAPSED}
    assert {bound.metric for bound in bounds(ALL) if bound.sampled} == COLLAPSED.keys() - {"kl", "entropy"}


def test_the_way_back_is_in_optimizer_steps():
    """After step 12, three cycles of 4: kl bad in 11 and 12, so the parameters after 10 were; those of 9 are good. With
    bad rollouts in steps 5 and 9 those after 4 were; the last good rollout is that of step 1, from those of 0."""
    kl, length = Bound("kl", high=0.3), Bound("completions/mean_length", low=4, sampled=True)
    cycles = with_values(get_config(), algo={"num_iterations": 4}, guard={"max_kl": 0.3, "patience": 2})
    assert (steps_back(kl, 2, cycles), steps_back(length, 2, cycles)) == (3, 12)
    assert steps_back(length, 2, with_values(cycles, train={"rollout_ahead": 1})) == 16, "an older policy sampled it"
    assert steps_back(kl, 2, get_config()) == steps_back(length, 2, get_config()) == 3
    assert most_steps_back(cycles) == 6, "patience is used up in the first update, three others follow"
    assert most_steps_back(with_values(cycles, guard={"min_mean_length": 4.0})) == 12


@pytest.fixture
def fake_cycles(rolled_back, monkeypatch, tmp_path):
    """`run_cycles` with the experiment and the writer of a run."""
    writer = MetricWriter(tmp_path / "log", max_steps=99, quiet=True)
    return functools.partial(run_cycles, monkeypatch, rolled_back[0], writer)


def run_cycles(monkeypatch, experiment, writer, metrics, steps: int = 16, **guard):
    """(loop, rollout -> groups in the order of their updates, steps after which the guard acted) of steps that compute
    nothing and whose rows are `metrics(step)`: rollouts of 8 groups in minibatches of 2."""
    guard, train = {"patience": 2, **guard}, {"prompts_per_step": 8, "save_steps": 99, "max_steps": 99}
    config = with_values(get_config(), algo={"minibatch_prompts": 2}, train=train, guard=guard)
    run, used, acted = Run(experiment._replace(config=config), Frozen(), None, lambda *_: None, lambda *_: None), {}, []

    def stepped(run, position, scored=None):
        name = position.batch if scored is None else scored.batch
        used.setdefault(name, []).extend(np.asarray(minibatch_index(position.step, 8, config)).tolist())
        step = position.step + 1
        return position._replace(step=step), Record(step, metrics(step), scored, {})

    def begun(run, position):
        return stepped(run, position, Scored(f"rollout {position.step}", None, (), {}, failed=0))

    def recovered(experiment, position, streaks):
        acted.append(position.step)
        streaks.update(dict.fromkeys(streaks, 0))
        return position._replace(batch=None, pending=None), "rolled back"

    monkeypatch.setattr(iterations, "update_again", lambda run, position, _: stepped(run, position))
    monkeypatch.setattr(loop, "read_record", lambda record, _: (dict(record.metrics), []))
    monkeypatch.setattr(loop, "recover", recovered)
    found = loop.Loop(run, writer, None, Position(0, None, {}, None))
    for _ in range(steps):
        found.position, record = iterations.step_in_cycle(run, found.position, begun)
        found.follow(record, {})
        loop.between_steps(found)
    return found, used, acted


def test_the_guard_acts_where_a_cycle_ends(fake_cycles):
    """kl is too large from step 6 on: patience is used up in step 7, and the run is rolled back after step 8, so that
    every rollout is trained on whole. What is in its range again by then is left alone."""
    _, used, acted = fake_cycles(
        lambda step: {"kl": float(6 <= step <= 8 or 10 <= step <= 11)}, action="roll_back", max_kl=0.5
    )
    assert acted == [8]
    whole = {f"rollout {step}": [*range(8)] for step in (0, 4, 8, 12)}
    assert {name: sorted(groups) for name, groups in used.items()} == whole


def test_a_run_counts_rollouts_and_not_their_updates(fake_cycles, capsys):
    """Short answers and equal rewards in every rollout of four updates: patience is used up with the third rollout."""
    metrics = {"completions/mean_length": 1.0, "frac_reward_zero_std": 1.0}
    found, _, acted = fake_cycles(lambda step: metrics, steps=12, patience=3, min_mean_length=4.0)
    assert (found.streaks, found.flat, acted) == ({"completions/mean_length": 3}, 3, [])
    assert re.findall("Step [0-9]+:", capsys.readouterr().out) == ["Step 9:", "Step 9:"]


def test_stop_says_what_to_do():
    with pytest.raises(CollapseError, match=r"Step 4: kl is 2.*samples/.*--guard.action warn"):
        watch(GuardConfig(max_kl=1.0, patience=1, action="stop"), {}, 4, {"kl": 2.0})


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"guard": {"min_entropy": 0.1}, "log": {"entropy": False}}, "Use --log.entropy"),
        ({"guard": {"max_kl": 0.1}, "algo": {"beta": 0.0}}, "keeps no reference"),
        ({"guard": {"action": "panic"}}, "guard.action is 'panic'"),
        ({"guard": {"patience": 0}}, "guard.patience is 0"),
    ],
)
def test_bounds_that_cannot_be_watched_are_refused(sections, message):
    with pytest.raises(ConfigError, match=message):
        validate(with_values(get_config(), **sections), 1)


def test_a_run_stops_saves_and_goes_on(tmp_path, capsys):
    """No response is 1000 tokens long, so every step breaks the bound: at the third the run stops, steps that are not
    logged counted too. The counters are in the checkpoint; with action warn the same run goes on and says it again."""
    guard = {"min_mean_length": 1000.0, "patience": 3, "action": "stop"}
    train = {"max_steps": 6, "save_steps": 50, "logging_steps": 50, "packed": False}
    config = with_values(get_config(), data={"limit": 4}, log={"tensorboard": False}, train=train, guard=guard)
    experiment, made = build_experiment(config, work_dir(tmp_path / "run")), {}
    with pytest.raises(CollapseError, match="Step 3: completions/mean_length"), programs_made_once(made):
        loop.train(experiment)
    (step, folder), *_ = list_checkpoints(experiment.work.checkpoints)
    assert step in (3, 4) and read_meta(folder)["streaks"] == {"completions/mean_length": 3}
    with programs_made_once(made):
        position = loop.train(experiment._replace(config=with_values(config, guard={"action": "warn"})))
    assert position.step == 6 and position.streaks == {"completions/mean_length": 6 - (step - 3)}
    rows = [json.loads(line) for line in experiment.work.metrics.read_text().splitlines()]
    assert rows[-1]["step"] == 6


def collapsing(action: str, **guard):
    """A run with a learning rate that drives the policy far from its start within few steps."""
    guard = {"max_kl": 0.3, "patience": 2, "action": action, "max_beta": 0.08, **guard}
    train = {"max_steps": 10, "save_steps": 1, "save_total_limit": 20, "packed": False}
    return with_values(
        get_config(), data={"limit": 4}, log={"tensorboard": False}, train=train, guard=guard,
        optim={"learning_rate": 0.05}, reward={"language_gate": "off"},
    )  # fmt: skip


MADE: dict = {}
"""Programs of the run that is rolled back."""


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory):
    """(experiment, last position, rows) of a run that falls apart and is rolled back."""
    experiment = build_experiment(collapsing("roll_back"), work_dir(tmp_path_factory.mktemp("collapse") / "run"))
    with programs_made_once(MADE):
        position = loop.train(experiment)
    rows = [json.loads(line) for line in experiment.work.metrics.read_text().splitlines()]
    return experiment, position, rows


def collapse(rows) -> int:
    """The second step in a row whose KL is too large, after which a run is rolled back. Which one it is depends on how
    the processor rounds."""
    high = [row["kl"] > 0.3 for row in rows]
    return next(step for step in range(2, len(rows)) if all(high[step - 2 : step]))


def test_a_collapsing_run_is_rolled_back(rolled_back, capsys):
    """The KL of two steps in a row is too large, so the parameters after the step before them were: those of one step
    earlier come back, with a larger beta, while the steps are counted on; what was undone counts as left out."""
    experiment, position, rows = rolled_back
    kl, second = [row["kl"] for row in rows], collapse(rows)
    assert 4 < second < 8 and [row["step"] for row in rows] == list(range(1, 11))
    assert [row["beta"] for row in rows[: second + 1]] == pytest.approx([0.01] * second + [0.02])
    assert kl[second] < kl[second - 1] and [rows[n]["skipped_updates"] for n in (second - 1, second)] == [0, 3]
    folders = dict(list_checkpoints(experiment.work.checkpoints))
    shapes = {"state": abstract_state(position.state)}
    steps = second, second - 3, second - 1
    back, good, left = (restore_checkpoint(folders[n], shapes).tree["state"] for n in steps)
    assert largest_difference(back.params, good.params) == 0 < largest_difference(back.params, left.params)
    assert (back.step, back.skipped) == (second, 3)
    marks, undone = read_meta(folders[second])["streaks"], {f"abandoned/{second - n}": 1 for n in (2, 1)}
    assert marks == {"kl": 0, "rollbacks": 1} | undone


def test_a_rolled_back_run_resumes_bit_exactly(rolled_back, tmp_path):
    """From the step before the rollback: as if it had been killed there."""
    experiment, whole, rows = rolled_back
    part = experiment._replace(work=work_dir(tmp_path / "run"))
    for step, folder in list_checkpoints(experiment.work.checkpoints):
        if step < collapse(rows):
            shutil.copytree(folder, part.work.checkpoints / folder.name)
    with programs_made_once(MADE):
        again = loop.train(part, quiet=True)
    jax.tree.map(np.testing.assert_array_equal, again.state, whole.state)
    assert again.streaks == whole.streaks


def test_beta_is_raised_up_to_its_bound_and_stays(rolled_back, tmp_path):
    """By a factor of 2 each time, to max_beta; a run whose guard only warns keeps what it has."""
    experiment, position, _ = rolled_back
    raising = experiment._replace(config=collapsing("raise_beta", max_beta=0.1), work=work_dir(tmp_path / "run"))
    position, streaks = position._replace(state=new_position(raising).state), {"kl": 2}
    for beta in (0.02, 0.04, 0.08, 0.1, 0.1):
        position, told = recover(raising, position, streaks)
        assert float(position.state.beta) == pytest.approx(beta) and f"{beta:g}" in told and streaks == {"kl": 0}
    writer = MetricWriter(tmp_path / "log", max_steps=10, quiet=True)
    save(raising, position, writer)
    warned = raising._replace(config=with_values(raising.config, guard={"action": "warn"}))
    assert float(restore(warned).state.beta) == pytest.approx(0.1)
    assert new_position(warned).state.beta is None


def test_the_rollbacks_come_to_an_end(rolled_back):
    """After max_rollbacks the run stops; without any checkpoint the start's state comes back."""
    experiment, position, _ = rolled_back
    nothing = experiment._replace(work=work_dir(experiment.work.root / "empty"))
    start = new_position(experiment).state
    streaks = {"kl": 2}
    for count in (1, 2, 3):
        found, told = recover(nothing, position, streaks)
        assert largest_difference(found.state.params, start.params) == 0 and f"rollback {count} of 3" in told
    with pytest.raises(CollapseError, match="after 3 rollbacks"):
        recover(nothing, position, streaks)


def test_a_rollback_counts_optimizer_steps(rolled_back):
    """With two updates on each rollout: two bad values of kl are two updates, two bad rollouts are four."""
    experiment, position, _ = rolled_back
    position = position._replace(step=10)
    for guard, streaks, step in (({}, {"kl": 2}, 7), ({"min_mean_length": 4.0}, {"completions/mean_length": 2}, 4)):
        config = with_values(experiment.config, algo={"num_iterations": 2}, guard=guard)
        _, told = recover(experiment._replace(config=config), position, streaks)
        assert f"to the parameters of step {step} " in told


def test_a_run_is_not_taken_back_to_its_start_in_silence(rolled_back, tmp_path):
    """Where a good checkpoint was due and is gone, it stops; where none was due yet, it says that all is undone."""
    experiment, position, _ = rolled_back
    part = experiment._replace(work=work_dir(tmp_path / "run"))
    for step, folder in list_checkpoints(experiment.work.checkpoints):
        if step in (8, 9):
            shutil.copytree(folder, part.work.checkpoints / folder.name)
    with pytest.raises(CollapseError, match=r"those of step 7, .*\(found: 8, 9\).*train.save_total_limit"):
        recover(part, position, {"kl": 2})
    rare = part._replace(config=with_values(part.config, train={"save_steps": 8}))
    streaks = {"kl": 2}
    found, told = recover(rare, position, streaks)
    assert "of step 0 " in told and "ALL TRAINING IS UNDONE: the checkpoints of steps 8, 9 are" in told
    assert largest_difference(found.state.params, new_position(experiment).state.params) == 0
    assert {"abandoned/8", "abandoned/9"} <= streaks.keys()
    assert "of step 0 " in recover(rare, position._replace(step=14), streaks | {"kl": 2})[1], "none was due since"
    with pytest.raises(CollapseError, match="those of step 17"):
        recover(rare, position._replace(step=20), streaks | {"kl": 2})


CYCLES = {"action": "roll_back", "patience": 2, "max_kl": 0.3}


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"guard": {"action": "raise_beta"}, "algo": {"beta": 0.0}}, "raises algo.beta, which is 0"),
        ({"guard": {"action": "roll_back", "patience": 9}}, "Use --train.save-total-limit 7"),
        (
            {"guard": CYCLES, "algo": {"num_iterations": 4}},
            "6 steps back with guard.patience=2 and 4 updates on each rollout, .*Use --train.save-total-limit 5",
        ),
        ({"guard": CYCLES | {"min_mean_length": 4.0}, "algo": {"num_iterations": 4}}, "12 steps back.*-limit 8"),
        ({"guard": {"action": "stop"}}, "guard.action is stop, but no bound is set.*Use --guard.min-language-share"),
        ({"guard": {"action": "raise_beta", "max_kl": 1.0, "beta_factor": 1.0}}, "Use --guard.beta-factor 2.0"),
        (
            {"guard": {"action": "raise_beta", "max_kl": 1.0, "max_beta": 0.01}},
            "more than algo.beta. Use --guard.max",
        ),
    ],
)
def test_actions_that_cannot_work_are_refused(sections, message):
    with pytest.raises(ConfigError, match=message):
        validate(with_values(get_config(), **sections), 1)
