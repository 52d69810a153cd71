"""From logits to a token, against NumPy and against probabilities known by construction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.rollout.sampling import (
    block_size,
    inverse_cdf,
    is_eos,
    row_keys,
    sample,
    sampling_params,
    smallest_kept,
    step_key,
)

jitted_sample = jax.jit(sample)
jitted_smallest_kept = jax.jit(smallest_kept)
jitted_inverse_cdf = jax.jit(inverse_cdf)

#: Uniform numbers at the ends of what a generator gives: 0, the smallest steps, and 1 - 2^-24.
EXTREMES = (0.0, 2.0**-24, 2.0**-23, 0.5, 1 - 2.0**-23, 1 - 2.0**-24)


@pytest.mark.parametrize("vocab", [7, 300])
def test_inverse_cdf_distribution(vocab):
    """Evenly spaced uniforms: each index comes as often as its weight says, to within one draw at either end."""
    rng = np.random.default_rng(vocab)
    weights = np.where(rng.random(vocab) < 0.3, 0, rng.exponential(size=vocab)).astype(np.float32)
    draws = 20_000
    uniform = (np.arange(draws) + 0.5) / draws
    rows = jnp.broadcast_to(jnp.asarray(weights)[None], (draws, vocab))
    counts = np.bincount(jitted_inverse_cdf(rows, jnp.asarray(uniform, jnp.float32)), minlength=vocab)
    expected = draws * weights.astype(np.float64) / weights.sum(dtype=np.float64)
    assert np.abs(counts - expected).max() < 1.5
    assert counts[weights == 0].sum() == 0 and counts.sum() == draws


def test_inverse_cdf_by_hand():
    """Weights 1, 0, 3: the first quarter of the unit interval is index 0, the rest index 2."""
    weights = jnp.broadcast_to(jnp.array([[1.0, 0.0, 3.0]]), (5, 3))
    assert inverse_cdf(weights, jnp.array([0.0, 0.24, 0.25, 0.26, 0.99])).tolist() == [0, 0, 2, 2, 2]


@given(
    st.lists(st.sampled_from([0.0, 0.0, 1e-30, 1e-7, 0.3, 1.0, 2.5, 1e7]), min_size=40, max_size=40),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_inverse_cdf_never_returns_weight_zero(weights, seed):
    """Any weights that are not all zero, with zeros at the ends and whole blocks of zeros; extreme uniforms too."""
    weights = np.array(weights, np.float32)
    weights[seed % 40] = 1.0
    uniform = np.concatenate([EXTREMES, np.random.default_rng(seed).random(10)]).astype(np.float32)
    index = jitted_inverse_cdf(jnp.broadcast_to(jnp.asarray(weights)[None], (16, 40)), jnp.asarray(uniform))
    assert ((index >= 0) & (index < 40)).all()
    assert (weights[np.asarray(index)] > 0).all()


@pytest.mark.parametrize("vocab", [4_099, 151_936])
def test_inverse_cdf_over_a_real_vocabulary(vocab):
    """A few tokens are left of a large vocabulary, and uniforms fall next to the ends of their shares of the mass.

    Long running sums are made in pieces, so that an entry of weight zero can move them by a rounding error.
    """
    rows, left = 192, 70
    rng = np.random.default_rng(vocab)
    weights = np.zeros((rows, vocab), np.float32)
    for row in weights:
        row[rng.choice(vocab, left, replace=False)] = np.exp(rng.normal(size=left))
    ends = np.cumsum(weights.astype(np.float64), axis=1)
    uniform = (ends[np.arange(rows), rng.integers(0, vocab, rows)] / ends[:, -1]).astype(np.float32)
    uniform = np.minimum(uniform + rng.choice([-1e-7, 0, 1e-7], rows).astype(np.float32), EXTREMES[-1])
    uniform[: len(EXTREMES)], uniform[rows // 2 :] = EXTREMES, EXTREMES[-1]
    uniform = np.maximum(uniform, 0)
    index = np.asarray(jitted_inverse_cdf(jnp.asarray(weights), jnp.asarray(uniform)))
    taken = weights[np.arange(rows), index]
    assert (taken > 0).all()
    upper = ends[np.arange(rows), index]
    assert ((upper - taken) / ends[:, -1] - 1e-6 <= uniform).all()
    assert (uniform <= upper / ends[:, -1] + 1e-6).all()


def test_block_size_is_near_the_root():
    assert [block_size(vocab) for vocab in (1, 2, 256, 151_936)] == [1, 1, 16, 512]


def naive_kept(logits, top_p, top_k):
    """Indices kept in one row: sort, take k, add probabilities until top_p is reached."""
    order = list(np.argsort(-logits, kind="stable"))
    order = order[:top_k] if top_k else order
    probs = np.exp(logits[order] - logits.max())
    kept, mass = set(), 0.0
    for index, prob in zip(order, probs / probs.sum(), strict=True):
        if mass >= top_p:
            break
        kept.add(int(index))
        mass += prob
    return kept


@pytest.mark.parametrize(
    "top_p, top_k", [(1.0, 0), (1.0, 5), (0.8, 0), (0.5, 12), (0.999, 3), (1e-6, 0), (0.9, 1), (1.0, 99), (0.0, 0)]
)
def test_truncation_equals_naive(top_p, top_k):
    logits = np.random.default_rng(0).normal(size=(20, 31)).astype(np.float32) * 2
    kept = logits >= np.asarray(jitted_smallest_kept(jnp.asarray(logits), sampling_params(1.0, top_p, top_k, ())))
    for row, keeps in zip(logits, kept, strict=True):
        assert set(np.flatnonzero(keeps)) == (naive_kept(row, top_p, top_k) or {int(row.argmax())})
    assert top_p == 1.0 and top_k in (0, 99) or not kept.all()


def draws(logits, settings, seed=0, rows=400):
    """Tokens and log-probs of many rows with the same logits."""
    keys = row_keys(jax.random.key(seed), jnp.arange(rows), 1)
    repeated = jnp.broadcast_to(jnp.asarray(logits, jnp.float32)[None], (rows, len(logits)))
    return jitted_sample(repeated, keys, 0, settings)


def test_sample_frequencies_and_logp():
    """Probabilities 1/2, 1/4, 1/8, 1/8 at temperature 2 from logits of their squares."""
    probs = np.array([0.5, 0.25, 0.125, 0.125])
    tokens, logp = draws(2 * np.log(probs), sampling_params(2.0, 1.0, 0, ()), rows=20_000)
    counts = np.bincount(tokens, minlength=4)
    # Chi-square with 3 degrees of freedom; 16.3 is its 0.999 quantile.
    assert ((counts - 20_000 * probs) ** 2 / (20_000 * probs)).sum() < 16.3
    np.testing.assert_allclose(logp, np.log(probs)[tokens], atol=1e-6)


def test_truncated_samples_keep_untruncated_logp():
    """top_k 2 of three equal-ratio tokens: only two are drawn; log-probs are those of the whole distribution."""
    probs = np.array([0.2, 0.5, 0.3])
    tokens, logp = draws(np.log(probs), sampling_params(1.0, 1.0, 2, ()))
    assert set(tokens.tolist()) == {1, 2}
    np.testing.assert_allclose(logp, np.log(probs)[tokens], atol=1e-6)
    tokens, _ = draws(np.log(probs), sampling_params(1.0, 0.4, 0, ()))
    assert set(tokens.tolist()) == {1}


def test_greedy_takes_the_best_with_logp_of_temperature_one():
    probs = np.array([0.2, 0.5, 0.3])
    tokens, logp = draws(np.log(probs), sampling_params(0.0, 1.0, 0, ()))
    assert set(tokens.tolist()) == {1}
    np.testing.assert_allclose(logp, np.log(0.5), atol=1e-6)


def test_temperature_near_zero_stays_finite():
    tokens, logp = draws(np.array([1.0, 3.0, 2.0]), sampling_params(1e-4, 1.0, 0, ()))
    assert set(tokens.tolist()) == {1} and jnp.isfinite(logp).all()


def test_is_eos():
    settings = sampling_params(1.0, 1.0, 0, (3, 0))
    assert is_eos(jnp.array([0, 1, 2, 3]), settings).tolist() == [True, False, False, True]
    assert not is_eos(jnp.array([0, 1]), sampling_params(1.0, 1.0, 0, ())).any()
    with pytest.raises(ConfigError, match="9 end-of-sequence ids.*at most 8"):
        sampling_params(1.0, 1.0, 0, tuple(range(9)))


def test_row_keys_derive_from_ids_alone():
    """Row (prompt 7, sample 1) has one key, wherever it stands and however many samples there are."""
    key = step_key(5, 3)
    data = jax.random.key_data
    alone = data(row_keys(key, jnp.array([7]), 2))[1]
    among = data(row_keys(key, jnp.array([4, 9, 7]), 4))
    assert among[2 * 4 + 1].tolist() == alone.tolist()
    by_hand = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 3), 7), 1)
    assert data(by_hand).tolist() == alone.tolist()
    assert len({tuple(row) for row in among.tolist()}) == 12
    assert data(row_keys(step_key(5, 4), jnp.array([7]), 2))[1].tolist() != alone.tolist()


def test_tokens_of_one_row_use_different_numbers():
    """The token's index enters its uniform number: 40 draws from 1000 equal tokens are not the same token."""
    keys = row_keys(jax.random.key(0), jnp.array([1]), 1)
    settings = sampling_params(1.0, 1.0, 0, ())
    tokens = [int(jitted_sample(jnp.zeros((1, 1000)), keys, jnp.int32(i), settings)[0][0]) for i in range(40)]
    assert len(set(tokens)) > 30
