"""Characters that control a terminal or cannot be encoded: refused in settings, escaped in terminal output; and lists
of texts."""

import re
from collections.abc import Iterable
from typing import Any

from pbrl_jax.core.errors import DataError

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters except tab and line ends, and halves of surrogate pairs, which UTF-8 cannot hold."""
_UNSAFE = re.compile(f"{CONTROL.pattern}|\r(?!\n)|[\u061c\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069]")
"""CONTROL, a carriage return inside a line, marks of text direction, and Unicode line separators."""


def visible(text: str) -> str:
    r"""`text` with characters that could control a terminal (colours, cursor, title, direction) escaped, as in \x1b.

    Text from a model, server, data set or file is printed through this function.
    """
    return _UNSAFE.sub(lambda match: ascii(match.group())[1:-1], text)


def as_texts(texts: Iterable[Any], what: str) -> list[str]:
    """`texts` as a list; `what` names them in messages.

    Raises:
      DataError: a single text, whose letters would be taken for texts, or something in the list that is no text.
    """
    if isinstance(texts, str):
        raise DataError(
            f"{what}: expected a list of texts, found one text {visible(texts[:40])!r}. Put it into a list."
        )
    found = list(texts)
    wrong = next((row for row, text in enumerate(found) if not isinstance(text, str)), None)
    if wrong is not None:
        raise DataError(f"{what}: number {wrong} of {len(found)} is {found[wrong]!r}, expected a text.")
    return found
