"""The collapse guard: what is out of range, for how long, and that a run warns, stops, saves and remembers."""

import json
import math

import pytest
from tiny_policy import quick_compiles  # noqa: F401  a fixture: half the compile time

from configs.tiny_cpu import get_config
from pbrl_jax.checkpoint import list_checkpoints, read_meta
from pbrl_jax.core.config import GuardConfig, with_values
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.paths import work_dir
from pbrl_jax.core.validate import validate
from pbrl_jax.run.assemble import build_experiment
from pbrl_jax.train import loop
from pbrl_jax.train.guard import CollapseError, bounds, broken_bounds, watch

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
    experiment = build_experiment(config, work_dir(tmp_path / "run"))
    with pytest.raises(CollapseError, match="Step 3: completions/mean_length"):
        loop.train(experiment)
    (step, folder), *_ = list_checkpoints(experiment.work.checkpoints)
    assert step in (3, 4) and read_meta(folder)["streaks"] == {"completions/mean_length": 3}
    position = loop.train(experiment._replace(config=with_values(config, guard={"action": "warn"})))
    assert position.step == 6 and position.streaks == {"completions/mean_length": 6 - (step - 3)}
    rows = [json.loads(line) for line in experiment.work.metrics.read_text().splitlines()]
    assert rows[-1]["step"] == 6
