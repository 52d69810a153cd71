"""Errors a user can act on.

Every message says what was found, what was expected, and what to type next. The command line prints the message
alone; a traceback appears only with --debug.
"""

import difflib
import importlib.util
from collections.abc import Iterable


class PbrlError(Exception):
    """Base of the errors that are caused by a user's input or environment and not by a defect of this package."""


class ConfigError(PbrlError):
    """A configuration value, key or combination that cannot run."""


class DataError(PbrlError):
    """A file, row, prompt or reference that cannot be used."""


class CheckpointError(PbrlError):
    """A checkpoint or work directory that cannot be read, written or continued."""


class RewardError(PbrlError):
    """A reward whose result cannot be used as a score."""


class NotFiniteError(PbrlError):
    """Parameters, or updates of them, that are NaN or infinite."""


class EndpointError(PbrlError):
    """An endpoint that gave no usable answer, or a request budget that is used up."""


class CutAnswer(EndpointError):
    """An endpoint's answer was cut at the token limit or by a filter; `text` is the partial answer."""

    def __init__(self, message: str, text: str):
        super().__init__(message)
        self.text = text


class HostError(PbrlError):
    """One of several hosts failed, and all hosts have been notified: they stop at the same point and can still save."""


class HostLost(PbrlError):
    """One of several hosts has ended or stopped responding: no collective operation is possible any more."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host ran out of memory. Told by the message, since error types differ by backend."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "bad_alloc" in str(error)


def installed(package: str) -> bool:
    """Whether a package that is an extra, or has no wheels for this platform, can be imported; it is not imported."""
    return importlib.util.find_spec(package) is not None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`Known: a, b. Did you mean 'a'?` for an unknown `name`; the question only if a similar name exists."""
    known = sorted(known)
    return f"Known: {', '.join(known)}.{nearest(name, known)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'a'?`, or "" if no known name is similar."""
    similar = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {similar[0]!r}?" if similar else ""


def lookup(table: dict, name: str, what: str):
    """`table[name]`, or a ConfigError that lists the known names.

    Args:
      table: one of the plain dict tables of this package.
      name: the key that a user typed.
      what: the kind of thing that the key names, for the message ("reward", "data source").
    """
    if name not in table:
        raise ConfigError(f"Unknown {what} {name!r}. {did_you_mean(name, table)}")
    return table[name]
