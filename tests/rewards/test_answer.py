"""The answer reward, by hand."""

from tiny_world import problem_prompts, reward_inputs

from pbrl_jax.rewards.answer import score_answers

SWAHILI = problem_prompts(1, ("sw",))[0]._replace(answer="20")
ENGLISH = "Ali starts with 10 bottles and buys 10 more bottles. The answer is 20."
RIGHT = "Ali anaanza na chupa 10 na kununua chupa 10 zaidi. Jibu ni 20."


def test_a_right_a_wrong_and_an_unparsable_answer():
    texts = [RIGHT, "Jibu ni 21.", "sijui", "", ENGLISH]
    scores = score_answers(reward_inputs([SWAHILI] * 5, texts))
    assert scores.value_B.tolist() == [1, 0, 0, 0, 0]
    assert scores.valid_B.all()


def test_a_row_without_a_gold_answer_is_invalid_and_never_zero():
    prompts = [SWAHILI, SWAHILI._replace(answer=None)]
    assert score_answers(reward_inputs(prompts, [RIGHT] * 2)).valid_B.tolist() == [True, False]
