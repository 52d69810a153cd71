"""Characters that control a terminal or cannot be encoded: refused in settings, escaped in terminal output."""

import re

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters except tab and line ends, and halves of surrogate pairs, which UTF-8 cannot hold."""
_UNSAFE = re.compile(f"{CONTROL.pattern}|\r(?!\n)|[\u061c\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069]")
"""CONTROL, a carriage return inside a line, marks of text direction, and Unicode line separators."""


def visible(text: str) -> str:
    r"""`text` with characters that could control a terminal (colours, cursor, title, direction) escaped, as in \x1b.

    Text from a model, server, data set or file is printed through this function.
    """
    return _UNSAFE.sub(lambda match: ascii(match.group())[1:-1], text)
