"""What the README tells a reader to type: every command exists, marked ones run, those for clouds pass a dry run."""

import ast
import contextlib
import functools
import importlib
import io
import os
import subprocess
import sys

import pytest
from readme_commands import Command, commands_of, dry, fenced_blocks, is_cloud, problem_with, split_comment, tiny
from source_tree import ROOT

from pbrl_jax.cli import main

README = ROOT / "README.md"
PBRL = (sys.executable, "-c", "import sys; from pbrl_jax.cli import main; sys.exit(main())")

SAMPLE = """
# Sample
```bash
git clone example pbrl_jax && cd pbrl_jax   # a comment with `code`
bash launch/quickstart.sh
pbrl train configs/x.py --workdir runs/tiny \\
    --algo.beta 0.02                         # runs in tests
pbrl eval --policy runs/tiny '#1'
```
Text, and output that is no command:
```
pbrl nonsense
```
```bash
export TPU_NAME=t ZONE=z
SPOT=1 bash launch/tpu_vm.sh create; bash launch/gone.sh
python benchmarks/gone.py | tail -n 3
rocket --launch
```
"""


def all_commands(markdown: str) -> list[Command]:
    return [command for block in fenced_blocks(markdown, "bash") for command in commands_of(*block)]


@functools.cache
def is_verb(verb: str) -> bool:
    """Whether `pbrl VERB --help` works."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return not main([verb, "--help"])
        except SystemExit as leaving:
            return not leaving.code


def readme_commands() -> list:
    return [pytest.param(command, id=f"line-{command.line}") for command in all_commands(README.read_text("utf-8"))]


def run(words: list[str], environment: dict[str, str], cwd=ROOT) -> str:
    if words[0] in ("pbrl", "python", "python3"):
        words = [*(PBRL if words[0] == "pbrl" else (sys.executable,)), *words[1:]]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} | environment
    child = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    said = f"{child.stdout[-2000:]}\n{child.stderr[-4000:]}"
    assert child.returncode == 0, f"{words} ended with {child.returncode}:\n{said}"
    return child.stdout


@pytest.mark.parametrize("command", readme_commands())
def test_readme_command_can_be_typed(command):
    assert not (problem := problem_with(command, ROOT, is_verb)), f"README.md, line {command.line}: {problem}"
    if is_cloud(command):
        assert run(dry(command), command.environment).strip()


def test_readme_marked_commands_run(driver, tmp_path):
    """In their order and in one test, because later ones read what earlier ones wrote. The first `pbrl` imports its
    modules itself; the others are given them."""
    marked = [command for command in all_commands(README.read_text("utf-8")) if command.marked]
    assert marked, "README.md marks no command with `# runs in tests`"
    imported = False
    for command in marked:
        words = [] if is_cloud(command) else tiny(command, tmp_path)
        if words and words[0] == "pbrl" and imported:
            status, output = driver.run(words[1:], environment=command.environment)
            assert status == 0, f"{words} ended with {status}:\n{output[-4000:]}"
        elif words:
            run(words, command.environment)
            imported |= words[0] == "pbrl"


def test_readme_python_names_exist():
    """Python blocks parse, and what they import from the package is there."""
    for line, block in fenced_blocks(README.read_text("utf-8"), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("pbrl_jax"):
                module = importlib.import_module(node.module)
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"README.md, line {line}: {node.module} has no {missing}"


# The reading and judging itself, on the sample.


def test_sample_is_read():
    commands = all_commands(SAMPLE)
    assert [command.words[:3] for command in commands] == [
        ("git", "clone", "example"),
        ("cd", "pbrl_jax"),
        ("bash", "launch/quickstart.sh"),
        ("pbrl", "train", "configs/x.py"),
        ("pbrl", "eval", "--policy"),
        ("export", "TPU_NAME=t", "ZONE=z"),
        ("bash", "launch/tpu_vm.sh", "create"),
        ("bash", "launch/gone.sh"),
        ("python", "benchmarks/gone.py"),
        ("tail", "-n", "3"),
        ("rocket", "--launch"),
    ]
    assert [command.marked for command in commands].index(True) == 3 and sum(c.marked for c in commands) == 1
    assert commands[4].words[-1] == "#1"
    assert commands[6].environment == {"TPU_NAME": "t", "ZONE": "z", "SPOT": "1"}
    assert commands[7].environment == {"TPU_NAME": "t", "ZONE": "z"}
    assert commands[3].line == 7 and commands[6].line == 16


def test_sample_is_judged(tmp_path):
    for name in ("launch/quickstart.sh", "launch/tpu_vm.sh", "configs/x.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    problems = {c.shown: problem_with(c, tmp_path, is_verb=lambda verb: verb == "train") for c in all_commands(SAMPLE)}
    assert {shown: problem for shown, problem in problems.items() if problem} == {
        "pbrl eval --policy runs/tiny '#1'": "pbrl has no verb 'eval'",
        "bash launch/gone.sh": "there is no launch/gone.sh",
        "python benchmarks/gone.py": "there is no benchmarks/gone.py",
        "rocket --launch": "unknown command 'rocket'",
    }


def test_sample_is_made_tiny(tmp_path):
    command = all_commands(SAMPLE)[3]
    expected = ["pbrl", "train", "configs/x.py", "--workdir", str(tmp_path / "tiny"), "--algo.beta", "0.02"]
    assert tiny(command, tmp_path) == [*expected, "--train.max-steps", "2"]
    own = command._replace(words=(*command.words, "--train.max_steps=5"))
    assert tiny(own, tmp_path) == [*expected, "--train.max_steps=5"]
    local = command._replace(words=("bash", "launch/local.sh", "sft", "configs/x.py"))
    assert tiny(local, tmp_path) == ["pbrl", "sft", "configs/x.py", "--sft.steps", "2"]
    assert tiny(command._replace(words=("pbrl", "quickstart")), tmp_path) == ["pbrl", "quickstart", "--tiny"]


def test_sample_cloud_command_passes_a_dry_run():
    command = next(command for command in all_commands(SAMPLE) if is_cloud(command))
    assert dry(command) == ["bash", "launch/tpu_vm.sh", "--dry-run", "create"]
    assert "gcloud compute tpus tpu-vm create t --zone=z" in run(dry(command), command.environment)


@pytest.mark.parametrize(
    "line, code, comment",
    [("a # b", "a ", "b"), ("# b", "", "b"), ("a '# b' c#d", "a '# b' c#d", ""), ('a "#" # x', 'a "#" ', "x")],
)
def test_comments(line, code, comment):
    assert split_comment(line) == (code, comment)
