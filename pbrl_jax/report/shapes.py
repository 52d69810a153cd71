"""Schemas of the files of a work directory, as far as a report reads them, and their check.

A shape is a name in KINDS, a dict of fields (`*`: every other field), a list of one shape, or a tuple of alternative
shapes; None among them: the value may be absent.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

from pbrl_jax.core.errors import DataError
from pbrl_jax.core.paths import read_json_lines, read_json_object

LARGEST_NUMBER = 1e60
"""Limit of numbers in charts."""


def is_number(value: Any) -> bool:
    """Whether a value is a number that a chart can show, or a boolean."""
    return isinstance(value, int | float) and -LARGEST_NUMBER < value < LARGEST_NUMBER


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "number": (is_number, "a finite number"),
    "share": (lambda value: is_number(value) and 0 <= value <= 1, "a fraction from 0 to 1"),
    "count": (lambda value: type(value) is int and 0 <= value < 2**53, "an integer of at least 0"),
    "text": (lambda value: isinstance(value, str), "text"),
    "bounds": (lambda x: isinstance(x, list) and len(x) == 2 and all(map(is_number, x)), "a list of two numbers"),
    "object": (lambda value: isinstance(value, Mapping), "an object"),
}
"""Name of a shape -> (its test, its description in messages)."""

NUMBER, SHARE, COUNT, BOUNDS = (None, "number"), (None, "share"), (None, "count"), (None, "bounds")
PAIR = (None, "number", {"before": NUMBER, "after": NUMBER})
LANGUAGE = {
    "before": SHARE, "after": "share", "change": BOUNDS, "intervals": (None, {"*": BOUNDS}),
}  # fmt: skip
RECORD = {
    "before": NUMBER, "after": NUMBER, "mean_non_english": PAIR, "gap_to_english": PAIR,
    "languages": (None, {"*": {"before": SHARE, "after": "share"}}),
}  # fmt: skip
SUMMARY = {
    "mean_non_english": PAIR, "gap_to_english": PAIR, "languages": (None, {"*": LANGUAGE}),
    "problems_per_language": (None, "count", {"*": COUNT}), "controls": (None, {"*": ("number", RECORD)}),
    "seeds": (None, [("number", RECORD)], {"*": RECORD}), "seconds": (None, {"*": "number"}),
}  # fmt: skip
STEP = {"step": "count"}
SAMPLE = {"step": "count", "reward": NUMBER, "parts": (None, {"*": NUMBER})}
RESPONSE = {"key": "text", "language": "text", "correct": "number", "published": (None, {"*": "number"})}
FINAL = {"step": COUNT, "metrics": (None, "object")}
AUDIT = {"*": {"*": "number"}}
OVERLAP = {"share": SHARE, "languages": (None, {"*": SHARE}), "examples": (None, ["object"])}
CONTAMINATION = {"benchmarks": (None, {"*": OVERLAP})}
GAIN = {
    "base": "number", "points": "number", "low": "number", "high": "number", "relative": NUMBER,
    "p_bootstrap": "number", "p_mcnemar": NUMBER,
}  # fmt: skip
MEAN = (None, "number", {"accuracy": "number", "low": "number", "high": "number", "languages": ["text"]})
NOT_SHARES = {"n": "count", "mean_tokens": NUMBER, "mean_characters": NUMBER, "published": (None, {"*": SHARE})}
EVALUATION = {
    "languages": (None, {"*": {"accuracy": "share", "low": "number", "high": "number", **NOT_SHARES, "*": NUMBER}}),
    "against_base": (None, {"languages": (None, {"*": {"base": "share", "low": "number", "high": "number",
                                                      "base_low": NUMBER, "base_high": NUMBER}})}),
    "against": (None, {"*": {"languages": {"*": GAIN}, "mean_non_english": (None, GAIN), "english_retention": NUMBER}}),
    "mean_non_english": NUMBER, "mean_non_english_interval": BOUNDS, "mean": MEAN, "seen": MEAN, "unseen": MEAN,
    "worst_language": (None, {"language": "text", "accuracy": "number"}), "contamination": (None, OVERLAP),
}  # fmt: skip


def read_object(path: os.PathLike, shape: Any) -> dict[str, Any]:
    """`read_json_object`, and DataError if it has another shape."""
    return checked(read_json_object(path), shape, os.fspath(path))


def read_rows(path: os.PathLike, shape: Any) -> list[dict[str, Any]]:
    """`read_json_lines` in the order of the steps, and DataError if a row has another shape."""
    rows = [checked(row, shape, f"{os.fspath(path)}, row {n}") for n, row in enumerate(read_json_lines(path), start=1)]
    return sorted(rows, key=lambda row: row["step"])


def checked(value: Any, shape: Any, place: str) -> Any:
    """The value, unchanged.

    Raises:
      DataError: it has another shape; names the first wrong field.
    """
    if fault := _fault(value, shape, ""):
        raise DataError(f"{place}: {fault}. Correct the file, or let the same command write it again.")
    return value


def _fault(value: Any, shape: Any, name: str) -> str:
    """The problem of the first wrong field, such as `name is 'x'; expected a finite number`; "" if there is none."""
    where = name or "the content"
    if isinstance(shape, tuple):
        if value is None and None in shape:
            return ""
        faults = [_fault(value, alternative, name) for alternative in shape if alternative is not None]
        return "" if "" in faults else faults[-1]
    if isinstance(shape, str):
        fits, words = KINDS[shape]
        return "" if fits(value) else f"{where} is {str(value)[:60]!r}; expected {words}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is {str(value)[:60]!r}; expected a list"
        parts = [(item, shape[0], f"{name}[{place}]") for place, item in enumerate(value)]
    elif not isinstance(value, Mapping):
        return f"{where} is {str(value)[:60]!r}; expected an object"
    else:
        named = {*shape, *(value if "*" in shape else ())} - {"*"}
        dot = f"{name}." if name else ""
        parts = [(value.get(field), shape.get(field, shape.get("*")), f"{dot}{field}") for field in sorted(named)]
    return next(filter(None, (_fault(*part) for part in parts)), "")
