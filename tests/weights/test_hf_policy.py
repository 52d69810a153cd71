"""Hugging Face folders in and out: what transformers computes, bit for bit back, and bad folders refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_hf import DECODERS, FIXTURES, GENERATION, hf_policy, hf_tokenizer
from tiny_policy import quick_compiles, tiny_params, tiny_spec  # noqa: F401
from tiny_world import policy as own_policy
from transformers import AutoTokenizer

from configs.tiny_cpu import get_config
from pbrl_jax import MeshConfig, with_values
from pbrl_jax.core.errors import CheckpointError, ConfigError, DataError
from pbrl_jax.core.paths import work_dir
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.models.specs import Llama3Scaling
from pbrl_jax.run.assemble import run_policy
from pbrl_jax.text.tokenizers import load_tokenizer
from pbrl_jax.train.start import start_params
from pbrl_jax.weights import hf_export, writing
from pbrl_jax.weights.folders import check_vocabulary
from pbrl_jax.weights.hf_export import export_policy
from pbrl_jax.weights.policies import Policy, load_policy, save_policy
from pbrl_jax.weights.safetensors_file import Planned
from pbrl_jax.weights.writing import file_plan


def same_bits(left, right) -> bool:
    def same(a, b) -> bool:
        return a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()

    return jax.tree.all(jax.tree.map(same, left, right))


@pytest.fixture
def folder(tmp_path):
    """An exported policy."""
    export_policy(hf_policy(), str(tmp_path / "model"))
    return tmp_path / "model"


def change_config(folder, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def tensors_of(folder) -> dict[str, np.ndarray]:
    return {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}


@pytest.mark.parametrize("family", DECODERS)
def test_each_family_computes_what_transformers_does_and_goes_back_bit_for_bit(family, tmp_path):
    """The fixtures' weights and logits are transformers' own, and so must the exported tensors be."""
    source = FIXTURES / family
    policy, expected = load_policy(str(source)), np.load(source / "expected.npz")
    logits = jax.jit(policy.logits)
    for side in ("left", "right"):
        mask = expected[f"attention_mask_{side}"].astype(bool)
        found = logits(policy.params, jnp.asarray(expected[f"input_ids_{side}"]), jnp.asarray(mask))
        np.testing.assert_allclose(np.asarray(found)[mask], expected[f"logits_{side}"][mask], atol=1e-5, rtol=0)
    export_policy(policy, str(tmp_path))
    theirs, ours = tensors_of(source), tensors_of(tmp_path)
    assert theirs.keys() == ours.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)
    assert all(ours[name].shape == theirs[name].shape for name in theirs)
    again = load_policy(str(tmp_path))
    assert again.spec == policy.spec and same_bits(again.params, policy.params)


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"qk_norm": False, "tied_embeddings": False, "rope_scaling": Llama3Scaling(original_max_position=16)}],
    ids=["qwen3", "llama"],
)
def test_round_trip_bit_for_bit_in_both_types(tmp_path, changes, stored):
    spec = tiny_spec(vocab_size=272, dtype=stored, **changes)
    policy = Policy(spec, tiny_params(spec, dtype=jnp.dtype(stored)), hf_tokenizer(), "")
    export_policy(policy, str(tmp_path))
    loaded = load_policy(str(tmp_path), param_dtype="stored")
    assert loaded.spec == spec and same_bits(loaded.params, policy.params)
    wide = load_policy(str(tmp_path))
    assert {leaf.dtype for leaf in jax.tree.leaves(wide.params)} == {np.dtype(np.float32)}, "what training wants"
    assert same_bits(jax.tree.map(lambda x: x.astype(stored), wide.params), policy.params)
    assert {array.dtype for array in tensors_of(tmp_path).values()} == {np.dtype(jnp.dtype(stored))}


def test_the_folder_is_whole(folder):
    """Configuration, token ids, all ends of a response, sampling settings, chat template."""
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["torch_dtype"], config["vocab_size"]) == ("qwen3", "float32", 272)
    assert (config["bos_token_id"], config["pad_token_id"]) == (0, 4)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {**GENERATION, "eos_token_id": [1, 3]}
    loaded = load_policy(str(folder))
    assert loaded.tokenizer.eos_ids == (1, 3)
    messages = [{"role": "user", "content": "2 + 2?"}]
    assert loaded.tokenizer.encode_chat(messages) == hf_tokenizer().encode_chat(messages)
    assert loaded.tokenizer.fingerprint == hf_tokenizer().fingerprint
    with open(folder / "model.safetensors", "rb") as file:
        assert b'"__metadata__":{"format":"pt"}' in file.read(200), "transformers asks for it"


def test_fields_that_no_forward_pass_reads_come_back(folder, tmp_path):
    """Context length and token ids of a released model survive training's own format and the export."""
    change_config(folder, max_position_embeddings=131072, bos_token_id=None, eos_token_id=[3, 1])
    loaded = load_policy(str(folder))
    save_policy(loaded, str(tmp_path / "own"))
    back = load_policy(str(tmp_path / "own"))
    assert back.kept == loaded.kept and same_bits(back.params, loaded.params)
    export_policy(back, str(tmp_path / "again"))
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (config["max_position_embeddings"], config["bos_token_id"]) == (131072, None)
    assert config["eos_token_id"] == [3, 1]


def test_types_are_those_asked_for(folder, tmp_path):
    tokens, mask = jnp.asarray([[5, 6, 7, 8]]), jnp.ones((1, 4), bool)
    exact = load_policy(str(folder))
    half = load_policy(str(folder), dtype="bfloat16", param_dtype="bfloat16")
    assert (exact.spec.dtype, half.spec.dtype) == ("float32", "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {np.dtype(ml_dtypes.bfloat16)}
    expected, found = (p.logits(p.params, tokens, mask) for p in (exact, half))
    assert found.dtype == jnp.float32
    assert 1e-5 < float(jnp.abs(found - expected).max() / jnp.abs(expected).max()) < 0.05
    export_policy(exact, str(tmp_path / "half"), "bfloat16")
    stored = load_policy(str(tmp_path / "half"), param_dtype="stored")
    assert same_bits(stored.params, half.params) and stored.spec.dtype == "bfloat16"
    mixed = half._replace(params=half.params | {"final_norm": exact.params["final_norm"]})  # norms in float32
    export_policy(mixed, str(tmp_path / "mixed"))
    again = load_policy(str(tmp_path / "mixed"), param_dtype="stored")
    assert same_bits(again.params["final_norm"], exact.params["final_norm"])
    for wrong in ({"dtype": "fp8"}, {"param_dtype": "half"}):
        with pytest.raises(ConfigError, match="expected float32, bfloat16"):
            load_policy(str(folder), **wrong)
    with pytest.raises(ConfigError, match="dtype is 'stored'; expected float32 or bfloat16"):
        export_policy(exact, str(tmp_path / "x"), "stored")


def test_several_files_and_an_index(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "LARGEST_FILE", 9000)
    several = tmp_path / "several"
    several.mkdir()
    (several / "model.safetensors").write_bytes(b"of an earlier export")
    export_policy(hf_policy(), str(several))
    index = json.loads((several / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in several.glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) == 3 and set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors_of(several).values())
    assert index["weight_map"].keys() == tensors_of(folder).keys()
    one, many = load_policy(str(folder)), load_policy(str(several))
    assert same_bits(one.params, many.params) and one.fingerprint == many.fingerprint
    monkeypatch.undo()
    export_policy(many, str(several))
    assert [path.name for path in several.glob("model*")] == ["model.safetensors"], "no file of the old export is left"


def test_files_are_filled_in_order():
    sizes = [6, 4, 4, 20, 1, 1]
    planned = [Planned(str(place), (size,), np.dtype(np.uint8)) for place, size in enumerate(sizes)]
    assert [[tensor.size for tensor in file] for file in file_plan(planned, 10)] == [[6, 4], [4], [20], [1, 1]]


def test_the_fingerprint_is_that_of_the_model_and_not_of_the_folder(folder, tmp_path):
    first = load_policy(str(folder)).fingerprint
    assert len(first) == 64
    shutil.copytree(folder, tmp_path / "copy")
    change_config(tmp_path / "copy", transformers_version="9.9", _name_or_path="elsewhere")
    assert load_policy(str(tmp_path / "copy")).fingerprint == first
    change_config(tmp_path / "copy", rope_theta=5e5)
    assert load_policy(str(tmp_path / "copy")).fingerprint != first
    tensors = tensors_of(folder)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.01
    save_file(tensors, folder / "model.safetensors")
    assert load_policy(str(folder)).fingerprint != first


def test_nothing_of_an_earlier_model_stays(tmp_path):
    export_policy(hf_policy(), str(tmp_path))
    assert (tmp_path / "chat_template.jinja").exists()
    export_policy(hf_policy()._replace(tokenizer=hf_tokenizer(None)), str(tmp_path))
    assert load_tokenizer(str(tmp_path)).tokenizer.chat_template is None


def test_a_policy_born_here_keeps_its_own_vocabulary(tmp_path):
    export_policy(own_policy(), str(tmp_path))
    loaded = load_policy(str(tmp_path))
    assert loaded.spec == own_policy().spec and same_bits(loaded.params, own_policy().params)
    assert loaded.tokenizer.fingerprint == own_policy().tokenizer.fingerprint
    theirs, text = AutoTokenizer.from_pretrained(str(tmp_path)), "Lina has 12 cards. 答案是 3。"
    assert theirs(text)["input_ids"] == [1, *own_policy().tokenizer.encode(text)], "transformers reads the folder too"
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 2


def test_a_model_without_a_tokenizer_can_be_looked_at():
    policy = load_policy(str(FIXTURES / "llama"))
    for use in (lambda t: t.encode("x"), lambda t: t.eos_ids, lambda t: t.save("x")):
        with pytest.raises(DataError, match="llama' has no tokenizer: none of tokenizer.json"):
            use(policy.tokenizer)


# Exports that fail.


def test_an_export_that_reads_back_differently_is_no_model(tmp_path, monkeypatch):
    """Another rope_theta in config.json, or one other bit in a tensor: the logits or the parameter tell."""
    right = hf_export.hf_config
    monkeypatch.setattr(hf_export, "hf_config", lambda *a: {**right(*a), "rope_theta": 77.0})
    with pytest.raises(CheckpointError, match="reads back differently: logits differ by .*config.json is removed"):
        export_policy(hf_policy(), str(tmp_path / "a"))
    assert not (tmp_path / "a" / "config.json").exists()
    monkeypatch.undo()
    write = writing.write_safetensors

    def one_bit(path, *arguments):
        write(path, *arguments)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))

    monkeypatch.setattr(writing, "write_safetensors", one_bit)
    with pytest.raises(CheckpointError, match="reads back differently: final_norm/scale differs|[a-z/_]+ differs"):
        export_policy(hf_policy(), str(tmp_path / "b"))
    with pytest.raises(CheckpointError, match="No policy in"):
        load_policy(str(tmp_path / "b"))


def test_a_torn_export_is_no_model(folder, monkeypatch):
    """config.json goes first and comes last."""

    def full_disk(*_):
        raise OSError("disk full")

    monkeypatch.setattr(writing, "write_safetensors", full_disk)
    with pytest.raises(OSError, match="disk full"):
        export_policy(hf_policy(), str(folder))
    with pytest.raises(CheckpointError, match="No policy in"):
        load_policy(str(folder))


def test_exports_that_are_refused(tmp_path):
    save_policy(own_policy(), str(tmp_path))
    with pytest.raises(CheckpointError, match="holds a policy of this package, which would be lost"):
        export_policy(own_policy(), str(tmp_path))
    odd = hf_policy()._replace(spec=dataclasses.replace(hf_policy().spec, qkv_bias=True))
    with pytest.raises(CheckpointError, match="No model family of transformers has .*qkv_bias.*Known: llama"):
        export_policy(odd, str(tmp_path / "odd"))
    assert not (tmp_path / "odd").exists()


# Folders that are refused.


def test_no_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="No policy in .*nor the config.json of a Hugging Face model"):
        load_policy(str(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json in .* is not JSON"),
        ('{"model_type": "mamba"}', "model_type is 'mamba', which no decoder here has. Known: .*llama.*qwen3"),
        ('{"architectures": ["X"]}', "model_type is None"),
        ('{"policy": {"source": "random"}}', "No policy in"),
        ("[]", "No policy in"),
    ],
)
def test_a_config_that_is_not_understood(folder, content, message):
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_policy(str(folder))


def test_weights_that_are_damaged_or_of_another_model(folder):
    tensors, path = tensors_of(folder), folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="model.safetensors is truncated"):
        load_policy(str(folder))
    wrong = "model.layers.1.mlp.up_proj.weight"
    save_file({**tensors, wrong: tensors[wrong][:-1], "model.layers.9.x": np.zeros(2)}, path)
    with pytest.raises(CheckpointError) as found:
        load_policy(str(folder))
    assert f"{wrong} has shape (23, 16), expected one that read as its transpose is (16, 24)" in str(found.value)
    assert "model.layers.9.x is unexpected" in str(found.value)
    path.write_bytes(whole)
    change_config(folder, num_hidden_layers=3, layer_types=None)
    with pytest.raises(CheckpointError, match="model.layers.2.self_attn.q_proj.weight is missing"):
        load_policy(str(folder))
    path.unlink()
    with pytest.raises(CheckpointError, match="No weights in"):
        load_policy(str(folder))


def test_a_tokenizer_that_is_too_large(folder):
    hf_tokenizer(more=20).save(str(folder))
    with pytest.raises(CheckpointError) as found:
        load_policy(str(folder))
    message = str(found.value)
    assert "has 281 ids, but the embedding has 272 rows; without one: '<extra_11>' (272)" in message
    assert "Take the tokenizer that belongs to these weights" in message


def test_ends_of_a_response_must_have_an_embedding(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 900]}')
    with pytest.raises(CheckpointError, match=r"without one: \[900\]"):
        load_policy(str(folder))


def test_pieces_that_nothing_makes_need_no_embedding(tmp_path):
    """Gemma 3's text models have one such; a vocabulary trained here has none."""
    hf_tokenizer().save(str(tmp_path))
    check_vocabulary(load_tokenizer(str(tmp_path)), 261, "whole")
    gemmas = load_tokenizer(str(tmp_path))
    gemmas.tokenizer.add_tokens(["<image_soft_token>"])
    check_vocabulary(gemmas, 261, "Gemma 3's")
    gemmas.tokenizer.add_tokens(["<other>"])
    with pytest.raises(CheckpointError, match=r"without one: '<other>' \(262\)\."):
        check_vocabulary(gemmas, 261, "cut")
    own = own_policy().tokenizer
    check_vocabulary(own, own.vocab_size, "own")
    with pytest.raises(CheckpointError, match="has 600 ids, but the embedding has 599 rows"):
        check_vocabulary(own, 599, "own")


@pytest.mark.serial
@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma3"])
def test_a_sharded_load_equals_the_unsharded_one(family, tmp_path):
    """data 2, fsdp 2, tensor 2: the same bits, a quarter of each matrix per device, the same logits, and out again."""
    mesh = make_mesh(MeshConfig(2, 2, 2))
    alone, sharded = load_policy(str(FIXTURES / family)), load_policy(str(FIXTURES / family), mesh=mesh)
    assert same_bits(jax.device_get(sharded.params), jax.device_get(alone.params))
    query = sharded.params["layers"]["query"]["kernel"]
    assert query.sharding.mesh == mesh and query.addressable_shards[0].data.size * 4 == query.size
    tokens, mask = jnp.arange(24).reshape(2, 12), jnp.ones((2, 12), bool)
    found, expected = (np.asarray(jax.jit(p.logits)(p.params, tokens, mask)) for p in (sharded, alone))
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    export_policy(sharded, str(tmp_path))
    assert same_bits(load_policy(str(tmp_path)).params, jax.device_get(alone.params))


@pytest.mark.serial
def test_a_run_loads_its_policy_over_its_mesh():
    """No device ever holds the whole of it, and the reference is the same memory."""
    config = with_values(
        get_config(), policy={"source": str(FIXTURES / "llama")}, mesh={"data": 2, "fsdp": 2, "tensor": 2}
    )
    policy, mesh = run_policy(config, work_dir("runs/none"), []), make_mesh(config.mesh)
    for path in ("query", "out"):
        kernel = policy.params["layers"][path]["kernel"]
        assert kernel.sharding.mesh == mesh and kernel.addressable_shards[0].data.size * 4 == kernel.size
    frozen = start_params(policy, config, mesh)
    shards = [leaf.addressable_shards for leaf in jax.tree.leaves((policy.params, frozen))]
    places = [[shard.data.unsafe_buffer_pointer() for shard in one] for one in shards]
    assert places[: len(places) // 2] == places[len(places) // 2 :]


@pytest.mark.parametrize("change", [0.0, 1.0])
def test_a_head_of_its_own_is_not_tied_whatever_the_config_says(folder, change):
    """As in transformers 5 and vLLM. A head that repeats the embedding is tied; exported again, each stays so."""
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + np.float32(change)
    save_file(tensors, folder / "model.safetensors")
    change_config(folder, tie_word_embeddings=True)
    policy = load_policy(str(folder))
    assert policy.spec.tied_embeddings == (change == 0)
    tokens, mask = jnp.array([[1, 5, 9]]), jnp.ones((1, 3), bool)
    untied = dataclasses.replace(policy.spec, tied_embeddings=False)
    params = {**policy.params, "lm_head": jnp.asarray(tensors["lm_head.weight"]).T}
    wanted = policy._replace(spec=untied).logits(params, tokens, mask)
    np.testing.assert_allclose(policy.logits(policy.params, tokens, mask), wanted, atol=1e-5)
    export_policy(policy, str(folder / "again"))
    assert json.loads((folder / "again" / "config.json").read_text())["tie_word_embeddings"] == (change == 0)


def test_tokenizer_files_travel_unchanged(folder, tmp_path):
    """What this version of transformers would write for them (another tokenizer_class, a list of
    extra_special_tokens) older versions do not read."""
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<|im_end|>"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=3))
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<s>"}')
    policy = load_policy(str(folder))
    export_policy(policy, str(tmp_path / "again"))
    save_policy(policy, str(tmp_path / "own"))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        for place in ("again", "own"):
            assert (tmp_path / place / name).read_bytes() == (folder / name).read_bytes(), name
