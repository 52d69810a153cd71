"""kill -9 at every stage of a save: what is restored afterwards is the checkpoint before it or the new one, whole.

A helper process imports everything once, then forks a child for each round that saves steps 2, 3, ... until the helper
sees the file it watches for, and kills the child in that moment.
"""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbrl_jax.checkpoint import list_checkpoints, restore_latest, save_checkpoint

HELPER = '''
import glob, os, signal, sys, time
import jax, jax.numpy as jnp
from pbrl_jax.checkpoint import save_checkpoint
from pbrl_jax.core import paths

def tree(step):
    return {"w": jnp.arange(250_000, dtype=jnp.float32) * step, "step": jnp.int32(step)}

def freeze_before_rename(number, marker):
    """The child stands still right before its rename of that number; the marker tells that it has come so far."""
    rename, count = paths.rename_synced, [0]
    def counted(old, new):
        count[0] += 1
        if count[0] == number:
            open(marker, "w").close()
            time.sleep(600)
        rename(old, new)
    paths.rename_synced = counted

def child(directory, first, freeze, marker):
    if freeze:
        freeze_before_rename(freeze, marker)
    for step in range(first, first + 1000):
        save_checkpoint(directory, step, tree(step), {"step": step}, keep=1)

for line in sys.stdin:
    directory, first, freeze, pattern = line.split()
    pid = os.fork()
    if pid == 0:
        child(directory, int(first), int(freeze), pattern)
        os._exit(1)
    deadline = time.time() + 200
    while not glob.glob(pattern):
        if time.time() > deadline or os.waitpid(pid, os.WNOHANG)[0]:
            print("the child ended, or was too slow", flush=True)
            sys.exit(1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    print("killed", flush=True)
'''
ABSTRACT = {"w": jax.ShapeDtypeStruct((250_000,), jnp.float32), "step": jax.ShapeDtypeStruct((), jnp.int32)}


@pytest.fixture(scope="module")
def kill():
    """kill(directory, first, pattern, freeze=0): a child saves from step `first` on, killed when `pattern` exists."""
    repository = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    helper = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HELPER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": repository},
    )

    def run(directory, first, pattern, freeze=0):
        helper.stdin.write(f"{directory} {first} {freeze} {pattern}\n")
        helper.stdin.flush()
        assert helper.stdout.readline() == "killed\n"

    yield run
    helper.stdin.close()
    assert helper.wait(timeout=60) == 0


def tree(step):
    return {"w": jnp.arange(250_000, dtype=jnp.float32) * step, "step": jnp.int32(step)}


def restored_step(directory):
    """The step that is restored, after its arrays were found to be those of that step."""
    restored = restore_latest(directory, ABSTRACT)
    expected = np.arange(250_000, dtype=np.float32) * np.float32(restored.step)
    np.testing.assert_array_equal(restored.tree["w"], expected)
    assert int(restored.tree["step"]) == restored.step == restored.meta["step"]
    return restored.step


# Of round 1 these match steps 100 to 199, of round 2 steps 200 to 299: never what an earlier round has left behind.
STAGES = {
    "orbax writes": "step_00000{round}??.tmp-*.orbax-checkpoint-tmp",
    "arrays are complete": "step_00000{round}??.tmp-*/commit_success.txt",
    "metadata is written": "step_00000{round}??.tmp-*/meta.json",
    "manifest is staged": "step_00000{round}??.tmp-*/manifest.json.tmp",
    "folder has its name": "step_00000{round}??",
    "manifest has its name": "step_00000{round}??/manifest.json",
}


@pytest.mark.parametrize("stage", STAGES)
def test_kill_when_a_file_appears(tmp_path, kill, stage):
    """Three rounds over what the one before has left; no sleeping, no change to the code that saves."""
    complete = 1
    save_checkpoint(tmp_path, complete, tree(complete), {"step": complete}, keep=1)
    for number in (1, 2, 3):
        kill(tmp_path, 100 * number, tmp_path / STAGES[stage].format(round=number))
        assert any(name.startswith(f"step_00000{number}") for name in os.listdir(tmp_path))
        found = restored_step(tmp_path)
        assert found == complete or found >= 100 * number
        assert stage != "manifest has its name" or found >= 100 * number
        complete = found
    save_checkpoint(tmp_path, 400, tree(400), {"step": 400}, keep=1)
    assert restored_step(tmp_path) == 400 and os.listdir(tmp_path) == ["step_00000400"]


@pytest.mark.parametrize(
    ("number", "left", "expected"),
    [
        (1, "step_00000002.tmp-*/meta.json.tmp", 1),
        (2, "step_00000002.tmp-*/manifest.json.tmp", 1),
        (3, "step_00000002/manifest.json.tmp", 1),
        (4, "step_00000002/manifest.json", 2),
    ],
)
def test_kill_right_before_each_rename(tmp_path, kill, number, left, expected):
    """meta.json, folder, manifest, and the removal of the old checkpoint: the state between any two is known."""
    directory = tmp_path / "checkpoints"
    save_checkpoint(directory, 1, tree(1), {"step": 1}, keep=1)
    kill(directory, 2, tmp_path / "frozen", freeze=number)
    assert len(list(directory.glob(left))) == 1
    assert restored_step(directory) == expected
    assert restore_latest(directory, ABSTRACT).skipped == (
        [(str(directory / "step_00000002"), "no manifest.json: its save was interrupted")] if number == 3 else []
    )
    save_checkpoint(directory, 3, tree(3), {"step": 3}, keep=1)
    assert os.listdir(directory) == ["step_00000003"] and restored_step(directory) == 3


@pytest.mark.parametrize("number", [1, 2, 3])
def test_killed_first_save_starts_afresh(tmp_path, kill, number):
    directory = tmp_path / "checkpoints"
    kill(directory, 1, tmp_path / "frozen", freeze=number)
    assert restore_latest(directory, ABSTRACT) is None and list_checkpoints(directory) == []
    save_checkpoint(directory, 1, tree(1), {"step": 1}, keep=1)
    assert restored_step(directory) == 1 and os.listdir(directory) == ["step_00000001"]
