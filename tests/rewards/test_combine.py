"""Several rewards as one: weights, validity, the language gate, empty responses."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import LANGUAGES, encoder, problem_prompts, reward_inputs

from pbrl_jax import Config, RewardConfig
from pbrl_jax.algos.advantages import ScoredGroups
from pbrl_jax.algos.grpo import GrpoConfig, estimate
from pbrl_jax.config.tree import with_values
from pbrl_jax.core.errors import ConfigError, RewardError
from pbrl_jax.core.records import Scores
from pbrl_jax.rewards.combine import REWARDS, Reward, RewardAssets, alike_in_group, make_reward, reads_references
from pbrl_jax.rewards.cosine import make_cosine
from pbrl_jax.rewards.inputs import first_equal
from pbrl_jax.train.hosted import separate_rewards
from pbrl_jax.train.metrics import reward_metrics, sample_rows

SWAHILI = problem_prompts(1, ("sw",))[0]._replace(answer="20")
RIGHT = "Ali anaanza na chupa 10 na kununua chupa 10 zaidi. Jibu ni 20."
WRONG = RIGHT.replace("20", "21")
ENGLISH = "Ali starts with 10 bottles and buys 10 more bottles. The answer is 20."


@pytest.fixture
def own(monkeypatch):
    """A module `own_rewards` with a reward that cannot score every second row, and one that cannot score at all."""
    module = types.ModuleType("own_rewards")
    module.half = lambda prompts, completions, **_: [0.5 if row % 2 == 0 else None for row in range(len(prompts))]
    module.none = lambda prompts, completions, **_: [None] * len(prompts)
    monkeypatch.setitem(sys.modules, "own_rewards", module)


def combined(completions, prompts=None, **settings):
    config = RewardConfig(**{"language_gate": "off", **settings})
    prompts = prompts or [SWAHILI] * len(completions)
    reward = make_reward(config, RewardAssets(encoder(), LANGUAGES, None))
    return reward(reward_inputs(prompts, completions, encoder()))


def test_weights_add_up_by_hand():
    """2 * answer + 0.5 * cosine."""
    result = combined([RIGHT, WRONG], functions=("answer", "cosine"), reward_weights=(2.0, 0.5))
    cosine = make_cosine(RewardConfig(), encoder())(reward_inputs([SWAHILI] * 2, [RIGHT, WRONG], encoder())).value_B
    np.testing.assert_allclose(result.total.value_B, [2 + 0.5 * cosine[0], 0.5 * cosine[1]], atol=1e-6)
    assert result.each["answer"].value_B.tolist() == [1, 0]
    np.testing.assert_allclose(result.each["cosine"].value_B, cosine, atol=1e-6)
    assert {"reasoning", "answer", "encoder_cut"} == result.each["cosine"].parts.keys()


def test_a_row_is_valid_where_a_weighted_reward_scored_it_and_none_failed(own):
    """Row 0: all; row 1: `half` does not apply; row 2: no gold answer; row 3: both."""
    prompts = [SWAHILI, SWAHILI, SWAHILI._replace(answer=None), SWAHILI._replace(answer=None)]
    result = combined([RIGHT] * 4, prompts, functions=("answer", "own_rewards:half"), reward_weights=(1.0, 1.0))
    assert result.total.valid_B.tolist() == [True, True, False, False]
    assert result.total.value_B[:2].tolist() == [1.5, 1.0]
    assert np.isfinite(result.total.value_B).all()


def test_two_task_rewards_train_together(monkeypatch):
    """Weights 2 and 3 by hand; the function of the other task is left out, a failure is not, and a row of no task is
    invalid."""
    module = types.ModuleType("own_rewards")
    module.sums = lambda completions, **_: [1.0, None, float("nan"), None, 0.5]
    module.texts = lambda completions, **_: [None, 0.5, None, None, 0.25]
    monkeypatch.setitem(sys.modules, "own_rewards", module)
    names = ("own_rewards:sums", "own_rewards:texts")
    result = combined([RIGHT] * 5, functions=names, reward_weights=(2.0, 3.0))
    assert result.total.valid_B.tolist() == [True, True, False, False, True]
    assert result.total.value_B.tolist() == [2.0, 1.5, 0.0, 0.0, 1.75]
    assert result.each[names[0]].failed_B.tolist() == [False, False, True, False, False]
    metrics = reward_metrics(result.each, result.right_language_B, [SWAHILI] * 5)
    assert metrics[f"rewards/{names[0]}/valid_share"] == pytest.approx(2 / 3)
    assert metrics[f"rewards/{names[1]}/valid_share"] == 1 and metrics[f"rewards/{names[1]}/mean"] == 0.375
    for which in ("std", "std/sw"):  # of 0.5 and 0.25, unbiased as TRL's and as reward_std
        assert metrics[f"rewards/{names[1]}/{which}"] == pytest.approx(np.sqrt(2 * 0.125**2 / (2 - 1)))
    alone = reward_metrics({"one": jax.tree.map(lambda x: x[1:2], result.each[names[1]])}, [True], [SWAHILI])
    assert alone["rewards/one/std"] == 0
    row = sample_rows(1, [SWAHILI] * 5, [RIGHT] * 5, result)[1]
    assert row["parts"] == {f"{names[1]}/value": 0.5}


A, B, AB, NONE = [1, 0], [0, 1], [1, 1], [0, 0]


@pytest.mark.parametrize(
    "group, rows, kept",
    [
        (4, [A, A, A, AB], [1, 1, 1, 0]),
        (4, [A, AB, AB, NONE], [0, 1, 1, 0]),
        (4, [NONE, B, A, NONE], [0, 1, 0, 0]),
        (2, [A, A, B, B], [1, 1, 1, 1]),
        (1, [A, B, AB, NONE], [1, 1, 1, 0]),
    ],
)
def test_only_rows_of_the_same_functions_are_compared(group, rows, kept):
    """By hand: the most frequent set of its group, of equally frequent ones the first."""
    scored_BF, valid_B = jnp.array(rows, bool), jnp.ones(4, bool)
    assert alike_in_group(scored_BF, valid_B, group).tolist() == [bool(x) for x in kept]
    assert jax.jit(alike_in_group, static_argnums=2)(scored_BF, valid_B, group).tolist() == [bool(x) for x in kept]


def test_rows_that_failed_have_no_vote_on_their_group():
    found = alike_in_group(jnp.array([A, A, A, AB], bool), jnp.array([False, False, False, True]), 4)
    assert found.tolist() == [False, False, False, True]


def test_scaled_apart_a_row_takes_part_with_the_functions_that_apply_to_it(monkeypatch):
    """One group, two tasks: 2 and 0 of one, 1 and 0 of the other; each pair is +-1/sqrt(2) after its own scaling, and
    of the batch's spread sqrt(2/3) that is +-sqrt(3)/2. Summed first, the second task's rows would be left out."""
    module = types.ModuleType("own_rewards")
    module.sums = lambda completions, **_: [2.0, 0.0, None, None]
    module.texts = lambda completions, **_: [None, None, 1.0, 0.0]
    monkeypatch.setitem(sys.modules, "own_rewards", module)
    names = ("own_rewards:sums", "own_rewards:texts")
    result = combined([RIGHT] * 4, functions=names, reward_weights=(1.0, 1.0))
    config = with_values(Config(), reward={"functions": names, "reward_weights": (1.0, 1.0)})
    rewards_BF = jnp.asarray(separate_rewards(config, result, [RIGHT] * 4))
    groups = ScoredGroups(
        result.value_B[None], result.valid_B[None], jnp.ones((4, 1), bool), None, rewards_BF[None], jnp.ones(2)
    )
    adv_B, _ = estimate(groups, config=GrpoConfig(multi_objective_aggregation="normalize_then_sum"))
    half = np.sqrt(3) / 2
    np.testing.assert_allclose(adv_B, [half, -half, half, -half], rtol=1e-3)


def test_a_reward_of_weight_zero_is_only_logged(own):
    result = combined([RIGHT, WRONG], functions=("answer", "own_rewards:none"), reward_weights=(1.0, 0.0))
    assert result.total.valid_B.all() and result.total.value_B.tolist() == [1, 0]
    assert not result.each["own_rewards:none"].valid_B.any()


def test_a_reward_that_raises_makes_its_rows_invalid_and_says_so(monkeypatch, capsys):
    def make(error):
        def broken(inputs):
            raise error

        return lambda config, assets: broken

    monkeypatch.setitem(REWARDS, "answer", Reward(make(ZeroDivisionError("at the third row"))))
    result = combined([RIGHT, ""], functions=("cosine", "answer"), reward_weights=(1.0, 1.0))
    assert result.total.valid_B.tolist() == [False, False] and result.each["cosine"].valid_B.all()
    assert "Reward answer raised; its 2 rows are invalid" in (said := capsys.readouterr().err) and "third row" in said
    monkeypatch.setitem(REWARDS, "answer", Reward(make(ConfigError("not like this"))))
    with pytest.raises(ConfigError, match="not like this"):
        combined([RIGHT], functions=("answer",))


def test_equal_responses_have_one_score_also_where_an_encoder_rounds():
    """In other rows of a batch sums round otherwise: of 21 equal responses the cosines differ by 6e-8, and a group
    counts as one without a signal up to 1e-8. Other tokens, texts or prompts are scored apart."""
    reward = make_reward(RewardConfig(), RewardAssets(encoder(), LANGUAGES, None))
    result = reward(reward_inputs([SWAHILI] * 22, [RIGHT] * 21 + [WRONG], encoder()))
    values = np.asarray(result.value_B)
    assert np.ptp(values[:21]) == 0 and values[21] != values[0]
    assert all(np.ptp(np.asarray(part)[:21]) == 0 for part in result.each["cosine"].parts.values())
    inputs = reward_inputs([SWAHILI, SWAHILI, SWAHILI._replace(answer="1"), SWAHILI], [RIGHT, RIGHT, RIGHT, WRONG])
    assert first_equal(inputs).tolist() == [0, 0, 2, 3]
    inputs.tokens_BR[1, 0] += 1
    assert first_equal(inputs).tolist() == [0, 1, 2, 3]


def test_a_row_without_a_reference_stays_invalid_whatever_its_text():
    prompts = [SWAHILI._replace(reference=None)] * 3
    result = combined([RIGHT, "", ENGLISH], prompts, language_gate="hard")
    assert not result.total.valid_B.any()


def test_the_wrong_language_gets_the_rejected_value_and_an_empty_response_a_valid_zero():
    """Not the English text's 1.0; "20" is too short to identify and passes the gate."""
    texts = [RIGHT, ENGLISH, "", "\n", "#### 20"]
    result = combined(texts, functions=("answer",), language_gate="hard", rejected_value=-0.25)
    assert result.total.value_B.tolist() == [1, -0.25, 0, 0, 1]
    assert result.right_language_B.tolist() == [True, False, True, True, True]
    assert result.total.valid_B.all()


def test_the_english_copy_of_the_reference_does_not_win():
    texts = [SWAHILI.reference.text, RIGHT]
    gated, open_ = combined(texts, parts="whole", language_gate="hard"), combined(texts, parts="whole")
    assert open_.total.value_B[0] > open_.total.value_B[1]
    assert gated.total.value_B[0] == np.float32(-0.2) < gated.total.value_B[1]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"functions": ("cosin",)}, "Did you mean 'cosine'"),
        ({"functions": ("cosine", "answer")}, "one weight per function"),
        ({"functions": (), "reward_weights": ()}, "0 entries"),
        ({"functions": ("no_such_module:f",)}, "PYTHONPATH"),
        ({"language_gate": "strict"}, "hard, penalty, soft, scheduled, tokens, off"),
        ({"functions": ("hybrid",), "hybrid_answer": "hybrid"}, "may not be hybrid itself"),
        ({"functions": ("hybrid",), "hybrid_reasoning": "alignmen"}, "Did you mean 'alignment'"),
        ({"similarity": "calibrated"}, "needs reward.calibration"),
        ({"repetition_ngram": 0}, "repetition_ngram"),
        ({"timeout": -1.0}, "reward.timeout"),
        ({"functions": ("answer", "answer"), "reward_weights": (1.0, 1.0)}, "names a function twice"),
        ({"functions": ("judge",)}, "needs an endpoint"),
        ({"functions": ("implicit",)}, "needs the run's policy"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(settings, message):
    with pytest.raises(ConfigError, match=message):
        combined([RIGHT], **settings)


def test_the_hybrid_of_named_parts_by_hand():
    """0.5 * verifiable answer + 0.5 * alignment; a part that is invalid makes the row invalid."""
    prompts = [SWAHILI, SWAHILI, SWAHILI._replace(answer=None), SWAHILI._replace(reference=None)]
    settings = {"functions": ("hybrid",), "hybrid_answer": "answer", "hybrid_reasoning": "alignment"}
    result = combined([RIGHT, WRONG, RIGHT, RIGHT], prompts, **settings)
    alone = combined([RIGHT, WRONG, RIGHT, RIGHT], prompts, functions=("alignment",)).total.value_B
    np.testing.assert_allclose(result.total.value_B[:2], [0.5 + alone[0] / 2, alone[1] / 2], atol=1e-6)
    assert result.total.valid_B.tolist() == [True, True, False, False]
    assert result.each["hybrid"].parts.keys() == {"answer", "reasoning"}
    gated = combined([RIGHT, WRONG], prompts[:2], hybrid_form="gated", **settings)
    assert gated.total.value_B[1] == 0


def test_every_reward_of_the_table_scores_a_batch():
    """Those that need a model or an endpoint of their own have test files of their own."""
    texts = [RIGHT, WRONG, ""]
    for name in REWARDS.keys() - {"translation", "comet", "implicit", "judge", "intermediate", "likelihood"}:
        result = combined(texts, functions=(name,))
        assert result.total.value_B.shape == (3,) and result.total.valid_B.all(), name
        assert np.isfinite(result.total.value_B).all() and result.total.value_B[2] == 0


def test_scores_of_the_wrong_shape_stop_the_run(monkeypatch):
    short = lambda config, assets: lambda inputs: Scores(jnp.zeros(1), jnp.ones(1, bool), {})  # noqa: E731
    monkeypatch.setitem(REWARDS, "short", Reward(short))
    with pytest.raises(RewardError, match="for 2 completions"):
        combined([RIGHT, WRONG], functions=("short",))


def test_what_is_not_finite_is_invalid_in_every_reward(monkeypatch):
    scores = Scores(jnp.array([0.5, jnp.nan, jnp.inf]), jnp.ones(3, bool), {})

    def bad(config, assets):
        return lambda inputs: scores

    monkeypatch.setitem(REWARDS, "bad", Reward(bad))
    result = combined([RIGHT] * 3, functions=("bad",))
    assert result.total.valid_B.tolist() == [True, False, False]
    assert result.total.value_B.tolist() == [0.5, 0, 0]


def test_a_gate_in_the_middle_of_its_schedule():
    settings = {"functions": ("answer",), "language_gate": "scheduled", "gate_schedule_steps": 6}
    config = RewardConfig(**settings)
    reward = make_reward(config, RewardAssets(encoder(), LANGUAGES, None))
    inputs = reward_inputs([SWAHILI] * 2, ["Jibu ni 20.", "\\boxed{20} is the answer that she has found."], encoder())
    values = [reward(inputs._replace(step=step)).total.value_B.tolist() for step in (0, 3, 6)]
    np.testing.assert_allclose(values, [[1, 1], [1, 0.4], [1, -0.2]], atol=1e-6)


def test_which_rewards_read_references():
    """Those that need none are named; a new reward reads them unless its line says otherwise."""
    assert {name for name in REWARDS if not reads_references(RewardConfig(functions=(name,)))} == {
        "answer", "repetition", "overlong"
    }  # fmt: skip
    assert not reads_references(RewardConfig(functions=("mine:f", "answer")))
    assert reads_references(RewardConfig(functions=("mine:f", "cosine")))
