"""What a run keeps frozen: in which type, and that it computes what float32 weights compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import quick_compiles, tiny_params, tiny_spec  # noqa: F401

from pbrl_jax import Config, LoraConfig, MeshConfig, with_values
from pbrl_jax.core.trees import flat_paths
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.models.decoder import causal_logits
from pbrl_jax.models.lora import init_adapters, join_adapters
from pbrl_jax.text.tokenizers import MissingTokenizer
from pbrl_jax.train.start import frozen_of, merged_params
from pbrl_jax.weights.policies import Policy

SPEC = tiny_spec(dtype="bfloat16", qkv_bias=True, tied_embeddings=False)
LORA = {"rank": 2, "alpha": 3.0}
TOKENS = jnp.arange(12).reshape(2, 6) + 3


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


@pytest.fixture(scope="module")
def logits():
    return jax.jit(lambda params: causal_logits(params, SPEC, TOKENS, jnp.ones(TOKENS.shape, bool)))


def policy_of(spec) -> Policy:
    return Policy(spec, tiny_params(spec), MissingTokenizer("none"), "test")


def types(params) -> dict[str, str]:
    return {path: str(leaf.dtype) for path, leaf in flat_paths(params).items()}


def test_a_reference_is_held_in_the_compute_type(mesh, logits):
    """Its matrices; the log-probs are those of the float32 weights, bit by bit."""
    policy, config = policy_of(SPEC), with_values(Config(), algo={"beta": 0.1})
    reference = frozen_of(policy, config, mesh).reference
    for path, kind in types(reference).items():
        matrix = path.endswith(("kernel", "embed", "lm_head"))
        assert kind == ("bfloat16" if matrix else "float32"), path
    np.testing.assert_array_equal(logits(reference), logits(policy.params))
    wide = frozen_of(policy, with_values(config, train={"frozen_dtype": "float32"}), mesh).reference
    assert set(types(wide).values()) == {"float32"}


def test_in_float32_the_reference_is_the_start_policy_without_a_copy(mesh):
    policy = policy_of(tiny_spec())
    reference = frozen_of(policy, with_values(Config(), algo={"beta": 0.1}), mesh).reference
    places = [[leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)] for tree in (reference, policy.params)]
    assert places[0] == places[1]


def test_what_is_left_of_adapters_is_float32(mesh, logits):
    """The base as it was trained beside, plus the adapters' product; what has no adapter is widened too."""
    lora = LoraConfig(**LORA, targets=("query", "down"))
    config = with_values(Config(), algo={"beta": 0.0}, lora={**LORA, "targets": lora.targets})
    base = frozen_of(policy_of(SPEC), config, mesh).base
    fresh = init_adapters(jax.random.key(0), base, SPEC, lora)
    rng = np.random.default_rng(0)
    trained = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), fresh)
    left = merged_params(trained, base, lora)
    assert set(types(left).values()) == {"float32"} and set(types(base).values()) == {"bfloat16", "float32"}
    low, high = (np.asarray(trained["layers"]["mlp"]["down"][name], np.float64) for name in ("lora_a", "lora_b"))
    wanted = np.asarray(base["layers"]["mlp"]["down"]["kernel"], np.float64) + 1.5 * low @ high
    np.testing.assert_allclose(left["layers"]["mlp"]["down"]["kernel"], wanted, atol=1e-6)
    np.testing.assert_array_equal(left["embed"], np.asarray(base["embed"], np.float32))
    both, one = np.asarray(logits(join_adapters(base, trained, lora))), np.asarray(logits(left))
    assert np.abs(both - one).max() < 0.05 * np.abs(both).max()
