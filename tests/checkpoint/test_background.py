"""A save that is written while its caller goes on: what it holds, what waits for it, and how its failure arrives."""

import errno
import inspect
import threading
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbrl_jax.checkpoint import BackgroundSaver, background, list_checkpoints, manifest, restore, restore_latest
from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.paths import as_path

SECONDS = 60


def steps(directory):
    return [step for step, _ in list_checkpoints(directory)]


@pytest.fixture
def held(monkeypatch):
    """(reached, release): a save sets the one when its arrays are written, and then waits for the other."""
    reached, release, hashed = threading.Event(), threading.Event(), manifest.hashed_files

    def wait(folder):
        reached.set()
        assert release.wait(SECONDS)
        return hashed(folder)

    monkeypatch.setattr(manifest, "hashed_files", wait)
    yield reached, release
    release.set()


def test_donated_arrays_are_saved_as_they_were(tmp_path, held):
    """The caller updates in place at once, again and again, before anything is committed."""
    reached, release = held
    start = np.random.default_rng(0).standard_normal((8, 1 << 18), dtype=np.float32)
    tree = {"w": jnp.asarray(start) + 0, "step": jnp.int32(0)}
    grow = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    saver = BackgroundSaver()
    saver.start(tmp_path, 1, tree, {}, keep=1)
    for _ in range(3):
        tree = grow(tree)
    assert int(tree["step"]) == 3 and not saver.ended() and steps(tmp_path) == []
    assert reached.wait(SECONDS)
    release.set()
    saver.wait()
    restored = restore_latest(tmp_path, tree).tree
    assert np.asarray(restored["w"]).tobytes() == start.tobytes() and int(restored["step"]) == 0


def test_arrays_are_let_go_once_they_are_copied(tmp_path, monkeypatch, held):
    """Those that no update takes: a second copy of the state must not stay on the devices. (On a CPU the host's copy is
    the array's own memory, which stays; and the tests' checks of shapes keep a generator's arguments.)"""
    monkeypatch.setattr(background, "save_in_parts", inspect.unwrap(background.save_in_parts))
    tree = {"w": jnp.arange(1000.0), "step": jnp.int32(1)}
    arrays = [weakref.ref(leaf) for leaf in jax.tree.leaves(tree)]
    with BackgroundSaver() as saver:
        saver.start(tmp_path, 1, tree, {}, keep=1)
        del tree
        assert held[0].wait(SECONDS)
        assert all(array() is None for array in arrays)
        held[1].set()


def test_the_next_save_waits_and_the_older_one_goes_last(tmp_path, held, small_tree):
    reached, release = held
    saver, started = BackgroundSaver(), threading.Event()
    release.set()
    saver.start(tmp_path, 1, small_tree(1), {}, keep=1)
    saver.wait()
    release.clear(), reached.clear()
    saver.start(tmp_path, 2, small_tree(2), {}, keep=1)
    assert reached.wait(SECONDS)

    def third():
        saver.start(tmp_path, 3, small_tree(3), {}, keep=1)
        started.set()

    thread = threading.Thread(target=third)
    thread.start()
    assert not started.wait(0.2) and steps(tmp_path) == [1]
    release.set()
    thread.join(SECONDS)
    saver.wait()
    assert steps(tmp_path) == [3]


def test_a_failure_is_raised_once_by_the_next_look(tmp_path, monkeypatch, small_tree):
    """With the message of a save that nobody went on beside; what was there stays, and the next save is made."""
    with BackgroundSaver() as saver:
        saver.start(tmp_path, 1, small_tree(1), {}, keep=1)
    hashed = manifest.hashed_files

    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest, "hashed_files", full)
    saver.start(tmp_path, 2, small_tree(2), {}, keep=1)
    with pytest.raises(CheckpointError, match="Could not save checkpoint .*step_00000002: .*No space.*Free space"):
        saver.wait()
    assert saver.ended() and steps(tmp_path) == [1]
    saver.start(tmp_path, 2, small_tree(2), {}, keep=1)
    with pytest.raises(CheckpointError, match="No space"), saver:
        pass
    saver.start(tmp_path, 2, small_tree(2), {}, keep=1)
    with pytest.raises(ZeroDivisionError), saver:
        raise ZeroDivisionError  # tells more than the save that it ends
    monkeypatch.setattr(manifest, "hashed_files", hashed)
    saver = BackgroundSaver()
    saver.start(tmp_path, 2, small_tree(2), {}, keep=1)
    saver.wait()
    assert steps(tmp_path) == [2]


def test_a_host_without_memory_is_named(tmp_path, monkeypatch, small_tree):
    def exhausted(folder):
        raise MemoryError("33,554,432 bytes are not available")

    monkeypatch.setattr(manifest, "hashed_files", exhausted)
    saver = BackgroundSaver()
    saver.start(tmp_path, 1, small_tree(1), {}, keep=1)
    with pytest.raises(CheckpointError, match=r"no memory left \(33,554,432 bytes.*unchanged. Give the process more"):
        saver.wait()


def test_the_first_save_is_proved_in_the_background(tmp_path, monkeypatch, small_tree):
    """The arrays it is compared with were copied before: by then they are donated."""
    seen, read = [], restore._read_arrays

    def spy(folder, wanted, partial):
        seen.append((threading.current_thread().name, sorted(wanted)))
        return read(folder, wanted, partial)

    monkeypatch.setattr(restore, "_read_arrays", spy)
    with BackgroundSaver() as saver:
        for step in (1, 2):
            tree = small_tree(step)
            saver.start(tmp_path, step, tree, {}, keep=1)
            jax.tree.map(lambda leaf: leaf.delete(), tree)
    assert seen == [("save", ["step", "w"])] and steps(tmp_path) == [2]


def test_a_failure_of_another_host_is_raised_here(tmp_path, monkeypatch, held, small_tree):
    """While this host's save still waits for that one."""
    saver = BackgroundSaver()
    saver.start(tmp_path, 1, small_tree(1), {}, keep=1)
    monkeypatch.setattr(background, "exchange", lambda tag, own: [own, [False, "Could not save: full"]])
    with pytest.raises(CheckpointError, match="Host 1 of 1 failed. Could not save: full"):
        saver.ended()
    assert saver.ended()


def test_large_objects_of_a_store_are_not_read_again(tmp_path, monkeypatch, small_tree):
    """Their size is checked; small ones and all local files are hashed."""
    monkeypatch.setattr(manifest, "HASHED_OBJECT_BYTES", 3000)
    with BackgroundSaver() as saver:
        saver.start(tmp_path / "disk", 1, small_tree(1), {}, keep=1)
    monkeypatch.setattr(manifest.paths, "is_remote", lambda path: True)
    with BackgroundSaver() as saver:
        saver.start(tmp_path / "store", 1, small_tree(1), {}, keep=1)
    tables = [manifest._read_table(as_path(tmp_path / name / "step_00000001"))[0] for name in ("disk", "store")]
    assert all(entry["sha256"] for entry in tables[0].values())
    assert {entry["sha256"] is None: entry["size"] > 3000 for entry in tables[1].values()} == {True: True, False: False}
    large = next(name for name, entry in tables[1].items() if entry["sha256"] is None)
    with open(tmp_path / "store" / "step_00000001" / large, "ab") as file:
        file.write(b"x")
    assert "the manifest says" in manifest.damage(as_path(tmp_path / "store" / "step_00000001"))
