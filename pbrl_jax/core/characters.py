"""Characters that steer a terminal or cannot be written: found in settings and data, shown as escapes on a terminal."""

import re

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters except tab and line ends, and halves of surrogate pairs, which UTF-8 cannot hold."""
_UNSAFE = re.compile(f"{CONTROL.pattern}|\r(?!\n)|[\u061c\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069]")
"""CONTROL, the return that overwrites a line, and marks that change the direction of text or begin another line."""


def visible(text: str) -> str:
    r"""`text` for a terminal: what could steer it (colours, cursor, title, direction) as escapes such as \x1b.

    Text of a model, a server, a data set or a file is printed through this.
    """
    return _UNSAFE.sub(lambda match: ascii(match.group())[1:-1], text)
