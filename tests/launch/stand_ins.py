"""Stand-ins on the PATH: programs that write down how they were called and answer as a test tells them."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from source_tree import ROOT

FAKE_PYTHON = f"""#!/usr/bin/env bash
echo "$(basename "$0") $*" >>"$CALLS"
case "$*" in
  "-m venv"*)
    folder="${{@: -1}}"
    mkdir -p "$folder/bin"
    cp "$0" "$folder/bin/python"
    printf 'export VIRTUAL_ENV=%q PATH=%q:$PATH\\n' "$folder" "$folder/bin" >"$folder/bin/activate" ;;
  "-m pytest"*"-m not serial"*) exit "${{PARALLEL_STATUS:-0}}" ;;
  "-m pytest"*) echo "devices=$PBRL_TEST_DEVICES" >>"$CALLS"; exit "${{SERIAL_STATUS:-0}}" ;;
  "-m mypy"*) exit "${{TYPES_STATUS:-0}}" ;;
  "-m pip install -q uv") [ -n "${{UV_STATUS:-}}" ] ;;
  "-m pip list"*) printf 'pip==1\\njax==0.10.2\\npbrl_jax==0.2.0\\nPyYAML==6.0\\n' ;;
  "-m pip"*) echo "constraint ${{PIP_CONSTRAINT:-}}" >>"$CALLS"; exit "${{PIP_STATUS:-0}}" ;;
  "-c"*"version_info[:2]"*) echo 3.99 ;;
  "-m uv --version") exit 1 ;;
  "-m uv"*) echo "constraints $UV_CONSTRAINT $UV_BUILD_CONSTRAINT" >>"$CALLS"; exit "$UV_STATUS" ;;
  "- "* | "-") exec {sys.executable} "$@" ;;
  --version) echo "Python 3.12.9" ;;
esac
"""
"""A Python that fits, makes environments that hold itself, and installs nothing; it gets uv where UV_STATUS is set."""


CHECKER = f"""#!{sys.executable}
import json, os, shlex, sys

program, words = os.path.basename(sys.argv[0]), sys.argv[1:]
with open({str(ROOT / "tests/fixtures/launch/commands.json")!r}) as file:
    reference = json.load(file)[program]
line = " ".join(words)
names = [name for name in reference["commands"] if (line + " ").startswith(name + " ")]
if reference["commands"] and not names:
    sys.exit("no such command: " + line)
known = set(reference["global"]).union(*(reference["commands"][name] for name in names))
flags = [word.partition("=")[0] for word in words if word.startswith("-")]
with open(os.environ["CALLS"], "a") as file:
    file.write(shlex.join([program, *words]) + "\\n")
if unknown := sorted(set(flags) - known):
    sys.exit("unrecognized arguments: " + " ".join(unknown))
if answer := os.environ.get("ANSWER"):
    sys.exit(os.system(answer + " " + shlex.join(words)) >> 8)
"""
"""A program that refuses flags which the documented reference of its command does not list, then runs ANSWER."""


TOOLS = (
    "bash env basename mv wc dirname cp mkdir mktemp head tail grep rm cat id tar gzip sed sleep seq setsid sh nohup"
).split()


class Machine:
    """A checkout with our launch scripts, and a PATH of basic tools and stand-ins.

    The PATH holds no Python, gcloud or ssh of this system, so that nothing outside can be reached.
    """

    def __init__(self, folder: Path):
        self.checkout = folder / "checkout"
        shutil.copytree(ROOT / "launch", self.checkout / "launch")
        shutil.copy(ROOT / "setup.py", self.checkout / "setup.py")
        self.programs, self.tools = folder / "bin", folder / "tools"
        self.programs.mkdir()
        self.tools.mkdir()
        for name in TOOLS:
            os.symlink(shutil.which(name), self.tools / name)
        self.calls_file = folder / "calls.txt"
        self.calls_file.touch()

    def add(self, name: str, script: str = '#!/usr/bin/env bash\necho "$(basename "$0") $*" >>"$CALLS"\n') -> None:
        path = self.programs / name
        path.write_text(script)
        path.chmod(0o755)

    def run(self, script: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
        """Runs launch/<script> with the variables `environment`, in the folder `cwd` where one is given."""
        settings = {"PATH": f"{self.programs}:{self.tools}", "HOME": str(self.checkout), "CALLS": str(self.calls_file)}
        command = ["bash", str(self.checkout / "launch" / script), *words]
        cwd = environment.pop("cwd", self.checkout)
        quiet = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": 120}
        return subprocess.run(command, env=settings | environment, cwd=cwd, **quiet)

    def call(self, words: list[str]) -> subprocess.CompletedProcess:
        """Calls a stand-in as a script would."""
        settings = {"PATH": f"{self.programs}:{self.tools}", "CALLS": str(self.calls_file)}
        program = self.programs / words[0]
        return subprocess.run([program, *words[1:]], env=settings, capture_output=True, text=True, timeout=120)

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()

    def forget(self) -> None:
        self.calls_file.write_text("")


def assert_fails(result: subprocess.CompletedProcess, *said: str) -> None:
    """It ended with an error of one line that says all of this."""
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and all(word in last for word in said), result.stderr


CLOUD = """#!/usr/bin/env bash
case "$4" in
  describe)
    state="$(head -n 1 "$STATES")"
    sed -i 1d "$STATES"
    [ "$state" != LOGIN ] || { echo "ERROR: Reauthentication failed." >&2; exit 1; }
    [ "$state" != ABSENT ] ||
      { echo "ERROR: NOT_FOUND: Resource 'projects/p/locations/z/nodes/$5' was not found" >&2; exit 1; }
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


def loop(machine, states: list[str], results: list[int], **environment):
    """Runs `loop` while the machine is in these states at each look, and the run ends with these statuses."""
    folder = machine.checkout.parent
    (folder / "states").write_text("".join(f"{state}\n" for state in states))
    (folder / "results").write_text("".join(f"{status}\n" for status in results))
    files = {"STATES": str(folder / "states"), "RESULTS": str(folder / "results"), "RETRY_SECONDS": "0"}
    result = machine.run("tpu_vm.sh", "loop", *TRAIN, **TPU, **files, **({"ANSWER": "cloud"} | environment))
    verbs = [shlex.split(call)[4] for call in machine.calls]
    runs = ["run" if "local.sh" in call else verb for verb, call in zip(verbs, machine.calls, strict=True)]
    return result, [verb for verb in runs if verb not in ("describe", "scp", "ssh")]
