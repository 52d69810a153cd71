"""DPO and IPO by hand, their gradients, and which pairs a group of scored responses gives."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbrl_jax import DpoConfig
from pbrl_jax.algos.preference import PREFERENCE_LOSSES, preference_loss, preferred_pairs

CHOSEN, REJECTED = np.array([-3.0, -2.0]), np.array([-4.0, -1.5])
REF_CHOSEN, REF_REJECTED = np.array([-3.5, -1.0]), np.array([-3.0, -1.5])
#: (-3 + 3.5) - (-4 + 3) and (-2 + 1) - (-1.5 + 1.5).
MARGINS = (1.5, -1.0)
LENGTHS = np.array([[2, 4], [1, 5]])
#: 0.5 / 2 - (-1) / 4 and -1 / 1 - 0 / 5.
TOKEN_MARGINS = (0.5, -1.0)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        yield


def loss(chosen=CHOSEN, rejected=REJECTED, **settings):
    logp_P2 = jnp.stack([jnp.asarray(chosen), jnp.asarray(rejected)], axis=1)
    ref_logp_P2 = jnp.asarray(np.stack([REF_CHOSEN, REF_REJECTED], axis=1))
    loss_P, metrics = preference_loss(logp_P2, ref_logp_P2, jnp.asarray(LENGTHS), config=DpoConfig(**settings))
    return loss_P, {name: value_P.mean() for name, value_P in metrics.items()}


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"beta": 0.5}, [-math.log(sigmoid(0.5 * h)) for h in MARGINS]),
        ({"beta": 0.5, "label_smoothing": 0.1},
         [-0.9 * math.log(sigmoid(0.5 * h)) - 0.1 * math.log(sigmoid(-0.5 * h)) for h in MARGINS]),
        ({"beta": 0.5, "loss_type": "ipo"}, [(t - 1) ** 2 for t in TOKEN_MARGINS]),
        ({"beta": 0.5, "loss_type": "sigmoid_norm"}, [-math.log(sigmoid(0.5 * t)) for t in TOKEN_MARGINS]),
        ({"beta": 0.5, "loss_type": "hinge"}, [0.25, 1.5]),
    ],
)  # fmt: skip
def test_losses_by_hand(settings, expected):
    found, metrics = loss(**settings)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert metrics["rewards/accuracies"] == 0.5
    assert metrics["rewards/margins"] == pytest.approx(0.5 * 0.25)
    assert metrics["rewards/chosen"] - metrics["rewards/rejected"] == pytest.approx(metrics["rewards/margins"])


TRL = json.loads((Path(__file__).parents[1] / "fixtures" / "preferences.json").read_text())


@pytest.mark.parametrize("case", TRL["cases"], ids=lambda case: f"{case['loss_type']}-{case['beta']}")
def test_losses_are_those_of_trl(case):
    """`DPOTrainer._compute_loss` of TRL 1.16 on its own log-probs (tests/fixture_makers/preferences.py): every pair's
    loss and metrics."""
    config = DpoConfig(**{name: case[name] for name in ("loss_type", "beta", "label_smoothing")})
    columns = [jnp.asarray(TRL[name]) for name in ("logp_P2", "ref_logp_P2", "lengths_P2")]
    loss_P, metrics = preference_loss(*columns, config=config)
    np.testing.assert_allclose(loss_P, case["loss"], rtol=1e-12)
    for name, value_P in metrics.items():
        np.testing.assert_allclose(value_P, case[name], rtol=1e-12, err_msg=name)


def test_every_loss_is_compared():
    assert {case["loss_type"] for case in TRL["cases"]} == PREFERENCE_LOSSES.keys()


def test_the_gradient_weighs_pairs_by_how_wrong_they_are():
    """d loss / d chosen = -beta * sigmoid(-beta h), and the negative of it for the rejected one."""
    grads = jax.grad(lambda c, r: loss(c, r, beta=0.5)[0].sum(), argnums=(0, 1))(
        jnp.asarray(CHOSEN), jnp.asarray(REJECTED)
    )
    expected = [-0.5 * sigmoid(-0.5 * h) for h in MARGINS]
    np.testing.assert_allclose(grads[0], expected, rtol=1e-12)
    np.testing.assert_allclose(grads[1], [-x for x in expected], rtol=1e-12)


def test_log_probs_far_apart_stay_finite():
    found, _ = loss(chosen=np.array([-2000.0, 0.0]), rejected=np.array([0.0, -2000.0]), beta=1.0)
    assert np.isfinite(found).all() and found[1] == 0


def test_pairs_of_a_group():
    rewards = [0.5, None, 0.9, 0.5, 0.2]
    assert preferred_pairs(rewards, pairs="all", min_margin=0.0) == [(2, 4), (2, 0), (2, 3), (0, 4), (3, 4)]
    assert preferred_pairs(rewards, pairs="all", min_margin=0.35) == [(2, 4), (2, 0), (2, 3)]
    assert preferred_pairs(rewards, pairs="best_worst", min_margin=0.1) == [(2, 4)]
    assert preferred_pairs([0.4, 0.4, None], pairs="all", min_margin=0.0) == []
    as_scored = [float(np.float32(x)) for x in (0.35, 0.3, 0.26)]  # 0.34999999, 0.30000001
    assert preferred_pairs(as_scored, pairs="all", min_margin=0.05) == [(0, 2), (0, 1)]
    assert preferred_pairs([None, 1.0], pairs="best_worst", min_margin=0.0) == []
