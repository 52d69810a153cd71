"""Chunks, soft matching by hand, and what padding, repetition and omission cost."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import encoder, problem_prompts, reward_inputs

from pbrl_jax import RewardConfig
from pbrl_jax.core.records import Reference
from pbrl_jax.rewards.alignment import CHUNK_BUCKETS, LONGEST_CHUNK, chunks_of, make_alignment, soft_f1


@pytest.mark.parametrize(
    "text, chunks",
    [
        ("", []),
        ("... \n\n !", []),
        ("She has 3.5 cards. She buys 4! So?", ["She has 3.5 cards.", "She buys 4!", "So?"]),
        ("首先 3 + 4 = 7。然后 7 - 2 = 5。", ["首先 3 + 4 = 7。", "然后 7 - 2 = 5。"]),
        ("প্রথমে 3 + 4 = 7। তারপর 5।", ["প্রথমে 3 + 4 = 7।", "তারপর 5।"]),
        ("پہلے 3 + 4 = 7۔ پھر 5۔", ["پہلے 3 + 4 = 7۔", "پھر 5۔"]),
        ("መጀመሪያ 7። ከዚያ 5።", ["መጀመሪያ 7።", "ከዚያ 5።"]),
        ("one\ntwo", ["one", "two"]),
    ],
)
def test_chunks(text, chunks):
    assert chunks_of(text) == chunks


def test_long_sentences_are_cut_and_nothing_is_lost():
    words = [f"word{number}" for number in range(200)]
    found = chunks_of(" ".join(words))
    assert " ".join(found).split() == words and len(found) > 3
    assert max(map(len, found)) <= 1.1 * LONGEST_CHUNK
    many = chunks_of("\n".join(f"line {n}" for n in range(1000)))
    assert len(many) == CHUNK_BUCKETS[-1] and many[-1].endswith("line 999")


def f1(response, weights, credit, reference, reference_weights, baseline=None, **settings):
    arrays = (response, weights, credit, reference, reference_weights)
    found = soft_f1(*(jnp.asarray([a], jnp.float32) for a in arrays), baseline, config=RewardConfig(**settings))
    return [float(x[0]) for x in found]


X, Y, Z, NONE = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]


def test_soft_f1_by_hand():
    """Response x, y of weights 1, 3; reference x, z of weights 2, 2: P = 1/4, R = 1/2, F1 = 1/3."""
    value, precision, recall = f1([X, Y], [1, 3], [1, 1], [X, Z], [2, 2])
    assert (precision, recall) == (0.25, 0.5) and value == pytest.approx(1 / 3)
    assert f1([X, Y], [1, 3], [1, 1], [Y, X], [5, 1])[0] == 1
    # padding that was masked out changes nothing, an opposite vector is no worse than an unrelated one
    assert f1([X, Y, X], [1, 3, 0], [1, 1, 0], [X, Z, NONE], [2, 2, 0]) == [value, precision, recall]
    assert f1([[-1.0, 0.0, 0.0]], [1], [1], [X], [1]) == [0, 0, 0]
    assert f1([NONE], [0], [0], [X], [1])[0] == 0
    # said twice: the second time earns nothing
    assert f1([X, X], [1, 1], [1, 0], [X], [1])[1:] == [0.5, 1]
    # calibrated with baseline 1/2: cosines below it are nothing
    near = [0.6, 0.8, 0.0]
    assert f1([near], [1], [1], [X], [1], jnp.array([0.5]), similarity="calibrated")[0] == pytest.approx(0.2)


FAITHFUL = "Ali anaanza na 10 na kununua 2. 10 + 2 = 12."
PROMPT = problem_prompts(1, ("sw",))[0]._replace(reference=Reference(FAITHFUL, "The answer is 12."))


def values(texts, prompts=None, **settings):
    prompts = prompts or [PROMPT] * len(texts)
    return make_alignment(RewardConfig(**settings), encoder())(reward_inputs(prompts, texts, encoder()))


def test_the_same_sentences_are_one_and_padding_repetition_and_omission_cost():
    padding = " Kuna pakiti 3 zenye 4 kila moja. 3 * 4 = 12. Anna anapoteza 5."
    found = values([
        f"{FAITHFUL} Jibu ni 12.",
        f"{FAITHFUL}{padding} Jibu ni 12.",
        f"{FAITHFUL} 10 + 2 = 12. 10 + 2 = 12. Jibu ni 12.",
        "10 + 2 = 12. Jibu ni 12.",
        "",
    ])  # fmt: skip
    value, precision, recall = found.value_B, found.parts["precision"], found.parts["recall"]
    assert value[0] == pytest.approx(1, abs=1e-5)
    assert (value[1:4] < 0.99).all() and value[4] == 0
    assert precision[1] < 0.99 and precision[2] < 0.99 and recall[3] < 0.99
    np.testing.assert_allclose([recall[1], recall[2], precision[3]], 1, atol=1e-5)
    assert found.valid_B.all()


def test_a_text_far_longer_than_the_encoder_is_read_to_its_end():
    steps = [f"Anna ana kadi {a} na kununua {b}." for a in range(2, 12) for b in range(2, 12)]
    reference = Reference(" ".join(steps), "The answer is 12.")
    short = encoder(max_length=16)
    reward = make_alignment(RewardConfig(), short)
    texts = [f"{' '.join(steps[:-30] + part)} Jibu ni 12." for part in (steps[-30:], steps[:30])]
    found = reward(reward_inputs([PROMPT._replace(reference=reference)] * 2, texts, short))
    assert found.value_B[0] == pytest.approx(1, abs=1e-5) and found.value_B[1] < found.value_B[0] - 0.01


def test_whole_or_reasoning_and_rows_without_a_reference():
    text = f"{FAITHFUL} Jibu ni 13."
    whole = values([text] * 2, [PROMPT, PROMPT._replace(reference=None)], parts="whole")
    assert whole.value_B[0] < 1 and whole.valid_B.tolist() == [True, False]
    assert values([text]).value_B[0] == pytest.approx(1, abs=1e-5)
    answer_only = PROMPT._replace(reference=Reference("", "The answer is 12."))
    assert values([text], [answer_only]).valid_B.tolist() == [True]
