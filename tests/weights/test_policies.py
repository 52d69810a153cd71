"""Policies on disk: bit for bit, refused when damaged or misshapen, on a mesh, and as logits."""

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load, save
from tiny_policy import quick_compiles, tiny_params, tiny_spec  # noqa: F401
from tiny_world import policy, tokenizer

from pbrl_jax import MeshConfig
from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.models.decoder import causal_logits
from pbrl_jax.models.specs import Llama3Scaling
from pbrl_jax.weights import folders
from pbrl_jax.weights.policies import Policy, load_policy, save_policy


def same_bits(left, right) -> bool:
    def same(a, b) -> bool:
        return a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()

    return jax.tree.all(jax.tree.map(same, left, right))


@pytest.fixture
def folder(tmp_path):
    save_policy(policy(), str(tmp_path / "model"))
    return tmp_path / "model"


def rewrite(folder, change) -> None:
    """Change the tensors of a folder, with a checksum that fits."""
    tensors = load((folder / folders.WEIGHTS).read_bytes())
    change(tensors)
    data = save(tensors)
    (folder / folders.WEIGHTS).write_bytes(data)
    record = json.loads((folder / "pbrl_policy.json").read_text())
    record["weights_sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "pbrl_policy.json").write_text(json.dumps(record))


def test_round_trip_bit_for_bit(folder):
    loaded = load_policy(str(folder))
    assert loaded.spec == policy().spec
    assert same_bits(loaded.params, policy().params)
    assert loaded.tokenizer.fingerprint == tokenizer().fingerprint
    assert len(loaded.fingerprint) == 64
    save_policy(loaded, str(folder / "again"))
    assert load_policy(str(folder / "again")).fingerprint == loaded.fingerprint


def test_numbers_that_are_not_finite_neither_come_in_nor_go_out(folder, tmp_path):
    """The tensor is named; what was not written is no model."""

    def spoil(tensors):
        tensors["layers/mlp/up/kernel"][1, 0, 3] = np.nan

    rewrite(folder, spoil)
    with pytest.raises(CheckpointError, match="layers/mlp/up/kernel of .* not finite"):
        load_policy(str(folder))
    scale = policy().params["final_norm"]["scale"].at[0].set(jnp.inf)
    bad = policy()._replace(params={**policy().params, "final_norm": {"scale": scale}})
    with pytest.raises(CheckpointError, match="is not written: final_norm/scale holds numbers that are not finite"):
        save_policy(bad, str(tmp_path / "bad"))
    assert list((tmp_path / "bad").iterdir()) == []


def test_every_switch_of_a_spec_survives_but_those_of_the_machine(tmp_path):
    spec = tiny_spec(
        qk_norm=False, qkv_bias=True, tied_embeddings=False, rope_scaling=Llama3Scaling(factor=4.0), rope_theta=5e5,
        dtype="bfloat16", remat="full", attention="chunked",
    )  # fmt: skip
    save_policy(Policy(spec, tiny_params(spec), tokenizer(), ""), str(tmp_path))
    loaded = load_policy(str(tmp_path))
    assert loaded.spec == dataclasses.replace(spec, remat="none", attention="auto")
    assert same_bits(loaded.params, tiny_params(spec))


def test_a_work_directory_stands_for_the_policy_in_it(tmp_path):
    save_policy(policy(), str(tmp_path / "policy"))
    assert same_bits(load_policy(str(tmp_path)).params, policy().params)
    with pytest.raises(CheckpointError, match="neither pbrl_policy.json nor policy/pbrl_policy.json"):
        load_policy(str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match="No encoder in"):
        folders.model_folder(str(tmp_path), "encoder")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match=r"has not ended: it has checkpoints, but no encoder/ yet.*max-steps N"):
        folders.model_folder(str(tmp_path), "encoder")


def test_a_quickstart_s_work_directory_stands_for_what_it_trained(tmp_path):
    for stage in ("rl/policy", "sft/policy"):
        save_policy(policy(), str(tmp_path / stage))
    (tmp_path / "encoder" / "encoder").mkdir(parents=True)
    (tmp_path / "encoder" / "encoder" / "pbrl_encoder.json").write_text("{}")
    assert folders.model_folder(str(tmp_path), "policy") == tmp_path / "rl" / "policy"
    assert folders.model_folder(str(tmp_path), "encoder") == tmp_path / "encoder" / "encoder"


@pytest.mark.parametrize("place", [20, -1, -5000])
def test_one_flipped_bit_is_found(folder, place):
    """In the header, at the end, in the middle."""
    data = bytearray((folder / folders.WEIGHTS).read_bytes())
    data[place] ^= 4
    (folder / folders.WEIGHTS).write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="is damaged: its checksum"):
        load_policy(str(folder))


def test_torn_and_missing_files_are_found(folder):
    whole = (folder / "pbrl_policy.json").read_text()
    for torn in (whole[:40], "{}", json.dumps({"spec": {"wide": 3}, "weights_sha256": ""}), "[1]"):
        (folder / "pbrl_policy.json").write_text(torn)
        with pytest.raises(CheckpointError, match="is not what this version writes"):
            load_policy(str(folder))
    (folder / "pbrl_policy.json").write_text(whole)
    (folder / folders.WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="holds no model.safetensors"):
        load_policy(str(folder))


def test_a_save_that_breaks_off_leaves_no_policy(folder, monkeypatch):
    """The old spec goes first and the new one comes last: half-written weights are never taken for a policy."""

    def full_disk(*_):
        raise OSError("disk full")

    monkeypatch.setattr(type(tokenizer()), "save", full_disk)
    with pytest.raises(OSError, match="disk full"):
        save_policy(policy(), str(folder))
    with pytest.raises(CheckpointError, match="No policy in"):
        load_policy(str(folder))


def test_all_tensors_that_do_not_fit_are_listed_at_once(folder):
    def change(tensors):
        tensors["extra/kernel"] = np.zeros(3, np.float32)
        del tensors["final_norm/scale"]
        tensors["embed"] = tensors["embed"][:-1]

    rewrite(folder, change)
    vocab, width = policy().spec.vocab_size, policy().spec.width
    with pytest.raises(CheckpointError) as found:
        load_policy(str(folder))
    for line in (
        "extra/kernel: not a parameter of this spec",
        f"final_norm/scale: expected ({width},), found None",
        f"embed: expected ({vocab}, {width}), found ({vocab - 1}, {width})",
    ):
        assert line in str(found.value)
    assert str(found.value).count(";") == 2


TOKENS = np.array([[5, 6, 7, 8], [9, 10, 0, 0]])
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)


def test_logits_are_those_of_the_model_and_jit(folder):
    loaded = load_policy(str(folder))
    arguments = (loaded.params, jnp.asarray(TOKENS), jnp.asarray(MASK))
    found = jax.jit(loaded.logits)(*arguments)
    expected = causal_logits(policy().params, policy().spec, jnp.asarray(TOKENS), jnp.asarray(MASK))
    assert found.shape == (2, 4, policy().spec.vocab_size) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_another_compute_type(folder):
    """Parameters stay float32; logits are float32 and differ by bfloat16's 8 bits."""
    loaded, half = load_policy(str(folder)), load_policy(str(folder), dtype="bfloat16")
    assert half.spec == dataclasses.replace(loaded.spec, dtype="bfloat16")
    assert same_bits(half.params, loaded.params)
    exact, rough = (p.logits(p.params, jnp.asarray(TOKENS), jnp.asarray(MASK))[MASK] for p in (loaded, half))
    assert rough.dtype == jnp.float32
    error = float(jnp.abs(exact - rough).max() / jnp.abs(exact).max())
    assert 1e-5 < error < 0.05


@pytest.mark.serial
def test_a_policy_on_a_mesh(folder):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    loaded = load_policy(str(folder), mesh=mesh)
    assert same_bits(jax.device_get(loaded.params), jax.device_get(policy().params))
    up = loaded.params["layers"]["mlp"]["up"]["kernel"]
    assert up.sharding.mesh == mesh
    assert up.addressable_shards[0].data.size * 4 == up.size, "width over fsdp, ffn over tensor"
    found = jax.jit(loaded.logits)(loaded.params, jnp.asarray(TOKENS), jnp.asarray(MASK))
    expected = policy().logits(policy().params, jnp.asarray(TOKENS), jnp.asarray(MASK))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name, message", [("model.safetensors", "is a file; exp"), ("x.gguf", "GGUF is not read")])
def test_a_file_is_no_folder(folder, name, message):
    (folder / name).touch()
    with pytest.raises(CheckpointError, match=message):
        load_policy(str(folder / name))
