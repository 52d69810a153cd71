"""Answers and grades by the rules of published evaluations, which are reported in addition to ours.

They give the same results as the programs that they are named after, including their defects; docs/evaluation.md lists
the differences from our rules and their reasons.
"""

import re
import string
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from pbrl_jax.text.answers import extract_answer
from pbrl_jax.text.options import option_letter

INVALID = "[invalid]"
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SMALL = re.compile(r"[*_(]*([a-hj])[*_]*(?:[).:](?!\S)|$)")
_LAST_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def harness_strict(text: str, pattern: str) -> str:
    """The first match of a task's regular expression, `[invalid]` without one (lm-evaluation-harness)."""
    match = re.search(pattern, text)
    return match.group(1) if match else INVALID


def harness_flexible(text: str) -> str:
    """The last number-like string (lm-evaluation-harness, `flexible-extract`)."""
    matches = _FLEXIBLE.findall(text)
    return next(group for group in matches[-1] if group).strip() if matches else INVALID


def harness_match(answer: str, gold: str) -> bool:
    """exact_match with ignore_case and ignore_punctuation, which reads "18.00" as 1800 and "-7" as 7."""
    return answer.lower().translate(_PUNCTUATION) == gold.lower().translate(_PUNCTUATION)


def harness_number(text: str, gold: str, pattern: str | None) -> dict[str, bool]:
    """The grades of the MGSM tasks' two filters; without a pattern, the strict filter is the stripped text."""
    strict = text.strip() if pattern is None else harness_strict(text, pattern)
    return {
        "lm_eval_strict": harness_match(strict, gold),
        "lm_eval_flexible": harness_match(harness_flexible(text), gold),
    }


def last_number(text: str) -> float | None:
    """The last number after removing commas between digits (MathOctopus); None without one."""
    matches = _LAST_NUMBER.findall(re.sub(r"(\d),(\d)", r"\1\2", text))
    return float(matches[-1]) if matches else None


def math_octopus(text: str, gold: str) -> bool:
    """Whether the last number is within 1e-3 of the gold answer; a text without a number counts as 0 (MathOctopus)."""
    try:
        expected = float(Decimal(gold))
    except InvalidOperation:
        return False
    return abs((last_number(text) or 0.0) - expected) < 1e-3


def leading_or_announced_letter(text: str, code: str, letters: Sequence[str]) -> str | None:
    """The letter that we extract: the one announced in language `code`, else the one at the beginning of the text."""
    first = text.strip().split("\n", 1)[0]
    small = _SMALL.match(first)
    found = (extract_answer(text, code), option_letter(first, code), small and small[1])
    return next((letter.upper() for letter in found if letter and letter.upper() in set(letters)), None)
