"""Dynamic sampling: which groups give way to which, bounded rounds, no new program, and resume."""

import jax
import numpy as np
import pytest
from tiny_policy import compilations, quick_compiles  # noqa: F401  the second is a fixture

from configs.tiny_cpu import get_config
from pbrl_jax import with_values
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.paths import work_dir
from pbrl_jax.core.records import Scores
from pbrl_jax.data.batches import batch_at
from pbrl_jax.logs.metrics import PhaseTimer
from pbrl_jax.rewards.combine import Combined
from pbrl_jax.run.assemble import build_experiment
from pbrl_jax.run.check import validate
from pbrl_jax.train import steps
from pbrl_jax.train.dynamic import alike, make_rounds, replacements, without_signal
from pbrl_jax.train.fused import check_fusable

FLAT_UNTIL = [0]
"""Prompts with an id below it get the same reward for every response."""


def reward(prompts, completions, prompt_id, **columns):
    """The length of a response, where there is to be a signal."""
    return [
        0.5 if number < FLAT_UNTIL[0] else len(text) / 64 for number, text in zip(prompt_id, completions, strict=True)
    ]


def config_of(**algo):
    return with_values(
        get_config(), algo={"max_sampling_rounds": 3, **algo}, data={"limit": 16}, log={"tensorboard": False},
        train={"max_steps": 4, "save_steps": 50, "packed": False},
        reward={"functions": (f"{__name__}:reward",), "language_gate": "off"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return build_experiment(config_of(), work_dir(tmp_path_factory.mktemp("dynamic") / "run"))


@pytest.fixture(scope="module")
def made(experiment):
    """(collect of one round, collect with further rounds)."""
    with jax.set_mesh(experiment.mesh):
        collect = steps.make_collect(experiment)
        shapes = steps.batch_shapes(experiment)
        rounds = make_rounds(experiment, collect, shapes)
        FLAT_UNTIL[0] = 0
        rounds(0, {"batch": 0}, experiment.policy.params, PhaseTimer())
        yield collect, rounds


def test_replacements_by_hand():
    """Five groups, the last two of them English: groups 0, 2 and 4 are flat; of the further ones 1, 2 and 3 are not."""
    flat, more_flat = np.array([1, 0, 1, 0, 1], bool), np.array([1, 0, 0, 0, 1], bool)
    assert replacements(flat, more_flat, 3).tolist() == [6, 1, 7, 3, 8]
    assert replacements(flat, np.array([1, 0, 1, 1, 1], bool), 3).tolist() == [6, 1, 2, 3, 4]
    assert replacements(~flat, more_flat, 3).tolist() == [0, 6, 2, 8, 4]


def test_flat_groups_give_way_and_nothing_is_compiled(experiment, made, caplog):
    """Half of the prompts are flat: rounds are added until none is left, or three are used up. The first time that a
    second round is needed comes after the warm-up, and compiles nothing."""
    collect, rounds = made
    ids = sorted(p.id for p in experiment.sampler.target)
    FLAT_UNTIL[0] = ids[len(ids) // 2]
    params, used = experiment.policy.params, []
    with compilations(caplog) as found:
        cursor = {"batch": 0}
        for step in range(4):
            before = cursor["batch"]
            result, cursor = rounds(step, cursor, params, PhaseTimer())
            used.append(cursor["batch"] - before)
            assert result.extra["sampling/rounds"] == used[-1] <= 3
            assert not without_signal(result, 4).any() or used[-1] == 3
    assert not found and max(used) > 1


def test_a_round_in_which_a_reward_raised_joins_one_in_which_it_did_not():
    value, valid = np.zeros(2, np.float32), np.ones(2, bool)
    whole = Combined(Scores(value, valid, {}), {"cosine": Scores(value, valid, {"answer": value})}, valid, value)
    raised = whole._replace(each={"cosine": Scores(value, ~valid, {})}, translation_B=None)
    shapes = [jax.tree.structure(found) for found in (alike(whole, raised), alike(raised, whole), raised)]
    assert shapes[0] == shapes[1] == shapes[2] and alike(whole, whole).each["cosine"].parts.keys() == {"answer"}


def test_what_is_kept_is_what_was_sampled(experiment, made):
    """Device batch and host rows agree; a group that stayed is that of the first round, bit by bit."""
    collect, rounds = made
    params = experiment.policy.params
    FLAT_UNTIL[0] = 0
    first = collect(0, batch_at(experiment.sampler, 0), params, PhaseTimer())
    ids_P = np.asarray(first.batch.prompts.row_ids_P)
    FLAT_UNTIL[0] = int(np.sort(ids_P)[1]) + 1
    result, _ = rounds(0, {"batch": 0}, params, PhaseTimer())
    assert [p.id for p in result.prompts_B[::4]] == np.asarray(result.batch.prompts.row_ids_P).tolist()
    np.testing.assert_array_equal(result.batch.rollout.tokens_BR, result.rollout.tokens_BR)
    np.testing.assert_array_equal(result.batch.reward_B, result.rewards.total.value_B)
    stayed = [n for n, number in enumerate(ids_P) if result.prompts_B[4 * n].id == number]
    assert 0 < len(stayed) < 4
    for n in stayed:
        rows = slice(4 * n, 4 * n + 4)
        np.testing.assert_array_equal(result.rollout.tokens_BR[rows], first.rollout.tokens_BR[rows])
        assert result.texts_B[rows] == first.texts_B[rows]
    metrics, _ = result.describe(1)
    assert metrics["num_tokens"] > int(result.rollout.lengths_B.sum()) and 0 < metrics["sampling/flat_share"] < 1


def test_a_step_is_a_function_of_its_cursor(experiment, made):
    """The same step, cursor and parameters give the same batch whatever was drawn before, so a run resumes."""
    _, rounds = made
    ids = sorted(p.id for p in experiment.sampler.target)
    FLAT_UNTIL[0] = ids[len(ids) // 2]
    (one, behind), (two, again) = (rounds(3, {"batch": 5}, experiment.policy.params, PhaseTimer()) for _ in range(2))
    assert behind == again and behind["batch"] > 6 and one.texts_B == two.texts_B
    jax.tree.map(np.testing.assert_array_equal, one.batch, two.batch)


def test_settings_that_cannot_work():
    with pytest.raises(ConfigError, match="a group needs two samples"):
        validate(config_of(num_generations=1, name="reinforce_plus_plus"), 1)
    with pytest.raises(ConfigError, match="max_sampling_rounds"):
        check_fusable(config_of(), True)
