"""Weights and caches in eight bits while sampling: against quantisation in NumPy, and what stays as it is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import (
    full_rows,
    largest_difference,
    quick_compiles,  # noqa: F401
    tiny_params,
    tiny_prompts,
    tiny_spec,
)
from tiny_rollout import KEY, LENGTHS, SAMPLING, G, R

from pbrl_jax import Config, with_values
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.trees import map_with_path
from pbrl_jax.models.decoder import causal_logits
from pbrl_jax.models.slots import SlotStep, empty_slots
from pbrl_jax.rollout import slots as module
from pbrl_jax.rollout.refill import make_programs
from pbrl_jax.rollout.weights import decoding_params, sampling_spec
from pbrl_jax.run.check import validate

SPEC = tiny_spec(layer_pattern="lg", window=9, qkv_bias=True)
BOTH = dataclasses.replace(SPEC, weight_dtype="int8", kv_dtype="int8")


@pytest.fixture(scope="module")
def params():
    return tiny_params(SPEC)


@pytest.fixture(scope="module")
def prompts():
    return tiny_prompts(SPEC, LENGTHS, 6)


@pytest.fixture(scope="module")
def whole(params, prompts):
    """All rows at a time, both in eight bits."""
    return make_programs(BOTH, G, R, 128).rollout(params, prompts, KEY, SAMPLING)


def rounded(x, axes: tuple[int, ...]) -> np.ndarray:
    """Quantised and dequantised: the largest magnitude along the axes becomes 127."""
    x = np.asarray(x, np.float64)
    step = np.abs(x).max(axis=axes, keepdims=True) / 127
    return np.round(x / step) * step


def same(left, right) -> bool:
    exact = all(np.array_equal(getattr(left, n), getattr(right, n)) for n in ("tokens_BR", "lengths_B", "truncated_B"))
    return exact and largest_difference(left.logp_BR, right.logp_BR) < 1e-5


def test_weights_are_those_rounded_by_hand(params, prompts):
    """One step for each output of a projection, kept in eight bits; embeddings, norms and biases stay."""
    inputs = {"query": (1,), "key": (1,), "value": (1,), "out": (1, 2), "gate": (1,), "up": (1,), "down": (1,)}

    def by_hand(path: str, leaf):
        *_, name, last = ("", *path.split("/"))
        return jnp.asarray(rounded(leaf, inputs[name]), jnp.float32) if last == "kernel" else leaf

    spec = dataclasses.replace(SPEC, weight_dtype="int8")
    found = make_programs(spec, G, R, 128).rollout(params, prompts, KEY, SAMPLING)
    expected = make_programs(SPEC, G, R, 128).rollout(map_with_path(by_hand, params), prompts, KEY, SAMPLING)
    assert same(found, expected) and found.lengths_B.min() == 1 and found.lengths_B.max() == R
    laid = decoding_params(params, spec)
    assert laid["layers"][1]["out"]["kernel"].integers.dtype == jnp.int8
    assert laid["layers"][1]["out"]["kernel"].step.shape == (1, 1, SPEC.width)
    assert laid["embed"].dtype == laid["layers"][0]["query"]["bias"].dtype == jnp.float32


def test_keys_and_values_are_those_rounded_by_hand():
    """One step for each head and position; positions that were not written are not read."""
    rng, (X, L, K, C) = np.random.default_rng(0), (3, 20, SPEC.kv_heads, SPEC.head_dim)
    key, value = rng.normal(size=(2, X, L, K, C)) * rng.lognormal(size=(2, X, L, K, 1))
    query, last = rng.normal(size=(X, 1, SPEC.heads, C)), np.array([3, 19, 0])
    place = jnp.asarray(last, jnp.int32)

    def attended(spec, key, value):
        arrays = [jnp.asarray(x, jnp.float32) for x in (query, key, value)]
        cache = empty_slots(spec, X, L).write(0, 0, *arrays[1:])
        new = [x[np.arange(X), last][:, None] for x in arrays[1:]]
        return SlotStep(place, jnp.int32(1)).attend("xla", arrays[0], *new, cache, 0)

    found, cache = attended(BOTH, key, value)
    expected, _ = attended(SPEC, rounded(key, (3,)), rounded(value, (3,)))
    assert largest_difference(found, expected) < 2e-6 and found.dtype == jnp.float32
    assert cache.layers[0].key.dtype == cache.layers[0].value.dtype == jnp.int8
    exact, _ = attended(SPEC, key, value)
    assert 1e-4 < largest_difference(found, exact) < 0.05


def test_log_probs_stay_near_those_of_the_policy(params, prompts, whole):
    """What is reported is what samples; the policy itself gives these tokens within 0.03 on average, 0.2 at most."""
    tokens, mask, starts = full_rows(prompts, whole)
    logits = jax.jit(functools.partial(causal_logits, spec=SPEC))(params, tokens_BT=tokens, mask_BT=mask)
    logp = np.asarray(jax.nn.log_softmax(logits))
    gaps = [
        abs(logp[b, start - 1 + r, tokens[b, start + r]] - whole.logp_BR[b, r])
        for b, start in enumerate(starts) for r in range(int(whole.lengths_B[b]))
    ]  # fmt: skip
    assert 1e-4 < np.mean(gaps) < 0.03 and np.max(gaps) < 0.2, (np.mean(gaps), np.max(gaps))


@pytest.mark.parametrize("part", [1024, 4])
def test_slots_and_parts_of_prompts_change_nothing(params, prompts, whole, monkeypatch, part):
    """Prompts attend to what the cache holds of them, so that parts of them do as well."""
    monkeypatch.setattr(module, "PREFILL_TOKENS", part)
    assert same(make_programs(BOTH, G, R, 7, slots=8).rollout(params, prompts, KEY, SAMPLING), whole)


@pytest.mark.parametrize(
    "rollout, others, words",
    [
        ({"kv_dtype": "int8"}, {"algo": {"importance_sampling_mode": "off"}}, "kv_dtype is int8.*nothing would corre"),
        ({"weight_dtype": "int8"}, {"train": {"fused": True}}, "weight_dtype is int8.*--train.no-fused"),
        ({"weight_dtype": "int8"}, {"lora": {"rank": 2, "quantization": "int8"}}, "quantised already"),
    ],
)
def test_refusals(rollout, others, words):
    with pytest.raises(ConfigError, match=words):
        validate(with_values(Config(), rollout=rollout, **others), 1)


def test_experts_have_no_weights_in_eight_bits():
    spec, rollout = tiny_spec(experts=4, experts_per_token=2), Config().rollout
    assert sampling_spec(spec, dataclasses.replace(rollout, kv_dtype="int8")).kv_dtype == "int8"
    with pytest.raises(ConfigError, match="made of experts.*--rollout.weight-dtype model"):
        sampling_spec(spec, dataclasses.replace(rollout, weight_dtype="int8"))
