"""Half precision: what is summed in it, and how far a bfloat16 gradient is from that of float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from precision_checks import casts_in_loops, narrow_sums, with_wide_sums
from tiny_policy import tiny_batch, tiny_config, tiny_params, tiny_spec

from pbrl_jax import ContrastiveConfig, DpoConfig, OptimConfig
from pbrl_jax.core.records import PromptBatch, Rollout, TrainBatch, TrainState
from pbrl_jax.core.trees import flat_paths
from pbrl_jax.models.decoder import init_decoder
from pbrl_jax.models.encoder import init_encoder
from pbrl_jax.models.packing import Bucket
from pbrl_jax.models.specs import DecoderEncoderSpec, EncoderSpec
from pbrl_jax.train.contrastive import ContrastiveBatch, contrastive_optimizer_config, make_contrastive_step
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.preferences import dpo_optimizer_config, make_dpo_step
from pbrl_jax.train.programs import update_step
from pbrl_jax.train.sft import SftBatch, make_sft_step
from pbrl_jax.train.sft_packing import PackedRows
from pbrl_jax.train.state import new_state

#: Long enough that chunks of queries are more than 256; programs of these shapes are traced and never run.
P, G, T, R = 2, 8, 512, 8192
LONG = functools.partial(
    tiny_spec, dtype="bfloat16", vocab_size=1024, width=512, head_dim=32, ffn=512, remat="dots", qkv_bias=True
)
GEMMA = {
    "sandwich_norms": True, "norm_offset": True, "scaled_embeddings": True, "layer_pattern": "lg", "window": 64,
    "local_rope_theta": 1e4, "qk_norm": True,
}  # fmt: skip
#: Name -> (settings of the decoder, what responses are packed into).
UPDATES = {
    "tied": ({}, None),
    "untied": ({"tied_embeddings": False}, None),
    "packed": ({"tied_embeddings": False}, Bucket(1, 4 * R)),
    "packed_tied": ({}, Bucket(1, 4 * R)),
    "gemma": (GEMMA, None),
    "experts": ({"experts": 8, "experts_per_token": 2}, None),
}


def integers(*shape: int):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def floats(*shape: int, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def bools(*shape: int):
    return jax.ShapeDtypeStruct(shape, bool)


def state_of(init, spec, optim: OptimConfig) -> TrainState:
    """Shapes of a state before the first update."""
    return jax.eval_shape(lambda: new_state(init(jax.random.key(0), spec), make_optimizer(optim)))


def prompts_of(count: int) -> PromptBatch:
    return PromptBatch(integers(count, T), integers(count), integers(count))


@pytest.mark.parametrize("name, microbatch", [*((name, 1) for name in UPDATES), ("tied", 0), ("packed", 0)])
def test_the_update_adds_many_terms_in_float32(name, microbatch):
    """Microbatches are added up by the same code for every kind of layer; without them nothing is."""
    settings, bucket = UPDATES[name]
    spec = LONG(**settings)
    config = tiny_config(
        G, R, algo={"beta": 0.1, "entropy_coef": 0.01}, train={"microbatch_prompts": microbatch, "logprob_chunk": 64}
    )
    state, rows = state_of(init_decoder, spec, config.optim), P * G
    rollout = Rollout(integers(rows, R), integers(rows), floats(rows, R), bools(rows))
    batch = TrainBatch(prompts_of(P), rollout, floats(rows), bools(rows))
    update = functools.partial(update_step, spec=spec, config=config, bucket=bucket)
    assert narrow_sums(update, state, state.params, batch) == []


def test_supervised_steps_add_many_terms_in_float32():
    spec, config = LONG(tied_embeddings=False), DpoConfig()
    state = state_of(init_decoder, spec, dpo_optimizer_config(config))
    rows = SftBatch(prompts_of(4), integers(4, R), integers(4))
    pairs = SftBatch(prompts_of(4), integers(8, R), integers(8))
    packed = PackedRows(*(integers(4, R) for _ in range(3)), integers(4, 2048), bools(4, 2048))
    sft = make_sft_step(spec, dpo_optimizer_config(config), 64)
    assert narrow_sums(sft, state, rows) == []
    assert narrow_sums(sft, state, packed) == []
    assert narrow_sums(make_dpo_step(spec, config, 64), state, pairs, state.params) == []


BERT = EncoderSpec(
    vocab_size=1024, width=512, layers=2, heads=4, ffn=512, max_positions=1024, begin_ids=(1,), end_ids=(2,),
    projection=384, dtype="bfloat16",
)  # fmt: skip
ENCODERS = {
    "mean": BERT,
    "cls": dataclasses.replace(BERT, pooling="cls", pre_norm=True),
    "decoder": DecoderEncoderSpec(LONG(), max_positions=1024, pooling="last"),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_contrastive_training_adds_many_terms_in_float32(name):
    spec, config, M = ENCODERS[name], ContrastiveConfig(), 512
    state = state_of(init_encoder, spec, contrastive_optimizer_config(config))
    batch = ContrastiveBatch(*(kind(M, T) for _ in range(3) for kind in (integers, bools)))
    assert narrow_sums(make_contrastive_step(spec, config), state, batch) == []


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_the_output_matrix_is_cast_outside_of_the_loop_over_chunks(name):
    """Once for the forward and the backward pass."""
    spec = LONG(**UPDATES[name][0])
    shape = (spec.width, spec.vocab_size) if name == "untied" else (spec.vocab_size, spec.width)
    optim = OptimConfig()
    step = make_sft_step(spec, optim, 64)
    rows = SftBatch(prompts_of(4), integers(4, R), integers(4))
    assert casts_in_loops(step, state_of(init_decoder, spec, optim), rows, shape=shape) == []


def test_the_check_finds_a_cast_at_every_turn():
    def cast_at_every_turn(weights, rows):
        return jax.lax.map(lambda row: row @ weights.astype(jnp.bfloat16), rows)

    args = floats(8, 4), floats(512, 8, dtype=jnp.bfloat16)
    assert len(casts_in_loops(cast_at_every_turn, *args, shape=(8, 4))) == 1


def cast_then_looked_up(table, tokens):
    return table.astype(jnp.bfloat16)[tokens].astype(jnp.float32).sum()


def added_to_rows(bias, rows):
    return (rows + bias.astype(jnp.bfloat16)[None]).astype(jnp.float32).sum()


def read_at_every_turn(weights, rows):
    narrow = weights.astype(jnp.bfloat16)
    return jax.lax.map(lambda row: (row * narrow).astype(jnp.float32).sum(), rows).sum()


@pytest.mark.parametrize(
    "function, args, what",
    [
        (cast_then_looked_up, (floats(64, 8), integers(512)), "scatter-add into bf"),
        (added_to_rows, (floats(8), floats(512, 8, dtype=jnp.bfloat16)), "reduce_sum of bf"),
        (read_at_every_turn, (floats(8), floats(512, 8, dtype=jnp.bfloat16)), "sum over 512 turns of a scan, bf"),
    ],
)
def test_the_check_finds_what_it_looks_for(function, args, what):
    (found,) = narrow_sums(jax.grad(function), *args)
    assert found.startswith(what)


#: 512 rows of 32 tokens: 16,384 tokens in one microbatch.
ROWS, TOKENS, SAMPLES, PROMPT = 512, 32, 8, 4
FREQUENT = 1024


def zipf_batch(spec) -> TrainBatch:
    """Responses whose n-th most frequent token occurs 1/n times as often as the first, as words of a text do; the
    reward counts one of them, so that the gradient is not mere noise."""
    shares = 1 / np.arange(1, spec.vocab_size)
    tokens = np.random.default_rng(0).choice(spec.vocab_size - 1, (ROWS, TOKENS), p=shares / shares.sum()) + 1
    prompts = ROWS // SAMPLES
    batch = tiny_batch(spec, [PROMPT] * prompts, PROMPT, [TOKENS] * ROWS, TOKENS)
    rollout = dataclasses.replace(batch.rollout, tokens_BR=jnp.asarray(tokens, jnp.int32))
    return dataclasses.replace(batch, rollout=rollout, reward_B=jnp.asarray((tokens == 1).mean(axis=1), jnp.float32))


@functools.cache
def gradient_of(spec):
    """(params, batch) -> a tenth of an update's gradient: Adam's first moment after one update."""
    optim = {"max_grad_norm": 1e9, "b1": 0.9}
    config = tiny_config(SAMPLES, TOKENS, algo={"beta": 0.0, "loss_type": "gpg"}, log={"entropy": False}, optim=optim)

    def gradient(params, batch):
        state = new_state(params, make_optimizer(config.optim))
        state, _ = update_step(state, None, batch, spec=spec, config=config)
        return optax.tree.get(state.opt_state, "mu")

    return jax.jit(gradient)


def gradient_in(dtype: str, params, spec, run=lambda f, *args: f(*args)) -> dict[str, np.ndarray]:
    """A tenth of an update's gradient, by path; the weights are float32, or the same numbers in float64.

    `run` calls a function with its arguments.
    """
    gradient = gradient_of(dataclasses.replace(spec, dtype=dtype))
    with jax.enable_x64(dtype == "float64"):
        wide = np.float64 if dtype == "float64" else np.float32
        params = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), wide), params)
        found = run(gradient, params, zipf_batch(spec))
        return {path: np.asarray(leaf, np.float64) for path, leaf in flat_paths(found).items()}


def narrow_policy():
    """(spec, parameters) of a policy whose weights are numbers of bfloat16, so that all types compute with the same."""
    spec = tiny_spec(tied_embeddings=False, qkv_bias=True, width=32, head_dim=8)
    return spec, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), tiny_params(spec))


def test_a_bfloat16_gradient_is_near_that_of_float64():
    """Of 16,384 tokens in a microbatch."""
    spec, params = narrow_policy()
    exact, found = gradient_in("float64", params, spec), gradient_in("bfloat16", params, spec)
    size = np.sqrt(sum(np.square(leaf).sum() for leaf in exact.values()))
    counts = np.bincount(np.asarray(zipf_batch(spec).rollout.tokens_BR).ravel(), minlength=spec.vocab_size)
    frequent = np.flatnonzero(counts >= FREQUENT)
    pairs = {path: (exact[path], found[path]) for path in exact if np.linalg.norm(exact[path]) > 1e-3 * size}
    pairs |= {f"token {n}, {counts[n]} times": (exact["embed"][n], found["embed"][n]) for n in frequent}
    assert len(frequent) == 3 and pairs.keys() >= {"embed", "lm_head", "layers/value/bias", "final_norm/scale"}
    for name, (right, near) in pairs.items():
        norms = np.linalg.norm(right), np.linalg.norm(near)
        assert 0.98 < norms[1] / norms[0] < 1.02, (name, norms)
        assert 1 - (right * near).sum() / (norms[0] * norms[1]) < 1e-2, name


def test_small_gradients_lose_no_more_than_with_all_sums_in_float32():
    """With a small output projection nine matrices, biases and scales before it carry less than a thousandth of the
    gradient each. Each one's error is at most 1.2 times that of the same program with every sum in float32."""
    spec, params = narrow_policy()
    params["layers"]["out"]["kernel"] *= 2.0**-11
    exact, found = gradient_in("float64", params, spec), gradient_in("bfloat16", params, spec)
    wide = gradient_in("bfloat16", params, spec, with_wide_sums)
    size = np.sqrt(sum(np.square(leaf).sum() for leaf in exact.values()))
    small = {path for path, leaf in exact.items() if np.linalg.norm(leaf) < 1e-3 * size}
    assert len(small) == 9 and "layers/key/bias" in small
    for path in small:
        errors = [np.linalg.norm(one[path] - exact[path]) for one in (found, wide)]
        assert errors[0] <= 1.2 * errors[1], (path, errors)
