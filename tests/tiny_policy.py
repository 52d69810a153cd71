"""A tiny random policy and batches for it: what the tests of models, rollout and update share."""

import contextlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbrl_jax import Config, with_values
from pbrl_jax.core.records import PromptBatch, Rollout, TrainBatch
from pbrl_jax.core.trees import map_with_path
from pbrl_jax.models.decoder import init_decoder
from pbrl_jax.models.specs import DecoderSpec, tiny_decoder
from pbrl_jax.weights.folders import abstract_tree


@pytest.fixture(autouse=True, scope="module")
def quick_compiles():
    """Import it into a test module whose time is XLA's: half the optimisation passes, half the compile time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def tiny_spec(**changes) -> DecoderSpec:
    """A decoder with 61 tokens and two layers of grouped-query attention."""
    return tiny_decoder(**{"vocab_size": 61, "width": 16, "ffn": 24, "head_dim": 4, **changes})


def tiny_params(spec: DecoderSpec, seed: int = 0, dtype=np.float32) -> dict:
    """Random parameters in the tree of `init_decoder`; norms and biases too are random, so that they matter."""
    rng = np.random.default_rng(seed)

    def draw(path: str, leaf):
        noise = rng.normal(size=leaf.shape)
        if path.endswith("scale"):
            noise = 1 + 0.2 * noise
        elif path in ("embed", "lm_head"):
            noise = 0.4 * noise
        else:
            noise = 0.3 * noise
        return jnp.asarray(noise, dtype)

    return map_with_path(draw, abstract_tree(init_decoder, spec))


def tiny_prompts(spec: DecoderSpec, lengths, width: int, seed: int = 1) -> PromptBatch:
    """Prompts of these lengths, padded to `width` with random tokens, since padding must not be looked at."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, spec.vocab_size, (len(lengths), width))
    return PromptBatch(jnp.asarray(tokens, jnp.int32), jnp.asarray(lengths, jnp.int32), jnp.arange(len(lengths)) + 7)


def tiny_rollout(spec: DecoderSpec, lengths, width: int, seed: int = 2) -> Rollout:
    """Responses of these lengths with random tokens, also past the length, and made-up log-probs."""
    rng = np.random.default_rng(seed)
    lengths = np.asarray(lengths)
    shape = (len(lengths), width)
    logp = np.where(np.arange(width)[None] < lengths[:, None], -4 + 0.3 * rng.normal(size=shape), 0)
    return Rollout(
        jnp.asarray(rng.integers(1, spec.vocab_size, shape), jnp.int32),
        jnp.asarray(lengths, jnp.int32),
        jnp.asarray(logp, jnp.float32),
        jnp.asarray(lengths == width),
    )


def tiny_batch(spec: DecoderSpec, prompt_lengths, prompt_width: int, lengths, width: int) -> TrainBatch:
    """A whole batch with rewards in [0, 1), all valid."""
    reward = np.random.default_rng(3).random(len(lengths))
    return TrainBatch(
        tiny_prompts(spec, prompt_lengths, prompt_width),
        tiny_rollout(spec, lengths, width),
        jnp.asarray(reward, jnp.float32),
        jnp.ones(len(lengths), bool),
    )


def tiny_config(samples: int, max_length: int, **sections: dict) -> Config:
    """Defaults with these group and response sizes; `sections` as in `with_values`."""
    algo = {"num_generations": samples, **sections.pop("algo", {})}
    rollout = {"max_completion_length": max_length, **sections.pop("rollout", {})}
    return with_values(Config(), algo=algo, rollout=rollout, **sections)


def leaf_differences(left, right) -> list[float]:
    """Largest absolute difference in each leaf of two trees of arrays."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return [float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()) for a, b in pairs]


def largest_difference(left, right) -> float:
    """Largest absolute difference between two trees of arrays."""
    return max(leaf_differences(left, right))


def full_rows(prompts: PromptBatch, rollout: Rollout) -> tuple[jax.Array, jax.Array, np.ndarray]:
    """Each row as one plain right-padded text: (tokens [B, T + R], mask [B, T + R], prompt lengths [B])."""
    samples = len(rollout.lengths_B) // len(prompts.lengths_P)
    starts = np.repeat(np.asarray(prompts.lengths_P), samples)
    tokens_PT, tokens_BR = np.asarray(prompts.tokens_PT), np.asarray(rollout.tokens_BR)
    tokens = np.zeros((len(starts), tokens_PT.shape[1] + tokens_BR.shape[1]), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for b, (start, length) in enumerate(zip(starts, np.asarray(rollout.lengths_B), strict=True)):
        tokens[b, :start] = tokens_PT[b // samples, :start]
        tokens[b, start : start + length] = tokens_BR[b, :length]
        mask[b, : start + length] = True
    return jnp.asarray(tokens), jnp.asarray(mask), starts


def array_sizes(function, *args) -> list[int]:
    """Elements of every array that `function(*args)` makes, those of inner programs included; nothing is run."""

    def of(jaxpr):
        found = []
        for eqn in jaxpr.eqns:
            found += [var.aval.size for var in eqn.outvars if hasattr(var.aval, "size")]
            for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    found += of(inner)
        return found

    return of(jax.make_jaxpr(function)(*args).jaxpr)


@contextlib.contextmanager
def compilations(caplog):
    """A list that, at the end of the block, holds JAX's message about each program it compiled."""
    found: list[str] = []
    caplog.clear()
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        yield found
    found += [text for text in (record.getMessage() for record in caplog.records) if text.startswith("Compiling ")]
