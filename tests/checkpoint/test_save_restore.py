import json
import logging
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbrl_jax import checkpoint
from pbrl_jax.checkpoint import (
    list_checkpoints,
    read_meta,
    restore,
    restore_checkpoint,
    restore_latest,
    save,
    save_checkpoint,
)
from pbrl_jax.core import paths
from pbrl_jax.core.errors import CheckpointError

META = {"config": '{"algo": 1}', "cursor": {"epoch": 2, "row": 17}, "dataset": "ab12", "seed": 3}


def steps(directory):
    return [step for step, _ in list_checkpoints(directory)]


@pytest.mark.parametrize("name", ["w[x]", "lr=*,b?"])
def test_a_folder_whose_name_reads_as_a_pattern(tmp_path, full_tree, abstract, same_bits, name):
    """As Hydra and sweeps name them: orbax looks for a checkpoint's parts by pattern."""
    folder = tmp_path / name / "checkpoints"
    save_checkpoint(folder, 10, full_tree, META, keep=2)
    restored = restore_latest(folder, abstract(full_tree))
    same_bits(restored.tree, jax.tree.map(jnp.asarray, full_tree))
    assert os.listdir(folder) == ["step_00000010"] and restored.skipped == []


def test_a_save_is_read_back_before_an_older_one_goes(tmp_path, monkeypatch, full_tree, small_tree):
    """A read that fails, or gives other bits, leaves the older checkpoint, and the new one does not count."""
    save_checkpoint(tmp_path, 1, full_tree, META, keep=1, prove=True)
    read = restore._read_arrays

    def fails(folder, wanted, partial):
        raise FileNotFoundError("no such key")

    def differs(folder, wanted, partial):
        return {name: leaf * 0 if name == "w" else leaf for name, leaf in read(folder, wanted, partial).items()}

    for changed, message in ((fails, "cannot be read: no such key"), (differs, "w reads back with other values")):
        monkeypatch.setattr(restore, "_read_arrays", changed)
        with pytest.raises(CheckpointError, match=f"a restore from it would fail: .*{message}"):
            save_checkpoint(tmp_path, 2, small_tree(2), META, keep=1, prove=True)
        assert steps(tmp_path) == [1]
    monkeypatch.setattr(restore, "_read_arrays", read)
    save_checkpoint(tmp_path, 2, small_tree(2), META, keep=1, prove=True)
    assert steps(tmp_path) == [2] and os.listdir(tmp_path) == ["step_00000002"]


@pytest.mark.parametrize("is_remote", [False, True])
def test_round_trip_is_bit_exact(tmp_path, monkeypatch, full_tree, abstract, same_bits, is_remote):
    monkeypatch.setattr(paths, "is_remote", lambda path: is_remote)
    folder = save_checkpoint(tmp_path / "checkpoints", 10, full_tree, META, keep=2)
    restored = restore_latest(tmp_path / "checkpoints", abstract(full_tree))
    same_bits(restored.tree, jax.tree.map(jnp.asarray, full_tree))
    assert (restored.step, restored.meta, restored.skipped) == (10, META, [])
    assert os.fspath(restored.folder) == os.fspath(folder) == str(tmp_path / "checkpoints" / "step_00000010")
    assert read_meta(folder) == META
    assert os.listdir(tmp_path / "checkpoints") == ["step_00000010"]
    drawn = jax.random.uniform(restored.tree["keys"][1][2])
    assert drawn == jax.random.uniform(full_tree["keys"][1][2])


def test_manifest_names_every_file_with_size_and_checksum(tmp_path, small_tree):
    folder = save_checkpoint(tmp_path, 3, small_tree(3), META, keep=1)
    manifest = json.loads((folder / "manifest.json").read_text())
    on_disk = {os.path.relpath(os.path.join(top, name), folder) for top, _, names in os.walk(folder) for name in names}
    assert set(manifest["files"]) == on_disk - {"manifest.json"}
    assert manifest["step"] == 3 and "meta.json" in on_disk and any(name.startswith("state/") for name in on_disk)
    for name, entry in manifest["files"].items():
        assert entry == {"size": os.path.getsize(folder / name), "sha256": paths.sha256_file(folder / name)}


def test_nothing_saved_is_none(tmp_path, small_tree):
    assert restore_latest(tmp_path / "absent", small_tree(1)) is None
    (tmp_path / "step_00000004.tmp").mkdir()
    (tmp_path / "notes").mkdir()
    assert restore_latest(tmp_path, small_tree(1)) is None


def test_abstract_tree_may_depend_on_meta(tmp_path, small_tree, same_bits):
    save_checkpoint(tmp_path, 1, small_tree(5), {"names": ["step", "w"]}, keep=1)
    restored = restore_latest(tmp_path, lambda meta: {name: small_tree(0)[name] for name in meta["names"]})
    same_bits(restored.tree, small_tree(5))


def test_partial_restore(tmp_path, full_tree, abstract, same_bits):
    save_checkpoint(tmp_path, 1, full_tree, META, keep=1)
    wanted = {"state": {"params": full_tree["state"].params}}
    same_bits(restore_latest(tmp_path, abstract(wanted), partial=True).tree, wanted)
    with pytest.raises(CheckpointError, match="keys/0 is in the checkpoint only"):
        restore_latest(tmp_path, abstract({**wanted, "buffer": full_tree["buffer"]}))


def test_restored_state_can_be_donated(tmp_path, small_tree):
    save_checkpoint(tmp_path, 1, small_tree(2), META, keep=1)
    tree = restore_latest(tmp_path, small_tree(0)).tree
    grown = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)(tree)
    np.testing.assert_array_equal(grown["w"], np.arange(1000, dtype=np.float32) * 2 + 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"w": jnp.zeros(999)}, "w: saved float32[1000], expected float32[999]"),
        ({"w": jnp.zeros(1000, jnp.bfloat16)}, "w: saved float32[1000], expected bfloat16[1000]"),
        ({"more": jnp.zeros(1)}, "more is not in the checkpoint"),
        ({"w": None}, "w is in the checkpoint only"),
        ({"w": 3}, "w: found int"),
    ],
)
def test_other_arrays_are_refused(tmp_path, small_tree, change, words):
    save_checkpoint(tmp_path, 1, small_tree(1), META, keep=1)
    with pytest.raises(CheckpointError) as caught:
        restore_latest(tmp_path, {**small_tree(1), **change})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"a": 3}, "a: found int"),
        ({"a": {"b": np.arange(3)}}, "a/b: JAX has no int64"),
        ({"a": np.array(["x"])}, "a: JAX has no <U1"),
        ({}, "at least one array"),
        (jnp.ones(2), "at least one array"),
        ({"a": {"b": jnp.ones(2)}, "a.b": jnp.ones(2)}, "Rename its keys"),
        ({"a": {"b": jnp.ones(2)}, "a/b": jnp.ones(2)}, "Rename its keys"),
    ],
)
def test_trees_that_cannot_be_saved_leave_no_trace(tmp_path, tree, words):
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(tmp_path, 1, tree, META, keep=1)
    assert words in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_donated_array_and_bad_arguments_are_named(tmp_path, small_tree):
    tree = small_tree(1)
    tree["w"].delete()
    with pytest.raises(CheckpointError, match="w: its array was donated"):
        save_checkpoint(tmp_path, 1, tree, META, keep=1)
    with pytest.raises(CheckpointError, match="step -1 and keep 1"):
        save_checkpoint(tmp_path, -1, small_tree(1), META, keep=1)
    with pytest.raises(CheckpointError, match="step 1 and keep 0"):
        save_checkpoint(tmp_path, 1, small_tree(1), META, keep=0)
    with pytest.raises(CheckpointError, match="meta of checkpoint 1 does not fit into JSON"):
        save_checkpoint(tmp_path, 1, small_tree(1), {"cursor": jnp.ones(2)}, keep=1)


def test_only_empty_arrays(tmp_path, same_bits):
    tree = {"a": jnp.zeros((0, 3), jnp.bfloat16)}
    save_checkpoint(tmp_path, 1, tree, META, keep=1)
    same_bits(restore_latest(tmp_path, tree).tree, tree)


@pytest.mark.parametrize("is_remote", [False, True])
def test_keep_removes_the_oldest_and_only_those(tmp_path, monkeypatch, small_tree, is_remote):
    monkeypatch.setattr(paths, "is_remote", lambda path: is_remote)
    (tmp_path / "notes.tmp").write_text("mine")
    seen = []
    for step in (5, 10, 15, 20):
        save_checkpoint(tmp_path, step, small_tree(step), META, keep=2)
        seen.append(steps(tmp_path))
    assert seen == [[5], [10, 5], [15, 10], [20, 15]]
    save_checkpoint(tmp_path, 25, small_tree(25), META, keep=1)
    assert sorted(os.listdir(tmp_path)) == ["notes.tmp", "step_00000025"]
    save_checkpoint(tmp_path, 12, small_tree(12), META, keep=1)
    assert steps(tmp_path) == [25, 12]


def test_keep_counts_no_damaged_checkpoint(tmp_path, small_tree):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, small_tree(step), META, keep=9)
    (tmp_path / "step_00000003" / "meta.json").write_text("")
    save_checkpoint(tmp_path, 4, small_tree(4), META, keep=2)
    assert steps(tmp_path) == [4, 2]


def test_leftovers_are_cleaned_by_the_next_save_not_by_a_load(tmp_path, small_tree):
    save_checkpoint(tmp_path, 1, small_tree(1), META, keep=5)
    for name in ("step_00000002.tmp", "step_00000003.tmp.orbax-checkpoint-tmp", "step_00000004"):
        (tmp_path / name / "state").mkdir(parents=True)
    assert restore_latest(tmp_path, small_tree(0)).step == 1
    assert len(os.listdir(tmp_path)) == 4
    save_checkpoint(tmp_path, 5, small_tree(5), META, keep=5)
    assert sorted(os.listdir(tmp_path)) == ["step_00000001", "step_00000005"]


def test_the_same_step_again(tmp_path, small_tree, same_bits):
    folder = save_checkpoint(tmp_path, 1, small_tree(1), META, keep=5)
    before = (folder / "manifest.json").stat().mtime, os.stat(folder).st_ino
    save_checkpoint(tmp_path, 1, small_tree(1), META, keep=5)
    assert ((folder / "manifest.json").stat().mtime, os.stat(folder).st_ino) == before
    with pytest.raises(CheckpointError, match="other contents .meta: seed; arrays: same"):
        save_checkpoint(tmp_path, 1, small_tree(1), {**META, "seed": 4}, keep=5)
    with pytest.raises(CheckpointError, match="meta: same; arrays: others"):
        save_checkpoint(tmp_path, 1, {"w": jnp.ones(1)}, META, keep=5)
    (folder / "meta.json").write_text("damaged")
    save_checkpoint(tmp_path, 1, small_tree(8), META, keep=5)
    same_bits(restore_latest(tmp_path, small_tree(0)).tree, small_tree(8))


def test_save_in_another_thread(tmp_path, small_tree, same_bits):
    thread = threading.Thread(target=save_checkpoint, args=(tmp_path, 1, small_tree(3), META, 1))
    thread.start()
    jax.block_until_ready(jnp.ones((64, 64)) @ jnp.ones((64, 64)))
    thread.join()
    same_bits(restore_latest(tmp_path, small_tree(0)).tree, small_tree(3))


def test_unreadable_arrays_of_a_verified_checkpoint(tmp_path, monkeypatch, small_tree):
    save_checkpoint(tmp_path, 1, small_tree(1), META, keep=1)

    def fail(*args, **kwargs):
        raise ValueError("DATA_LOSS: zarr chunk\nlong details")

    monkeypatch.setattr(checkpoint.restore.ocp, "load", fail)
    with pytest.raises(CheckpointError, match="step_00000001 has the right checksums .*DATA_LOSS: zarr chunk. Check"):
        restore_latest(tmp_path, small_tree(1))


def test_restore_one_folder(tmp_path, small_tree, same_bits):
    for step in (1, 2):
        folder = save_checkpoint(tmp_path, step, small_tree(step), META, keep=5)
    same_bits(restore_checkpoint(tmp_path / "step_00000001", small_tree(0)).tree, small_tree(1))
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="step_00000002 is not a whole checkpoint: manifest.json is missing"):
        restore_checkpoint(folder, small_tree(0))


def test_threads_that_outlive_a_failed_save_tell_no_traceback(monkeypatch):
    """Orbax's own are left out, those of others are told; after a save that succeeds all are."""
    logger = logging.getLogger("absl")
    monkeypatch.setattr(logger, "filters", [])

    def told(file: str) -> bool:
        error = (ValueError, ValueError("gone"), None)
        return bool(logger.filter(logging.LogRecord("absl", logging.ERROR, file, 1, "failed", (), error)))

    with save._without_tracebacks():
        assert not told("site-packages/orbax/checkpoint/future.py") and told("site-packages/jax/api.py")
    assert told("site-packages/orbax/checkpoint/future.py")
    with pytest.raises(OSError), save._without_tracebacks():
        raise OSError("full")
    assert not told("site-packages/orbax/checkpoint/future.py") and told("site-packages/jax/api.py")
