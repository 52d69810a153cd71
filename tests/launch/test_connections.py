"""What a lost connection, an expired login, a repair or a secret must not do; stand-ins for gcloud, ssh and apt-get."""

import os
import shlex
import shutil
import signal
import subprocess

import pytest
from launch.stand_ins import CHECKER, CLOUD, FAKE_PYTHON, TPU, TRAIN, Machine, assert_fails, loop

SSH = """#!/usr/bin/env bash
echo "ssh $*" >>"$CALLS"
cd "$HOME" && exec bash -c "${@: -1}"
"""
"""An ssh whose other machine is the folder HOME."""


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    made.add("gcloud", CHECKER)
    made.add("cloud", CLOUD)
    return made


@pytest.mark.parametrize("command", ["create", "wait", "delete", "loop"])
def test_a_failed_look_up_is_no_absent_machine(machine, command):
    """An expired login must not read as "ABSENT already" while the machine costs money."""
    (states := machine.checkout.parent / "states").write_text("LOGIN\n")
    words = TRAIN if command == "loop" else ()
    result = machine.run("tpu_vm.sh", command, *words, **TPU, STATES=str(states), ANSWER="cloud")
    assert_fails(result, "could not tell", "Reauthentication failed")
    assert [shlex.split(call)[4] for call in machine.calls] == ["describe"]


@pytest.mark.parametrize(
    "missing",
    ["Project p was not found", "Project my-machine-p was not found. This command is authenticated as my-machine@x.org",
     "Resource projects/p/locations/z/nodes/my-machine-2 was not found"],
)  # fmt: skip
def test_another_missing_resource_is_no_absent_machine(machine, missing):
    machine.add("cloud", f"#!/usr/bin/env bash\necho 'ERROR: NOT_FOUND: {missing}' >&2\nexit 1\n")
    long_name = TPU | {"TPU_NAME": "my-machine"}
    assert_fails(machine.run("tpu_vm.sh", "delete", **long_name, ANSWER="cloud"), "could not tell")


def test_loop_survives_a_lost_connection(machine):
    """ssh ended with 255, the machine is in order: the run is joined and not started again."""
    result, verbs = loop(machine, ["READY", "READY", "READY"], [255, 0])
    assert result.returncode == 0, result.stderr
    assert verbs == ["run", "run"] and "the connection to t is lost; joining" in result.stderr
    joins = [shlex.split(call)[-1] for call in machine.calls if "local.sh" in call]
    assert joins[0] == joins[1] and "detached.sh follow" in joins[0]


def test_loop_survives_a_failed_look_up_and_waits_for_a_repair(machine):
    states = ["READY", "LOGIN", "REPAIRING", "READY"]
    result, verbs = loop(machine, states, [255, 0])
    assert result.returncode == 0, result.stderr
    assert verbs == ["run", "run"], "a machine under repair is neither deleted nor made anew"


def test_loop_asks_the_workers_how_the_run_is(machine):
    """gcloud gives 1 for any trouble with several workers; what they say of the run decides."""
    asked = '  ssh) case "$*" in *"detached.sh state"*) cat "$WORKERS"; exit ;; esac\n'
    machine.add("worker", CLOUD.replace("  ssh)\n", asked, 1))
    folder = machine.checkout.parent
    for workers, states, results, ends, commands in (
        (["pbrl-run: running"], ["READY"] * 3, [1, 0], 0, ["follow", "follow"]),
        (["pbrl-run: ended 0"], ["READY"], [1], 0, ["follow"]),
        (["pbrl-run: ended 1"], ["READY"] * 2, [1], 1, ["follow"]),
        (["pbrl-run: lost"], ["READY"] * 3, [1, 0], 0, ["follow", "restart"]),
        (["pbrl-run: none"], ["READY"] * 3, [1, 0], 0, ["follow", "restart"]),
    ):
        machine.forget()
        (folder / "workers").write_text("".join(f"{line}\n" for line in workers))
        result, _ = loop(machine, states, results, WORKERS=str(folder / "workers"), ANSWER="worker")
        assert result.returncode == ends, (workers, result.stderr)
        runs = [call for call in machine.calls if "local.sh" in call]
        assert [call.partition("detached.sh ")[2].split()[0] for call in runs] == commands
        assert ("scp" in "".join(machine.calls)) == ("restart" in commands), "a machine made anew is set up again"


# The run on its machine.


def detached(machine, *words, **settings):
    return machine.run("detached.sh", *words, **settings)


RUN = ("bash", "-c", "echo begun; until [ -e go ]; do sleep 0.1; done; echo ended; exit 5")


def following(machine, *words):
    """`detached.sh follow` in a process group of its own, whose output is read as it comes."""
    settings = {"PATH": f"{machine.programs}:{machine.tools}:/usr/bin:/bin", "HOME": str(machine.checkout)}
    return subprocess.Popen(
        ["bash", "launch/detached.sh", "follow", *words], cwd=machine.checkout, env=settings, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def until_said(process, word: str) -> str:
    """The output up to a line with this word, which must come."""
    said = ""
    for line in process.stdout:
        said += line
        if word in line:
            return said
    raise AssertionError(f"{word!r} was not said: {said}")


def test_a_run_outlives_its_connection_and_is_joined(machine):
    first = following(machine, "one", *RUN)
    until_said(first, "begun")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert detached(machine, "state").stdout == "pbrl-run: running\n"
    assert_fails(detached(machine, "free"), "already going on")
    assert_fails(detached(machine, "follow", "one", "other"), "another run is going on")
    second = following(machine, "two", *RUN)
    until_said(second, "joined")
    (machine.checkout / "go").touch()
    until_said(second, "ended")
    assert second.wait() == 5
    assert detached(machine, "state").stdout == "pbrl-run: ended 5\n"
    assert detached(machine, "follow", "one", *RUN).returncode == 5, "what this call started is not started again"
    third = detached(machine, "follow", "three", "bash", "-c", "exit 0")
    assert third.returncode == 0, "another call starts another run"


def test_a_machine_that_was_restarted_has_lost_its_run(machine):
    (machine.checkout / "pbrl.pid").write_text("1\n")  # the number of another program now
    assert detached(machine, "state").stdout == "pbrl-run: lost\n"
    assert detached(machine, "free").returncode == 0


def test_stop_ends_no_other_program(machine):
    """After a restart of the machine the number in pbrl.pid may be another program's; without a run it says so."""
    assert detached(machine, "stop").stdout == "no run is going on here\n"
    with subprocess.Popen(["sleep", "60"]) as other:
        (machine.checkout / "pbrl.pid").write_text(f"{other.pid}\n")
        assert detached(machine, "stop").returncode == 0
        assert other.poll() is None
        other.kill()


# Secrets and files.

SECRETS = {"HF_TOKEN": "hf_'se cret\"$x", "WANDB_API_KEY": "wb", "PBRL_LOST_SECONDS": "30", "MY_KEY": "mine"}


def test_secrets_reach_a_tpu_by_a_file_of_mode_600(machine):
    copy = '#!/usr/bin/env bash\ncase "$*" in *scp*environment*) cp -p "$5" "$COPY" ;; esac\n'
    machine.add("cloud", copy)
    kept = machine.checkout.parent / "kept"
    settings = TPU | SECRETS | {"PASS": "MY_KEY", "ANSWER": "cloud", "COPY": str(kept)}
    result = machine.run("tpu_vm.sh", "run", *TRAIN, **settings)
    assert result.returncode == 0, result.stderr
    assert kept.stat().st_mode & 0o777 == 0o600
    names = " ".join(f'"${name}"' for name in SECRETS)
    read = f"source {kept}; printf '%s\\n' {names}"
    assert subprocess.run(["bash", "-c", read], capture_output=True, text=True).stdout.split("\n")[:4] == list(
        SECRETS.values()
    )
    said = result.stdout + "".join(machine.calls)
    assert "se cret" not in said and "hf_" not in said and "mine" not in said
    assert not list((machine.checkout / "runs").glob("environment.*"))


def test_secrets_reach_a_gpu_box_and_its_run(machine, tmp_path):
    machine.add("ssh", SSH)
    machine.add("python3.12", FAKE_PYTHON)
    machine.add("pbrl", '#!/usr/bin/env bash\necho "token=$HF_TOKEN" >>"$CALLS"\n')
    home = tmp_path / "home"
    home.mkdir()
    box = {"HOST": "box", "REMOTE_DIR": "~/my dir", "HOME": str(home), "PBRL_EXTRAS": "", "HF_TOKEN": "a b"}
    assert machine.run("gpu_node.sh", "setup", **box).returncode == 0
    assert (home / "my dir" / "launch" / "local.sh").exists(), "~ is the home there, and the space is kept"
    result = machine.run("gpu_node.sh", "run", "train", "c.py", **box)
    assert result.returncode == 0, result.stderr
    wait = 'for n in $(seq 100); do grep -q ^token= "$CALLS" && exit 0; sleep 0.1; done; exit 1'
    assert machine.run("gpu_node.sh", "shell", wait, **box).returncode == 0
    assert "token=a b" in machine.calls
    assert not [call for call in machine.calls if call.startswith("ssh") and "a b" in call]
    assert (home / "my dir" / ".pbrl.env").stat().st_mode & 0o777 == 0o600
    assert_fails(machine.run("gpu_node.sh", "setup", HOST="-oProxyCommand=x"), "begins with -")


def test_extras_are_quoted(machine):
    machine.add("ssh")
    assert machine.run("gpu_node.sh", "setup", HOST="box", PBRL_EXTRAS="cuda,$(touch x)").returncode == 0
    assert machine.calls[-1].endswith("bash launch/environment.sh cuda \\$\\(touch\\ x\\); }")


def test_only_tracked_files_are_packed(machine):
    for name in ("git", "tar"):
        (machine.tools / name).unlink(missing_ok=True)
        (machine.tools / name).symlink_to(f"/usr/bin/{name}")
    machine.add("ssh")
    folder = machine.checkout
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "setup.py", "launch"], check=True)
    for name in (".env", "own.py", "my notes.txt"):
        (folder / name).write_text("secret")
    (folder / "launch" / "test.sh").unlink()  # tracked, and deleted since

    def packed(**settings):
        result = machine.run("gpu_node.sh", "setup", HOST="box", **settings)
        assert result.returncode == 0, result.stderr
        listed = subprocess.run(["tar", "-tzf", folder / "runs/checkout.tar.gz"], capture_output=True, text=True)
        return listed.stdout.split("\n"), result.stderr

    names, said = packed()
    assert "./setup.py" in names and "./launch/local.sh" in names and "./own.py" not in names and "./.env" not in names
    assert "git does not track" in said and "own.py" in said
    assert "./own.py" in packed(PBRL_PACK="own.py")[0]
    assert_fails(machine.run("gpu_node.sh", "setup", HOST="box", PBRL_PACK="none.py"), "PBRL_PACK names none.py")


def test_nothing_untracked_is_packed_where_there_is_no_git(machine):
    machine.add("ssh")
    (machine.checkout / ".env").write_text("secret")
    assert machine.run("gpu_node.sh", "setup", HOST="box").returncode == 0
    listed = subprocess.run(["tar", "-tzf", machine.checkout / "runs/checkout.tar.gz"], capture_output=True, text=True)
    assert "./launch/local.sh" in listed.stdout and ".env" not in listed.stdout


# Options of TPU machines.


def test_options_of_tpu_machines(machine):
    options = TPU | {"RESERVED": "1", "SERVICE_ACCOUNT": "me@p.iam", "INTERNAL_IPS": "1", "PBRL_EXTRAS": "tpu,lora"}
    made = machine.run("tpu_vm.sh", "--dry-run", "create", **options).stdout
    assert {"--reserved", "--service-account=me@p.iam", "--internal-ips"} <= set(made.split())
    assert "environment.sh tpu lora" in machine.run("tpu_vm.sh", "--dry-run", "setup", **options).stdout
    assert "PBRL_EXTRAS=tpu\\,lora" in machine.run("tpu_vm.sh", "--dry-run", "run", *TRAIN, **options).stdout
    for kind, group in (({}, "alpha compute tpus tpu-vm"), ({"QUEUED": "1"}, "compute tpus queued-resources")):
        for command in ("setup", "run", "ssh"):
            words = TRAIN if command == "run" else ()
            said = machine.run("tpu_vm.sh", "--dry-run", command, *words, **options, **kind, IAP="1").stdout
            lines = [line for line in said.splitlines() if line.startswith("gcloud")]
            assert lines and all(
                line.startswith(f"gcloud {group} ") and "--tunnel-through-iap" in line for line in lines
            )
    assert_fails(machine.run("tpu_vm.sh", "create", **TPU, SPOT="1", RESERVED="1"), "SPOT=1 and RESERVED=1")


# apt.

APT = """#!/usr/bin/env bash
echo "apt-get $*" >>"$CALLS"
case "$*" in *update*)
  if [ ! -e "$HOME/freed" ]; then
    : >"$HOME/freed"
    echo "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7" >&2
    exit 100
  fi ;;
*"install"*python3.12*) cp "$PYTHON_STAND_IN" "$(dirname "$0")/python3.12" ;;
esac
"""


def test_apt_waits_for_its_lock(machine, tmp_path):
    machine.add("apt-get", APT)
    machine.add("apt-cache")
    machine.add("sudo", '#!/usr/bin/env bash\nexec "$@"\n')
    machine.add("sleep", "#!/usr/bin/env bash\n")
    machine.add("stand_in", FAKE_PYTHON)
    settings = {"PBRL_INSTALL_PYTHON": "1", "PYTHON_STAND_IN": str(machine.programs / "stand_in")}
    result = machine.run("environment.sh", **settings)
    assert result.returncode == 0, result.stderr
    calls = [call for call in machine.calls if call.startswith("apt-get")]
    assert ["update" in call for call in calls] == [True, True, False] and "apt's lock" in result.stderr
    assert all("DPkg::Lock::Timeout=600" in call for call in calls)
    (machine.checkout / "freed").unlink()
    (machine.programs / "python3.12").unlink()
    shutil.rmtree(machine.checkout / ".venv")
    machine.forget()
    assert machine.run("environment.sh", APT_LOCK_SECONDS="0", **settings).returncode != 0
