"""Folders that transformers wrote, through our reading of `config.json` and our names, against what it computed.

Llama (llama3 scaling), Qwen2 (biases), Qwen3 (tied), Qwen3-MoE, Mistral (a window shorter than the rows), Gemma 3 (both
kinds of layers), and smaller ones of further families and RoPE scalings. tests/make_fixtures.py writes them.
"""

import functools
import json
import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_hf import DECODERS, FIXTURES
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax.core.records import PromptBatch
from pbrl_jax.core.trees import map_with_path
from pbrl_jax.models.decoder import causal_logits, init_decoder
from pbrl_jax.rollout.generate import generate_samples
from pbrl_jax.rollout.sampling import sampling_params
from pbrl_jax.weights.hf_decoder import decoder_names, decoder_spec, is_fused

TOLERANCE = 1e-5
MAKER = Path(__file__).parent.parent / "make_fixtures.py"


@functools.cache
def model(name: str, root: Path = FIXTURES):
    """(spec, parameters, expected arrays) of a folder; every tensor of its file must find its place."""
    folder = root / name
    config = json.loads((folder / "config.json").read_text())
    spec = decoder_spec(config)
    tensors, names = load_file(folder / "model.safetensors"), decoder_names(spec, is_fused(config["model_type"]))
    unused = {one for one in tensors if not one.endswith(("act_fn.beta", "act_fn.eps"))}

    def read(path, shape):
        stored = names[path]
        unused.difference_update(stored.names())
        entries = [tensors[one][slice(*stored.part[:2])] if stored.part else tensors[one] for one in stored.names()]
        entries = [one.T if stored.transpose else one for one in entries]
        return jnp.asarray(np.stack([one.reshape(stored.shape) for one in entries]).reshape(shape.shape))

    shapes = jax.eval_shape(lambda: init_decoder(jax.random.key(0), spec))
    params = map_with_path(read, shapes)
    assert not unused
    return spec, params, np.load(folder / "expected.npz")


@pytest.mark.parametrize("name", DECODERS)
def test_logits(name):
    """Rows padded on either side; logits that are large against the tolerance."""
    check_logits(*model(name))


@pytest.mark.skipif(
    "PBRL_PEERS_PYTHON" not in os.environ, reason="PBRL_PEERS_PYTHON: a Python with torch and transformers"
)
def test_logits_of_weights_drawn_anew(tmp_path):
    """As the committed folders, from another seed and by the transformers that is installed there."""
    command = [os.environ["PBRL_PEERS_PYTHON"], str(MAKER), str(tmp_path), "decoders"]
    subprocess.run(command, check=True, env={"PATH": os.environ["PATH"], "PBRL_FIXTURE_SEED": "7"})
    for name in DECODERS:
        check_logits(*model(name, tmp_path))


def check_logits(spec, params, expected):
    run = jax.jit(functools.partial(causal_logits, spec=spec))
    for side in ("left", "right"):
        mask = expected[f"attention_mask_{side}"]
        logits = run(params, tokens_BT=expected[f"input_ids_{side}"], mask_BT=mask)
        theirs = expected[f"logits_{side}"][mask > 0]
        assert np.abs(theirs).max() > 1
        np.testing.assert_allclose(np.asarray(logits)[mask > 0], theirs, rtol=0, atol=TOLERANCE)


#: One folder for each thing that a step with a cache could do otherwise than a whole row: plain, norms of the cached
#: keys, experts, a window, two kinds of layers, positions and queries that are scaled, layers without positions, caps.
#: The other folders differ in what a layer does with a token alone, which `test_logits` compares.
CACHED = ("llama", "qwen3", "qwen3_moe", "mistral", "gemma3", "dynamic", "ministral3", "smollm3", "cohere2", "gemma2")


@pytest.mark.parametrize("name", CACHED)
def test_greedy_continuation(name):
    """Eight tokens through prefill, cache and decode loop from rows of three lengths."""
    spec, params, expected = model(name)
    lengths = expected["attention_mask_right"].sum(axis=1)
    prompts = PromptBatch(
        jnp.asarray(expected["input_ids_right"]), jnp.asarray(lengths), jnp.arange(len(lengths), dtype=jnp.int32)
    )
    greedy = expected["greedy"]
    sampler = jax.jit(functools.partial(generate_samples, spec=spec, samples=1, max_length=greedy.shape[1]))
    rollout = sampler(params, prompts, jax.random.key(0), sampling_params(0.0, 1.0, 0, ()))
    assert len(np.unique(greedy)) > 2
    assert np.asarray(rollout.tokens_BR).tolist() == greedy.tolist()


def test_each_folder_needs_what_its_family_adds():
    """The switches of each family are on, and the window cuts."""
    specs = {name: model(name)[0] for name in DECODERS}
    assert specs["llama"].rope_scaling is not None and specs["qwen2"].qkv_bias
    assert specs["qwen3"].qk_norm and specs["qwen3"].tied_embeddings
    assert specs["qwen3_moe"].experts > specs["qwen3_moe"].experts_per_token > 1
    for name, pattern in (("mistral", "l"), ("gemma3", "llg")):
        assert (specs[name].layer_pattern, specs[name].window) == (pattern, 4)
        assert model(name)[2]["attention_mask_left"].sum(axis=1).min() > 4
    assert specs["gemma3"].local_rope_theta != specs["gemma3"].rope_theta and specs["gemma3"].rope_factor == 8
