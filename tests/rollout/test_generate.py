"""Sampling responses: lengths, keys, windows, segments, and log-probs that the update agrees with."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import (
    compilations,
    largest_difference,
    quick_compiles,  # noqa: F401
    tiny_config,
    tiny_params,
    tiny_prompts,
    tiny_spec,
)

from pbrl_jax.models.decoder import unstack_layers
from pbrl_jax.models.logprobs import response_logprobs, unpacked_streams
from pbrl_jax.plan.hlo import program_cost
from pbrl_jax.rollout.generate import (
    decode,
    generate,
    generate_samples,
    grow,
    prefill,
    windows,
)
from pbrl_jax.rollout.refill import Interrupted, make_generate
from pbrl_jax.rollout.sampling import row_keys, sampling_params

SPEC = tiny_spec()
G, R = 3, 12
EOS = (4, 9, 13, 21, 30, 33, 47, 58)
#: One token ends a response about every seventh time.
SAMPLING = sampling_params(1.0, 1.0, 0, EOS)
GREEDY = sampling_params(0.0, 1.0, 0, ())
KEY = jax.random.key(9)


@pytest.fixture(scope="module")
def params():
    return tiny_params(SPEC)


@pytest.fixture(scope="module")
def prompts():
    """Prompt ids 7, 8, 9, one of them a single token long."""
    return tiny_prompts(SPEC, [6, 1, 4], 6)


@pytest.fixture(scope="module")
def sampler():
    return jax.jit(functools.partial(generate_samples, spec=SPEC, samples=G, max_length=R))


@pytest.fixture(scope="module")
def rollout(sampler, params, prompts):
    """Short and long responses, one of them full."""
    rollout = sampler(params, prompts, KEY, SAMPLING)
    assert rollout.lengths_B.min() < 4 and rollout.lengths_B.max() == R
    return rollout


def same(left, right) -> bool:
    """The same tokens, lengths and marks; log-probs but for rounding."""
    exact = all(
        np.array_equal(getattr(left, name), getattr(right, name)) for name in ("tokens_BR", "lengths_B", "truncated_B")
    )
    return exact and largest_difference(left.logp_BR, right.logp_BR) < 1e-5


def test_lengths_end_of_sequence_and_truncation(sampler, params, prompts):
    """A row ends with its first EOS, which it keeps; what follows is 0; a row without EOS is full and truncated."""
    endings, lengths = set(), set()
    for seed in range(12):
        rollout = sampler(params, prompts, jax.random.key(seed), SAMPLING)
        for row, length, logp, truncated in zip(
            np.asarray(rollout.tokens_BR),
            rollout.lengths_B.tolist(),
            np.asarray(rollout.logp_BR),
            rollout.truncated_B.tolist(),
            strict=True,
        ):
            stops = np.flatnonzero(np.isin(row, EOS))
            assert truncated == (len(stops) == 0)
            assert length == (R if truncated else stops[0] + 1)
            assert (row[length:] == 0).all() and (logp[length:] == 0).all() and (logp[:length] < 0).all()
            endings.add(None if truncated else int(row[length - 1]))
            lengths.add(length)
    assert endings == {*EOS, None}
    assert {1, R} <= lengths and len(lengths) > 6


def test_rows_do_not_depend_on_the_batch(rollout, params, prompts):
    """Prompts 9 and 7 alone, in another order, wider padding, one sample each: the same tokens as before.

    With one sample the decode state could share the caller's arrays; donated, they would be gone at the second call.
    """
    order = jnp.array([2, 0])
    other = dataclasses.replace(
        prompts,
        tokens_PT=jnp.pad(prompts.tokens_PT[order], ((0, 0), (0, 3)), constant_values=50),
        lengths_P=prompts.lengths_P[order],
        row_ids_P=prompts.row_ids_P[order],
    )
    run = make_generate(SPEC, 1, R, 8)
    rows = jnp.array([2 * G, 0])
    assert len({tuple(row) for row in rollout.tokens_BR.tolist()}) > 2 * G
    for _ in range(2):
        assert same(run(params, other, KEY, SAMPLING), jax.tree.map(lambda x: x[rows], rollout))


def test_another_key_gives_other_tokens(sampler, rollout, params, prompts):
    assert same(sampler(params, prompts, KEY, SAMPLING), rollout)
    other = sampler(params, prompts, jax.random.fold_in(KEY, 1), SAMPLING)
    assert (other.tokens_BR[:, 0] != rollout.tokens_BR[:, 0]).any()


def test_settings_are_arrays(sampler, rollout, params, prompts):
    """Other temperature, top_p, top_k, EOS ids and keys change the tokens and compile nothing."""
    programs = sampler._cache_size()
    others = [
        sampling_params(0.3, 1.0, 0, EOS),
        sampling_params(1.0, 0.2, 0, EOS),
        sampling_params(1.0, 1.0, 2, EOS),
        sampling_params(1.0, 1.0, 0, (int(rollout.tokens_BR[0, 0]),)),
        sampling_params(0.0, 1.0, 0, ()),
    ]
    for settings in others:
        assert not same(sampler(params, prompts, KEY, settings), rollout)
    greedy = sampler(params, prompts, jax.random.key(99), others[-1])
    assert same(greedy, sampler(params, prompts, KEY, others[-1]))
    assert greedy.truncated_B.all() and not np.ptp(greedy.tokens_BR.reshape(3, G, R), axis=1).any()
    assert sampler._cache_size() == programs == 1


def test_windows_by_hand():
    assert windows(1) == (1,)
    assert windows(128) == (128,)
    assert windows(200) == (128, 200)
    assert windows(1024) == (128, 256, 512, 1024)
    assert windows(R) == (R,)  # so the tests below compare several windows with one


def test_logp_is_what_the_update_computes(params, prompts):
    """200 tokens, in windows of 128 and 200: sampled log-probs equal those of a forward pass over the responses."""
    sampler = jax.jit(functools.partial(generate_samples, spec=SPEC, samples=2, max_length=200))

    @jax.jit
    def recomputed(rollout, temperature):
        streams = unpacked_streams(rollout.tokens_BR, rollout.lengths_B, 2)
        logp, _ = response_logprobs(params, prompts, streams, temperature, spec=SPEC, chunk=300)
        return logp.reshape(6, 200)

    # Greedy log-probs are those of temperature 1.
    for sampled_at, scored_at in ((0.7, 0.7), (0.0, 1.0)):
        rollout = sampler(params, prompts, KEY, sampling_params(sampled_at, 0.9, 0, ()))
        assert (rollout.lengths_B == 200).all()
        np.testing.assert_allclose(rollout.logp_BR, recomputed(rollout, scored_at), rtol=0, atol=1e-4)
        assert largest_difference(rollout.logp_BR, recomputed(rollout, 1.3)) > 0.1


def test_decode_stops_at_a_slot_and_when_all_are_done(rollout, params, prompts):
    """To slot 3, then on to the end; a state whose rows are all done is not touched."""

    @jax.jit
    def start(sampling):
        keys_B = row_keys(KEY, prompts.row_ids_P, G)
        return prefill(params, prompts, keys_B, sampling, spec=SPEC, samples=G, max_length=R)

    go_on = jax.jit(functools.partial(decode, spec=SPEC))
    early = go_on(params, start(SAMPLING), SAMPLING, 3)
    assert early.slot == 3
    assert np.array_equal(early.tokens_BR[:, :4], rollout.tokens_BR[:, :4])
    assert not early.tokens_BR[:, 4:].any()
    late = go_on(params, early, SAMPLING, R + 5)
    assert np.array_equal(late.tokens_BR, rollout.tokens_BR)
    assert late.slot == max(rollout.lengths_B) - 1
    ends_at_once = sampling_params(0.0, 1.0, 0, tuple(set(start(GREEDY).last_B.tolist())))
    done = start(ends_at_once)
    assert done.done_B.all()
    assert go_on(params, done, ends_at_once, R).slot == 0


def test_segments_equal_one_program(rollout, params, prompts, caplog):
    """Segments of 3 tokens; a second round with other settings compiles nothing."""
    run = make_generate(SPEC, G, R, 3)
    calls = []
    assert same(run(params, prompts, KEY, SAMPLING, lambda: calls.append(1)), rollout)
    assert len(calls) == 4  # after 4, 7, 10, 12 tokens
    other_key, other_settings = jax.random.key(5), sampling_params(0.5, 0.9, 7, (3,))
    with compilations(caplog) as found:
        other = run(params, prompts, other_key, other_settings, lambda: False)
    assert not found
    with compilations(caplog) as found:
        jax.jit(lambda x: x * 3 + 1)(jnp.ones(17))
    assert found
    assert not same(other, rollout)
    with pytest.raises(Interrupted):
        run(params, prompts, KEY, SAMPLING, lambda: True)
    first = sampling_params(0.0, 1.0, 0, tuple(set(run(params, prompts, KEY, GREEDY).tokens_BR[:, 0].tolist())))
    calls.clear()
    short = run(params, prompts, KEY, first, lambda: calls.append(1))
    assert (short.lengths_B == 1).all() and len(calls) == 1
    assert same(run(params, prompts, KEY, SAMPLING), rollout)


def test_generate_reads_its_config(params, prompts):
    config = tiny_config(5, 9)
    shapes = jax.eval_shape(
        functools.partial(generate, spec=SPEC, config=config.rollout, algo=config.algo), params, prompts, KEY, SAMPLING
    )
    assert shapes.tokens_BR.shape == (15, 9)
    assert (shapes.lengths_B.dtype, shapes.truncated_B.dtype) == (jnp.int32, bool)


def test_the_token_loop_makes_no_copy_of_a_cache():
    """Caches are updated in place: what the loop needs beside its arguments is less than one layer's keys, and each
    token moves about the weights and the caches once."""
    spec = tiny_spec(layers=4, head_dim=32)
    prompts = tiny_prompts(spec, [5] * 4, 6)
    length, samples = 1024, 4
    start = functools.partial(prefill, spec=spec, samples=samples, max_length=length)
    keys_B = jax.eval_shape(lambda rows: row_keys(KEY, rows, samples), prompts.row_ids_P)
    params = jax.eval_shape(unstack_layers, tiny_params(spec))
    state = jax.eval_shape(lambda *args: grow(start(*args), length), params, prompts, keys_B, SAMPLING)
    program = jax.jit(functools.partial(decode, spec=spec), donate_argnums=1)
    compiled = program.lower(params, state, SAMPLING, 9).compile()
    layer = state.own.layers[0].key
    assert compiled.memory_analysis().temp_size_in_bytes < layer.size * layer.dtype.itemsize
    text = compiled.as_text()
    moved = program_cost(text, 2).bytes - program_cost(text, 1).bytes
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((params, state.own, state.prompt)))
    assert moved < 1.5 * needed
