"""Slurm, Kubernetes, and several processes on one machine, with stand-ins for sbatch, kubectl, docker and pbrl."""

import shlex

import pytest
import yaml
from launch.stand_ins import CHECKER, FAKE_PYTHON, Machine, assert_fails

TRAIN = ("train", "configs/x.py", "--workdir", "gs://bucket/run")
RUN = {"NAME": "my-run", "IMAGE": "host/me/pbrl"}


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    for name in ("sbatch", "scancel", "squeue", "kubectl", "docker", "gcloud"):
        made.add(name, CHECKER)
    return made


@pytest.mark.parametrize(
    "script, words, settings",
    [
        ("slurm.sh", ("run", *TRAIN), {"NODES": "2", "PARTITION": "gpu", "ACCOUNT": "me"}),
        ("slurm.sh", ("stop", "12"), {}),
        ("slurm.sh", ("status",), {}),
        ("gke.sh", ("credentials",), {"CLUSTER": "c", "LOCATION": "us-west4", "PROJECT": "p"}),
        ("gke.sh", ("build",), RUN),
        ("gke.sh", ("logs",), RUN),
        ("gke.sh", ("stop",), RUN),
    ],
)
def test_a_dry_run_says_what_a_real_run_does(machine, script, words, settings):
    said = machine.run(script, "--dry-run", *words, **settings)
    assert said.returncode == 0 and machine.calls == [], said.stderr
    done = machine.run(script, *words, **settings)
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in said.stdout.splitlines()]
    assert [shlex.split(call) for call in machine.calls] == [line for line in lines if line[0] != "mkdir"]
    assert machine.calls


def test_slurm_runs_one_process_for_each_gpu(machine):
    odd = ("train", "c.py", "--reward.functions", "a b", "it's")
    assert machine.run("slurm.sh", "run", *odd, NODES="2", GPUS_PER_NODE="4").returncode == 0
    words = shlex.split(machine.calls[0])
    assert {"--nodes=2", "--ntasks-per-node=4", "--gres=gpu:4", "--signal=TERM@180", "--requeue"} <= set(words)
    wrapped = shlex.split(words[-1].removeprefix("--wrap="))
    assert wrapped[:3] == ["exec", "bash", "-c"]
    inner = shlex.split(wrapped[3])
    assert inner[-len(odd) - 1 :] == ["pbrl", *odd] and "srun" in inner and str(machine.checkout) in inner


def test_the_wrapped_command_runs(machine):
    machine.add("python3.12", FAKE_PYTHON)
    machine.add("srun")
    assert machine.run("slurm.sh", "run", "train", "a b", NODES="1").returncode == 0
    wrapped = shlex.split(machine.calls[0])[-1].removeprefix("--wrap=")
    machine.add("job", f"#!/bin/sh\n{wrapped}\n")
    result = machine.call(["job"])
    assert result.returncode == 0, result.stderr
    assert machine.calls[-1] == "srun --kill-on-bad-exit=1 --label pbrl train a b"


def test_kubernetes_manifest(machine):
    settings = RUN | {"SLICES": "2", "SPOT": "1", "TOPOLOGY": "2x2x4", "ACCELERATOR": "tpu-v5p-slice"}
    odd = (*TRAIN, 'a "b" \\c')
    made = yaml.safe_load(machine.run("gke.sh", "manifest", *odd, **settings).stdout)
    (job,) = made["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert job["replicas"] == 2 and job["template"]["spec"]["parallelism"] == 4
    assert job["template"]["spec"]["completions"] == 4 and made["metadata"]["name"] == "my-run"
    assert pod["containers"][0]["args"] == list(odd) and pod["containers"][0]["image"] == "host/me/pbrl"
    assert pod["containers"][0]["resources"] == {"limits": {"google.com/tpu": 4}}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "2x2x4",
        "cloud.google.com/gke-spot": "true",
    }
    dry = machine.run("gke.sh", "--dry-run", "run", *odd, **settings).stdout
    assert dry.startswith("kubectl apply --filename=-\n") and machine.calls == []
    assert yaml.safe_load(dry.partition("\n")[2]) == made
    assert machine.run("gke.sh", "run", *odd, **settings).returncode == 0
    assert machine.calls == ["kubectl apply --filename=-"]


def test_named_errors(machine):
    for words, settings, *said in (
        (("run", "train"), {}, "NODES is not set", "NODES=2"),
        (("run", "train"), {"NODES": "two"}, "NODES=two"),
        (("run", "train"), {"NODES": "2", "GPUS_PER_NODE": "0"}, "GPUS_PER_NODE=0"),
        (("run",), {"NODES": "2"}, "needs a verb"),
        (("logs", "x"), {}, "number of a job", "'x'"),
        (("go",), {}, "'go'", "setup, run"),
    ):
        assert_fails(machine.run("slurm.sh", *words, **settings), *said)
    for words, settings, *said in (
        (("run", *TRAIN), {"IMAGE": "i"}, "NAME is not set"),
        (("run", *TRAIN), {"NAME": "n"}, "IMAGE is not set"),
        (("run", *TRAIN), RUN | {"NAME": "My_Run"}, "NAME=My_Run"),
        (("run", *TRAIN), RUN | {"TOPOLOGY": "big"}, "TOPOLOGY=big", "4x4"),
        (("run", *TRAIN), RUN | {"TOPOLOGY": "1x2"}, "2 chips", "CHIPS_PER_HOST=4"),
        (("run", "train", "--workdir", "runs/x"), RUN, "gs://"),
        (("run",), RUN, "needs a verb"),
        (("credentials",), {"LOCATION": "l"}, "CLUSTER is not set"),
        (("credentials",), {"CLUSTER": "l"}, "LOCATION is not set"),
        (("build",), {}, "IMAGE is not set"),
        (("go",), {}, "'go'", "credentials, build"),
    ):
        assert_fails(machine.run("gke.sh", *words, **settings), *said)
    for name in ("sbatch", "kubectl"):
        (machine.programs / name).unlink()
    assert_fails(machine.run("slurm.sh", "run", "train", NODES="1"), "sbatch")
    assert_fails(machine.run("gke.sh", "stop", **RUN), "kubectl is not installed")
    assert_fails(machine.run("local.sh", "-n", "none", "train"), "-n needs a number", "'none'")
    assert machine.calls == []


PBRL = """#!/usr/bin/env bash
trap 'echo told to stop; exit 0' TERM
echo "$PBRL_PROCESS of $PBRL_PROCESSES: $*"
echo "$PBRL_COORDINATOR" >>"$CALLS"
if [ "$PBRL_PROCESS" = "${FAILS:-none}" ]; then # once the others listen
  until [ "$(grep -c ^127 "$CALLS")" = "$PBRL_PROCESSES" ]; do sleep 0.1; done
  exit 7
fi
for n in $(seq "${TENTHS:-0}"); do sleep 0.1; done
"""


def local(machine, *words, **settings):
    machine.add("python3.12", FAKE_PYTHON)
    machine.add("pbrl", PBRL)
    return machine.run("local.sh", *words, PBRL_EXTRAS="", **settings)


def test_processes_of_one_machine_meet_at_one_address(machine):
    result = local(machine, "-n", "2", "train", "c.py", "--a b")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("[")]
    assert sorted(lines) == ["[0] 0 of 2: train c.py --a b", "[1] 1 of 2: train c.py --a b"]
    first, second = machine.calls[-2:]
    assert first == second and first.startswith("127.0.0.1:")
    dry = machine.run("local.sh", "--dry-run", "-n", "2", "train", "c.py", PBRL_EXTRAS="cuda", PBRL_PORT="99")
    assert dry.stdout.splitlines()[1:] == [
        f"env PBRL_COORDINATOR=127.0.0.1:99 PBRL_PROCESSES=2 PBRL_PROCESS={n} JAX_LOCAL_DEVICE_IDS={n} pbrl train c.py"
        for n in (0, 1)
    ]


def test_one_failed_process_ends_the_others(machine):
    result = local(machine, "-n", "3", "train", FAILS="1", TENTHS="300", PBRL_GRACE="5")
    assert result.returncode == 7
    assert "ended with status 7; the other 2 have 5 s" in result.stderr
    assert "[0] told to stop" in result.stdout and "[2] told to stop" in result.stdout


def test_sigterm_reaches_every_process(machine):
    """The launcher passes it on, waits for the runs to save, and ends as they end."""
    machine.add("python3.12", FAKE_PYTHON)
    machine.add("pbrl", PBRL)
    started = 'until [ "$(grep -c ^127 "$CALLS")" = 2 ]; do sleep 0.1; done; sleep 0.5'
    stop = f'launch/local.sh -n 2 train &\n{started}; kill -TERM $!; wait $!; echo "status $?"'
    (machine.checkout / "launch" / "stopped.sh").write_text(f"cd {machine.checkout}\nbash {stop}\n")
    result = machine.run("stopped.sh", PBRL_EXTRAS="", TENTHS="300")
    assert "status 0" in result.stdout, result.stderr
    assert result.stdout.count("told to stop") == 2 and "stopping all processes" in result.stderr
