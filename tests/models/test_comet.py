"""COMET's parts against unbabel-comet's own numbers, by hand, and by loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algos.oracle_checks import CASES

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.trees import count_parameters, map_with_path
from pbrl_jax.models.comet import (
    CometSpec,
    estimate,
    init_comet,
    mix_layers,
    mqm_score,
    pair_features,
    sparsemax,
)
from pbrl_jax.models.pooling import mean_pooling
from pbrl_jax.models.specs import EncoderSpec
from pbrl_jax.weights.comet_checkpoint import comet_names

LARGE = EncoderSpec(
    vocab_size=250_002, width=1024, layers=24, heads=16, ffn=4096, max_positions=514, position_offset=2, norm_eps=1e-5
)
MIXES = [f"comet.layer_mix_{name}{norm}" for name in ("softmax", "sparsemax") for norm in ("", "_layernorm")]


@pytest.mark.parametrize("name", MIXES)
def test_layer_mix(name):
    case = CASES[name]
    with jax.enable_x64(True):
        mask = case.input("ids") != case.config["pad_id"]
        np.testing.assert_array_equal(mask, case.input("mask") > 0)
        mixed = mix_layers(
            jnp.asarray(case.input("layers")), mask, case.input("layer_weights"), jnp.float64(case.config["gamma"]),
            transform=case.config["layer_transformation"], layer_norm=case.config["layer_norm"],
        )  # fmt: skip
        case.expect("mixed", mixed)
        # Upstream rounds the states to float32 where it masks them, also in a run in float64.
        case.expect("sentemb", mean_pooling(mixed.astype(jnp.float32).astype(jnp.float64), mask))


def test_regression_head():
    case = CASES["comet.regression_head"]
    spec = CometSpec(LARGE, "regression", tuple(case.config["hidden_sizes"]))
    with jax.enable_x64(True):
        params = {
            f"{i}": {"kernel": case.input(f"ff.ff.{3 * i}.weight").T, "bias": case.input(f"ff.ff.{3 * i}.bias")}
            for i in range(3)
        }
        features = pair_features("regression", case.input("src"), case.input("mt"), case.input("ref"))
        case.expect("score", estimate(params, features, spec))


def test_sparsemax_by_hand():
    """Of (1, 0.5, -1) the two largest keep 0.75 and 0.25: their threshold is (1 + 0.5 - 1) / 2."""
    assert sparsemax(jnp.array([0.5, -1.0, 1.0])).tolist() == [0.25, 0.0, 0.75]
    assert sparsemax(jnp.array([9.0, 0.0])).tolist() == [1.0, 0.0]
    np.testing.assert_allclose(sparsemax(jnp.zeros(4)), 0.25)


def test_unknown_transform_is_named():
    with pytest.raises(ConfigError, match="layer transformation 'sparsmax'.*'sparsemax'"):
        mix_layers(
            jnp.ones((2, 1, 1, 1)), jnp.ones((1, 1), bool), jnp.ones(2), jnp.ones(()), transform="sparsmax",
            layer_norm=False,
        )  # fmt: skip


def test_features_by_hand():
    src, mt, ref = (jnp.array([[value]]) for value in (2.0, 5.0, 7.0))
    assert pair_features("regression", src, mt, ref).tolist() == [[5.0, 7.0, 35.0, 2.0, 10.0, 3.0]]
    assert pair_features("referenceless", src, mt).tolist() == [[5.0, 2.0, 10.0, 3.0]]


@pytest.mark.parametrize(
    "tags, length, points",
    [
        ([0, 1, 1, 0, 0], 5, 1),
        ([0, 2, 3, 0, 0], 5, 5),  # the first tag decides
        ([3, 0, 1, 0, 2], 5, 11),  # the last span is never closed
        ([0, 2, 2, 2, 0], 4, 0),  # what closes it is no token of the translation
        ([1, 0, 3, 0, 3, 0, 3, 0], 8, 25),  # 31 points are 25
        ([0, 0, 0], 3, 0),
    ],
)
def test_mqm_by_hand(tags, length, points):
    valid = jnp.arange(len(tags))[None] < length
    assert mqm_score(jnp.array([tags]), valid)[0] == pytest.approx((25 - points) / 25, abs=1e-7)


def test_mqm_equals_a_loop():
    rng = np.random.default_rng(0)
    tags, lengths = rng.integers(0, 4, (64, 17)) * rng.integers(0, 2, (64, 17)), rng.integers(1, 18, 64)
    expected = []
    for row, length in zip(tags, lengths, strict=True):
        points, severity = 0, 0
        for tag in row[:length]:
            if severity and not tag:
                points += (0, 1, 5, 10)[severity]
            severity = 0 if not tag else severity or tag
        expected.append((25 - min(points, 25)) / 25)
    assert len(set(expected)) > 10
    found = mqm_score(jnp.asarray(tags), jnp.arange(17)[None] < lengths[:, None])
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize(
    "kind, hidden, tags, extra",
    [
        ("regression", (3072, 1024), 0, 6144 * 3072 + 3072 + 3072 * 1024 + 1024 + 1024 + 1),
        ("unified", (3072, 1024), 0, 1024 * 3072 + 3072 + 3072 * 1024 + 1024 + 1024 + 1),
        ("xcomet", (2048, 1024), 4, 1024 * 2048 + 2048 + 2048 * 1024 + 1024 + 1024 + 1 + 4 * 1024 + 4),
    ],
)
def test_sizes_and_names_of_real_shapes(kind, hidden, tags, extra):
    """XLM-R large has 558,840,832 parameters without its pooler; 25 layer weights, gamma, and the estimator follow."""
    spec = CometSpec(LARGE, kind, hidden, tags=tags)
    shapes = jax.eval_shape(lambda: init_comet(jax.random.key(0), spec))
    assert count_parameters(shapes) == 558_840_832 + 26 + extra
    found = {}
    map_with_path(lambda path, leaf: found.__setitem__(path, leaf.shape), shapes)
    assert found == {path: stored.full_shape() for path, stored in comet_names(spec).items()}
