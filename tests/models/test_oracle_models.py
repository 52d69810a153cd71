"""Our models with other people's weights, against what their own code made of the same inputs.

Llama (llama3 RoPE scaling), Qwen2 (biases), Qwen3 (query and key norms), BERT, XLM-R as transformers computes them,
and the pooling and similarity of sentence-transformers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algos.oracle_checks import CASES
from hf_weights import Weights, decoder_params, decoder_spec, encoder_params, encoder_spec
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax.core.records import PromptBatch
from pbrl_jax.models.decoder import causal_logits, decoder_axes, init_decoder
from pbrl_jax.models.encoder import TextEncoder, encode, encoder_axes, init_encoder
from pbrl_jax.models.pooling import pool, unit_vectors
from pbrl_jax.rollout.generate import generate_samples
from pbrl_jax.rollout.sampling import sampling_params

DECODERS = ("hf.llama", "hf.qwen2", "hf.qwen3", "hf.qwen3_tied")
ENCODERS = ("hf.bert", "hf.xlmr")
TOLERANCE = 1e-5


@functools.cache
def model(name: str):
    """The case, our spec of it, and its weights in our tree."""
    case = CASES[name]
    weights = Weights({key: np.asarray(case.input(key)) for key in case.inputs})
    make_spec, make_params = (decoder_spec, decoder_params) if name in DECODERS else (encoder_spec, encoder_params)
    spec = make_spec(case.config)
    return case, spec, jax.tree.map(jnp.asarray, make_params(weights, spec))


def expect_close(actual, expected, mask, case):
    """Equal at the attended positions; the outputs are large against the tolerance, and that against the noise."""
    assert np.abs(expected[mask]).max() > 1e4 * TOLERANCE
    assert TOLERANCE > 5 * case.output("noise_floor_f32_vs_f64")
    np.testing.assert_allclose(np.asarray(actual)[mask], expected[mask], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", (*DECODERS, *ENCODERS))
def test_tree_is_the_one_we_initialise(name):
    _, spec, params = model(name)
    init = init_decoder if name in DECODERS else init_encoder
    ours = jax.eval_shape(lambda key: init(key, spec), jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), ours)
    assert decoder_axes(spec) if name in DECODERS else encoder_axes(spec)


@pytest.mark.parametrize("name", DECODERS)
def test_logits(name):
    """Left-padded rows too: positions count real tokens, whatever stands before them."""
    case, spec, params = model(name)
    tokens, mask, expected = (
        np.concatenate([read(f"{what}_{side}") for side in ("left", "right")])
        for read, what in ((case.input, "input_ids"), (case.input, "attention_mask"), (case.output, "logits"))
    )
    logits = jax.jit(causal_logits, static_argnums=1)(params, spec, tokens.astype(np.int32), mask.astype(np.int32))
    assert logits.dtype == jnp.float32
    expect_close(logits, expected, mask > 0, case)


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_continuation(name):
    """Ten tokens through prefill, cache and decode loop, from the left-padded prompts, of three lengths."""
    case, spec, params = model(name)
    padded, mask = np.asarray(case.input("input_ids_left")), np.asarray(case.input("attention_mask_left"))
    lengths = mask.sum(axis=1)
    tokens = np.stack([np.roll(row, length) for row, length in zip(padded, lengths, strict=True)])
    prompts = PromptBatch(jnp.asarray(tokens, jnp.int32), jnp.asarray(lengths, jnp.int32), jnp.arange(len(tokens)))
    expected = case.output("greedy_left_10")[:, padded.shape[1] :]
    eos = case.config["eos_token_id"]
    sampling = sampling_params(0.0, 1.0, 0, () if eos is None else (eos,))
    sampler = jax.jit(functools.partial(generate_samples, spec=spec, samples=1, max_length=expected.shape[1]))
    rollout = sampler(params, prompts, jax.random.key(0), sampling)
    assert len(np.unique(expected)) > 2
    for row, tokens, length in zip(expected, rollout.tokens_BR, rollout.lengths_B, strict=True):
        assert tokens[:length].tolist() == row[:length].tolist()
        assert length == len(row) or row[length - 1] == eos


@pytest.mark.parametrize("name", ENCODERS)
def test_token_states(name):
    case, spec, params = model(name)
    tokens, mask = case.input("input_ids").astype(jnp.int32), case.input("attention_mask") > 0
    hidden = jax.jit(lambda params, *args: TextEncoder(spec).apply({"params": params}, *args))(params, tokens, mask)
    expected = case.output("last_hidden_state")
    expect_close(hidden, expected, np.asarray(mask), case)
    mean = np.stack([row[keep].mean(axis=0) for row, keep in zip(expected, np.asarray(mask), strict=True)])
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(encode(params, tokens, mask, spec=spec), unit, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("ours, theirs", [("cls", "cls"), ("mean", "mean"), ("last", "lasttoken")])
def test_pooling(ours, theirs):
    case = CASES["st.pooling"]
    with jax.enable_x64(True):
        for side in ("right", "left"):
            mask = case.input(f"attention_mask_{side}") > 0
            case.expect(f"{theirs}/{side}_pad", pool(ours, case.input("token_embeddings"), mask))


def test_normalised_mean():
    case = CASES["st.pooling"]
    with jax.enable_x64(True):
        pooled = pool("mean", case.input("token_embeddings"), case.input("attention_mask_right") > 0)
        case.expect("mean_normalized/right_pad", unit_vectors(pooled))


def test_cosine_similarity():
    case = CASES["st.cos_sim"]
    with jax.enable_x64(True):
        a, b = unit_vectors(case.input("a")), unit_vectors(case.input("b"))
        case.expect("cos_sim", a @ b.T)
        case.expect("pairwise", (a[: len(b)] * b).sum(axis=1))
