"""Where models come from: hub ids, and folders of an object store copied once."""

import os
import shutil
from types import SimpleNamespace

import huggingface_hub
import jax
import numpy as np
import pytest
from huggingface_hub import errors
from tiny_hf import FIXTURES, hf_policy
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import policy as own_policy

from pbrl_jax.assets import hub
from pbrl_jax.assets.hf_export import export_policy
from pbrl_jax.assets.hub import copy_remote, is_hub_id, local_copy
from pbrl_jax.assets.policy import load_policy, save_policy
from pbrl_jax.core.errors import CheckpointError

ID = "some-owner/Some.Model-1B"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A local folder that is treated as an object store, and an empty cache."""
    root = tmp_path / "bucket"
    root.mkdir()
    monkeypatch.setenv(hub.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "is_remote", lambda path: os.fspath(path).startswith(str(root)))
    return root


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


def test_a_downloaded_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(FIXTURES / "qwen3"))
    assert load_policy("Qwen/Qwen3-tiny").fingerprint == load_policy(str(FIXTURES / "qwen3")).fingerprint


# Object stores.


def test_models_of_a_bucket_are_copied_once(bucket, tmp_path, monkeypatch):
    model = bucket / "model"
    export_policy(hf_policy(), str(tmp_path / "local"))
    shutil.copytree(tmp_path / "local", model)
    (model / "notes.md").write_text("not needed")
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text("{}")
    copied = []
    copy = hub._copy
    monkeypatch.setattr(hub, "_copy", lambda file, *rest: copied.append(file.name) or copy(file, *rest))
    first = load_policy(str(model))
    assert first.fingerprint == load_policy(str(tmp_path / "local")).fingerprint
    wanted = sorted([*(path.name for path in (tmp_path / "local").iterdir()), "config.json"])
    assert sorted(copied) == wanted and "notes.md" not in copied
    copied.clear()
    place = copy_remote(str(model))
    assert not copied and os.path.exists(os.path.join(place, "1_Pooling", "config.json"))
    # Another file of the same size and a later time, and one that is gone.
    (model / "config.json").write_text((model / "config.json").read_text().replace("32768", "32767"))
    os.utime(model / "config.json", (2e9, 2e9))
    (model / "generation_config.json").unlink()
    again = load_policy(str(model))
    assert copied == ["config.json"] and again.kept["max_position_embeddings"] == 32767
    assert not os.path.exists(os.path.join(place, "generation_config.json"))


def test_our_own_folders_of_a_bucket(bucket):
    save_policy(own_policy(), str(bucket / "run" / "policy"))
    loaded = load_policy(str(bucket / "run"))
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, own_policy().params))


def test_a_copy_that_was_cut_short_is_made_again(bucket, monkeypatch):
    model = bucket / "model"
    shutil.copytree(FIXTURES / "llama", model)
    copy = hub._copy

    def interrupted(file, target, progress):
        if file.name == "model.safetensors":
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(f"{target}.part", "wb") as part:
                part.write(b"half")
            raise KeyboardInterrupt
        copy(file, target, progress)

    monkeypatch.setattr(hub, "_copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_policy(str(model))
    monkeypatch.setattr(hub, "_copy", copy)
    assert load_policy(str(model)).fingerprint == load_policy(str(FIXTURES / "llama")).fingerprint


def test_buckets_that_hold_no_model(bucket, monkeypatch):
    (bucket / "empty").mkdir()
    with pytest.raises(CheckpointError, match="No model in .*empty: the folder is empty"):
        load_policy(str(bucket / "empty"))
    with pytest.raises(CheckpointError, match="cannot be read .*Check the path"):
        load_policy(str(bucket / "nothing"))
    (bucket / "other").mkdir()
    (bucket / "other" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError) as found:
        load_policy(str(bucket / "other"))
    assert f"No policy in '{bucket}/other'" in str(found.value), "the user's name of it, not the cache's"
