"""Disks that are really full: a file size limit of the kernel, and a small file system where one can be mounted."""

import os
import subprocess

import pytest

from pbrl_jax.checkpoint import list_checkpoints, restore_latest, save_checkpoint
from pbrl_jax.core.errors import CheckpointError

FULL = """
import resource, sys
import jax, jax.numpy as jnp
from pbrl_jax.checkpoint import save_checkpoint
from pbrl_jax.core.errors import CheckpointError
for directory, limit, count in zip(sys.argv[1::3], map(int, sys.argv[2::3]), map(int, sys.argv[3::3])):
    tree = {"w": jax.random.normal(jax.random.key(0), (count,)), "step": jnp.int32(2)}
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        save_checkpoint(directory, 2, tree, {"note": "x" * 3000}, keep=1)
        print("saved")
    except CheckpointError as error:
        print(error, end="\f")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if limit:
        save_checkpoint(directory, 3, tree, {}, keep=9)
"""


def test_file_size_limit_while_saving(tmp_path, python, small_tree):
    """The limit strikes orbax's arrays, our metadata, or the first small file; afterwards the process can save."""
    cases = [(tmp_path / str(limit), limit, count) for limit, count in ((200_000, 100_000), (2_000, 100), (10, 100))]
    for folder, *_ in cases:
        save_checkpoint(folder, 1, small_tree(1), {}, keep=1)
    messages = python(FULL, *(value for case in cases for value in case)).split("\f")[:-1]
    for message, (folder, _, count) in zip(messages, cases, strict=True):
        check_failed_save(message, folder, count, small_tree)


def check_failed_save(message: str, tmp_path, count: int, small_tree) -> None:
    assert "Could not save checkpoint" in message and "step_00000002" in message and "File too large" in message
    assert f"need {4 * count + 4:,} bytes" in message and "bytes were free" in message
    assert "unchanged" in message and "--train.save_total_limit" in message and "Traceback" not in message
    assert [step for step, _ in list_checkpoints(tmp_path)] == [3, 1]
    # A late write of the failed save may have made its folder anew; it lasts until the next save.
    save_checkpoint(tmp_path, 4, small_tree(4), {}, keep=9)
    assert sorted(os.listdir(tmp_path)) == ["step_00000001", "step_00000003", "step_00000004"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_disk_that_fills_up(small_disk, python, small_tree, same_bits):
    save_checkpoint(small_disk, 1, small_tree(1), {}, keep=1)
    message = python(FULL, small_disk, 0, 500_000)
    assert "No space left on device" in message and "need 2,000,004 bytes" in message and "step_00000002" in message
    free = int(message.split(" bytes were free")[0].rsplit(" ", 1)[1].replace(",", ""))
    assert 900_000 < free < 1_048_576
    assert os.listdir(small_disk) == ["step_00000001"]
    same_bits(restore_latest(small_disk, small_tree(0)).tree, small_tree(1))
    save_checkpoint(small_disk, 3, small_tree(3), {}, keep=1)
    same_bits(restore_latest(small_disk, small_tree(0)).tree, small_tree(3))


def test_folder_that_is_a_file(tmp_path, small_tree):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="Could not save .*step_00000001: .*Check that the folder exists"):
        save_checkpoint(tmp_path / "checkpoints", 1, small_tree(1), {}, keep=1)
