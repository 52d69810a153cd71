"""The benchmark's weights in our decoder mean what the workload says: EOS comes with probability 1 / mean."""

import argparse

import grpo_step
import jax
import jax.numpy as jnp
import numpy as np
from peers import bench_workload as workload
from peers.bench_protocol import parse_flags

from pbrl_jax.models.decoder import causal_logits, init_decoder
from pbrl_jax.weights.folders import abstract_tree

TINY = ["--vocab", "64", "--d", "64", "--layers", "2", "--heads", "4", "--kv-heads", "2", "--head-dim", "8",
        "--ffn", "32", "--prompt-len", "8", "--response-len", "8", "--seed", "3"]  # fmt: skip


def tiny(*more: str) -> argparse.Namespace:
    return parse_flags("tiny", [*TINY, *more], grpo_step.add_own_flags)


def end_probabilities(flags) -> np.ndarray:
    spec, params = grpo_step.policy_spec(flags), grpo_step.policy_params(flags)
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, abstract_tree(init_decoder, spec))
    tokens = jnp.asarray(workload.prompt_ids(flags)[0], jnp.int32)
    probabilities = jax.nn.softmax(causal_logits(params, spec, tokens, jnp.ones(tokens.shape, bool)), axis=-1)
    # Nothing is sampled behind BOS alone; it has another stop channel than words have.
    return np.asarray(probabilities)[:, 1:]


def test_the_end_comes_with_probability_one_over_the_mean():
    found = end_probabilities(tiny("--mean-response", "4"))
    np.testing.assert_allclose(found[..., workload.EOS], 0.25, rtol=0.05)
    assert found[..., [workload.PAD, workload.BOS, workload.UNKNOWN]].max() == 0.0


def test_full_length_never_ends():
    assert end_probabilities(tiny())[..., workload.EOS].max() == 0.0
