"""The commands of a Markdown page: taken out of its fenced bash blocks, judged, and made small enough for a test."""

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

MARK = "runs in tests"
CLOUD_SCRIPTS = ("tpu_vm.sh", "gpu_node.sh", "slurm.sh", "gke.sh")
"""Scripts that rent or reach other machines; they are run with --dry-run."""

TOOLS = (
    "git", "pip", "cd", "export", "source", ".", "mkdir", "ls", "cat", "head", "tail", "open", "tensorboard", "ruff",
    "pytest", "gcloud", "ssh", "scp", "grep",
)  # fmt: skip
"""Commands that are not ours; only the files of this checkout that they name are looked at."""

OWN_FOLDERS = ("configs/", "launch/", "docs/", "benchmarks/", "tests/", "pbrl_jax/")

TINY = {
    "quickstart": {"--tiny": ""},
    "train": {"--train.max-steps": "2"},
    "sft": {"--sft.steps": "2"},
    "encoder": {"--contrastive.steps": "2"},
    "grpo_step.py": {"--steps": "1"},
}
"""Verb or script -> options that make it short; one that the command gives itself is left as it is."""


class Command(NamedTuple):
    """One simple command: `environment` is what exports and prefixes set for it, `marked` that tests run it."""

    words: tuple[str, ...]
    environment: dict[str, str]
    marked: bool
    line: int

    @property
    def shown(self) -> str:
        return shlex.join(self.words)


def split_comment(line: str) -> tuple[str, str]:
    """The line without its comment, and the comment; a # inside quotes or a word is none."""
    quote = ""
    for index, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (index == 0 or line[index - 1].isspace()):
            return line[:index], line[index + 1 :].strip()
    return line, ""


def fenced_blocks(markdown: str, language: str) -> list[tuple[int, str]]:
    """(line of the first line, text) of the fenced blocks in a language."""
    found = re.finditer(rf"^```{language}[^\n]*\n(.*?)^```\s*$", markdown, re.MULTILINE | re.DOTALL)
    return [(markdown.count("\n", 0, match.start(1)) + 1, match[1]) for match in found]


def commands_of(first_line: int, block: str) -> list[Command]:
    """The commands of a bash block, one for each side of && and ;, with the exports before them."""
    exported: dict[str, str] = {}
    commands = []
    waiting = ""
    for number, line in enumerate(block.splitlines(), start=first_line):
        code, comment = split_comment(line)
        waiting += code.rstrip()
        if waiting.endswith("\\"):
            waiting = waiting[:-1] + " "
            continue
        lexer = shlex.shlex(waiting, posix=True, punctuation_chars=";&|")
        lexer.commenters, lexer.whitespace_split, waiting = "", True, ""
        parts: list[list[str]] = [[]]
        for word in lexer:
            parts.append([]) if set(word) <= set(";&|") else parts[-1].append(word)
        for words in filter(None, parts):
            settings, rest = _leading_settings(words)
            if not rest or rest[0] == "export":
                exported |= settings or _leading_settings(rest[1:])[0]
            if rest:
                commands.append(Command(tuple(rest), exported | settings, MARK in comment, number))
    return commands


def _leading_settings(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """`A=1 B=2 command ...` -> ({A: 1, B: 2}, [command, ...])."""
    settings = {}
    while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0], re.DOTALL):
        name, _, value = words[0].partition("=")
        settings[name], words = value, words[1:]
    return settings, words


def script_of(words: tuple[str, ...]) -> str:
    """The script that `bash x.sh`, `python x.py` or `./x.sh` runs, or ""."""
    runner = words[0] in ("bash", "sh", "python", "python3")
    path = next((word for word in words[1:] if not word.startswith("-")), "") if runner else words[0]
    return path if path.endswith((".sh", ".py")) else ""


def problem_with(command: Command, root: Path, is_verb: Callable[[str], bool]) -> str:
    """Why a reader could not type this command, or ""."""
    words = command.words
    for word in words:
        path = word.split("::")[0].partition("=")[2] or word.split("::")[0]
        if path.startswith(OWN_FOLDERS) and not any(mark in path for mark in "*<") and not (root / path).exists():
            return f"there is no {path}"
    if words[0] == "pbrl":
        if len(words) > 1 and not words[1].startswith("-") and not is_verb(words[1]):
            return f"pbrl has no verb {words[1]!r}"
        return ""
    if script := script_of(words):
        return "" if (root / script).exists() else f"there is no {script}"
    if words[0] in ("python", "python3") and "-m" in words[1:3]:
        return ""
    return "" if words[0] in TOOLS else f"unknown command {words[0]!r}"


def is_cloud(command: Command) -> bool:
    return os.path.basename(script_of(command.words)) in CLOUD_SCRIPTS


def dry(command: Command) -> list[str]:
    """The command with --dry-run as the script's first argument."""
    words = list(command.words)
    place = words.index(script_of(command.words)) + 1
    return words if "--dry-run" in words else [*words[:place], "--dry-run", *words[place:]]


def tiny(command: Command, runs: Path) -> list[str]:
    """The words of a marked command with tiny options, and with its `runs/` below the folder `runs`."""
    words = [str(runs / word.removeprefix("runs/")) if word.startswith("runs/") else word for word in command.words]
    if os.path.basename(script_of(command.words)) == "local.sh":
        words = ["pbrl", *words[words.index(script_of(command.words)) + 1 :]]
    key = words[1] if words[0] == "pbrl" else os.path.basename(script_of(command.words))
    for option, value in TINY.get(key, {}).items():
        given = {word.partition("=")[0].replace("_", "-") for word in words}
        if option not in given:
            words += [option, value] if value else [option]
    return words
