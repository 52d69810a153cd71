"""What the loop leaves: the log, the samples, config.json and final.json; and that it compiles nothing twice."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared_programs import programs_made_once
from tiny_policy import compilations, quick_compiles, tiny_batch, tiny_spec  # noqa: F401  the second is a fixture: half the compile time

from configs.tiny_cpu import get_config
from pbrl_jax import Config, with_values
from pbrl_jax.checkpoint import list_checkpoints, params_sha256, read_meta
from pbrl_jax.config.serialize import from_json
from pbrl_jax.core.errors import NotFiniteError, RewardError
from pbrl_jax.core.paths import work_dir
from pbrl_jax.logs.samples import SAMPLE_FIELDS
from pbrl_jax.mesh.ahead import background_compiles, waited_seconds
from pbrl_jax.rollout.refill import Interrupted
from pbrl_jax.rollout.slots import slot_programs
from pbrl_jax.run.assemble import build_experiment
from pbrl_jax.run.config_file import load_config
from pbrl_jax.train import hosted, loop
from pbrl_jax.train.metrics import read_record
from pbrl_jax.train.restart import new_position
from pbrl_jax.train.start import frozen_of
from pbrl_jax.train.step import Record, Run

STEPS = 5
EVERY_ROW = (
    "loss", "reward", "reward_std", "frac_reward_zero_std", "kl", "entropy", "grad_norm", "learning_rate", "step_time",
    "completions/mean_length", "completions/clipped_ratio", "clip_ratio/low_mean", "clip_ratio/high_mean",
    "clip_ratio/region_mean", "sampling/logp_difference/mean", "sampling/logp_difference/max", "reward/invalid_share",
    "rewards/cosine/mean", "rewards/cosine/std", "rewards/cosine/mean/en", "rewards/cosine/std/en",
    "language/consistency", "language/consistency/en", "completions/clipped_ratio/en",
)  # fmt: skip
MADE: dict = {}
"""Programs of the runs below, which have one kind of step."""
HOSTED_ROW = ("time/generate", "time/reward", "time/update")


def tiny(**sections) -> Config:
    train = {"max_steps": STEPS, "save_steps": 2, "packed": False, **sections.pop("train", {})}
    return with_values(get_config(), data={"limit": 4}, log={"tensorboard": False}, train=train, **sections)


def rows_of(work) -> list[dict]:
    return [json.loads(line) for line in work.metrics.read_text().splitlines()]


def fake_evaluation(params) -> dict[str, float]:
    return {"eval/accuracy/en": 0.25, "eval/first": float(jax.tree.leaves(params)[0].ravel()[0])}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(experiment, last position) of a whole run with evaluations after steps 2 and 4."""
    work = work_dir(tmp_path_factory.mktemp("loop") / "run")
    experiment = build_experiment(tiny(train={"eval_steps": 2}), work)
    with programs_made_once(MADE):
        return experiment, loop.train(experiment, fake_evaluation)


@pytest.fixture
def its_programs(trained):
    """Runs of a test use the programs of `trained`."""
    with programs_made_once(MADE):
        yield


def test_rows_of_the_log(trained):
    """One a step, with TRL's names, those per language, and the times of the phases."""
    rows = rows_of(trained[0].work)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        missing = [name for name in (*EVERY_ROW, *HOSTED_ROW) if name not in row]
        assert not missing
        assert any(re.fullmatch("rewards/cosine/mean/(sw|zh)", name) for name in row)
        assert 0 <= row["completions/clipped_ratio"] <= 1 and 0 <= row["language/consistency"] <= 1
        assert 1 <= row["completions/mean_length"] <= 16 and row["step_time"] > 0


def test_evaluations(trained):
    """In the rows of steps 2 and 4, and at the end in final.json; each of the parameters of its step. Those of the
    start policy stand in evaluations.jsonl alone, before the others."""
    experiment, position = trained
    rows = rows_of(experiment.work)
    assert [row["step"] for row in rows if "eval/accuracy/en" in row] == [2, 4]
    evaluated = [json.loads(line) for line in experiment.work.evaluations.read_text().splitlines()]
    assert [row["step"] for row in evaluated] == [0, 2, 4] and evaluated[1]["eval/first"] == rows[1]["eval/first"]
    assert evaluated[0]["eval/first"] == fake_evaluation(experiment.policy.params)["eval/first"]
    final = json.loads(experiment.work.final.read_text())
    assert final["metrics"] == fake_evaluation(position.state.params)
    assert len({final["metrics"]["eval/first"], *(row["eval/first"] for row in rows if "eval/first" in row)}) == 3


def counted_run(experiment, frozen) -> Run:
    """Steps that change nothing and log their number."""

    def take(run, position):
        step = position.step + 1
        metrics = {"loss": step / 8, "reward": 0.1 * step}
        following = position._replace(step=step, cursor={"batch": step}, unevaluated=False)
        return following, Record(step, metrics, None, {})

    return Run(experiment, frozen, None, None, take)


def scripted_run(metrics_of):
    """make_run: steps that change nothing and whose metrics are `metrics_of(step)`."""

    def make(experiment, frozen):
        counted = counted_run(experiment, frozen)

        def take(run, position):
            position, record = counted.take(run, position)
            return position, record._replace(metrics={**record.metrics, **metrics_of(position.step)})

        return counted._replace(take=take)

    return make


@pytest.mark.parametrize("save_steps, eval_steps", [(1, 3), (2, 0)])
def test_a_state_that_is_not_finite_is_no_result(trained, tmp_path, monkeypatch, save_steps, eval_steps):
    """From step 3 on: the last good checkpoint stays, whether the pause after the step or the next step tells."""
    monkeypatch.setattr(loop, "make_run", scripted_run(lambda step: {"state_finite": jnp.bool_(step < 3)}))
    train = {"save_steps": save_steps, "eval_steps": eval_steps, "eval_on_start": False}
    experiment, evaluated = trained[0]._replace(config=tiny(train=train), work=work_dir(tmp_path)), []
    with pytest.raises(NotFiniteError, match="Step 3: parameters or moments are not finite"):
        loop.train(experiment, evaluated.append, quiet=True)
    assert list_checkpoints(experiment.work.checkpoints)[0][0] == 2 and not evaluated
    assert not experiment.work.final.exists()


def test_updates_that_are_skipped_again_and_again_end_a_run(trained, tmp_path, monkeypatch):
    """Single ones do not. The count is in the checkpoint, and a run that is mended goes on."""
    skipped = {2, 4, 5}
    monkeypatch.setattr(loop, "make_run", scripted_run(lambda step: {"grad_norm": np.nan if step in skipped else 1.0}))
    config = tiny(train={"save_steps": 4}, guard={"max_skipped_updates": 2})
    experiment = trained[0]._replace(config=config, work=work_dir(tmp_path))
    with pytest.raises(NotFiniteError, match="Step 5: 2 updates in a row were skipped"):
        loop.train(experiment, quiet=True)
    (step, folder), (before, earlier) = list_checkpoints(experiment.work.checkpoints)
    assert (step, before) == (5, 4)
    assert [read_meta(one)["streaks"] for one in (earlier, folder)] == [{"skipped_updates": 1}, {"skipped_updates": 2}]
    skipped.clear()
    longer = experiment._replace(config=with_values(config, train={"max_steps": 6}))
    assert loop.train(longer, quiet=True).streaks == {}


def test_groups_without_different_rewards_are_said_once(trained, tmp_path, monkeypatch, capsys):
    flat = {"frac_reward_zero_std": jnp.float32(1)}
    monkeypatch.setattr(loop, "make_run", scripted_run(lambda step: flat if step > 1 else {}))
    experiment = trained[0]._replace(config=tiny(guard={"patience": 3}), work=work_dir(tmp_path))
    assert loop.train(experiment).step == STEPS
    said = [line for line in capsys.readouterr().out.splitlines() if "same reward" in line]
    assert len(said) == 1 and said[0].startswith("Step 4: in 3 steps in a row all responses")


def test_a_stop_in_an_evaluation(trained, tmp_path, monkeypatch):
    """Before the first step, after the second (twice) and after the last: what it cut short is made first, and the
    log, the evaluations and final.json are those of a run that nobody stopped."""
    monkeypatch.setattr(loop, "make_run", counted_run)
    calls = []

    def evaluate(params):
        calls.append(len(calls))
        if len(calls) in stops:
            raise Interrupted
        return {"eval/accuracy/en": 0.25, "eval/problems/en": 12}

    def run(name):
        experiment = trained[0]._replace(work=work_dir(tmp_path / name))
        ended = loop.train(experiment, evaluate, quiet=True)
        return ended, [step for step, _ in list_checkpoints(experiment.work.checkpoints)]

    stops = ()
    assert run("whole")[0].step == STEPS and len(calls) == 4
    stops = (5, 7, 8, 11)
    assert run("stopped") == (None, [])
    assert run("stopped") == (None, [2])
    assert run("stopped") == (None, [2])
    ended, saved = run("stopped")
    assert ended is None and saved[0] == STEPS
    assert run("stopped")[0].step == STEPS and len(calls) == 12
    for file in ("metrics.jsonl", "evaluations.jsonl", "final.json"):
        texts = [(tmp_path / name / file).read_text() for name in ("whole", "stopped")]
        lines = [re.sub(r'"step_time": [^,}]+,? ?', "", text) for text in texts]
        assert lines[0] == lines[1] and "eval/accuracy/en" in lines[0], file


def test_rows_are_means_over_the_logging_cadence(trained, tmp_path, monkeypatch):
    """Loss is step / 8: rows of steps 3 and 5 are the means of steps 1 to 3 and of 4 and 5, also in a run that was
    stopped after steps 1 and 4, whose checkpoints hold what was not written yet. An evaluation writes a row."""
    stops = [1, 4]

    def interrupted_run(experiment, frozen):
        run = counted_run(experiment, frozen)

        def take(run_, position):
            if position.step in stops[:1]:
                stops.pop(0)
                raise Interrupted
            return run.take(run_, position)

        return run._replace(take=take)

    monkeypatch.setattr(loop, "make_run", interrupted_run)
    settings = {"logging_steps": 3, "save_steps": 50, "eval_steps": 0}
    config = with_values(trained[0].config, train=settings)
    experiment = trained[0]._replace(config=config, work=work_dir(tmp_path))
    assert loop.train(experiment, quiet=True) is None and loop.train(experiment, quiet=True) is None
    assert loop.train(experiment, quiet=True).step == STEPS == 5 and not stops
    rows = rows_of(experiment.work)
    assert [(row["step"], row["loss"]) for row in rows] == [(3, 2 / 8), (5, 4.5 / 8)]
    np.testing.assert_allclose([row["reward"] for row in rows], [0.2, 0.45])


def test_samples(trained):
    for step in range(1, STEPS + 1):
        rows = [json.loads(line) for line in trained[0].work.samples_of(step).read_text().splitlines()]
        assert len(rows) == 8 and all(tuple(row) == SAMPLE_FIELDS for row in rows)
        assert {row["step"] for row in rows} == {step} and len({row["language"] for row in rows}) > 1
        assert all(row["reference"] and row["prompt"] and isinstance(row["valid"], bool) for row in rows)
        assert all(row["parts"].keys() >= {"cosine/value"} for row in rows)


def test_config_and_final_files(trained):
    """config.json is the configuration, and can be given as CONFIG; final.json names what was trained."""
    experiment, position = trained
    file = experiment.work.config
    assert from_json(file.read_text(), Config) == load_config(str(file)) == experiment.config
    final = json.loads(experiment.work.final.read_text())
    assert final.keys() == {"step", "params_sha256", "metrics"}
    assert final["step"] == STEPS == position.step == int(position.state.step)
    assert final["params_sha256"] == params_sha256(position.state.params) != params_sha256(experiment.policy.params)


def test_nothing_is_compiled_twice(trained, tmp_path, caplog):
    """After two steps and what is compiled behind them, a run compiles no program, whatever its prompts and lengths."""
    experiment = trained[0]._replace(work=work_dir(tmp_path))
    position, counts = new_position(experiment), []
    slot_programs.cache_clear()
    with jax.set_mesh(experiment.mesh), background_compiles() as background:
        run = loop.make_run(experiment, frozen_of(experiment.policy, experiment.config, experiment.mesh))
        for steps in (2, 3):
            with compilations(caplog) as found:
                for _ in range(steps):
                    position, record = run.take(run, position)
                    read_record(record, experiment.policy.tokenizer)
                background.begin_rest()
                background.join()
            counts.append(found)
    assert len(counts[0]) > 3 and not counts[1]


@pytest.mark.parametrize("algo, packed", [({}, False), ({"name": "ppo", "kl_in": "reward", "num_iterations": 2}, True)])
def test_on_an_accelerator_the_update_is_compiled_beside_the_first_rollout(algo, packed, tmp_path, monkeypatch):
    """From shapes alone; the first batch has them, and nothing is compiled for it again."""
    waited: list[float] = []

    def measured(update):
        def call(*args):
            background.join()
            waited.append(waited_seconds())
            return update(*args)

        return call

    monkeypatch.setattr(hosted, "platform", lambda: "tpu")
    monkeypatch.setattr(hosted, "waiting", measured)
    experiment = build_experiment(tiny(algo=algo, train={"packed": packed}), work_dir(tmp_path))
    with jax.set_mesh(experiment.mesh), background_compiles() as background:
        run = loop.make_run(experiment, frozen_of(experiment.policy, experiment.config, experiment.mesh))
        run.take(run, new_position(experiment))
        assert waited == [waited_seconds()]


def test_cadence_and_restart(trained, its_programs, tmp_path):
    """Logged are every third step, evaluated ones and the last; a finished run that gets more steps goes on."""
    config = tiny(train={"logging_steps": 3, "eval_steps": 2, "max_steps": 4, "save_steps": 50})
    experiment = trained[0]._replace(config=config, work=work_dir(tmp_path))
    assert loop.train(experiment, fake_evaluation).step == 4
    rows = rows_of(experiment.work)
    assert [row["step"] for row in rows] == [2, 3, 4]
    assert ["eval/first" in row for row in rows] == [True, False, False]
    assert [step for step, _ in list_checkpoints(experiment.work.checkpoints)] == [4]
    first = experiment.work.final.read_text()
    assert loop.train(experiment, fake_evaluation).step == 4 and experiment.work.final.read_text() == first
    longer = experiment._replace(config=with_values(config, train={"max_steps": STEPS}))
    assert loop.train(longer, fake_evaluation).state.params is not None
    whole = json.loads(trained[0].work.final.read_text())
    assert json.loads(experiment.work.final.read_text()) == whole
    assert [row["step"] for row in rows_of(experiment.work)] == [2, 3, 4, 5]


def test_failing_reward_loses_no_row(trained, its_programs, tmp_path, monkeypatch):
    """The rows up to the failure are written and its state is saved, although no save was due."""
    make, count = hosted.make_scoring, iter(range(9))

    def make_failing(experiment):
        score = make(experiment)

        def failing(*arguments):
            if next(count) == 2:
                raise RewardError("the third batch")
            return score(*arguments)

        return failing

    monkeypatch.setattr(hosted, "make_scoring", make_failing)
    config = tiny(train={"save_steps": 50})
    experiment = trained[0]._replace(config=config, work=work_dir(tmp_path))
    with pytest.raises(RewardError, match="the third batch"):
        loop.train(experiment)
    assert [row["step"] for row in rows_of(experiment.work)] == [1, 2]
    assert [step for step, _ in list_checkpoints(experiment.work.checkpoints)] == [2]
    count = iter(range(2, 9))
    with pytest.raises(RewardError, match="the third batch"):
        loop.train(experiment._replace(config=with_values(config, train={"save_steps": 49})))
    assert [step for step, _ in list_checkpoints(experiment.work.checkpoints)] == [2]
    count = iter(range(3, 9))
    loop.train(experiment)
    assert json.loads(experiment.work.final.read_text())["params_sha256"] == params_sha256(trained[1].state.params)


@pytest.mark.parametrize("patience", [2, 3])
def test_failing_rewards_end_a_run_when_that_goes_on(trained, its_programs, tmp_path, monkeypatch, capsys, patience):
    """Batches 2 and 3 have no valid reward: they are left out and told, and with a patience of 2 the second ends the
    run before anything is updated on it."""
    make = hosted.make_scoring

    def make_failing(experiment):
        score = make(experiment)

        def failing(rollout, drawn):
            scored = score(rollout, drawn)
            total = scored.rewards.total
            broken = dataclasses.replace(total, valid_B=total.valid_B & (drawn.step not in (1, 2)))
            valid_B = scored.batch.valid_B & (drawn.step not in (1, 2))
            batch = dataclasses.replace(scored.batch, valid_B=valid_B)
            return scored._replace(rewards=scored.rewards._replace(total=broken), batch=batch)

        return failing

    monkeypatch.setattr(hosted, "make_scoring", make_failing)
    config = tiny(train={"save_steps": 50, "max_steps": 4}, guard={"patience": patience})
    experiment = trained[0]._replace(config=config, work=work_dir(tmp_path))
    if patience == 2:
        with pytest.raises(RewardError, match="Step 3: 100% of the rewards are invalid.*2 by now"):
            loop.train(experiment)
        ((step, folder),) = list_checkpoints(experiment.work.checkpoints)
        assert step == 2 and read_meta(folder)["streaks"] == {"failed_rewards": 1}
        return
    assert loop.train(experiment).streaks == {}
    assert "Step 2: more than 50% of the rewards are invalid" in capsys.readouterr().out
    assert [row["empty_updates"] for row in rows_of(experiment.work)] == [0, 1, 2, 2]


def test_an_error_of_another_kind_loses_no_step(trained, its_programs, tmp_path, monkeypatch):
    """A fault of the program itself in the third step: the two steps before it are saved and written."""
    make = hosted.make_scoring

    def make_failing(experiment):
        score = make(experiment)

        def failing(rollout, drawn):
            return {}["no such key"] if drawn.step == 2 else score(rollout, drawn)

        return failing

    monkeypatch.setattr(hosted, "make_scoring", make_failing)
    experiment = trained[0]._replace(config=tiny(train={"save_steps": 50}), work=work_dir(tmp_path))
    with pytest.raises(KeyError, match="no such key"):
        loop.train(experiment)
    assert [row["step"] for row in rows_of(experiment.work)] == [1, 2]
    assert [step for step, _ in list_checkpoints(experiment.work.checkpoints)] == [2]


def test_fused_rows_and_guard(tmp_path):
    """The fused step logs the same names; rewards that it only sees afterwards stop the run with every row written."""
    train = {"fused": True, "max_steps": 3, "save_steps": 50}
    config = tiny(train=train, reward={"language_gate": "tokens"}, guard={"patience": 1})
    experiment = build_experiment(config, work_dir(tmp_path / "whole"))
    with programs_made_once({}) as made:
        loop.train(experiment)
    for row in rows_of(experiment.work):
        assert not [name for name in EVERY_ROW if name not in row]
    broken = experiment.pivots._replace(has_B=experiment.pivots.has_B & False)
    experiment = experiment._replace(pivots=broken, work=work_dir(tmp_path / "broken"))
    with pytest.raises(RewardError, match="Step 1: 100% of the rewards are invalid"), programs_made_once(made):
        loop.train(experiment)
    saved = [step for step, _ in list_checkpoints(experiment.work.checkpoints)]
    rows = rows_of(experiment.work)
    assert [row["step"] for row in rows] == list(range(1, saved[0] + 1))
    assert all(row["reward/invalid_share"] == 1 and "rewards/cosine/mean" not in row for row in rows)
