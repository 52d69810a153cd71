"""TPU VMs and GPU boxes, with stand-ins for gcloud and ssh: exact commands, preemption, named errors."""

import re
import shlex

import pytest
from launch.stand_ins import FAKE_PYTHON, Machine, assert_fails

FLAGS = {
    "create": {"--zone", "--project", "--accelerator-type", "--version", "--spot"},
    "scp": {"--zone", "--project", "--worker"},
    "ssh": {"--zone", "--project", "--worker", "--command"},
    "describe": {"--zone", "--project", "--format"},
    "delete": {"--zone", "--project", "--quiet"},
}
"""Of each `gcloud compute tpus tpu-vm` command the flags that gcloud's command reference lists and we use."""

GCLOUD = """#!/usr/bin/env bash
printf '%q ' gcloud "$@" >>"$CALLS"; echo >>"$CALLS"
case "$4" in
  describe)
    state="$(head -n 1 "$STATES")"
    sed -i 1d "$STATES"
    [ "$state" != ABSENT ] || exit 1
    echo "$state" ;;
  create) exit "${CREATE_STATUS:-0}" ;;
  ssh)
    case "$*" in *local.sh*)
      status="$(head -n 1 "$RESULTS")"
      sed -i 1d "$RESULTS"
      exit "$status" ;;
    esac ;;
esac
"""
TPU = {"TPU_NAME": "t", "ZONE": "us-west4-a"}
TRAIN = ("train", "configs/x.py", "--workdir", "gs://bucket/run")


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    made.add("gcloud", GCLOUD)
    made.add("ssh")
    return made


def loop(machine, states: list[str], results: list[int], **environment):
    """Runs `loop` while the machine is in these states at each look, and the run ends with these statuses."""
    folder = machine.checkout.parent
    (folder / "states").write_text("".join(f"{state}\n" for state in states))
    (folder / "results").write_text("".join(f"{status}\n" for status in results))
    files = {"STATES": str(folder / "states"), "RESULTS": str(folder / "results"), "RETRY_SECONDS": "0"}
    result = machine.run("tpu_vm.sh", "loop", *TRAIN, **TPU, **files, **environment)
    verbs = [shlex.split(call)[4] for call in machine.calls]
    runs = ["run" if "local.sh" in call else verb for verb, call in zip(verbs, machine.calls, strict=True)]
    return result, [verb for verb in runs if verb not in ("describe", "scp", "ssh")]


@pytest.mark.parametrize("command", ["create", "setup", "run", "loop", "logs", "stop", "ssh", "delete"])
def test_dry_run_prints_known_flags_and_calls_nothing(machine, command):
    words = TRAIN if command in ("run", "loop") else ()
    result = machine.run("tpu_vm.sh", "--dry-run", command, *words, **TPU, PROJECT="p", SPOT="1")
    assert result.returncode == 0, result.stderr
    assert machine.calls == []
    lines = [shlex.split(line) for line in result.stdout.splitlines()]
    gcloud = [words for words in lines if words[0] == "gcloud"]
    assert gcloud and all(words[1:4] == ["compute", "tpus", "tpu-vm"] for words in gcloud)
    for words in gcloud:
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert flags <= FLAGS[words[4]] and {"--zone", "--project"} <= flags
    assert all(words[0] in ("gcloud", "tar", "mkdir") for words in lines)


def test_dry_run_says_what_a_real_run_does(machine):
    said = machine.run("tpu_vm.sh", "--dry-run", "setup", **TPU).stdout.splitlines()
    done = machine.run("tpu_vm.sh", "setup", **TPU)
    assert done.returncode == 0 and done.stdout.splitlines() == said
    assert [shlex.split(call) for call in machine.calls] == [shlex.split(line) for line in said[2:]]
    assert "--worker=all" in machine.calls[0] and "--worker=all" in machine.calls[1]


@pytest.mark.parametrize(
    "kind, image",
    [("v5litepod-16", "v2-alpha-tpuv5-lite"), ("v5p-32", "v2-alpha-tpuv5"), ("v6e-8", "v2-alpha-tpuv6e"),
     ("v4-8", "tpu-ubuntu2204-base")],
)  # fmt: skip
def test_image_follows_the_type(machine, kind, image):
    result = machine.run("tpu_vm.sh", "--dry-run", "create", **TPU, ACCELERATOR_TYPE=kind)
    assert f"--accelerator-type={kind} --version={image}" in result.stdout
    own = machine.run("tpu_vm.sh", "--dry-run", "create", **TPU, ACCELERATOR_TYPE=kind, RUNTIME_VERSION="mine")
    assert "--version=mine" in own.stdout


def test_arguments_reach_the_worker_as_they_were(machine):
    odd = ("train", "configs/x.py", "--reward.functions", "a b", "$HOME", "it's")
    result = machine.run("tpu_vm.sh", "--dry-run", "run", *odd, **TPU)
    command = shlex.split(result.stdout)[-1].removeprefix("--command=")
    inner = re.search(r"launch/local\.sh (.*) >pbrl\.log", command)[1]
    assert shlex.split(inner) == list(odd)


def test_named_errors(machine):
    assert_fails(machine.run("tpu_vm.sh", "create", ZONE="z"), "TPU_NAME")
    assert_fails(machine.run("tpu_vm.sh", "create", TPU_NAME="t"), "ZONE")
    assert_fails(machine.run("tpu_vm.sh", "crate", **TPU), "'crate'", "create, setup")
    assert_fails(machine.run("tpu_vm.sh", "create", **TPU, ACCELERATOR_TYPE="v9-8"), "v9-8", "RUNTIME_VERSION")
    assert_fails(machine.run("tpu_vm.sh", "run", **TPU), "needs a verb")
    assert_fails(machine.run("tpu_vm.sh", "loop", "train", "c.py", "--workdir", "runs/x", **TPU), "gs://")
    (machine.programs / "gcloud").unlink()
    assert_fails(machine.run("tpu_vm.sh", "create", **TPU), "gcloud is not installed")
    assert machine.calls == []


def test_loop_brings_a_preempted_machine_back(machine):
    result, verbs = loop(machine, ["ABSENT", "PREEMPTED", "PREEMPTED"], [255, 0], SPOT="1")
    assert result.returncode == 0, result.stderr
    assert verbs == ["create", "run", "delete", "create", "run"]
    assert "t is PREEMPTED; asking again" in result.stderr and "ended well" in result.stderr
    assert all("--spot" in call for call in machine.calls if " create " in call)


def test_loop_uses_a_machine_that_is_ready(machine):
    result, verbs = loop(machine, ["READY"], [0])
    assert result.returncode == 0 and verbs == ["run"]


def test_loop_stops_when_the_run_itself_fails(machine):
    result, verbs = loop(machine, ["READY", "READY"], [1])
    assert_fails(result, "the run failed")
    assert verbs == ["run"]


def test_loop_asks_again_where_there_is_no_capacity(machine):
    machine.add("sleep", '#!/usr/bin/env bash\nsed -i s/CREATE/GONE/ "$(dirname "$0")/gcloud"\n')
    result, verbs = loop(machine, ["ABSENT", "ABSENT"], [0], CREATE_STATUS="1")
    assert result.returncode == 0, result.stderr
    assert verbs == ["create", "create", "run"] and "could not be made ready" in result.stderr


def test_gpu_box_through_ssh(machine):
    box = {"HOST": "me@box", "SSH_OPTIONS": "-p 22"}
    assert machine.run("gpu_node.sh", "setup", **box).returncode == 0
    assert machine.run("gpu_node.sh", "run", "pbrl", "train", "c.py", **box).returncode == 0
    unpack, install, train = machine.calls
    assert unpack == "ssh -p 22 me@box mkdir -p pbrl_jax && tar -xzf - -C pbrl_jax"
    assert "cd pbrl_jax && { PBRL_INSTALL_PYTHON=1 bash launch/environment.sh cuda; }" in install
    assert "bash launch/local.sh train c.py >pbrl.log" in train and train.startswith("ssh -p 22 me@box ")
    assert (machine.checkout / "runs" / "checkout.tar.gz").exists()


def test_gpu_box_that_is_this_machine(machine):
    machine.add("python3.12", FAKE_PYTHON)
    machine.add("pbrl", '#!/usr/bin/env bash\necho "pbrl $*" >>"$CALLS"; echo hello; sleep 30\n')
    here = {"PBRL_EXTRAS": ""}
    assert machine.run("gpu_node.sh", "setup", **here).returncode == 0
    assert machine.run("gpu_node.sh", "run", "train", "c.py", **here).returncode == 0
    wait = "for n in $(seq 100); do grep -q hello pbrl.log && exit 0; sleep 0.1; done; exit 1"
    assert machine.run("gpu_node.sh", "shell", wait, **here).returncode == 0
    assert machine.calls[-1] == "pbrl train c.py"
    assert_fails(machine.run("gpu_node.sh", "run", "train", "c.py", **here), "already going on")
    assert machine.run("gpu_node.sh", "stop", **here).returncode == 0
    gone = "for n in $(seq 100); do kill -0 $(cat pbrl.pid) 2>/dev/null || exit 0; sleep 0.1; done; exit 1"
    assert machine.run("gpu_node.sh", "shell", gone, **here).returncode == 0
    assert_fails(machine.run("gpu_node.sh", "start"), "'start'", "setup, run")
    assert_fails(machine.run("gpu_node.sh", "run"), "needs a verb")


def test_local_runs_any_verb(machine):
    machine.add("python3.12", FAKE_PYTHON)
    machine.add("pbrl")
    for words in (("train", "c.py", "--a b"), ("pbrl", "train", "c.py", "--a b")):
        machine.forget()
        assert machine.run("local.sh", *words, PBRL_EXTRAS="").returncode == 0
        assert machine.calls[-1] == "pbrl train c.py --a b"
    machine.forget()
    dry = machine.run("local.sh", "--dry-run", "train", "c.py", PBRL_EXTRAS="cuda")
    assert dry.stdout.splitlines() == [f"bash {machine.checkout}/launch/environment.sh cuda", "pbrl train c.py"]
    assert machine.calls == []
    assert_fails(machine.run("local.sh"), "no verb given")
