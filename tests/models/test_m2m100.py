"""M2M100/NLLB against transformers' own outputs, its search against an exhaustive one, and its cache against none."""

import dataclasses
import functools
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algos.oracle_checks import CASES
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.trees import count_parameters, match_rules
from pbrl_jax.models.beam import Rules, beam_search
from pbrl_jax.models.layouts import Causal
from pbrl_jax.models.m2m100 import AXES, M2M100, logits_of, translate_tokens
from pbrl_jax.weights.hf_m2m100 import IGNORED, m2m100_names, m2m100_spec
from pbrl_jax.weights.tensors import load_params, open_weights

CASE = "hf.m2m100_nllb"
FOLDER = Path(__file__).parents[1] / "fixtures" / "hf" / "m2m100"
TOLERANCE = 1e-5
NLLB_600M = {
    "activation_dropout": 0.0, "activation_function": "relu", "architectures": ["M2M100ForConditionalGeneration"],
    "attention_dropout": 0.1, "bos_token_id": 0, "d_model": 1024, "decoder_attention_heads": 16,
    "decoder_ffn_dim": 4096, "decoder_layerdrop": 0, "decoder_layers": 12, "decoder_start_token_id": 2, "dropout": 0.1,
    "encoder_attention_heads": 16, "encoder_ffn_dim": 4096, "encoder_layerdrop": 0, "encoder_layers": 12,
    "eos_token_id": 2, "init_std": 0.02, "is_encoder_decoder": True, "max_length": 200,
    "max_position_embeddings": 1024, "model_type": "m2m_100", "num_hidden_layers": 12, "pad_token_id": 1,
    "scale_embedding": True, "tokenizer_class": "NllbTokenizer", "torch_dtype": "float32", "use_cache": True,
    "vocab_size": 256206,
}  # fmt: skip


@functools.cache
def oracle():
    """The case, our spec of it, and its parameters through the table of names."""
    case = CASES[CASE]
    weights = {key: np.asarray(case.input(key)) for key in case.inputs if key.startswith("weight:")}
    tensors = {key.removeprefix("weight:"): value for key, value in weights.items()}
    spec = m2m100_spec(case.config)
    return case, spec, load_params(tensors, m2m100_names(spec), ignore=IGNORED)


def target_states(model, tokens_BS, mask_BS, target_BT):
    """Final states of a complete right-padded target."""
    source = model.source_keys(model.encode(tokens_BS, mask_BS), mask_BS)
    valid = target_BT != model.spec.pad_id
    position = jnp.maximum(jnp.cumsum(valid.astype(jnp.int32), axis=1) - 1, 0)
    return model.decode(target_BT, position, Causal(valid), source)[0]


def init_m2m100(key, spec):
    """Random float32 parameters."""
    tokens = jnp.full((1, 2), spec.start_id, jnp.int32)
    return M2M100(spec).init(key, tokens, jnp.ones((1, 2), bool), tokens, method=target_states)["params"]


def target_logits(params, spec, tokens_BS, mask_BS, target_BT):
    """Logits [B, T, V] at every position of a right-padded target."""
    states = M2M100(spec).apply({"params": params}, tokens_BS, mask_BS, target_BT, method=target_states)
    return logits_of(params, states)


def sources(case):
    return case.input("input_ids").astype(jnp.int32), case.input("attention_mask") > 0


def left_padded(tokens, mask):
    rows = [np.roll(row, int(len(row) - keep.sum())) for row, keep in zip(tokens, mask, strict=True)]
    return jnp.asarray(np.stack(rows)), jnp.asarray(np.stack([np.sort(np.asarray(row)) for row in mask]))


def test_tree_is_the_one_we_initialise():
    _, spec, params = oracle()
    ours = jax.eval_shape(lambda key: init_m2m100(key, spec), jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), ours)
    axes = match_rules(ours, AXES)
    ranks = jax.tree.map(lambda leaf, names: leaf.ndim == len(names), ours, axes)
    assert all(jax.tree.leaves(ranks))


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits(side):
    """In float64: with logits of 8 the rounding of the original's float32 alone comes near the tolerance. In float32
    within the same share of the largest logit."""
    case, spec, params = oracle()
    tokens, mask = sources(case)
    if side == "left":
        tokens, mask = left_padded(np.asarray(tokens), np.asarray(mask))
    target, expected = case.input("decoder_input_ids").astype(jnp.int32), case.output("logits")
    largest, run = np.abs(expected).max(), jax.jit(target_logits, static_argnums=1)
    logits = run(params, spec, tokens, mask, target)
    assert logits.dtype == jnp.float32 and largest > 1e4 * TOLERANCE
    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE * largest)
    with jax.enable_x64(True):
        spec = dataclasses.replace(spec, dtype="float64")
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        np.testing.assert_allclose(run(params, spec, tokens, mask, target), expected, rtol=0, atol=TOLERANCE)
        if side == "right":
            hidden = M2M100(spec).apply({"params": params}, tokens, mask, method="encode")
            states = case.output("encoder_last_hidden_state")
            np.testing.assert_allclose(hidden[mask], states[np.asarray(mask)], rtol=0, atol=TOLERANCE)


@functools.cache
def translator(spec, max_length, num_beams):
    return jax.jit(functools.partial(translate_tokens, spec=spec, max_length=max_length, num_beams=num_beams))


@pytest.mark.parametrize("name, num_beams", [("greedy_forced_bos_77", 1), ("beam4_forced_bos_77", 4)])
def test_tokens_of_generate(name, num_beams):
    case, spec, params = oracle()
    tokens, mask = sources(case)
    expected = case.output(name)
    forced = jnp.asarray(expected[:, 1], jnp.int32)
    found = translator(spec, expected.shape[1] - 1, num_beams)(
        params, tokens_BS=tokens, mask_BS=mask, forced_bos_B=forced
    )
    assert len(np.unique(expected[:, 2:])) > 1, "behind the forced token not always the same one"
    np.testing.assert_array_equal(found.tokens_BR, expected[:, 1:])
    ended = [[i for i, token in enumerate(row[1:]) if token == 2] for row in expected]
    assert found.lengths_B.tolist() == [row[0] + 1 if row else expected.shape[1] - 1 for row in ended]
    assert found.truncated_B.tolist() == [not row for row in ended]


@pytest.mark.parametrize("name, num_beams", [("greedy", 1), ("beam4", 4)])
def test_sentences_that_end(name, num_beams):
    """Some end at once and some never, all in one batch; the folder's encoder and decoder differ in size."""
    rows = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
    spec = m2m100_spec(json.loads((FOLDER / "config.json").read_text()))
    params = load_params(open_weights(FOLDER), m2m100_names(spec), ignore=IGNORED)
    width = max(len(row["input_ids"]) for row in rows)
    tokens = jnp.array([row["input_ids"] + [1] * (width - len(row["input_ids"])) for row in rows], jnp.int32)
    forced = jnp.array([row["target_id"] for row in rows], jnp.int32)
    found = translator(spec, 15, num_beams)(params, tokens_BS=tokens, mask_BS=tokens != 1, forced_bos_B=forced)
    for row, ids, length, cut in zip(rows, found.tokens_BR, found.lengths_B, found.truncated_B, strict=True):
        assert ids[: int(length)].tolist() == row[name]["ids"][1:]
        assert bool(cut) == (row[name]["ids"][-1] != 2)
        assert set(ids[int(length) :].tolist()) <= {spec.pad_id}
    assert len({row[name]["ids"][-1] for row in rows}) == 2 or num_beams > 1


@pytest.mark.parametrize("num_beams", [1, 3])
def test_rows_do_not_depend_on_their_neighbours(num_beams):
    case, spec, params = oracle()
    tokens, mask = sources(case)
    forced = jnp.array([77, 12, 30], jnp.int32)
    run = translator(spec, 8, num_beams)
    together = run(params, tokens_BS=tokens, mask_BS=mask, forced_bos_B=forced)
    row = int(np.argmin(mask.sum(axis=1)))
    length = int(mask[row].sum())
    assert length < mask.shape[1]
    alone = run(params, tokens_BS=tokens[row : row + 1, :length], mask_BS=mask[row : row + 1, :length],
                forced_bos_B=forced[row : row + 1])  # fmt: skip
    assert alone.tokens_BR[0].tolist() == together.tokens_BR[row].tolist()


def test_greedy_is_the_argmax_of_the_uncached_model():
    """Every token written through the cache is the likeliest one of a full pass over what stands before it."""
    case, spec, params = oracle()
    tokens, mask = sources(case)
    found = translator(spec, 7, 1)(params, tokens_BS=tokens, mask_BS=mask, forced_bos_B=jnp.array([5, 6, 7], jnp.int32))
    target = jnp.concatenate([jnp.full((3, 1), spec.start_id, jnp.int32), found.tokens_BR], axis=1)
    logits = jax.jit(target_logits, static_argnums=1)(params, spec, tokens, mask, target)
    assert (jnp.argmax(logits, axis=-1)[:, 1:-1] == found.tokens_BR[:, 1:]).all()


def test_bfloat16_is_near():
    case, spec, params = oracle()
    tokens, mask = sources(case)
    target, expected = case.input("decoder_input_ids").astype(jnp.int32), case.output("logits")
    half = m2m100_spec(case.config, dtype="bfloat16")
    logits = np.asarray(jax.jit(target_logits, static_argnums=1)(params, half, tokens, mask, target))
    assert logits.dtype == np.float32
    scale = np.abs(expected).max()
    assert 1e-6 * scale < np.abs(logits - expected).max() < 0.05 * scale


def test_published_parameter_counts():
    """NLLB-200-distilled-600M has 615,073,792 parameters, embeddings of 256,206 x 1024 shared by all three uses."""
    spec = m2m100_spec(NLLB_600M)
    assert count_parameters(jax.eval_shape(lambda: init_m2m100(jax.random.key(0), spec))) == 615_073_792
    assert len({name for stored in m2m100_names(spec).values() for name in stored.names()}) == 12 * 16 + 12 * 26 + 5


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "marian"}, "model_type is 'marian'"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"normalize_before": False}, "normalize_before is False"),
        ({"d_model": 1000}, "does not divide into 16 heads"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"num_hidden_layers": 6}, "num_hidden_layers is 6"),
    ],
)
def test_config_that_changes_the_model_is_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        m2m100_spec(NLLB_600M | change)


def test_missing_and_unexpected_tensors_are_listed():
    case, spec, _ = oracle()
    weights = {key: np.asarray(case.input(key)) for key in case.inputs if key.startswith("weight:")}
    tensors = {key.removeprefix("weight:"): value for key, value in weights.items()}
    gone = "model.decoder.layers.1.encoder_attn.k_proj.bias"
    del tensors[gone]
    tensors["model.encoder.extra.weight"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError, match=f"{gone} is missing.*model.encoder.extra.weight is unexpected"):
        load_params(tensors, m2m100_names(spec), ignore=IGNORED)


# The search alone, on chains whose best sequence can be found by trying all.

EOS, PAD = 2, 1


def chain(seed: int, vocab: int = 5) -> np.ndarray:
    """Log-probs of the next token given the last one, [V, V]."""
    logits = np.random.default_rng(seed).normal(size=(vocab, vocab)) * 2
    return np.asarray(jax.nn.log_softmax(logits, axis=-1), np.float32)


def best_by_trying_all(logp_VV: np.ndarray, first: int, max_length: int) -> list[int]:
    """The sequence of the highest mean log-prob, the given first token counted as one of probability 1."""
    vocab, found = len(logp_VV), []
    for length in range(1, max_length):
        for tail in itertools.product(range(vocab), repeat=length):
            ends = tail[-1] == EOS
            if EOS in tail[:-1] or (not ends and length + 1 < max_length):
                continue
            path = (first, *tail)
            total = sum(logp_VV[a, b] for a, b in itertools.pairwise(path))
            found.append((total / len(path), list(path)))
    return max(found)[1]


def searched(logp_VV, first, max_length, num_beams, **options):
    table, rules = jnp.asarray(logp_VV), Rules(max_length, (EOS,), **options)
    return beam_search(
        lambda state, tokens_X, slot: (table[tokens_X], state), lambda state, rows_X: state, jnp.zeros(()),
        jnp.array([first], jnp.int32), rules, PAD, num_beams,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_wide_beam_finds_the_best_sequence(seed):
    """A beam that holds every sequence leaves nothing out."""
    logp = chain(seed)
    expected = best_by_trying_all(logp, first=3, max_length=4)
    tokens, lengths, truncated = searched(logp, 3, 4, num_beams=64)
    assert tokens[0, : int(lengths[0])].tolist() == expected
    assert bool(truncated[0]) == (expected[-1] != EOS)
    assert tokens[0, int(lengths[0]) :].tolist() == [PAD] * (4 - int(lengths[0]))


def test_length_penalty_and_early_stopping_by_hand():
    """From 3: EOS at 0.6, else 4; from 4: EOS at 0.9, else 4 again.

    The short sequence 3 EOS has log 0.6 / 2 = -0.255; the longer 3 4 EOS has (log 0.4 + log 0.9) / 3 = -0.341.
    Without division by length the short one wins all the more; a penalty of 3 divides by 8 and 27, and the longer
    one wins: -0.064 against -0.038.
    """
    tiny = 1e-12
    table = np.full((5, 5), tiny)
    table[3, [EOS, 4]] = 0.6, 0.4
    table[4, [EOS, 4]] = 0.9, 0.1
    logp = np.log(table).astype(np.float32)
    for options, expected in (
        ({}, [3, EOS]),
        ({"length_penalty": 0.0}, [3, EOS]),
        ({"length_penalty": 3.0}, [3, 4, EOS]),
    ):
        tokens, lengths, _ = searched(logp, 3, 6, num_beams=2, **options)
        assert tokens[0, : int(lengths[0])].tolist() == expected, options
    tokens, lengths, _ = searched(logp, 3, 6, num_beams=2, early_stopping=True)
    assert tokens[0, : int(lengths[0])].tolist() == [3, EOS]
