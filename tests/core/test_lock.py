"""The lock of a work directory: who holds it is named, who has died is taken over."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from pbrl_jax.cli import main
from pbrl_jax.core import lock
from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.lock import held

HOLD = """
import sys, time
from pbrl_jax.core.lock import held
with held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path/run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def foreign(folder, **fields):
    """A lock that a process of another machine has left, or holds."""
    folder.mkdir(exist_ok=True)
    known = {"host": "far", "pid": 7, "started": "today", "command": "pbrl train c.py", "boot": "b", "beat": 1}
    (folder / lock.FILE).write_text(json.dumps(known | {"at": time.time()} | fields))


def test_the_second_command_says_who_holds_it(holder, tmp_path):
    with pytest.raises(CheckpointError, match=rf"in use by process {holder.pid} on .*started at .*another --workdir"):
        with held(tmp_path / "run"):
            pass
    with held(tmp_path / "other"):
        pass


def test_a_dead_holder_is_taken_over_at_once(holder, tmp_path, capsys):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    started = time.monotonic()
    with held(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / lock.FILE).read_text())["pid"] == os.getpid()
    assert time.monotonic() - started < 5 and "Taking over" in capsys.readouterr().out
    assert not (tmp_path / "run" / lock.FILE).exists()


@pytest.mark.parametrize("verb", ["audit", "calibrate", "harness"])
def test_commands_that_leave_files_take_the_lock(tmp_path, capsys, verb):
    """Beside those that train."""
    given = ["--policy", "x", "--tasks", "y"] if verb == "harness" else ["configs/tiny_cpu.py"]
    with held(tmp_path / "run"):
        assert main([verb, *given, "--workdir", str(tmp_path / "run")]) == 1
    assert f"{tmp_path / 'run'} is in use by process {os.getpid()}" in capsys.readouterr().err


def test_a_folder_made_for_the_lock_goes_with_it(tmp_path):
    with held(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / lock.FILE).exists()
    assert not (tmp_path / "a").exists()
    with held(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "metrics.jsonl").touch()
    assert [file.name for file in (tmp_path / "a" / "b").iterdir()] == ["metrics.jsonl"]


def test_another_machine_is_alive_while_its_heartbeat_counts_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "STALE_SECONDS", 1.5)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.4)
    monkeypatch.setattr(lock.time, "sleep", lambda _, sleep=time.sleep: (sleep(0.1), foreign(tmp_path, beat=2)))
    foreign(tmp_path)
    with pytest.raises(CheckpointError, match="process 7 on far"), held(tmp_path):
        pass
    monkeypatch.undo()
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.5)
    with held(tmp_path):
        pass
    assert "process 7 on far has ended" in capsys.readouterr().out
    monkeypatch.undo()
    foreign(tmp_path, at=time.time() - 2 * lock.OLD_SECONDS)
    started = time.monotonic()
    with held(tmp_path):
        pass
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("error", [lock.errno.ENOLCK, lock.errno.ENOTSUP])
def test_without_flock_the_file_itself_counts(holder, tmp_path, monkeypatch, error):
    def refuse(*_):
        raise OSError(error, "no locks here")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with pytest.raises(CheckpointError, match=f"process {holder.pid}"), held(tmp_path / "run"):
        pass
    holder.kill()
    holder.wait()
    with held(tmp_path / "run"):
        with pytest.raises(CheckpointError, match=f"process {os.getpid()}"), held(tmp_path / "run"):
            pass


def test_the_heartbeat_counts_up_and_a_damaged_lock_is_no_holder(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    (tmp_path / lock.FILE).write_text("[1, 2")
    with held(tmp_path):
        time.sleep(0.5)
        assert json.loads((tmp_path / lock.FILE).read_text())["beat"] > 2


def test_the_folder_of_a_model_is_no_work_directory(tmp_path, capsys):
    config = '{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}'
    (tmp_path / "config.json").write_text(config)
    for more in ([], ["--dry-run"]):
        assert main(["train", "configs/tiny_cpu.py", "--workdir", str(tmp_path), *more]) == 1
        assert "is the folder of a model: its config.json would be replaced" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"] and (
        tmp_path / "config.json"
    ).read_text() == config
    (own := tmp_path / "own").mkdir()
    (own / "pbrl_policy.json").write_text("{}")
    for more in ([], ["--dry-run"]):
        assert main(["train", "configs/tiny_cpu.py", "--workdir", str(own), *more]) == 1
        assert "is the folder of a model: pbrl_policy.json would hide that of the run" in capsys.readouterr().err
