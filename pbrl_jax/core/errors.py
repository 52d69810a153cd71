"""Errors a user can act on.

Every message says what was found, what was expected, and what to type next. The command line prints the message
alone; a traceback appears only with --debug.
"""

import difflib
from collections.abc import Iterable


class PbrlError(Exception):
    """Base of every error that is the answer to a user's input and not a defect of this package."""


class ConfigError(PbrlError):
    """A configuration value, key or combination that cannot run."""


class DataError(PbrlError):
    """A file, row, prompt or reference that cannot be used."""


class CheckpointError(PbrlError):
    """A checkpoint or work directory that cannot be read, written or continued."""


class RewardError(PbrlError):
    """A reward that returned something no score can be made of."""


class EndpointError(PbrlError):
    """An endpoint that gave no usable answer, or a budget that is spent."""


class HostError(PbrlError):
    """One host of several failed, and all know it: they stop at the same place and can still save together."""


class HostLost(PbrlError):
    """A host of several has ended or fallen silent: nothing can be done together any more."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`Known: a, b. Did you mean 'a'?` for an unknown `name`; the question only where a near name exists."""
    known = sorted(known)
    return f"Known: {', '.join(known)}.{nearest(name, known)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'a'?`, or nothing where no name is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def lookup(table: dict, name: str, what: str):
    """`table[name]`, or a ConfigError that lists the known names.

    Args:
      table: one of the plain dict tables of this package.
      name: the key a user typed.
      what: what the key stands for, for the message ("reward", "data source").
    """
    if name not in table:
        raise ConfigError(f"Unknown {what} {name!r}. {did_you_mean(name, table)}")
    return table[name]
