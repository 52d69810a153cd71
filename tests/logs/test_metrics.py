"""metrics.jsonl has one row a step whatever happens; samples are spread over languages; times are values."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from pbrl_jax.logs import metrics
from pbrl_jax.logs.metrics import MetricWriter, PhaseTimer, kept_lines
from pbrl_jax.logs.samples import round_robin, write_samples


def piped() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def rows_of(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_rows_hold_plain_numbers(tmp_path):
    with MetricWriter(tmp_path / "w", console=piped()) as writer:
        writer.write(1, {"loss": jnp.float32(0.5), "n": np.int64(3), "kl": 0.25, "ok": jnp.bool_(True), "who": "sw"})
        writer.write(2, {"loss": jnp.ones((1,))})
    assert rows_of(tmp_path / "w") == [
        {"step": 1, "loss": 0.5, "n": 3, "kl": 0.25, "ok": True, "who": "sw"},
        {"step": 2, "loss": 1.0},
    ]


def test_not_finite_is_null_in_the_file_and_named_on_the_console(tmp_path):
    console = piped()
    with MetricWriter(tmp_path, console=console) as writer:
        writer.write(1, {"loss": math.nan, "reward": math.inf})
    assert rows_of(tmp_path) == [{"step": 1, "loss": None, "reward": None}]
    assert "loss nan" in console.file.getvalue() and "reward inf" in console.file.getvalue()


def test_a_row_is_there_as_soon_as_it_is_written(tmp_path):
    writer = MetricWriter(tmp_path, console=piped())
    writer.write(1, {"loss": 1.0})
    assert rows_of(tmp_path) == [{"step": 1, "loss": 1.0}]
    writer.close()


@pytest.mark.parametrize("step", [0, 2, 3])
def test_a_step_has_one_row(tmp_path, step):
    with MetricWriter(tmp_path, console=piped()) as writer:
        writer.write(3, {})
        with pytest.raises(ValueError, match=f"Step {step} comes after step 3"):
            writer.write(step, {})


def test_arrays_are_refused_by_name(tmp_path):
    with MetricWriter(tmp_path, console=piped()) as writer:
        with pytest.raises(ValueError, match=r"'logp'.*\(2,\)"):
            writer.write(1, {"logp": jnp.ones(2)})


LINES = ['{"step": 1, "a": 1}', '{"step": 2, "a": 1}', '{"step": 2, "a": 2}', "\x00\x00", "[1]", '{"step": 3}', '{"st']


def test_kept_lines():
    kept, dropped = kept_lines("\n".join(LINES), resume_step=2)
    assert kept == ['{"step": 1, "a": 1}\n', '{"step": 2, "a": 2}\n']
    assert dropped == 5


def test_resume_drops_later_and_torn_rows_and_goes_on(tmp_path):
    torn = '{"step": 3, "who": "ค'.encode()[:-1]  # within a character
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(LINES[:-1]).encode() + b"\n" + torn)
    console = piped()
    with MetricWriter(tmp_path, resume_step=2, console=console) as writer:
        writer.write(3, {"a": 3})
    assert rows_of(tmp_path) == [{"step": 1, "a": 1}, {"step": 2, "a": 2}, {"step": 3, "a": 3}]
    assert "dropped 5 lines" in console.file.getvalue()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_a_complete_last_row_without_newline_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}')
    with MetricWriter(tmp_path, resume_step=1, console=piped()) as writer:
        writer.write(2, {})
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2]


def test_a_new_run_starts_an_empty_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    MetricWriter(tmp_path, console=piped()).close()
    assert rows_of(tmp_path) == []


KILLED = """
import os, signal, sys
from pbrl_jax.logs.metrics import MetricWriter
writer = MetricWriter(sys.argv[1], resume_step=int(sys.argv[2]))
for step in range(int(sys.argv[2]) + 1, 8):
    writer.write(step, {"loss": step / 10})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_and_resumed_twice(tmp_path):
    for resume_step in (0, 3, 5):
        child = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(resume_step)], env=os.environ)
        assert child.returncode == -signal.SIGKILL
    assert rows_of(tmp_path) == [{"step": n, "loss": n / 10} for n in range(1, 8)]


FULL = """
import resource, sys
from pbrl_jax.logs.metrics import MetricWriter
from pbrl_jax.core.errors import CheckpointError
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = MetricWriter(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    for step in range(1, 50):
        writer.write(step, {"loss": 0.5})
except CheckpointError as error:
    print(error)
"""


def test_an_evaluation_that_was_cut_short_joins_its_row(tmp_path, monkeypatch):
    """Also where the row holds a null, and without telling the trackers twice what they have."""
    with MetricWriter(tmp_path, quiet=True) as writer:
        writer.write(1, {"loss": 0.5})
        writer.write(2, {"loss": math.nan, "reward": 0.25})
    told = []
    tracker = types.SimpleNamespace(
        write=lambda step, row: told.append((step, row)), flush=lambda: None, close=lambda: None
    )
    monkeypatch.setattr(metrics, "make_trackers", lambda *_: [tracker])
    with MetricWriter(tmp_path, quiet=True, resume_step=2) as writer:
        writer.extend({"eval/accuracy/sw": np.float32(0.75)})
        writer.write(3, {"loss": 0.125})
    assert rows_of(tmp_path) == [
        {"step": 1, "loss": 0.5}, {"step": 2, "loss": None, "reward": 0.25, "eval/accuracy/sw": 0.75},
        {"step": 3, "loss": 0.125},
    ]  # fmt: skip
    assert told == [(2, {"eval/accuracy/sw": 0.75}), (3, {"step": 3, "loss": 0.125})]


def test_full_disk_is_one_clear_error_and_repaired_at_resume(tmp_path):
    child = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "Cannot write" in child.stdout and "Free space" in child.stdout
    assert (tmp_path / "metrics.jsonl").stat().st_size <= 100
    MetricWriter(tmp_path, resume_step=3, console=piped()).close()
    assert rows_of(tmp_path) == [{"step": n, "loss": 0.5} for n in (1, 2, 3)]


def test_inactive_writes_nothing(tmp_path):
    with MetricWriter(tmp_path / "w", active=False, console=piped(), tensorboard=True) as writer:
        writer.write(1, {"loss": 1.0})
        writer.flush()
    assert not (tmp_path / "w").exists()


def test_remote_rows_arrive_with_flush_and_survive_a_resume(tmp_path, monkeypatch):
    """A bucket has no append; a local path that calls itself remote goes the same way."""
    monkeypatch.setattr("pbrl_jax.logs.metrics.is_remote", lambda path: True)
    writer = MetricWriter(tmp_path, console=piped())
    writer.write(1, {"loss": 1.0})
    assert rows_of(tmp_path) == []
    writer.flush()
    assert rows_of(tmp_path) == [{"step": 1, "loss": 1.0}]
    writer.write(2, {})
    writer.flush()
    with MetricWriter(tmp_path, resume_step=1, console=piped()) as resumed:
        resumed.write(2, {"loss": 2.0})
    assert rows_of(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]


def test_console_lines(tmp_path):
    plain, terminal = piped(), Console(file=io.StringIO(), force_terminal=True, width=200)
    row = {"reward": 0.51234567, "loss": -1e-5, "completions/mean_length": 12, "other": 3.0}
    for console in (plain, terminal):
        with MetricWriter(tmp_path / str(console.is_terminal), max_steps=100, console=console) as writer:
            writer.write(7, row)
    assert plain.file.getvalue() == "step 7/100  reward 0.5123  loss -1e-05  mean_length 12\n"
    assert "\x1b[" in terminal.file.getvalue()


def test_tensorboard_scalars_can_be_read_back(tmp_path):
    with MetricWriter(tmp_path, tensorboard=True, console=piped()) as writer:
        writer.write(4, {"rewards/cosine/mean": 0.25, "who": "sw"})
    data = next((tmp_path / "tensorboard").iterdir()).read_bytes()
    assert b"rewards/cosine/mean" in data and np.float32(0.25).tobytes() in data
    assert b"who" not in data


def sample(language: str, prompt_id: int, **changes) -> dict:
    row = {
        "step": 5, "prompt_id": prompt_id, "language": language, "prompt": "q", "completion": "คำตอบ", "reference": "r",
        "reward": jnp.float32(0.5), "parts": {"cosine": np.float32(0.25)}, "valid": np.bool_(True),
    }  # fmt: skip
    return row | changes


def test_round_robin_spreads_over_languages():
    rows = [sample("sw", 0), sample("sw", 1), sample("sw", 2), sample("th", 3), sample("bn", 4)]
    assert [r["prompt_id"] for r in round_robin(rows, 4)] == [4, 0, 3, 1]
    assert [r["prompt_id"] for r in round_robin(rows, 2, turn=1)] == [0, 3]
    assert [r["prompt_id"] for r in round_robin(rows, 2, turn=2)] == [3, 4]
    assert len(round_robin(rows, 99)) == 5
    assert round_robin([], 3) == []


def test_samples_are_written_in_their_own_script(tmp_path):
    write_samples(tmp_path, 5, [sample("th", 1), sample("sw", 2, reward=math.nan, valid=False)], count=2)
    text = (tmp_path / "samples" / "step_5.jsonl").read_text(encoding="utf-8")
    assert "คำตอบ" in text
    first, second = (json.loads(line) for line in text.splitlines())
    assert first == {
        "step": 5, "prompt_id": 1, "language": "th", "prompt": "q", "completion": "คำตอบ", "reference": "r",
        "reward": 0.5, "parts": {"cosine": 0.25}, "valid": True,
    }  # fmt: skip
    assert (second["prompt_id"], second["reward"], second["valid"]) == (2, None, False)


def test_samples_with_other_fields_are_refused(tmp_path):
    row = sample("sw", 1)
    del row["reference"]
    with pytest.raises(ValueError, match="reference"):
        write_samples(tmp_path, 1, [row], count=1)
    write_samples(tmp_path, 1, [sample("sw", 1)], count=0)
    assert not (tmp_path / "samples").exists()


def test_phase_timer_adds_up_and_survives_errors():
    times = iter([0.0, 1.5, 10.0, 10.25, 20.0, 24.0])
    timer = PhaseTimer(clock=lambda: next(times))
    with timer.phase("generate"):
        pass
    with timer.phase("update"):
        pass
    with pytest.raises(KeyError):
        with timer.phase("generate"):
            raise KeyError
    assert timer.metrics() == {"time/generate": 5.5, "time/update": 0.25}
