"""LoRA adapters in PEFT's form: folders that PEFT wrote against its own logits, fields that change the model, and the
adapters of a run. `PBRL_PEERS_PYTHON` names a Python with torch, transformers and peft that loads ours back."""

import json
import os
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_hf import FIXTURES, hf_policy, hf_tokenizer
from tiny_policy import quick_compiles  # noqa: F401

from configs.tiny_cpu import get_config
from pbrl_jax import LoraConfig
from pbrl_jax.checkpoint import save_checkpoint
from pbrl_jax.config.serialize import to_json
from pbrl_jax.config.tree import with_values
from pbrl_jax.core.errors import CheckpointError, ConfigError, PbrlError
from pbrl_jax.core.paths import work_dir
from pbrl_jax.models.lora import init_adapters, merge_adapters
from pbrl_jax.plan.shapes import run_models
from pbrl_jax.run.convert import main as convert
from pbrl_jax.run.settings import config_class
from pbrl_jax.weights.hf_export import export_policy
from pbrl_jax.weights.policies import load_policy, save_policy

CASES = ("peft_lora", "peft_rslora", "peft_dora", "peft_head", "peft_embed")
CHANGED = "adapter_config.json"


def difference(policy, expected) -> float:
    """From PEFT's logits at the real tokens."""
    mask = expected["mask"]
    logits = jax.jit(policy.logits)(policy.params, jnp.asarray(expected["input_ids"]), jnp.asarray(mask))
    return float(np.abs(np.asarray(logits) - expected["logits"])[mask > 0].max())


@pytest.mark.parametrize("name", CASES)
def test_logits_of_the_adapted_model(name):
    """Ranks and alphas by pattern, rsLoRA, DoRA, modules saved whole, an embedding that is no longer tied."""
    policy, expected = load_policy(str(FIXTURES / name)), np.load(FIXTURES / name / "expected.npz")
    assert difference(policy, expected) < 2e-5
    assert difference(load_policy(str(FIXTURES / "qwen3")), expected) > 0.1, "the adapter is felt"
    assert policy.spec.tied_embeddings == (name not in ("peft_head", "peft_embed"))


def test_an_adapter_may_keep_the_output_matrix_tied(tmp_path):
    """PEFT's ensure_weight_tying: the trained embedding is the output matrix, too."""
    place = shutil.copytree(FIXTURES / "peft_embed", tmp_path / "adapter")
    change(place, base_model_name_or_path=str(FIXTURES / "qwen3"), ensure_weight_tying=True)
    tied, own = load_policy(str(place)), load_policy(str(FIXTURES / "peft_embed"))
    assert tied.spec.tied_embeddings and tied.fingerprint != own.fingerprint
    assert np.array_equal(tied.params["embed"], own.params["embed"])


@pytest.fixture
def folder(tmp_path):
    """A copy of an adapter that a test changes; its base is the fixture."""
    place = shutil.copytree(FIXTURES / "peft_lora", tmp_path / "adapter")
    change(place, base_model_name_or_path=str(FIXTURES / "qwen3"))
    return place


def change(folder, **fields):
    config = json.loads((folder / CHANGED).read_text()) | fields
    (folder / CHANGED).write_text(json.dumps(config))


def test_each_adapter_is_a_policy_of_its_own(folder):
    first = load_policy(str(folder))
    change(folder, lora_alpha=6)
    other = load_policy(str(folder), param_dtype="stored")
    base = load_policy(str(FIXTURES / "qwen3"))
    assert len({policy.fingerprint for policy in (first, other, base)}) == 3
    config = with_values(get_config(), policy={"source": str(folder)})
    assert run_models(config).policy.layers == base.spec.layers, "planned as its base"
    assert first.fingerprint == load_policy(str(FIXTURES / "peft_lora")).fingerprint


@pytest.mark.parametrize("base", ["qwen3", "mistral"])
def test_an_embedding_that_was_resized_for_more_tokens(base, folder):
    """PEFT saves it with the adapter; a tied output matrix is still tied."""
    change(folder, base_model_name_or_path=str(FIXTURES / base))
    plain = load_policy(str(FIXTURES / base))
    rows, width = plain.spec.vocab_size + 3, plain.spec.width
    new = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)
    tensors = {"base_model.model.model.embed_tokens.weight": new}
    if not plain.spec.tied_embeddings:
        tensors["base_model.model.lm_head.weight"] = 2 * new
    save_file(tensors, folder / "adapter_model.safetensors")
    policy = load_policy(str(folder))
    assert policy.spec.vocab_size == rows and policy.spec.tied_embeddings == plain.spec.tied_embeddings
    assert np.array_equal(policy.params["embed"], new)
    assert policy.spec.tied_embeddings or np.array_equal(policy.params["lm_head"], 2 * new.T)


def test_a_tokenizer_beside_an_adapter_stops_where_the_base_says(folder, tmp_path):
    """PEFT's folder has no generation_config.json; Gemma's and Llama's ends of a turn are in that of the base."""
    base = tmp_path / "base"
    export_policy(hf_policy(), str(base))
    change(folder, base_model_name_or_path=str(base), target_modules=[])
    hf_tokenizer().save(str(folder))
    (folder / "generation_config.json").unlink()
    scale = np.zeros((hf_policy().spec.width,), np.float32)
    save_file({"base_model.model.model.norm.weight": scale}, folder / "adapter_model.safetensors")
    policy = load_policy(str(folder))
    assert policy.tokenizer.eos_ids == hf_tokenizer().eos_ids == (1, 3)
    assert policy.tokenizer.generation_config["temperature"] == 0.6


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'.*'LORA'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"new_scale": 2}, "not understood: new_scale=2"),
        ({"base_model_name_or_path": None}, "expected the folder or hub id"),
        ({"base_model_name_or_path": ["x"]}, "expected the folder or hub id"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern is .*; expected an object of modules and their alpha"),
        ({"base_model_name_or_path": str(FIXTURES / "llama")}, "q_proj has adapters of .* its matrix is"),
    ],
)
def test_what_changes_the_model_is_refused_by_name(folder, fields, message):
    change(folder, **fields)
    with pytest.raises(CheckpointError, match=message):
        load_policy(str(folder))


def test_a_magnitude_of_another_size_is_refused(folder):
    """DoRA's of an embedding is one number a column."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("q_proj.lora_A.weight"))
    magnitude = name.replace("lora_A.weight", "lora_magnitude_vector")
    save_file({**tensors, magnitude: np.ones((1, 3), np.float32)}, file)
    with pytest.raises(CheckpointError, match="q_proj has a magnitude of 3, its matrix has"):
        load_policy(str(folder))


def test_a_tensor_without_a_place_is_refused(folder):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "base_model.model.score.weight": np.ones(2, np.float32)}, file)
    with pytest.raises(CheckpointError, match="score.weight has no place in the base"):
        load_policy(str(folder))
    del tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="layers.0.self_attn.q_proj has lora_A alone"):
        load_policy(str(folder))
    file.unlink()
    with pytest.raises(CheckpointError, match="no adapter_model.safetensors"):
        load_policy(str(folder))


def test_a_base_of_our_own_form_is_converted_first(folder, tmp_path):
    save_policy(hf_policy(), str(tmp_path / "own"))
    change(folder, base_model_name_or_path=str(tmp_path / "own"))
    with pytest.raises(CheckpointError, match="pbrl convert POLICY BASE"):
        load_policy(str(folder))


def test_a_base_that_cannot_be_read_names_the_adapter(folder, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{")
    change(folder, base_model_name_or_path=str(tmp_path / "base"))
    with pytest.raises(PbrlError, match="adapter' is a LoRA adapter for '.*base', which cannot be read.*not JSON"):
        load_policy(str(folder))


def lora_run(root, prefix=("state",), **policy):
    """(work directory with a checkpoint of random adapters beside `qwen3`, the merged parameters)."""
    base, lora = load_policy(str(FIXTURES / "qwen3")), LoraConfig(rank=2, alpha=6.0, targets=("query", "out", "down"))
    fresh = init_adapters(jax.random.key(1), base.params, base.spec, lora)
    noise = np.random.default_rng(0)
    adapters = jax.tree.map(lambda x: x + jnp.asarray(0.3 * noise.normal(size=x.shape), x.dtype), fresh)
    work, tree = work_dir(root), {"params": adapters, "opt_state": {"mu": adapters}}
    for name in prefix:
        tree = {name: tree}
    save_checkpoint(work.checkpoints, 7, tree, {}, keep=1)
    source = {"source": str(FIXTURES / "qwen3"), **policy}
    work.config.write_text(to_json(with_values(config_class()(), policy=source, lora={"rank": 2, "alpha": 6.0})))
    return work, merge_adapters(base.params, adapters, lora)


@pytest.mark.parametrize("prefix", [("state",), ()])
def test_the_adapters_of_a_run(tmp_path, capsys, prefix):
    """Of `pbrl train` and of the supervised stages: read again on their base they are the merged policy."""
    _, merged = lora_run(tmp_path / "run", prefix)
    convert(str(tmp_path / "run"), str(tmp_path / "out"), form="adapter")
    assert "the adapters of step 7" in capsys.readouterr().out
    found = load_policy(str(tmp_path / "out")).params
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-6), found, merged))


def test_runs_without_adapters_for_others(tmp_path):
    with pytest.raises(ConfigError, match="no config.json of a run"):
        convert(str(tmp_path), str(tmp_path / "out"), form="adapter")
    lora_run(tmp_path / "random", source="random")
    with pytest.raises(ConfigError, match="began with random weights.*whole policy"):
        convert(str(tmp_path / "random"), str(tmp_path / "out"), form="adapter")
    save_policy(hf_policy(), str(tmp_path / "own"))
    lora_run(tmp_path / "ours", source=str(tmp_path / "own"))
    with pytest.raises(CheckpointError, match="no decoder .* to put the adapters on"):
        convert(str(tmp_path / "ours"), str(tmp_path / "out"), form="adapter")
    lora_run(tmp_path / "phi", source=str(FIXTURES / "phi3"))
    with pytest.raises(CheckpointError, match="query, key and value in one matrix.*the whole policy"):
        convert(str(tmp_path / "phi"), str(tmp_path / "out"), form="adapter")


LOAD = """
import sys, numpy as np, torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
with torch.no_grad():
    logits = model(input_ids=torch.arange(1, 9)[None]).logits
    merged = model.merge_and_unload()(input_ids=torch.arange(1, 9)[None]).logits
assert (logits - merged).abs().max() < 1e-4
np.save(sys.argv[2], logits.numpy())
"""


@pytest.mark.skipif("PBRL_PEERS_PYTHON" not in os.environ, reason="PBRL_PEERS_PYTHON: a Python with torch and peft")
def test_peft_loads_what_a_run_wrote(tmp_path):
    lora_run(tmp_path / "run")
    convert(str(tmp_path / "run"), str(tmp_path / "out"), form="adapter")
    theirs = tmp_path / "logits.npy"
    command = [os.environ["PBRL_PEERS_PYTHON"], "-c", LOAD, str(tmp_path / "out"), str(theirs)]
    subprocess.run(command, check=True, env={"PATH": os.environ["PATH"]})
    policy = load_policy(str(tmp_path / "out"))
    tokens = jnp.arange(1, 9)[None]
    ours = policy.logits(policy.params, tokens, jnp.ones(tokens.shape, bool))
    np.testing.assert_allclose(ours, np.load(theirs), atol=2e-5)
