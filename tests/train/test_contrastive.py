"""Contrastive training: InfoNCE by a NumPy loop, and a tiny encoder that learns to see numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import LANGUAGES, SPACE, tokenizer

from pbrl_jax import ContrastiveConfig
from pbrl_jax.data.contrastive import quickstart_pairs
from pbrl_jax.data.sources import quickstart
from pbrl_jax.models.encoder import init_encoder
from pbrl_jax.models.specs import tiny_encoder
from pbrl_jax.run.encoder import EncodedSteps
from pbrl_jax.train.contrastive import contrastive_optimizer_config, info_nce, make_contrastive_step
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.state import new_state
from pbrl_jax.weights.encoders import Encoder

STEPS, B = 40, 24


def unit(*shape, seed):
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def looped(source, target, negative, temperature):
    """(loss, share that finds its own) row by row."""
    losses, right = [], 0
    for b in range(len(source)):
        scores = [float(source[b] @ other) / temperature for other in (*target, *negative)]
        losses.append(-scores[b] + math.log(sum(math.exp(s) for s in scores)))
        right += max(scores) == scores[b]
        back = [float(target[b] @ other) / temperature for other in source]
        losses.append(-back[b] + math.log(sum(math.exp(s) for s in back)))
    return sum(losses) / len(losses), right / len(source)


@pytest.mark.parametrize("negatives", [0, 3])
def test_info_nce_is_that_of_a_loop(negatives):
    source, target, negative = unit(5, 4, seed=0), unit(5, 4, seed=1), unit(negatives, 4, seed=2)
    target[:3] = source[:3]
    loss, right = info_nce(*map(jnp.asarray, (source, target, negative)), 0.3, jnp.ones(negatives, bool))
    expected, found = looped(source, target, negative, 0.3)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert float(right) == pytest.approx(found) and 0 < found <= 1


def test_negatives_that_do_not_count_change_nothing():
    """Neither the loss nor a gradient, not even where a filler is the target itself."""
    source, target, negative = unit(5, 4, seed=0), unit(5, 4, seed=1), unit(2, 4, seed=2)
    padded, counts = np.concatenate([negative, target[:1]]), jnp.asarray([True, True, False])

    def loss(source, target, negative, counts):
        return info_nce(jnp.asarray(source), jnp.asarray(target), jnp.asarray(negative), 0.3, counts)[0]

    grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    small, large = grad(source, target, negative, jnp.ones(2, bool)), grad(source, target, padded, counts)
    expected, _ = looped(source, target, negative, 0.3)
    np.testing.assert_allclose(loss(source, target, padded, counts), expected, rtol=1e-5)
    np.testing.assert_allclose(large[0], small[0], atol=1e-6)
    np.testing.assert_allclose(large[1], small[1], atol=1e-6)
    np.testing.assert_allclose(large[2], np.concatenate([small[2], np.zeros((1, 4))]), atol=1e-6)


@pytest.fixture(scope="module")
def trained():
    """(encoder before, encoder after, retrieval of every step) of a tiny encoder on quickstart pairs."""
    spec = tiny_encoder(vocab_size=tokenizer().vocab_size)
    encoder = Encoder(spec, init_encoder(jax.random.key(0), spec), tokenizer(), "tiny", 64)
    config = ContrastiveConfig(steps=STEPS, batch_size=B, learning_rate=1e-2)
    steps = EncodedSteps(
        [quickstart_pairs(LANGUAGES, step, B, 0, negatives=1, space=SPACE) for step in range(STEPS)], encoder
    )
    state = new_state(jax.tree.map(jnp.copy, encoder.params), make_optimizer(contrastive_optimizer_config(config)))
    step, retrieval = make_contrastive_step(spec, config), []
    for index in range(STEPS):
        state, metrics = step(state, steps.batch(index))
        retrieval.append(float(metrics["retrieval"]))
    return encoder, encoder._replace(params=state.params), retrieval


def test_retrieval_rises(trained):
    _, _, retrieval = trained
    early, late = np.mean(retrieval[:5]), np.mean(retrieval[-5:])
    assert early < 0.4 and late > early + 0.25


def gaps(encoder) -> np.ndarray:
    """Cosine of a Swahili response with the right English one minus that with a number changed, on test problems."""
    pairs = [
        pair
        for step in range(100, 104)
        for pair in quickstart_pairs(("en", "sw"), step, B, 1, negatives=1, space=SPACE)
        if pair.language == "sw"
    ]
    text, right, wrong = (
        encoder.embed(column)
        for column in ([p.text for p in pairs], [p.target for p in pairs], [p.negatives[0] for p in pairs])
    )
    return ((right - wrong) * text).sum(axis=1)


def test_a_changed_number_ends_below_the_right_one(trained):
    before, after, _ = trained
    learned, start = gaps(after), gaps(before)
    assert learned.mean() > max(0.05, 2 * start.mean())
    assert (learned > 0).mean() > 0.7


def test_the_encoder_is_trained_on_other_problems_than_it_is_used_on():
    train = {problem[1:] for problem in quickstart.problems("train", 0, 0, SPACE)}
    assert not train & {problem[1:] for problem in quickstart.problems("encoder", 0, 0, SPACE)}
