"""Answers and grades by the rules of published evaluations, beside which our own are reported.

Written to give the same result as the programs they are named after, their defects included; docs/evaluation.md lists
where they differ from ours and why.
"""

import re
import string
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from pbrl_jax.text.answers import extract_answer

INVALID = "[invalid]"
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LAST_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_LEADING_LETTER = re.compile(r"[\s*_$]*(?:\(([A-J])\)|([A-J])(?![A-Za-z0-9'’]))")


def harness_strict(text: str, pattern: str) -> str:
    """The first match of a task's regular expression, `[invalid]` without one (lm-evaluation-harness)."""
    found = re.search(pattern, text)
    return found.group(1) if found else INVALID


def harness_flexible(text: str) -> str:
    """The last thing that looks like a number (lm-evaluation-harness, `flexible-extract`)."""
    found = _FLEXIBLE.findall(text)
    return next(group for group in found[-1] if group).strip() if found else INVALID


def harness_match(found: str, gold: str) -> bool:
    """exact_match with ignore_case and ignore_punctuation: "18.00" becomes 1800 and "-7" becomes 7."""
    return found.lower().translate(_PUNCTUATION) == gold.lower().translate(_PUNCTUATION)


def harness_number(text: str, gold: str, pattern: str | None) -> dict[str, bool]:
    """The two filters of the MGSM family; without a pattern the strict one is the text, stripped."""
    strict = text.strip() if pattern is None else harness_strict(text, pattern)
    return {
        "lm_eval_strict": harness_match(strict, gold),
        "lm_eval_flexible": harness_match(harness_flexible(text), gold),
    }


def last_number(text: str) -> float | None:
    """The last number after commas between digits are removed (MathOctopus), None without one."""
    found = _LAST_NUMBER.findall(re.sub(r"(\d),(\d)", r"\1\2", text))
    return float(found[-1]) if found else None


def math_octopus(text: str, gold: str) -> bool:
    """Within 1e-3 of the gold answer; a text without a number counts as 0, as MathOctopus has it."""
    try:
        wanted = float(Decimal(gold))
    except InvalidOperation:
        return False
    return abs((last_number(text) or 0.0) - wanted) < 1e-3


def leading_or_announced_letter(text: str, code: str, letters: Sequence[str]) -> str | None:
    """Our letter: the one that language `code` announces, else the one that the text begins with."""
    allowed = set(letters)
    found = extract_answer(text, code)
    if found in allowed:
        return found
    leading = _LEADING_LETTER.match(text)
    letter = None if leading is None else leading.group(1) or leading.group(2)
    return letter if letter in allowed else None
