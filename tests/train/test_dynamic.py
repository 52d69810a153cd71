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
from pbrl_jax.rewards.combine import Combined
from pbrl_jax.run.assemble import build_experiment
from pbrl_jax.run.check import validate
from pbrl_jax.train.dynamic import alike, replacements, without_signal
from pbrl_jax.train.fused import check_fusable
from pbrl_jax.train.hosted import hosted_functions
from pbrl_jax.train.metrics import describe
from pbrl_jax.train.step import draw, sample_batch
from pbrl_jax.train.trained import Frozen

FLAT_UNTIL = [0]
"""Prompts with an id below it get the same reward for every response."""
SEEN: list[float] = []
"""Every reward that was given."""


def reward(prompts, completions, prompt_id, **columns):
    """The length of a response, where there is to be a signal."""
    values = [
        0.5 if number < FLAT_UNTIL[0] else len(text) / 64 for number, text in zip(prompt_id, completions, strict=True)
    ]
    SEEN.extend(values)
    return values


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
    """(one round, all rounds) of sampling with the start policy: functions of the step and the data cursor."""
    params = experiment.policy.params
    with jax.set_mesh(experiment.mesh):
        functions = hosted_functions(experiment)._replace(params=lambda state, frozen: params)

        def one_round(step, cursor):
            return sample_batch(functions, None, Frozen(), draw(experiment, step, cursor))

        def all_rounds(step, cursor):
            return functions.sample(functions, None, Frozen(), draw(experiment, step, cursor))

        FLAT_UNTIL[0] = 0
        all_rounds(0, {"batch": 0})
        yield one_round, all_rounds


def test_replacements_by_hand():
    """Five groups, the last two of them English: groups 0, 2 and 4 are flat; of the further ones 1, 2 and 3 are not."""
    flat, more_flat = np.array([1, 0, 1, 0, 1], bool), np.array([1, 0, 0, 0, 1], bool)
    assert replacements(flat, more_flat, 3).tolist() == [6, 1, 7, 3, 8]
    assert replacements(flat, np.array([1, 0, 1, 1, 1], bool), 3).tolist() == [6, 1, 2, 3, 4]
    assert replacements(~flat, more_flat, 3).tolist() == [0, 6, 2, 8, 4]


def test_flat_groups_give_way_and_nothing_is_compiled(experiment, made, caplog):
    """Half of the prompts are flat: rounds are added until none is left, or three are used up. The first time that a
    second round is needed comes after the warm-up, and compiles nothing."""
    _, rounds = made
    ids = sorted(p.id for p in experiment.sampler.target)
    FLAT_UNTIL[0] = ids[len(ids) // 2]
    used = []
    with compilations(caplog) as found:
        cursor = {"batch": 0}
        for step in range(4):
            before = cursor["batch"]
            result = rounds(step, cursor)
            cursor = result.cursor
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
    one_round, rounds = made
    FLAT_UNTIL[0] = 0
    first = one_round(0, {"batch": 0})
    ids_P = np.asarray(first.batch.prompts.row_ids_P)
    FLAT_UNTIL[0] = int(np.sort(ids_P)[1]) + 1
    SEEN.clear()
    result = rounds(0, {"batch": 0})
    assert [p.id for p in result.prompts_P] == np.asarray(result.batch.prompts.row_ids_P).tolist()
    np.testing.assert_array_equal(result.batch.rollout.tokens_BR, result.host_rollout.tokens_BR)
    np.testing.assert_array_equal(result.batch.reward_B, result.rewards.total.value_B)
    stayed = [n for n, number in enumerate(ids_P) if result.prompts_P[n].id == number]
    assert 0 < len(stayed) < 4
    for n in stayed:
        rows = slice(4 * n, 4 * n + 4)
        np.testing.assert_array_equal(result.host_rollout.tokens_BR[rows], first.host_rollout.tokens_BR[rows])
        assert result.texts_B[rows] == first.texts_B[rows]
    metrics, _ = describe(result, 1, experiment.policy.tokenizer)
    assert metrics["reward/unfiltered"] == pytest.approx(np.mean(SEEN), rel=1e-6)
    assert metrics["reward/unfiltered"] != pytest.approx(np.mean(result.rewards.total.value_B))
    (name,) = result.rewards.each
    assert metrics[f"rewards/{name}/mean/unfiltered"] == metrics["reward/unfiltered"]
    sampled = len(SEEN) * metrics["completions/mean_length/unfiltered"]
    assert sampled == pytest.approx(metrics["num_tokens"]) and "language/consistency/unfiltered" in metrics
    assert metrics["num_tokens"] > int(result.host_rollout.lengths_B.sum()) and 0 < metrics["sampling/flat_share"] < 1


def test_a_step_is_a_function_of_its_cursor(experiment, made):
    """The same step, cursor and parameters give the same batch whatever was drawn before, so a run resumes."""
    _, rounds = made
    ids = sorted(p.id for p in experiment.sampler.target)
    FLAT_UNTIL[0] = ids[len(ids) // 2]
    one, two = (rounds(3, {"batch": 5}) for _ in range(2))
    assert one.cursor == two.cursor and one.cursor["batch"] > 6 and one.texts_B == two.texts_B
    jax.tree.map(np.testing.assert_array_equal, one.batch, two.batch)


def test_settings_that_cannot_work():
    with pytest.raises(ConfigError, match="a group needs two samples"):
        validate(config_of(num_generations=1, name="reinforce_plus_plus"), 1)
    with pytest.raises(ConfigError, match="max_sampling_rounds"):
        check_fusable(config_of(), True)
