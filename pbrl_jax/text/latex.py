r"""LaTeX that does not change a value: sizes, colours and fonts, taken off once where a formula is read."""

import re

TEXT = r"\\(?:text(?:rm|bf|it|sf|tt)?|math(?:rm|bf|it|sf|tt)|mbox|operatorname|boldsymbol|bm|underline|ensuremath)"
TEXT_COMMAND = re.compile(rf"{TEXT}\s*\{{([^{{}}]*)\}}")
"""Text in a formula, in whatever font."""
_BALANCED = r"\{((?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*)\}"
_FONT = re.compile(rf"(?:{TEXT}|\\(textcolor)\s*\{{\w+\}})\s*{_BALANCED}")
_SIZE = re.compile(
    r"\\(?:(?:left|right)(?![A-Za-z])\.?|\\\s*$|color\s*\{\w+\}"
    r"|(?:displaystyle|textstyle|[bB]igg?[lr]?|limits|bf|rm|it|small|large|Large|huge|Huge)(?![A-Za-z]))"
)
_DISPLAY = re.compile(r"\\\[(?:(?!\\\]).){1,1000}?\\\]|\$\$[^$]{1,1000}?\$\$", re.DOTALL)


def unwrapped(text: str) -> str:
    r"""`text` without sizes, colours, a line break at its end, and fonts around a formula; \text{cm} stays."""
    text = _SIZE.sub("", text) if "\\" in text else text
    while (shorter := _FONT.sub(_without_font, text)) != text:
        text = shorter
    return text


def _without_font(match: re.Match) -> str:
    return match[2] if match[1] or re.search(r"[\\{]", match[2]) else match.group()


def on_one_line(text: str) -> str:
    """`text` with spaces in place of the ends of lines in displayed formulas; its length stays."""
    return _DISPLAY.sub(lambda match: match.group().replace("\n", " "), text)
