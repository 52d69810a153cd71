"""Slurm, Kubernetes, and several processes on one machine, with stand-ins for sbatch, kubectl, docker and pbrl."""

import re
import shlex
import shutil
import sys
import time

import pytest
import yaml
from launch.stand_ins import CHECKER, FAKE_PYTHON, Machine, assert_fails
from source_tree import ROOT

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
    assert machine.calls[-1] == "srun --kill-on-bad-exit=1 --label --cpus-per-task=8 pbrl train a b"


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
    word = yaml.safe_load(machine.run("gke.sh", "manifest", *TRAIN, **RUN | {"NAME": "true"}).stdout)
    assert word["metadata"]["name"] == "true"
    dry = machine.run("gke.sh", "--dry-run", "run", *odd, **settings).stdout
    assert dry.startswith("kubectl apply --filename=-\n") and machine.calls == []
    assert yaml.safe_load(dry.partition("\n")[2]) == made
    assert machine.run("gke.sh", "run", *odd, **settings).returncode == 0
    assert machine.calls == ["kubectl apply --filename=-"]


def requeue(machine, seconds_left: int, words=("true",), **settings):
    """Runs a job's body that ends so long before the job's limit."""
    machine.forget()
    machine.add("scontrol", CHECKER)
    job = {"SLURM_JOB_ID": "12", "SLURM_JOB_END_TIME": str(int(time.time()) + seconds_left)}
    return machine.run("requeue.sh", "180", *words, **(job | settings))


def test_a_job_at_its_time_limit_is_queued_again(machine):
    assert requeue(machine, 170).returncode == 0 and machine.calls == ["scontrol requeue 12"]
    assert requeue(machine, 230).returncode == 0 and machine.calls, "Slurm signals up to a minute early"
    assert requeue(machine, 3000).returncode == 0 and machine.calls == [], "its work is done"
    assert requeue(machine, 3000, ("bash", "-c", "exit 3")).returncode == 3 and machine.calls == []
    machine.add("squeue", "#!/usr/bin/env bash\necho 2020-01-01T00:00:00\n")
    (machine.tools / "date").symlink_to(shutil.which("date"))
    assert requeue(machine, 0, SLURM_JOB_END_TIME="").returncode == 0
    assert machine.calls == ["scontrol requeue 12"], "an older Slurm is asked for the end"


def test_kubernetes_takes_secrets(machine):
    """As a Secret that goes to kubectl through a pipe; neither a command line nor a terminal shows its values."""
    kept = machine.checkout.parent / "applied"
    machine.add("kept", '#!/usr/bin/env bash\ncat >>"$KEPT"; echo --- >>"$KEPT"\n')
    secrets = {"HF_TOKEN": 'hf_"1\n2', "WANDB_API_KEY": "wb", "PBRL_LOST_SECONDS": "9", "KEY": "k"}
    settings = RUN | secrets | {"PASS": "KEY", "ANSWER": "kept", "KEPT": str(kept)}
    result = machine.run("gke.sh", "run", *TRAIN, **settings)
    assert result.returncode == 0, result.stderr
    secret, job = list(yaml.safe_load_all(kept.read_text()))[:2]
    assert secret["kind"] == "Secret" and secret["stringData"] == secrets
    (pods,) = job["spec"]["replicatedJobs"]
    (container,) = pods["template"]["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"]}}]
    assert "hf_" not in result.stdout + "".join(machine.calls)
    dry = machine.run("gke.sh", "--dry-run", "run", *TRAIN, **settings).stdout
    assert "hf_" not in dry and "HF_TOKEN" in dry
    own = machine.run("gke.sh", "manifest", *TRAIN, **RUN, SECRET="mine").stdout
    assert 'name: "mine"' in own
    assert "envFrom" not in machine.run("gke.sh", "manifest", *TRAIN, **RUN).stdout


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_every_word_survives_yaml(machine, locale):
    odd = [
        "a\nb",
        "tab\t",
        "cr\r",
        "bell\a\x1b[0m\x7f",
        "\x85\u2028\u2029\ufeff",
        "# no",
        "{a: [b]}",
        "\\n",
        "é 日本 😀",
        "'",
    ]
    made = yaml.safe_load(machine.run("gke.sh", "manifest", *TRAIN, *odd, **RUN, LC_ALL=locale).stdout)
    (job,) = made["spec"]["replicatedJobs"]
    assert job["template"]["spec"]["template"]["spec"]["containers"][0]["args"] == [*TRAIN, *odd]
    inject = RUN | {"SERVICE_ACCOUNT": "x\n  hostNetwork: true"}
    made = yaml.safe_load(machine.run("gke.sh", "manifest", *TRAIN, **inject).stdout)
    pod = made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == inject["SERVICE_ACCOUNT"] and "hostNetwork" not in pod
    assert_fails(machine.run("gke.sh", "manifest", *TRAIN, **RUN, RESTARTS="1 # x"), "RESTARTS=1 # x", "not a number")


def test_images_are_pinned(machine):
    """By a full version tag; a digest is an option of the build."""
    base = re.search(r"^ARG BASE=(\S+)", (ROOT / "launch" / "Dockerfile").read_text(), re.MULTILINE)[1]
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", base)
    built = machine.run("gke.sh", "--dry-run", "build", **RUN, BASE_IMAGE="python@sha256:12").stdout
    assert "--build-arg BASE=python@sha256:12" in built


def test_the_container_runs_as_a_user_of_its_own(machine):
    lines = (ROOT / "launch" / "Dockerfile").read_text().splitlines()
    user = next(number for number, line in enumerate(lines) if line.startswith("USER "))
    assert lines[user] == "USER 10001:10001" and not any(line.startswith("RUN ") for line in lines[user:])
    assert any("useradd" in line and "--uid 10001" in line for line in lines[:user])
    for settings, uid in (({}, 10001), ({"RUN_AS": "0"}, 0)):
        made = yaml.safe_load(machine.run("gke.sh", "manifest", *TRAIN, **RUN, **settings).stdout)
        (container,) = made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
        expected = {"runAsUser": uid, "runAsGroup": uid, "allowPrivilegeEscalation": False}
        assert container["securityContext"] == expected
    assert_fails(machine.run("gke.sh", "manifest", *TRAIN, **RUN, RUN_AS="me"), "RUN_AS=me is not a number")


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
        (("run", *TRAIN), RUN | {"CHIPS_PER_HOST": "0"}, "CHIPS_PER_HOST=0 is not a number of at least 1"),
        (("run", *TRAIN), RUN | {"SLICES": "08"}, "SLICES=08 is not a number"),
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
trap 'echo told to stop; echo told >>"$CALLS"; sleep 0.5; exit 0' TERM
trap 'echo interrupted; exit 130' INT
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


@pytest.mark.parametrize("name", ["INT", "HUP", "USR1"])
def test_a_signal_to_the_whole_group_reaches_every_process_once(machine, name):
    """As Ctrl-C does; twice, as a nervous user presses it."""
    machine.add("python3.12", FAKE_PYTHON)
    machine.add("pbrl", PBRL)
    started = 'until [ "$(grep -c ^127 "$CALLS")" = 2 ]; do sleep 0.1; done; sleep 0.5'
    begin = (
        "import os, signal, sys; [signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGHUP)]; "
        "os.setsid(); os.execvp(sys.argv[1], sys.argv[1:])"
    )
    run = f"{sys.executable} -c {shlex.quote(begin)} bash launch/local.sh -n 2 train &"
    stop = f'{run}\n{started}; kill -{name} -- -$!; wait $!; echo "status $?"'
    (machine.checkout / "launch" / "stopped.sh").write_text(f"cd {machine.checkout}\n{stop}\n")
    result = machine.run("stopped.sh", PBRL_EXTRAS="", TENTHS="300")
    assert "status 0" in result.stdout, result.stderr
    assert result.stdout.count("told to stop") == 2 and "interrupted" not in result.stdout
    assert machine.calls.count("told") == 2
