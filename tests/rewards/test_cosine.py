"""The cosine reward against an encoder written anew in NumPy, and the hybrid of its parts by hand."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import canonical_responses, encoder, problem_prompts, reward_inputs

from pbrl_jax import RewardConfig
from pbrl_jax.core.records import Reference
from pbrl_jax.rewards.cosine import compiled_hybrid, cosine_reward, make_cosine

WHOLE = RewardConfig(parts="whole")
SWAHILI = problem_prompts(1, ("sw",))[0]
RIGHT = "Ali anaanza na 10 na kununua 10. 10 + 10 = 20. Jibu ni 20."


def numpy_vector(params, ids, spec) -> np.ndarray:
    """The vector of one text without any padding: BERT's post-norm layers, mean pooling, projection."""
    layers = params["layers"]

    def get(tree, *path):
        for name in path:
            tree = tree[name]
        return np.asarray(tree, np.float64)

    def norm(x, tree, *index):
        scale, bias = get(tree, "scale")[index], get(tree, "bias")[index]
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + spec.norm_eps) * scale + bias

    gelu = np.vectorize(lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))))
    x = get(params, "word_embed")[ids] + get(params, "position_embed")[: len(ids)] + get(params, "type_embed")[0]
    x = norm(x, params["embed_norm"])
    for n in range(spec.layers):
        query, key, value = (
            np.einsum("sd,dhc->shc", x, get(layers, name, "kernel")[n]) + get(layers, name, "bias")[n]
            for name in ("query", "key", "value")
        )
        scores = np.einsum("qhc,khc->hqk", query, key) / math.sqrt(spec.width // spec.heads)
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        attended = np.einsum("hqk,khc->qhc", weights, value)
        out = np.einsum("qhc,hcd->qd", attended, get(layers, "out", "kernel")[n]) + get(layers, "out", "bias")[n]
        x = norm(x + out, layers["attention_norm"], n)
        up = gelu(x @ get(layers, "up", "kernel")[n] + get(layers, "up", "bias")[n])
        x = norm(x + up @ get(layers, "down", "kernel")[n] + get(layers, "down", "bias")[n], layers["mlp_norm"], n)
    vector = x.mean(0) @ get(params, "projection", "kernel") + get(params, "projection", "bias")
    return vector / np.linalg.norm(vector)


def numpy_cosine(text: str, reference: str, model) -> float:
    pair = [numpy_vector(model.params, model.tokenizer.encode(model.prefix + t), model.spec) for t in (text, reference)]
    return float(pair[0] @ pair[1])


def score(config, completions, model=None, prompts=None):
    model = model or encoder()
    return make_cosine(config, model)(reward_inputs(prompts or [SWAHILI] * len(completions), completions, model))


def test_cosine_reward_is_that_of_numpy_and_padding_does_not_count():
    model = encoder()
    texts = [RIGHT, "Jibu ni 7.", ""]
    tokens, mask, _ = model.tokenize(texts)
    tokens = np.where(mask, tokens, 17)
    pivot = model.embed([SWAHILI.reference.text] * 3)
    found = cosine_reward(model.params, jnp.asarray(tokens), jnp.asarray(mask), jnp.asarray(pivot), spec=model.spec)
    expected = [numpy_cosine(text, SWAHILI.reference.text, model) for text in texts[:2]]
    np.testing.assert_allclose(found, [*expected, 0.0], atol=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-2


def test_a_perfect_a_wrong_and_an_invalid_row():
    """A copy of the reference has cosine 1, another text less, and a row without a reference is invalid, not zero."""
    prompts = [SWAHILI, SWAHILI, SWAHILI._replace(reference=None)]
    scores = score(WHOLE, [SWAHILI.reference.text, RIGHT, RIGHT], prompts=prompts)
    expected = numpy_cosine(RIGHT, SWAHILI.reference.text, encoder())
    np.testing.assert_allclose(scores.value_B[:2], [1.0, expected], atol=1e-5)
    assert expected < 0.999
    assert scores.valid_B.tolist() == [True, True, False]


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_the_hybrid_weighs_reasoning_and_answer(weight):
    scores = score(RewardConfig(answer_weight=weight), [RIGHT, RIGHT.replace("20", "21")])
    reasoning = numpy_cosine("Ali anaanza na 10 na kununua 10. 10 + 10 = 20.", SWAHILI.reference.reasoning, encoder())
    answers = [numpy_cosine(text, SWAHILI.reference.answer, encoder()) for text in ("Jibu ni 20.", "Jibu ni 21.")]
    np.testing.assert_allclose(scores.value_B[0], (1 - weight) * reasoning + weight * answers[0], atol=1e-5)
    np.testing.assert_allclose(scores.parts["answer"], answers, atol=1e-5)
    np.testing.assert_allclose(scores.parts["reasoning"][0], reasoning, atol=1e-5)
    assert abs(answers[0] - answers[1]) > 1e-4 and abs(reasoning - answers[0]) > 1e-3


def test_a_missing_part_scores_zero():
    reasoning, answer = "Ali anaanza na 10 na kununua 10.", "Jibu ni 20."
    scores = score(RewardConfig(answer_weight=0.25), [reasoning, answer])
    r = numpy_cosine(reasoning, SWAHILI.reference.reasoning, encoder())
    a = numpy_cosine(answer, SWAHILI.reference.answer, encoder())
    np.testing.assert_allclose(scores.value_B, [0.75 * r, 0.25 * a], atol=1e-5)
    np.testing.assert_allclose(scores.parts["answer"], [0, a], atol=1e-5)
    assert scores.valid_B.all()


@pytest.mark.parametrize("parts", ["whole", "split"])
def test_an_empty_response_is_a_valid_zero_also_with_a_prefix(parts):
    """The prefix alone is not a text: without that rule an empty response would have the vector of the prefix."""
    for prefix in ("", "Ali: "):
        scores = score(RewardConfig(parts=parts), ["", " \n ", RIGHT], encoder(prefix=prefix))
        assert scores.value_B[:2].tolist() == [0, 0] and scores.value_B[2] != 0
        assert scores.valid_B.all()


def test_tags_of_a_thought_are_no_text():
    """References are stored without them, so a response with them would be less similar than the same text."""
    plain, tagged, empty = score(WHOLE, [RIGHT, f"<think>{RIGHT}</think>", "<think>\n</think>"]).value_B.tolist()
    assert tagged == pytest.approx(plain, abs=1e-6) and empty == 0


def test_the_prefix_stands_before_both_sides():
    model = encoder(prefix="Ali: ")
    value = score(WHOLE, [RIGHT], model).value_B[0]
    np.testing.assert_allclose(value, numpy_cosine(RIGHT, SWAHILI.reference.text, model), atol=1e-5)
    assert abs(value - numpy_cosine(RIGHT, SWAHILI.reference.text, encoder())) > 1e-4


def test_long_responses_are_marked_and_scored_whole():
    """8 tokens hold an answer sentence, not the reasoning; a response is marked when any part of it is longer.

    Its vector, like the reference's, is the mean of its chunks', weighted by their tokens.
    """
    model = encoder(max_length=8)
    assert len(model.tokenizer.encode("Jibu ni 20.")) <= 8 < len(model.tokenizer.encode(RIGHT[:40]))
    long_answer = "Jibu ni 10 + 10 + 10 + 10 + 10 + 10."
    for config in (WHOLE, RewardConfig()):
        cut = score(config, [RIGHT, "Jibu ni 20.", long_answer], model).parts["encoder_cut"]
        assert cut.tolist() == [1, 0, 1]

    def pooled(text):
        ids = model.tokenizer.encode(text)
        pieces = [ids[at : at + 8] for at in range(0, len(ids), 8)]
        total = sum(len(piece) * numpy_vector(model.params, piece, model.spec) for piece in pieces)
        return total / np.linalg.norm(total)

    expected = pooled(RIGHT) @ pooled(SWAHILI.reference.text)
    found = score(WHOLE, [RIGHT, "", "Jibu ni 20."], model).value_B
    short = pooled("Jibu ni 20.") @ pooled(SWAHILI.reference.text)
    np.testing.assert_allclose(found, [expected, 0.0, short], atol=1e-5)
    assert found.dtype == jnp.float32


def test_a_vector_that_is_not_finite_makes_its_row_invalid():
    inputs = reward_inputs([SWAHILI] * 2, [RIGHT] * 2, encoder())
    inputs.pivots.whole_BE[1, 0] = np.nan
    assert make_cosine(WHOLE, encoder())(inputs).valid_B.tolist() == [True, False]


def test_each_length_bucket_compiles_once():
    """Rows of 16, then of 32 tokens; texts of other lengths within a bucket compile nothing."""
    model = encoder()
    config = dataclasses.replace(WHOLE, answer_weight=0.123)
    program = compiled_hybrid(model.spec, config)
    sizes = []
    for text in ("Jibu ni 2.", "Jibu ni 20 + 10.", RIGHT, RIGHT[:-8], "Jibu ni 2."):
        score(config, [text, "Jibu ni 7."], model)
        sizes.append(program._cache_size())
    assert sizes == [1, 1, 2, 2, 2]


def test_the_right_language_and_numbers_reach_the_reward():
    """Responses to six prompts in three languages, each scored against its own reference."""
    prompts, texts = problem_prompts(2), canonical_responses(2)
    values = score(WHOLE, texts, prompts=prompts).value_B
    expected = [numpy_cosine(t, p.reference.text, encoder()) for t, p in zip(texts, prompts, strict=True)]
    np.testing.assert_allclose(values, expected, atol=1e-5)
    np.testing.assert_allclose(values[::3], 1.0, atol=1e-5)


def test_a_reference_of_one_part_is_a_reference():
    prompt = SWAHILI._replace(reference=Reference("", "The answer is 20."))
    scores = score(RewardConfig(answer_weight=0.5), [RIGHT], prompts=[prompt])
    expected = 0.5 * numpy_cosine("Jibu ni 20.", "The answer is 20.", encoder())
    np.testing.assert_allclose(scores.value_B, [expected], atol=1e-5)
    assert scores.valid_B.all()
