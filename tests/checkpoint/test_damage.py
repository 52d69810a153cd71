import json
import os
import shutil

import pytest

from pbrl_jax.checkpoint import restore_latest, save_checkpoint
from pbrl_jax.core import paths
from pbrl_jax.core.errors import CheckpointError


def largest(folder):
    files = [os.path.join(top, name) for top, _, names in os.walk(folder) for name in names]
    return max(files, key=os.path.getsize)


def truncate(folder):
    file = largest(folder)
    os.truncate(file, os.path.getsize(file) // 2)


def flip_one_bit(folder):
    file = largest(folder)
    with open(file, "r+b") as handle:
        handle.seek(os.path.getsize(file) // 2)
        byte = handle.read(1)[0]
        handle.seek(-1, os.SEEK_CUR)
        handle.write(bytes([byte ^ 4]))


def edit_manifest(**changes):
    def damage(folder):
        file = folder / "manifest.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


def meta_becomes_a_folder(folder):
    os.unlink(folder / "meta.json")
    os.mkdir(folder / "meta.json")


def another_steps_folder(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "step_00000001", folder)


DAMAGES = {
    "truncated": (truncate, "the manifest says"),
    "one bit": (flip_one_bit, "does not match its checksum"),
    "deleted": (lambda folder: os.unlink(largest(folder)), "is missing"),
    "replaced by a folder": (meta_becomes_a_folder, "meta.json"),
    "no arrays": (lambda folder: shutil.rmtree(folder / "state"), "is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    "staged manifest": (lambda folder: (folder / "manifest.json").rename(folder / "manifest.json.tmp"), "interrupted"),
    "half a manifest": (lambda folder: os.truncate(folder / "manifest.json", 99), "manifest.json is not readable JSON"),
    "empty manifest": (lambda folder: os.truncate(folder / "manifest.json", 0), "manifest.json is not readable JSON"),
    "binary manifest": (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"), "not readable JSON"),
    "manifest is a list": (lambda folder: (folder / "manifest.json").write_text("[]"), "does not list files"),
    "empty table": (edit_manifest(files={}), "lacks meta.json"),
    "table without sizes": (edit_manifest(files={"meta.json": 3}), "size or checksum"),
    "other format": (edit_manifest(format=2), "has format 2, expected 1"),
    "broken step": (edit_manifest(step="2"), "is that of step '2'"),
    "another step's": (another_steps_folder, "is that of step 1"),
    "half a meta": (lambda folder: os.truncate(folder / "meta.json", 20), "meta.json has 20 bytes"),
    "empty folder": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "manifest.json is missing"),
}


@pytest.fixture
def two(tmp_path, small_tree):
    """Checkpoints 1 and 2."""
    for step in (1, 2):
        save_checkpoint(tmp_path, step, small_tree(step), {"step": step}, keep=5)
    return tmp_path


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_newest_is_named_and_skipped(two, small_tree, same_bits, kind):
    damage, words = DAMAGES[kind]
    damage(two / "step_00000002")
    restored = restore_latest(two, small_tree(0))
    same_bits(restored.tree, small_tree(1))
    assert restored.step == 1 and restored.meta == {"step": 1}
    ((folder, reason),) = restored.skipped
    assert folder == str(two / "step_00000002") and words in reason


def test_damaged_older_one_does_not_matter(two, small_tree):
    flip_one_bit(two / "step_00000001")
    assert restore_latest(two, small_tree(0)).skipped == []


def test_every_single_bit_flip_is_found(two, small_tree):
    """One flip in each file: nothing that is read back may pass unnoticed."""
    folder = two / "step_00000002"
    files = [os.path.join(top, name) for top, _, names in os.walk(folder) for name in names]
    for file in files:
        content = open(file, "rb").read()
        if not content or os.path.basename(file) == "manifest.json":
            continue
        middle = len(content) // 2
        with open(file, "wb") as handle:
            handle.write(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        assert restore_latest(two, small_tree(0)).step == 1, file
        with open(file, "wb") as handle:
            handle.write(content)
    assert restore_latest(two, small_tree(0)).step == 2 and len(files) > 5


def test_all_damaged_is_an_error_that_names_each(two, small_tree):
    truncate(two / "step_00000001")
    (two / "step_00000002" / "manifest.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        restore_latest(two, small_tree(0))
    message = str(caught.value)
    assert "step_00000001: state/" in message and "step_00000002: manifest.json is missing" in message
    assert "another --workdir" in message


def test_lost_manifest_of_the_only_checkpoint_is_damage(tmp_path, small_tree):
    save_checkpoint(tmp_path, 1, small_tree(1), {}, keep=1)
    (tmp_path / "step_00000001" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="Every checkpoint in .* is damaged"):
        restore_latest(tmp_path, small_tree(0))


@pytest.mark.parametrize("is_remote", [False, True])
def test_killed_first_save_is_no_damage(tmp_path, monkeypatch, caplog, small_tree, is_remote):
    """Locally the staged manifest tells; an object store has none before the end."""
    save_checkpoint(tmp_path, 1, small_tree(1), {}, keep=1)
    manifest = tmp_path / "step_00000001" / "manifest.json"
    manifest.unlink() if is_remote else manifest.rename(f"{manifest}.tmp")
    monkeypatch.setattr(paths, "is_remote", lambda path: is_remote)
    assert restore_latest(tmp_path, small_tree(0)) is None
    assert "step_00000001 is skipped" in caplog.text and "interrupted" in caplog.text


def test_training_goes_on_over_a_damaged_checkpoint(two, small_tree, same_bits):
    """Step 2 is damaged: the run goes back to 1, reaches 2 again and replaces it."""
    flip_one_bit(two / "step_00000002")
    assert restore_latest(two, small_tree(0)).step == 1
    save_checkpoint(two, 2, small_tree(7), {"step": 2}, keep=1)
    restored = restore_latest(two, small_tree(0))
    same_bits(restored.tree, small_tree(7))
    assert restored.skipped == [] and os.listdir(two) == ["step_00000002"]


def test_files_the_manifest_does_not_name_are_ignored(two, small_tree):
    (two / "step_00000002" / "notes.txt").write_text("the good one")
    assert restore_latest(two, small_tree(0)).step == 2
