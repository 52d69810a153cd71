import hashlib
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from pbrl_jax.core import paths
from pbrl_jax.core.errors import ConfigError, DataError

REPOSITORY = Path(paths.__file__).parents[2]


@pytest.fixture
def remote(monkeypatch):
    """Local folders, treated as an object store."""
    monkeypatch.setattr(paths, "is_remote", lambda path: True)


def test_as_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert os.fspath(paths.as_path("runs/../first")) == str(tmp_path / "first")
    assert os.fspath(paths.as_path("~/runs")) == "/home/somebody/runs"
    assert os.fspath(paths.as_path("gs://bucket/runs/first")) == "gs://bucket/runs/first"
    assert paths.is_remote(paths.as_path("gs://bucket/x")) and not paths.is_remote(paths.as_path("x"))
    with pytest.raises(ConfigError, match="empty path"):
        paths.as_path("")
    with pytest.raises(ConfigError, match="hf:// cannot be read. Give a path, .* or owner/name"):
        paths.as_path("hf://datasets/owner/name/train.jsonl")


@pytest.mark.parametrize("root", ["/data/w", "gs://bucket/w"])
def test_work_dir_layout(root):
    work = paths.work_dir(root)
    named = [work.config, work.metrics, work.samples_of(7), work.checkpoints, work.tensorboard, work.final]
    assert [os.fspath(path)[len(root) + 1 :] for path in named] == [
        "config.json",
        "metrics.jsonl",
        "samples/step_7.jsonl",
        "checkpoints",
        "tensorboard",
        "final.json",
    ]


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path):
    file = tmp_path / "new" / "config.json"
    paths.write_atomic(file, "old é")
    paths.write_atomic(file, b"new")
    assert file.read_bytes() == b"new"
    assert os.listdir(file.parent) == ["config.json"]


def test_write_atomic_syncs_file_before_rename_and_folder_after(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def traced_fsync(descriptor):
        calls.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def traced_replace(old, new):
        calls.append(("rename", os.path.basename(new)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "replace", traced_replace)
    paths.write_atomic(tmp_path / "final.json", "{}")
    assert calls == [("sync", "final.json.tmp"), ("rename", "final.json"), ("sync", tmp_path.name)]


def test_failed_write_keeps_the_old_content(tmp_path):
    file = tmp_path / "config.json"
    paths.write_atomic(file, "old")
    code = (
        "import resource, sys\n"
        "from pbrl_jax.core.paths import write_atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_atomic(sys.argv[1], 'x' * 5000)\n"
        "except OSError as error:\n    print(error.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, cwd=REPOSITORY, timeout=120
    )
    assert done.stdout.strip() == "27", done.stderr
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["config.json"]


def test_remote_write_is_one_write(tmp_path, remote):
    paths.write_atomic(tmp_path / "a" / "config.json", "x")
    paths.append_json_lines(tmp_path / "a" / "m.jsonl", [{"step": 1}])
    paths.append_json_lines(tmp_path / "a" / "m.jsonl", [{"step": 2}])
    assert paths.read_json_lines(tmp_path / "a" / "m.jsonl") == [{"step": 1}, {"step": 2}]
    assert sorted(os.listdir(tmp_path / "a")) == ["config.json", "m.jsonl"]


def test_json_lines_append_and_read(tmp_path):
    file = tmp_path / "logs" / "metrics.jsonl"
    assert paths.read_json_lines(file) == []
    paths.append_json_lines(file, [])
    assert not file.exists()
    paths.append_json_lines(file, [{"step": 1, "loss": 0.5}, {"step": 2, "text": "中\n"}])
    paths.append_json_lines(file, [{"step": np.int32(3), "loss": jnp.float32(0.25), "parts": {"a": np.ones(2)}}])
    assert paths.read_json_lines(file) == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "text": "中\n"},
        {"step": 3, "loss": 0.25, "parts": {"a": [1.0, 1.0]}},
    ]
    assert file.read_text().count("\n") == 3


def test_non_finite_numbers_become_null(tmp_path):
    paths.append_json_lines(tmp_path / "m", [{"a": float("nan"), "b": [float("inf")], "c": jnp.float32("-inf")}])
    assert (tmp_path / "m").read_text() == '{"a": null, "b": [null], "c": null}\n'


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3, "parts": {"a": 1}', '{"text": "\\ud', '{"step": 3}'])
@pytest.mark.parametrize("is_remote", [False, True])
def test_line_torn_by_a_kill(tmp_path, monkeypatch, torn, is_remote):
    monkeypatch.setattr(paths, "is_remote", lambda path: is_remote)
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n' + torn)
    whole = [{"step": 1}, {"step": 2}] + ([{"step": 3}] if torn == '{"step": 3}' else [])
    assert paths.read_json_lines(file) == whole
    paths.append_json_lines(file, [{"step": 4}])
    assert paths.read_json_lines(file) == [*whole, {"step": 4}]


def test_character_torn_by_a_kill(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n{"text": "\xe4\xb8')
    assert paths.read_json_lines(file) == [{"step": 1}]


def test_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "m").write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(DataError, match="line 2"):
        paths.read_json_lines(tmp_path / "m")
    (tmp_path / "m").write_text('{"step": 1}\n[1]\n')
    with pytest.raises(DataError, match="line 2: found list"):
        paths.read_json_lines(tmp_path / "m")


def test_write_json_lines_replaces(tmp_path):
    file = tmp_path / "metrics.jsonl"
    paths.append_json_lines(file, [{"step": step} for step in range(5)])
    paths.write_json_lines(file, [row for row in paths.read_json_lines(file) if row["step"] <= 2])
    assert paths.read_json_lines(file) == [{"step": 0}, {"step": 1}, {"step": 2}]


@pytest.mark.parametrize("size", [0, 3, paths.CHUNK_BYTES, paths.CHUNK_BYTES + 1])
def test_sha256_file(tmp_path, size):
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "f").write_bytes(content)
    assert paths.sha256_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_a_remote_work_directory_that_reads_as_a_pattern_is_refused():
    with pytest.raises(ConfigError, match="--workdir 'gs://b/w"):
        paths.work_dir("gs://b/w[x]/more")
    paths.work_dir("/data/w[x]")
    paths.work_dir("gs://b/lr=1e-3,{x}] a/")


def test_a_path_without_marks_leads_to_the_same_file(tmp_path):
    folder = paths.as_path(tmp_path / "w[x]*?" / "in")
    folder.mkdir(parents=True)
    for _ in range(2):
        found = paths.without_marks(folder / "file")
        assert found.name == "file" and not set(os.fspath(found)) & set(paths.PATTERN_MARKS)
    found.write_text("here")
    assert (folder / "file").read_text() == "here"
    assert paths.without_marks(paths.as_path(tmp_path / "w[x]")) == tmp_path / "w[x]", "its own name may hold some"
    os.unlink(found.parent)
    os.symlink(tmp_path, found.parent)
    with pytest.raises(ConfigError, match="no link to"):
        paths.without_marks(folder / "file")
    os.unlink(found.parent)
