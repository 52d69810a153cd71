"""The folder of an evaluation.

W/evaluation.json   its settings and policy; another evaluation in this folder is refused
W/responses.jsonl   one row a response, appended batch by batch; at the end in order and with grades
W/eval.json         the result
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from pbrl_jax.core.errors import CheckpointError, DataError
from pbrl_jax.core.paths import (
    append_json_lines,
    as_path,
    read_json_lines,
    read_json_object,
    write_atomic,
    write_json_lines,
)
from pbrl_jax.eval.benchmarks.common import Problem


class EvaluationFolder:
    """Paths and rows of one folder; the object holds only the path, every call reads or writes the disk."""

    def __init__(self, workdir: str | os.PathLike):
        self.root = as_path(workdir)

    @property
    def identity(self) -> epath.Path:
        """Settings and policy."""
        return self.root / "evaluation.json"

    @property
    def responses(self) -> epath.Path:
        """One row a response."""
        return self.root / "responses.jsonl"

    @property
    def result(self) -> epath.Path:
        """The result."""
        return self.root / "eval.json"

    def claim(self, identity: dict[str, Any]) -> None:
        """Write the identity, or check that the folder has the same one.

        Raises:
          CheckpointError: it holds another evaluation; names every field that differs.
        """
        if not self.identity.exists():
            if self.responses.exists():
                raise CheckpointError(
                    f"{self.responses} exists without {self.identity.name}, so its evaluation is unknown. Give another "
                    "--workdir, or delete the file."
                )
            write_atomic(self.identity, _json(identity))
            return
        saved = read_json_object(self.identity)
        listed = _differences(saved, identity, dict.fromkeys([*saved, *identity]), "now")
        if listed:
            raise CheckpointError(
                f"{self.root} holds another evaluation: {listed}. Give another --workdir, or repeat that command to "
                "continue it."
            )

    def read(self) -> list[dict[str, Any]]:
        """The rows so far, each (key, sample) once."""
        rows = read_json_lines(self.responses)
        for number, row in enumerate(rows, start=1):
            if not isinstance(row.get("key"), str) or not isinstance(row.get("sample"), int):
                raise DataError(f"{self.responses}: row {number} has no key and sample. Delete it.")
        return list({(row["key"], row["sample"]): row for row in rows}.values())

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add the rows of a finished batch, in one write."""
        append_json_lines(self.responses, rows)

    def finish(self, rows: Sequence[dict[str, Any]], result: dict[str, Any]) -> None:
        """Replace the rows by the graded ones, then write the result."""
        write_json_lines(self.responses, rows)
        write_atomic(self.result, _json(result))

    def graded(self, identity: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of a finished evaluation, to compare one of this identity with.

        Raises:
          DataError: not finished, or other problems, protocol or version of the benchmark.
        """
        if not self.result.exists() or not self.identity.exists():
            raise DataError(f"{self.root} holds no finished evaluation. Give the --workdir of an earlier `pbrl eval`.")
        saved = read_json_object(self.identity)
        listed = _differences(saved, identity, COMPARABLE, "here")
        if listed:
            raise DataError(f"{self.root} cannot be compared with: {listed}. Evaluate the base in the same way.")
        return self.read()


COMPARABLE = ("benchmark", "version", "protocol", "shots", "problems")
"""Fields that must be equal in two evaluations that are compared."""


def problems_digest(problems: Sequence[Problem]) -> str:
    """Hex digest of every field of every problem, in order."""
    digest = hashlib.sha256()
    for problem in problems:
        fields = problem if problem.turns else problem[:-1]  # without turns: the digest of versions without
        digest.update(json.dumps(fields, ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:32]


def _differences(saved: dict[str, Any], current: dict[str, Any], names: Iterable[str], word: str) -> str:
    """`protocol "direct", now "native-cot"; ...` for the fields that differ; "" where none does."""
    pairs = ((name, saved.get(name), current.get(name)) for name in names)
    return "; ".join(f"{name} {_shown(old)}, {word} {_shown(new)}" for name, old, new in pairs if old != new)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
