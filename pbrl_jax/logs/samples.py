"""Sampled responses in `W/samples/step_<n>.jsonl`."""

from collections.abc import Mapping, Sequence
from typing import Any

from pbrl_jax.core.paths import work_dir, write_json_lines

SAMPLE_FIELDS = ("step", "prompt_id", "language", "prompt", "completion", "reference", "reward", "parts", "valid")
"""Fields of a row."""
OPTIONAL_FIELDS = ("translation",)
"""Fields that a row may have: the English translation of the completion, if a reward made one."""


def round_robin(rows: Sequence[Mapping[str, Any]], count: int, turn: int = 0) -> list[Mapping[str, Any]]:
    """At most `count` rows, one of each language in turn, in the order of the rows.

    `turn` rotates the order of languages, so that all of them are included over the steps even if `count` is smaller
    than their number.
    """
    queues: dict[str, list] = {}
    for row in rows:
        queues.setdefault(row["language"], []).append(row)
    order = sorted(queues)
    order = order[turn % len(order) :] + order[: turn % len(order)] if order else []
    chosen: list[Mapping[str, Any]] = []
    depth = 0
    while len(chosen) < min(count, len(rows)):
        chosen.extend(queues[language][depth] for language in order if depth < len(queues[language]))
        depth += 1
    return chosen[:count]


def write_samples(workdir: Any, step: int, rows: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """Write at most `count` rows, round-robin over languages; nothing if `count` is 0. The rows that were written.

    Args:
      rows: one mapping per response with the fields SAMPLE_FIELDS; `parts` maps a reward's name to its value.

    Raises:
      ValueError: a row lacks a field, or has another one.
    """
    if count <= 0 or not rows:
        return []
    for row in rows:
        if set(row) - set(OPTIONAL_FIELDS) != set(SAMPLE_FIELDS):
            raise ValueError(f"A sample row has the fields {sorted(row)}; expected {sorted(SAMPLE_FIELDS)}.")
    names = (*SAMPLE_FIELDS, *OPTIONAL_FIELDS)
    chosen = [{name: row[name] for name in names if name in row} for row in round_robin(rows, count, turn=step)]
    write_json_lines(work_dir(workdir).samples_of(step), chosen)
    return chosen
