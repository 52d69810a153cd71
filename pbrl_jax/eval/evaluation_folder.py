"""The folder of an evaluation.

W/evaluation.json   settings and policy; an evaluation with others is refused in this folder
W/responses.jsonl   one row per response, appended batch by batch; at the end sorted and graded
W/eval.json         the result
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

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
    """Reads and writes the files of one folder; the object holds only their paths."""

    def __init__(self, workdir: str | os.PathLike):
        self.root = as_path(workdir)
        self.identity, self.responses = self.root / "evaluation.json", self.root / "responses.jsonl"
        self.result = self.root / "eval.json"

    def claim(self, identity: dict[str, Any]) -> None:
        """Write the identity, or check that the folder has the same identity.

        Raises:
          CheckpointError: the folder holds another evaluation; names the fields that differ.
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
        """The rows so far, without repetitions of a (key, sample)."""
        rows = read_json_lines(self.responses)
        for number, row in enumerate(rows, start=1):
            if not isinstance(row.get("key"), str) or not isinstance(row.get("sample"), int):
                raise DataError(f"{self.responses}: row {number} has no key and sample. Delete it.")
        return list({(row["key"], row["sample"]): row for row in rows}.values())

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append the rows of a finished batch, in one write."""
        append_json_lines(self.responses, rows)

    def finish(self, rows: Sequence[dict[str, Any]], result: dict[str, Any]) -> None:
        """Replace the rows by the graded ones, then write the result."""
        write_json_lines(self.responses, rows)
        write_atomic(self.result, _json(result))

    def graded(self, identity: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of a finished evaluation, for comparison with one of this identity.

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
"""Fields of the identity that must be equal for a comparison."""


def problems_digest(problems: Sequence[Problem]) -> str:
    """Hex digest of all fields of all problems, in order."""
    digest = hashlib.sha256()
    for problem in problems:
        fields = problem if problem.turns else problem[:-1]  # without turns: the digest of versions without
        digest.update(json.dumps(fields, ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:32]


def _differences(saved: dict[str, Any], current: dict[str, Any], names: Iterable[str], word: str) -> str:
    """`protocol "direct", now "native-cot"; ...` for fields that differ; "" if none does."""
    pairs = ((name, saved.get(name), current.get(name)) for name in names)
    return "; ".join(f"{name} {_shown(old)}, {word} {_shown(new)}" for name, old, new in pairs if old != new)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
