"""Where models come from: hub ids, and folders of an object store."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import huggingface_hub
import jax
import numpy as np
import pytest
from huggingface_hub import errors
from tiny_hf import FIXTURES, hf_policy
from tiny_policy import quick_compiles  # noqa: F401
from tiny_store import Store
from tiny_world import policy as own_policy

from pbrl_jax.core.errors import CheckpointError, ConfigError
from pbrl_jax.text.tokenizers import load_tokenizer
from pbrl_jax.weights import hub
from pbrl_jax.weights.comets import load_comet
from pbrl_jax.weights.encoders import load_encoder, save_encoder
from pbrl_jax.weights.hf_decoder import decoder_names, decoder_spec
from pbrl_jax.weights.hf_export import export_policy
from pbrl_jax.weights.hub import copy_remote, is_hub_id, local_copy
from pbrl_jax.weights.policies import load_policy, save_policy
from pbrl_jax.weights.safetensors_file import POINTER
from pbrl_jax.weights.tensors import WEIGHTS, _Leaf, open_weights, resolve_names

ID = "some-owner/Some.Model-1B"


def answering(monkeypatch, error: Exception) -> list[dict]:
    """Lets the hub's client raise; the calls it got."""
    calls = []

    def snapshot(*names, **settings):
        calls.append({"names": names, **settings})
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return calls


def response(status: int) -> SimpleNamespace:
    return SimpleNamespace(status_code=status, headers={}, request=None, text="")


def test_what_reads_as_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("Qwen/Qwen3-0.6B") and is_hub_id("Qwen/Qwen3-0.6B@main") and is_hub_id("a/b@refs/pr/3")
    for other in ("nowhere", "/a/b", "./a/b", "a/b/c", "~/a", "gs://a/b", "a/", "", "../a"):
        assert not is_hub_id(other)
    (tmp_path / "runs").mkdir()
    assert not is_hub_id("runs/first"), "a misspelled folder of one's own is not looked for on the hub"
    assert local_copy("runs/first") == "runs/first"


def test_a_folder_at_home_and_an_address_on_the_web(tmp_path, monkeypatch):
    """In a configuration no shell replaces the `~`, and the preview of a run replaced it alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    export_policy(hf_policy(), str(tmp_path / "models" / "one"))
    policy, tokenizer = load_policy("~/models/one"), load_tokenizer("~/models/one")
    assert policy.spec == hf_policy().spec and tokenizer.fingerprint == policy.tokenizer.fingerprint
    for address in ("https://huggingface.co/Qwen/Qwen3-0.6B", "hf://Qwen/Qwen3-0.6B"):
        with pytest.raises(ConfigError, match="cannot be read.*owner/name for what is on the hub"):
            load_policy(address)


@pytest.mark.parametrize(
    ("error", "messages"),
    [
        (errors.GatedRepoError("x", response=response(403)), [f"{ID} is gated", "set HF_TOKEN", f"/{ID}"]),
        (errors.RepositoryNotFoundError("x", response=response(404)), ["shows no model", "private", "HF_TOKEN"]),
        (errors.HFValidationError("x"), ["shows no model"]),
        (errors.RevisionNotFoundError("x", response=response(404)), ["has no revision 'v9'", "Leave `@v9` out"]),
        (errors.LocalEntryNotFoundError("Got: ConnectError\nmore"), ["be reached (Got: ConnectError)", "folder"]),
        (errors.HfHubHTTPError("503 busy", response=response(503)), ["cannot be reached (503 busy)"]),
        (OSError("disk full"), ["cannot be reached (disk full)"]),
    ],
)
def test_the_hub_says_no(monkeypatch, error, messages):
    calls = answering(monkeypatch, error)
    with pytest.raises(CheckpointError) as found:
        load_policy(f"{ID}@v9")
    assert all(message in str(found.value) for message in messages), str(found.value)
    assert "\n" not in str(found.value)
    assert (calls[0]["names"], calls[0]["revision"]) == ((ID,), "v9")


def test_a_hub_that_cannot_be_reached(monkeypatch):
    """The hub's own client, told that there is no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="'no-such/model' is no folder here, and the hub cannot be reached"):
        load_policy("no-such/model")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_what_is_downloaded(tmp_path, monkeypatch, kind):
    """PyTorch's own files only where there are no others; no copies in other formats."""
    calls = []

    def snapshot(name, **settings):
        calls.append(settings)
        if kind == "safetensors":
            (tmp_path / "model.safetensors").write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert local_copy(ID) == str(tmp_path)
    assert calls[0]["revision"] is None and "*.safetensors" in calls[0]["allow_patterns"]
    assert not any("bin" in pattern for pattern in calls[0]["allow_patterns"])
    assert "original/*" in calls[0]["ignore_patterns"]
    assert len(calls) == (1 if kind == "safetensors" else 2)
    if kind == "bin":
        assert "*pytorch_model*.bin" in calls[1]["allow_patterns"]


@pytest.mark.parametrize("bare", ["", "2_Dense"])
def test_a_module_without_safetensors_gets_its_torch_file(tmp_path, monkeypatch, bare):
    """LaBSE's transformer has safetensors, and its Dense module a torch file."""
    folder, calls = shutil.copytree(FIXTURES / "labse", tmp_path / "labse"), []
    (folder / "2_Dense" / "pytorch_model.bin").unlink()
    if not bare:
        (folder / "model.safetensors").rename(folder / "2_Dense" / "model.safetensors")
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda _, **settings: calls.append(settings["allow_patterns"]) or str(folder),
    )
    assert local_copy(ID) == str(folder) and len(calls) == 2
    assert [pattern for pattern in calls[1] if "bin" in pattern] == [os.path.join(bare, "pytorch_model*.bin")]


def test_a_downloaded_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(FIXTURES / "qwen3"))
    assert load_policy("Qwen/Qwen3-tiny").fingerprint == load_policy(str(FIXTURES / "qwen3")).fingerprint


# Object stores.


def size(folder) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def copied(monkeypatch) -> list[str]:
    """Names of the files of a store that are copied, pointers left out."""
    names, copy = [], hub._copy

    def counted(file, target, progress):
        if not target.endswith(POINTER):
            names.append(file.name)
        copy(file, target, progress)

    monkeypatch.setattr(hub, "_copy", counted)
    return names


def test_a_policy_of_a_bucket_is_read_by_range(bucket, tmp_path, copied):
    """Written there, read there: small files are copied once, weights never lie on this disk."""
    model = bucket / "model"
    export_policy(hf_policy(), "gs://bucket/model")
    (model / "notes.md").write_text("not needed")
    shutil.rmtree(tmp_path / "cache")
    copied.clear(), Store.reads.clear()
    first, local = load_policy("gs://bucket/model"), load_policy(str(model))
    assert jax.tree.all(jax.tree.map(np.array_equal, first.params, local.params))
    assert first.fingerprint == local.fingerprint and first.tokenizer.fingerprint == local.tokenizer.fingerprint
    small = {path.name for path in model.iterdir()} - {"notes.md", WEIGHTS}
    assert sorted(copied) == sorted(small) and size(tmp_path / "cache") < os.path.getsize(model / WEIGHTS)
    assert load_tokenizer("gs://bucket/model").fingerprint == local.tokenizer.fingerprint
    copied.clear()
    place = copy_remote("gs://bucket/model")
    assert not copied
    # Another file of the same size and a later time, and one that is gone.
    (model / "config.json").write_text((model / "config.json").read_text().replace("32768", "32767"))
    os.utime(model / "config.json", (2e9, 2e9))
    (model / "generation_config.json").unlink()
    again = load_policy("gs://bucket/model")
    assert copied == ["config.json"] and again.kept["max_position_embeddings"] == 32767
    assert not os.path.exists(os.path.join(place, "generation_config.json"))


def test_a_part_of_a_parameter_is_a_part_of_the_file(bucket):
    """What one of several hosts reads: a quarter of a kernel's heads is a quarter of its rows, in every layer."""
    shutil.copytree(FIXTURES / "qwen3", bucket / "model")
    tensors = open_weights(copy_remote("gs://bucket/model"))
    config = json.loads((FIXTURES / "qwen3" / "config.json").read_text())
    stored = decoder_names(decoder_spec(config))["layers/query/kernel"]
    names = resolve_names(tensors, decoder_names(decoder_spec(config)))["layers/query/kernel"]
    heads = stored.full_shape()[2]
    index = (slice(None), slice(None), slice(heads // 4, heads // 2), slice(None))
    Store.reads.clear()
    with ThreadPoolExecutor(2) as pool:
        part = _Leaf(tensors, names, stored, np.float32, pool)(index)
    local = open_weights(FIXTURES / "qwen3")
    layers = [local[name].T.reshape(stored.shape) for name in names]
    assert np.array_equal(part, np.stack(layers)[index])
    whole = sum(local[name].nbytes for name in names)
    assert sum(Store.reads.values()) == whole // 4
    Store.reads.clear()
    with ThreadPoolExecutor(2) as pool:
        leaf, width = _Leaf(tensors, names, stored, np.float32, pool), stored.full_shape()[1]
        for columns in (slice(0, width // 2), slice(width // 2, width)):
            index = (slice(None), columns, slice(None), slice(None))
            assert np.array_equal(leaf(index), np.stack(layers)[index])
    assert sum(Store.reads.values()) == whole, "rows that two devices share are read once"


def test_encoders_and_comet_models_of_a_bucket(bucket, tmp_path):
    """Dense modules lie one folder deeper; what torch wrote is copied whole; our own folders are checked and read."""
    for name in ("labse", "bge_m3", "comet_regression"):
        shutil.copytree(FIXTURES / name, bucket / name)
    texts = ["Jibu ni 12.", "答案是 12。"]
    for name in ("labse", "bge_m3"):
        found, local = load_encoder(f"gs://bucket/{name}"), load_encoder(str(FIXTURES / name))
        assert found.fingerprint == local.fingerprint and np.array_equal(found.embed(texts), local.embed(texts))
    save_encoder(found, "gs://bucket/own")
    assert np.array_equal(load_encoder("gs://bucket/own").embed(texts), found.embed(texts))
    comet, local = load_comet("gs://bucket/comet_regression"), load_comet(str(FIXTURES / "comet_regression"))
    assert np.array_equal(comet.score(texts, texts, texts), local.score(texts, texts, texts))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_our_own_folders_of_a_bucket(bucket):
    save_policy(own_policy(), "gs://bucket/run/policy")
    loaded = load_policy("gs://bucket/run")
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, own_policy().params))
    weights = bucket / "run" / "policy" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-4] + b"oops")
    with pytest.raises(CheckpointError, match=f"gs://bucket/run/policy/{WEIGHTS} is damaged"):
        load_policy("gs://bucket/run")


def test_a_copy_that_was_cut_short_is_made_again(bucket, monkeypatch):
    shutil.copytree(FIXTURES / "bge_m3", bucket / "model")
    copy = hub._copy

    def interrupted(file, target, progress):
        if file.name == "pytorch_model.bin":
            with open(f"{target}.part", "wb") as part:
                part.write(b"half")
            raise KeyboardInterrupt
        copy(file, target, progress)

    monkeypatch.setattr(hub, "_copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_encoder("gs://bucket/model")
    monkeypatch.setattr(hub, "_copy", copy)
    assert load_encoder("gs://bucket/model").fingerprint == load_encoder(str(FIXTURES / "bge_m3")).fingerprint


def test_weights_of_a_bucket_that_are_cut_short_or_vanish(bucket, monkeypatch):
    shutil.copytree(FIXTURES / "llama", bucket / "model")
    weights = bucket / "model" / WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    with pytest.raises(CheckpointError, match=f"gs://bucket/model/{WEIGHTS} is truncated"):
        load_policy("gs://bucket/model")
    weights.write_bytes(whole)
    tensor = open_weights(copy_remote("gs://bucket/model"))["model.norm.weight"]
    weights.write_bytes(whole[:200])
    with pytest.raises(CheckpointError, match="has become shorter while it was read"):
        tensor.elements(0, 4)
    weights.unlink()
    with pytest.raises(CheckpointError, match=f"gs://bucket/model/{WEIGHTS} cannot be read"):
        tensor.elements(0, 4)


def test_buckets_that_hold_no_model(bucket):
    (bucket / "empty").mkdir()
    for load in (load_policy, load_encoder, load_comet):
        with pytest.raises(CheckpointError, match="No model in gs://bucket/empty: the folder is empty"):
            load("gs://bucket/empty")
        with pytest.raises(CheckpointError, match="cannot be read .*Check the path"):
            load("gs://bucket/nothing")
    (bucket / "other").mkdir()
    (bucket / "other" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="No policy in 'gs://bucket/other'"):
        load_policy("gs://bucket/other")
