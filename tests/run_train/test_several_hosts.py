"""Two or four processes of one run compute what one does; two stop, fail, die and go on together.

Real `pbrl train` commands through jax.distributed on this machine (see resume_driver), on configs/tiny_cpu.py.
"""

import json
import signal
import socket

import jax
import pytest
from resume_driver import ROOT, Driver
from tiny_policy import largest_difference, leaf_differences

from pbrl_jax.checkpoint import list_checkpoints, restore_checkpoint
from pbrl_jax.weights.policies import load_policy

STEPS = 6
LOST_SECONDS = 8
SIGN_SECONDS = 3
"""Of life, a host gives several in such a time: the last one tells the phase in which it is killed."""
SETTINGS = (
    f"--train.max-steps {STEPS} --train.save-steps 1 --train.save-total-limit 9 --data.limit 8 --eval.limit 1 "
    "--eval.batch-size 4 --rollout.segment-length 4 --optim.learning-rate 3e-3 --optim.eps 1e-4 --log.no-tensorboard "
    "--log.compilation-cache= --reward.language-gate penalty --log.samples-per-step 16 --train.prompts-per-step 8 "
    "--algo.num-generations 2"
).split()
TOLERANCE = 1e-5


class Hosts:
    """Starts the same command in several processes, and ends with all of them."""

    def __init__(self, folder):
        self.folder, self.drivers = folder, []

    def take(self, count: int) -> list[Driver]:
        """So many drivers; they stay for the commands that follow."""
        for number in range(len(self.drivers), count):
            (folder := self.folder / str(number)).mkdir()
            # What a host has compiled for the first command it need not for the next.
            self.drivers.append(Driver(folder, JAX_COMPILATION_CACHE_DIR=str(folder / "cache")))
        return self.drivers[:count]

    def start(self, workdir, hold=(), arguments=(), count=2) -> None:
        """`hold` is that of the second process."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        for number, driver in enumerate(self.take(count)):
            environment = {
                "PBRL_COORDINATOR": address,
                "PBRL_PROCESSES": str(count),
                "PBRL_PROCESS": str(number),
                "PBRL_LOST_SECONDS": str(LOST_SECONDS),
            }
            command = ["train", ROOT / "configs/tiny_cpu.py", "--workdir", workdir, *SETTINGS, *arguments]
            driver.start(command, hold=hold if number else (), environment=environment)

    def run(self, workdir, kill=None, count=2, **how) -> list[tuple[int, str]]:
        """(exit status, output) of each process; the signal goes to the second one, where it is held."""
        self.start(workdir, count=count, **how)
        if kill is not None:
            self.drivers[1].strike(kill, after=SIGN_SECONDS)
        return [driver.end() for driver in self.drivers[:count]]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    hosts = Hosts(tmp_path_factory.mktemp("hosts"))
    yield hosts
    for driver in hosts.drivers:
        driver.close()


@pytest.fixture(scope="module")
def alone(hosts, tmp_path_factory):
    """The work directory of the run in one process."""
    return run_alone(hosts, tmp_path_factory.mktemp("alone") / "run")


def run_alone(hosts, workdir, arguments=()):
    command = ["train", ROOT / "configs/tiny_cpu.py", "--workdir", workdir, *SETTINGS, *arguments]
    status, output = hosts.take(1)[0].run(command)
    assert status == 0, output
    return workdir


def run_together(hosts, workdir, count, arguments=()):
    """The run in so many processes, of which only the first speaks."""
    ended = hosts.run(workdir, count=count, arguments=arguments)
    assert [status for status, _ in ended] == [0] * count, ended
    output = ended[0][1]
    assert f"mesh data {count} x fsdp 1 x tensor 1 on {count} device(s)" in output and "step 6/6" in output
    assert not [text for _, text in ended[1:] if "step " in text or "Finished" in text]
    return workdir


@pytest.fixture(scope="module")
def together(hosts, tmp_path_factory):
    """The work directory of the run in two processes."""
    return run_together(hosts, tmp_path_factory.mktemp("together") / "run", 2)


def rows_of(workdir) -> list[dict]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in row.items() if not name.startswith(("step_time", "time/"))} for row in rows]


def samples_of(workdir) -> list[dict]:
    files = [workdir / "samples" / f"step_{step}.jsonl" for step in range(1, STEPS + 1)]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def params_of(workdir):
    return jax.device_get(load_policy(str(workdir)).params)


def test_two_processes_compute_what_one_does(alone, together):
    assert_same_run(together, alone)


def test_four_processes_compute_what_one_does(hosts, alone, tmp_path):
    """Without packing, which has fewer programs and the same results."""
    assert_same_run(run_together(hosts, tmp_path / "run", 4, ["--train.no-packed"]), alone)


def test_two_processes_sample_ahead(hosts, tmp_path):
    """Scoring has a thread on each host, and its exchanges with the others beside those of the rollout."""
    ahead = ["--train.rollout-ahead", "1", "--train.no-packed"]
    together = run_together(hosts, tmp_path / "together" / "run", 2, ahead)
    assert_same_run(together, run_alone(hosts, tmp_path / "alone" / "run", ahead))


def assert_same_run(together, alone):
    """The same tokens, losses, metrics and parameters, which moved 100 times the tolerance."""
    rows, known = rows_of(together), rows_of(alone)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)) and len(known) == STEPS
    for row, other in zip(rows, known, strict=True):
        assert row.keys() == other.keys()
        for name in row:
            assert row[name] == pytest.approx(other[name], rel=1e-4, abs=TOLERANCE), name
    assert any(row["completions/min_length"] < row["completions/max_length"] for row in rows), "ragged lengths"
    written, wanted = samples_of(together), samples_of(alone)
    assert len(written) == 16 * STEPS and {row["language"] for row in written} > {"sw", "zh"}
    for row, other in zip(written, wanted, strict=True):
        assert {name: row[name] for name in ("prompt_id", "completion")} == {
            name: other[name] for name in ("prompt_id", "completion")
        }
        assert row["reward"] == pytest.approx(other["reward"], abs=TOLERANCE)
    params = params_of(alone)
    assert 0 < largest_difference(params_of(together), params) < TOLERANCE
    (_, first) = list_checkpoints(alone / "checkpoints")[-1]
    early = restore_checkpoint(first, {"state": {"params": params}}, partial=True).tree["state"]["params"]
    assert min(leaf_differences(early, params)) > 100 * TOLERANCE, "since the first step"
    finals = [json.loads((workdir / "final.json").read_text()) for workdir in (together, alone)]
    assert finals[0]["metrics"] == finals[1]["metrics"] and finals[0]["metrics"]


def test_stopped_failed_killed_and_resumed(hosts, together, tmp_path):
    """A stop in the middle of generation, an error and a death of one process; then the run ends bit by bit as the
    undisturbed one."""
    workdir = tmp_path / "run"
    ended = hosts.run(workdir, hold=("generate", 3), kill=signal.SIGTERM)
    assert [status for status, _ in ended] == [0, 0], ended
    assert "Stopped at step 2, saved. The same command goes on from here." in ended[0][1]
    assert list_checkpoints(workdir / "checkpoints")[0][0] == 2

    ended = hosts.run(workdir, hold=("reward fails", 2), arguments=["--train.save-steps", "5"])
    assert "Resuming from step_00000002." in ended[0][1]
    for status, output in ended:
        assert status == 1 and "Error: Host 1 of 2 failed. ZeroDivisionError: nothing to divide by" in output
    assert "Traceback" not in ended[0][1]
    assert list_checkpoints(workdir / "checkpoints")[0][0] == 3

    (status, output), (killed, _) = hosts.run(workdir, hold=("generate", 2), kill=signal.SIGKILL)
    assert "Resuming from step_00000003." in output
    assert (status, killed) == (1, -signal.SIGKILL) and "Traceback" not in output
    assert "Error: Host 1 of 2 has been silent for" in output and "It was in phase 'generate'" in output
    assert list_checkpoints(workdir / "checkpoints")[0][0] == 4

    ended = hosts.run(workdir)
    assert [status for status, _ in ended] == [0, 0], ended
    assert "Resuming from step_00000004." in ended[0][1]
    assert (workdir / "final.json").read_text() == (together / "final.json").read_text()
    assert rows_of(workdir) == rows_of(together) and samples_of(workdir) == samples_of(together)
