"""The judge of intermediate results: shares by hand, what is asked, and answers that are no share."""

import dataclasses

import pytest
from tiny_endpoint import TinyEndpoint
from tiny_world import LANGUAGES, encoder, problem_prompts, reward_inputs

from pbrl_jax import RewardConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.records import Reference
from pbrl_jax.rewards.combine import RewardAssets, make_reward
from pbrl_jax.rewards.intermediate import matched_share
from pbrl_jax.rollout.endpoint import Endpoint

REFERENCE = Reference("3 bags of 6 are 18. 18 and 2 are 20.", "The answer is 20.")
SWAHILI = problem_prompts(1, ("sw",))[0]._replace(reference=REFERENCE)


def counts(body) -> str:
    """A judge that looks for the numbers 18 and 20."""
    text = body["messages"][0]["content"].split("<answer>")[1]
    return f"1. 18\n2. 20\n\n**MATCHED / TOTAL: {sum(number in text for number in ('18', '20'))}/2**"


def judged(prompts, texts, reply=counts, **config):
    with (endpoint := TinyEndpoint(reply)).served() as settings:
        assets = RewardAssets(encoder(), LANGUAGES, None, endpoint=Endpoint(dataclasses.replace(settings, retries=0)))
        reward = make_reward(RewardConfig(**{"functions": ("intermediate",), "language_gate": "off"} | config), assets)
        return reward(reward_inputs(prompts, texts)).total, [body for _, _, body in endpoint.seen]


def test_the_share_of_matched_results():
    """Of the reasoning; a text is asked for once a problem, an empty one not at all."""
    texts = ["Mifuko ina 18. Jumla 20. Jibu ni 20.", "Mifuko ina 18. Jibu ni 20.", "Mifuko ina 18. Jibu ni 7.", ""]
    found, seen = judged([SWAHILI] * 3 + [SWAHILI._replace(reference=None)], texts)
    assert found.value_B.tolist() == [1, 0.5, 0.5, 0] and found.valid_B.tolist() == [True, True, True, False]
    assert len(seen) == 2 and all("18 and 2 are 20." in body["messages"][0]["content"] for body in seen)
    whole, _ = judged([SWAHILI], texts[1:2], parts="whole")
    assert whole.value_B.tolist() == [1]


def test_only_the_right_language_is_asked_for():
    found, seen = judged(
        [SWAHILI] * 2, ["Three bags of six apples make 18 apples. Jibu ni 20.", ""], language_gate="hard"
    )
    assert not seen and found.valid_B.all() and found.value_B.tolist() == pytest.approx([-0.2, 0])


@pytest.mark.parametrize(
    "said, share",
    [("3/4", 0.75), ("Fine.\n\nMATCHED / TOTAL: 3/4", 0.75), ("**MATCHED/TOTAL: 3/4**", 0.75),
     ("3 of 4.", 0.75), (r"\boxed{3/4}", 0.75), ("0/5", 0),
     ("4/3", None), ("0/0", None), ("3", None), ("-1/2", None), ("1/2 or 2/2", None), ("3/4\nDone.", None), ("", None),
     ("99999/99999", None), ("MATCHED / TOTAL", None)],
)  # fmt: skip
def test_what_is_a_share(said, share):
    assert matched_share(said) == share


def test_what_is_missing():
    found, _ = judged([SWAHILI], ["18. Jibu ni 20."], lambda body: "All of them.")
    assert not found.valid_B.any()
    config = RewardConfig(functions=("intermediate",))
    with pytest.raises(ConfigError, match="Reward intermediate needs an endpoint"):
        make_reward(config, RewardAssets(encoder(), LANGUAGES, None))
