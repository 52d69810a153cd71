"""TPU VMs and GPU boxes, with stand-ins for gcloud and ssh: exact commands, preemption, named errors."""

import re
import shlex

import pytest
from launch.stand_ins import CHECKER, CLOUD, FAKE_PYTHON, TPU, TRAIN, Machine, assert_fails, loop

from pbrl_jax.plan.chips import GPU_POOL


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    made.add("gcloud", CHECKER)
    made.add("cloud", CLOUD)
    made.add("ssh")
    return made


KINDS = {"machine": {}, "queued": {"QUEUED": "1"}, "two slices": {"SLICES": "2"}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", ["create", "wait", "setup", "run", "loop", "logs", "stop", "ssh", "delete"])
def test_dry_run_prints_documented_commands_and_calls_nothing(machine, command, kind):
    words = TRAIN if command in ("run", "loop") else ()
    settings = TPU | KINDS[kind] | {"PROJECT": "p", "SPOT": "1", "NETWORK": "n"}
    result = machine.run("tpu_vm.sh", "--dry-run", command, *words, **settings)
    assert result.returncode == 0, result.stderr
    assert machine.calls == []
    lines = [shlex.split(line) for line in result.stdout.splitlines()]
    assert all(words[0] in ("gcloud", "tar", "mkdir") for words in lines)
    gcloud = [words for words in lines if words[0] == "gcloud"]
    group = "tpu-vm" if kind == "machine" else "queued-resources"
    assert gcloud and all(words[1:4] == ["compute", "tpus", group] for words in gcloud)
    assert all({"--zone=us-west4-a", "--project=p"} <= set(words) for words in gcloud)
    for words in gcloud:
        assert machine.call(words).returncode == 0, machine.call(words).stderr


def test_the_stand_in_refuses_flags_that_gcloud_does_not_have(machine):
    refused = machine.call(["gcloud", "compute", "tpus", "tpu-vm", "create", "t", "--node-count=2"])
    assert refused.returncode != 0 and "--node-count" in refused.stderr
    assert machine.call(["gcloud", "compute", "tpus", "tpu-vm", "make"]).returncode != 0


@pytest.mark.parametrize(
    "kind, expected",
    [("queued", "--runtime-version=v2-alpha-tpuv5-lite --node-id=t"),
     ("two slices", "--runtime-version=v2-alpha-tpuv5-lite --node-count=2 --node-prefix=t")],
)  # fmt: skip
def test_queued_resources_name_their_nodes(machine, kind, expected):
    made = machine.run("tpu_vm.sh", "--dry-run", "create", **TPU, **KINDS[kind]).stdout
    assert made.strip().endswith(expected)
    for command in ("run", "stop"):
        words = TRAIN if command == "run" else ()
        assert (
            "--node=all --worker=all"
            in machine.run("tpu_vm.sh", "--dry-run", command, *words, **TPU, **KINDS[kind]).stdout
        )
    assert "--force --quiet" in machine.run("tpu_vm.sh", "--dry-run", "delete", **TPU, **KINDS[kind]).stdout


def test_one_worker_of_one_slice(machine):
    logs = machine.run("tpu_vm.sh", "--dry-run", "logs", "3", "1", **TPU, SLICES="2")
    assert "--node=1 --worker=3" in logs.stdout
    assert_fails(machine.run("tpu_vm.sh", "--dry-run", "logs", "3", "2", **TPU, SLICES="2"), "no slice 2")
    assert_fails(machine.run("tpu_vm.sh", "--dry-run", "create", **TPU, SLICES="two"), "SLICES=two")


def test_create_and_delete_do_their_work_once(machine):
    (states := machine.checkout.parent / "states").write_text("READY\nABSENT\nABSENT\nREADY\n")
    answer = {"STATES": str(states), "ANSWER": "cloud"}
    for command, done in (("create", 0), ("delete", 0), ("create", 1), ("delete", 1)):
        machine.forget()
        result = machine.run("tpu_vm.sh", command, **TPU, **answer)
        assert result.returncode == 0, result.stderr
        assert len([call for call in machine.calls if f" {command} " in call]) == done
        assert ("nothing to do" in result.stderr) == (not done)


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
    assert_fails(machine.run("tpu_vm.sh", "crate", **TPU), "'crate'", "create, wait")
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


def test_loop_stands_in_line_and_comes_back_after_a_suspension(machine):
    states = ["ABSENT", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE"]
    result, verbs = loop(machine, states, [255, 0], SLICES="2", SPOT="1")
    assert result.returncode == 0, result.stderr
    assert verbs == ["create", "run", "delete", "create", "run"]
    assert result.stderr.count("stands in line") == 2


def test_loop_uses_a_machine_that_is_ready(machine):
    result, verbs = loop(machine, ["READY"], [0])
    assert result.returncode == 0 and verbs == ["run"]


def test_loop_stops_when_the_run_itself_fails(machine):
    result, verbs = loop(machine, ["READY", "READY"], [1])
    assert_fails(result, "the run failed")
    assert verbs == ["run"]


def test_loop_asks_again_where_there_is_no_capacity(machine):
    machine.add("sleep", '#!/usr/bin/env bash\nsed -i s/CREATE/GONE/ "$(dirname "$0")/cloud"\n')
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


VLLM = """#!/usr/bin/env bash
case "$*" in
  -c*) echo "asked ${@: -1}" >>"$CALLS"; [ -e answers ] ;;
  *) echo "vllm $VLLM_SERVER_DEV_MODE $*" >>"$CALLS"; [ "${4:-}" != broken ] || { echo no such model; exit 1; }
     touch answers; trap 'rm answers; exit 0' TERM; sleep 30 & wait ;;
esac
"""


def test_a_vllm_server_beside_a_run(machine):
    """It is started, waited for and ended; a run's own files are left alone, and one that ends is not waited for."""
    machine.add("vllm_python", VLLM)
    machine.add("touch", '#!/usr/bin/env bash\n: >"$1"\n')
    here = {"VLLM_PYTHON": str(machine.programs / "vllm_python"), "VLLM_PORT": "8123", "VLLM_WAIT": "20"}
    result = machine.run("gpu_node.sh", "serve", "Qwen/Qwen3-0.6B", "--dtype", "float32", **here)
    assert result.returncode == 0 and "it answers" in result.stderr, result.stderr
    served = [call for call in machine.calls if call.startswith("vllm")]
    assert served == ["vllm 1 -m vllm.entrypoints.openai.api_server --model Qwen/Qwen3-0.6B --dtype float32 --host "
                      "127.0.0.1 --port 8123 --generation-config vllm --logprobs-mode processed_logprobs"]  # fmt: skip
    assert machine.calls[-1] == "asked http://127.0.0.1:8123/health"
    assert_fails(machine.run("gpu_node.sh", "serve", "other", **here), "already going on")
    assert machine.run("gpu_node.sh", "end_server", **here).returncode == 0
    gone = "for n in $(seq 100); do kill -0 $(cat vllm.pid) 2>/dev/null || exit 0; sleep 0.1; done; exit 1"
    assert machine.run("gpu_node.sh", "shell", gone, **here).returncode == 0
    assert not (machine.checkout / "answers").exists() and not (machine.checkout / "pbrl.pid").exists()
    broken = machine.run("gpu_node.sh", "serve", "broken", **here)
    assert_fails(broken, "the vLLM server has ended")
    assert "no such model" in broken.stderr
    for word, said in (("--port=9000", "set VLLM_PORT"), ("--host", "this script sets it")):
        assert_fails(machine.run("vllm.sh", "serve", "m", word, **here), f"{word.partition('=')[0]} is not taken", said)
    remote = machine.run("gpu_node.sh", "--dry-run", "serve", "m", HOST="me@box", VLLM_PORT="8123")
    assert "ssh me@box" in remote.stdout and "PBRL_JOB=vllm VLLM_PORT=8123" in remote.stdout
    assert_fails(machine.run("vllm.sh", "serve", "m"), ".vllm/bin/python is no Python", "VLLM_PYTHON")


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


def test_the_memory_that_a_run_takes_of_a_gpu(machine):
    """As the plan counts it, unless the user says otherwise, by the old name too, which jaxlib refuses beside the new
    one; what is said for a box reaches it."""
    machine.add("python3.12", FAKE_PYTHON)
    new, old = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
    told = f'#!/usr/bin/env bash\necho "${{{new}:-}} ${{{old}:-}}" >>"$CALLS"\n'
    machine.add("pbrl", told)
    for given, taken in (({}, f"{GPU_POOL} "), ({new: "0.5"}, "0.5 "), ({old: "0.6"}, " 0.6")):
        assert machine.run("local.sh", "train", "c.py", PBRL_EXTRAS="", **given).returncode == 0
        assert machine.calls[-1] == taken
    machine.add("sbatch", CHECKER)
    machine.add("srun", told)
    assert machine.run("slurm.sh", "run", "train", "c.py", NODES="1").returncode == 0
    machine.add("job", f"#!/bin/sh\n{shlex.split(machine.calls[-1])[-1].removeprefix('--wrap=')}\n")
    assert machine.call(["job"]).returncode == 0 and machine.calls[-1] == f"{GPU_POOL} "
    remote = machine.run("gpu_node.sh", "--dry-run", "run", "train", "c.py", HOST="me@box", **{new: "0.5"})
    assert f"{new}=0.5 setsid nohup" in remote.stdout
    assert f" {new}={GPU_POOL}\n" in (machine.checkout / "launch" / "Dockerfile").read_text()
