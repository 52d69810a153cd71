"""The pairwise judge: who meets whom, shares of wins, and what an endpoint that fails does to rows."""

import dataclasses

import pytest
from stop_requests import Stopping
from tiny_endpoint import TinyEndpoint
from tiny_world import LANGUAGES, encoder, problem_prompts, reward_inputs

from pbrl_jax import RewardConfig
from pbrl_jax.core.errors import RewardError
from pbrl_jax.core.stopping import Interrupted
from pbrl_jax.rewards.combine import RewardAssets, make_reward
from pbrl_jax.rewards.judge import pairs_of, verdict
from pbrl_jax.rollout.endpoint import Endpoint
from pbrl_jax.train.signals import watch_signals

SWAHILI = problem_prompts(1, ("sw",))[0]
OTHER = SWAHILI._replace(id=SWAHILI.id + 64)


def longest_wins(body) -> str:
    """A judge of taste: the longer answer."""
    text = body["messages"][0]["content"]
    first, second = (text.split(f"<answer_{name}>\n")[1].split(f"\n</answer_{name}>")[0] for name in "ab")
    return "T" if len(first) == len(second) else "A" if len(first) > len(second) else "The better one is B."


def judged(config, prompts, texts, reply=longest_wins, **changes):
    endpoint = TinyEndpoint(reply)
    with endpoint.served() as settings:
        client = Endpoint(dataclasses.replace(settings, retries=0, **changes))
        assets = RewardAssets(encoder(), LANGUAGES, None, endpoint=client)
        settings = RewardConfig(functions=("judge",), language_gate="off", **config)
        return make_reward(settings, assets)(reward_inputs(prompts, texts)).total, endpoint.seen


def test_shares_of_wins():
    """Two groups. 1: aa beats b, ties with cc and with itself; the empty one loses to all, unasked."""
    texts = ["aa", "b", "cc", "aa", "", "x", "yy"]
    found, seen = judged({"judge_opponents": 9}, [SWAHILI] * 5 + [OTHER] * 2, texts)
    assert found.value_B.tolist() == pytest.approx([3 / 4, 1 / 4, 3 / 4, 3 / 4, 0, 0, 1])
    assert found.valid_B.all()
    assert len(seen) == 6, "10 + 1 pairs, of which 4 hold the empty text and 1 two equal ones"
    assert all(SWAHILI.question_en in body["messages"][0]["content"] for _, _, body in seen)
    assert all(SWAHILI.reference.text in body["messages"][0]["content"] for _, _, body in seen)


def test_everyone_meets_the_next_ones_once():
    assert pairs_of([SWAHILI] * 4, 1) == [(0, 1), (0, 3), (1, 2), (2, 3)]
    assert len(pairs_of([SWAHILI] * 5, 2)) == 10
    assert pairs_of([SWAHILI, OTHER, SWAHILI, OTHER], 3) == [(0, 2), (1, 3)]
    with pytest.raises(RewardError, match="num-generations"):
        pairs_of([SWAHILI, OTHER], 1)


def test_who_stands_first_is_no_advantage():
    """A judge that always takes the first: over many pairs neither side of the sorting wins."""
    texts = [f"jibu {n}" for n in range(20)]
    found, _ = judged({"judge_opponents": 3}, [SWAHILI] * 20, texts, lambda body: "A")
    assert 0.3 < float(found.value_B[:10].mean()) < 0.7


@pytest.mark.parametrize(
    "reply, changes", [(lambda body: (500, "down"), {}), (lambda body: "both are fine", {}),
                       (lambda body: "A", {"max_requests": 1})],
)  # fmt: skip
def test_without_a_verdict_a_row_is_invalid(reply, changes):
    found, _ = judged({}, [SWAHILI] * 2 + [OTHER] * 2, ["a", "bb", "", "c"], reply, **changes)
    wanted = 2 if not changes else 4
    assert int(found.valid_B.sum()) == wanted and found.valid_B[2:].all()


def test_verdicts():
    found = [verdict(text) for text in ("A", "**B**", "t", "Answer B.", "neither", "A or B")]
    assert found == [1, 0, 0.5, 0, None, None]


def test_a_signal_while_the_judge_works_ends_the_step():
    """The step is dropped, and its rollout drawn again; no row of it counts as invalid."""
    watch_signals()
    reply = Stopping(longest_wins, 1)
    with pytest.raises(Interrupted):
        judged({}, [SWAHILI] * 4, ["a", "bb", "ccc", "dddd"], reply, parallel=2)
    assert reply.seconds() < 5
