"""URLs and texts of other machines, made safe to print."""

import re

HIDDEN = "***"
_USER = re.compile(r"(://)[^/?#\s@]+@")
_PARAMETER = re.compile(
    r"([?&](?:[^=&#\s]*(?:key|token|secret|sig|passw|pwd|auth|credential)[^=&#\s]*|code)=)[^&#\s'\"]+", re.IGNORECASE
)


def hide_credentials(text: str) -> str:
    """The text with secrets in URLs replaced by `***`: user and password, and values of query parameters with names
    such as `api-key`, `token` or `sig`."""
    return _PARAMETER.sub(rf"\1{HIDDEN}", _USER.sub(rf"\1{HIDDEN}@", text))


def printable(text: str) -> str:
    """The text with all characters that are not printable escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
