"""Ways to hide a text from a language gate that a reader or an encoder can still read: in formulas, code, tags, a link,
other letters, or pieces. `WRAPPINGS` has a seen and a held-out form of each."""

import re
from collections.abc import Callable
from typing import NamedTuple

_WORDS = re.compile(r"[^\W\d_]+|\d+")
_LOOKALIKES = str.maketrans("aceopxyAEOPCTKH", "асеорхуАЕОРСТКН")


class Wrapping(NamedTuple):
    """Two forms of one way to wrap a text, text -> wrapped text; nothing is trained on the held-out form."""

    seen: Callable[[str], str]
    held_out: Callable[[str], str]


def _sentences(text: str) -> list[str]:
    return text.replace(". ", ".\n").splitlines()


def _shifted(upper: int, lower: int) -> Callable[[str], str]:
    """Replacement of Latin letters by the alphabets that begin at these characters."""

    def shift(c: str) -> str:
        return chr(ord(c) - 65 + upper) if "A" <= c <= "Z" else chr(ord(c) - 97 + lower) if "a" <= c <= "z" else c

    return lambda text: "".join(map(shift, text))


WRAPPINGS: dict[str, Wrapping] = {
    "formula": Wrapping(
        lambda text: " ".join(f"${sentence}$" for sentence in _sentences(text)),
        lambda text: f"\\[{text}\\]",
    ),
    "text_command": Wrapping(
        lambda text: f"$\\text{{{text}}}$",
        lambda text: "\\[" + " ".join(f"\\mathrm{{{word}}}" for word in text.split()) + "\\]",
    ),
    "code": Wrapping(
        lambda text: f"```python\n{text}\n```\n",
        lambda text: " ".join(f"`{sentence}`" for sentence in _sentences(text)),
    ),
    "tags": Wrapping(
        lambda text: " ".join(f"<{word}>" for word in text.split()),
        lambda text: f'<span title="{text}"></span>',
    ),
    "markup": Wrapping(
        lambda text: " ".join(f"<|{word.lower()}|>" for word in _WORDS.findall(text)),
        lambda text: " ".join(f"\\begin{{{word.lower()}}}" for word in _WORDS.findall(text)),
    ),
    "link": Wrapping(
        lambda text: "https://" + "-".join(text.split()),
        lambda text: f"[1](www.example.org/{'_'.join(text.split())})",
    ),
    "circled": Wrapping(_shifted(0x24B6, 0x24D0), _shifted(0x1D400, 0x1D41A)),
    "hidden_marks": Wrapping(
        "\u200b".join,
        lambda text: "".join(c + "\u0336" if c.isalpha() else c for c in text),
    ),
    "mixed_scripts": Wrapping(
        lambda text: text.translate(_LOOKALIKES),
        lambda text: "  ".join(" ".join(word) for word in text.split()),
    ),
}
"""Name -> forms."""
