"""Credentials in addresses, and texts of other machines, as they may be shown."""

import re

HIDDEN = "***"
_USER = re.compile(r"(://)[^/?#\s@]+@")
_PARAMETER = re.compile(
    r"([?&](?:[^=&#\s]*(?:key|token|secret|sig|passw|pwd|auth|credential)[^=&#\s]*|code)=)[^&#\s'\"]+", re.IGNORECASE
)


def hide_credentials(text: str) -> str:
    """The text with what a URL in it may hold of secrets as `***`: user and password, and values of query parameters
    whose names say so (`api-key`, `token`, `sig`)."""
    return _PARAMETER.sub(rf"\1{HIDDEN}", _USER.sub(rf"\1{HIDDEN}@", text))


def printable(text: str) -> str:
    """The text with control characters escaped, so that none reaches a terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
