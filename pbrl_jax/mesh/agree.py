"""What the hosts of one run tell each other, beside the arrays: small JSON values, through jax.distributed's own store.

No device takes part, so a value of any size can be told while programs run, and a host that has failed can still say
so. One `exchange` is one all-gather; all hosts make the same ones in the same order. A host alone talks to itself.
"""

import itertools
import json
import traceback
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from pbrl_jax.core.errors import HostError, HostLost, PbrlError

Value = TypeVar("Value")

FOLDER = "pbrl"
#: Milliseconds of one wait for another host's value; between two waits a lost host is noticed.
WAIT_MILLISECONDS = 2_000
#: Bytes of an array that are gathered at a time.
GATHER_BYTES = 1 << 28

_turns = itertools.count()
_lost: list[str] = []


def note_lost(words: str) -> None:
    """A host has ended or fallen silent; whoever waits for it ends with these words."""
    _lost.append(words)


def lost() -> str:
    """What is known of the first host that will not answer any more; "" while all are well."""
    return _lost[0] if _lost else ""


def host() -> int:
    """This host's number, from 0."""
    return jax.process_index()


def host_count() -> int:
    """Processes in this run."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this host is the one that writes logs, reports and models."""
    return jax.process_index() == 0


def store() -> Any:
    """The key-value store of jax.distributed; None in a process that is alone."""
    from jax._src.distributed import global_state  # jax has no public name for it; orbax uses the same

    return global_state.client


def exchange(tag: str, value: Any) -> list[Any]:
    """The values that all hosts gave, by host number: the same list everywhere.

    Args:
      tag: what it is about; hosts that are at different places of the program are told apart by it.
      value: what JSON can hold.

    Raises:
      HostLost: a host has ended; or it is about something else than this one.
    """
    if host_count() == 1:
        return [value]
    client, turn = store(), next(_turns)
    content = zlib.compress(json.dumps([tag, value]).encode(), 1)
    client.key_value_set_bytes(f"{FOLDER}/turn/{turn}/{host()}", content)
    told = []
    for other in range(host_count()):
        theirs, answer = json.loads(zlib.decompress(_wait_for(client, f"{FOLDER}/turn/{turn}/{other}")))
        if theirs != tag:
            raise HostLost(
                f"Host {other} is at {theirs!r} where host {host()} is at {tag!r}. All hosts must run the same command "
                "with the same files, settings and version."
            )
        told.append(answer)
    if turn:
        client.key_value_delete(f"{FOLDER}/turn/{turn - 1}/{host()}")  # who told this turn has read the one before
    return told


def _wait_for(client: Any, key: str) -> bytes:
    while True:
        try:
            return client.blocking_key_value_get_bytes(key, WAIT_MILLISECONDS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise HostLost(f"Host 0, which all others talk through, does not answer: {error}") from error
        if words := lost():
            raise HostLost(words)


def agreed(tag: str, function: Callable[[], Any]) -> list[Any]:
    """`function()` of every host, by host number; where one of them fails, all fail with its message.

    Raises:
      HostError: names the host. Every host is at the same place of the program then, so that a state can be saved.
    """
    if host_count() == 1:
        return [function()]
    value, failure = None, None
    try:
        value = function()
    except HostLost:
        raise
    except Exception as error:  # whatever it is, the others must not wait for this host
        failure = error
    if failure is not None and not isinstance(failure, PbrlError):
        traceback.print_exception(failure)
    words = None if failure is None else described(failure)
    told = exchange(tag, [value, words])
    for other, (_, theirs) in enumerate(told):
        if theirs is not None:
            raise HostError(f"Host {other} of {host_count()} failed. {theirs}") from failure
    return [answer for answer, _ in told]


def described(error: BaseException) -> str:
    """An error in words: the message alone where it is meant for a user."""
    return str(error) if isinstance(error, PbrlError) else f"{type(error).__name__}: {error}"


def in_turn(tag: str, function: Callable[[], Value]) -> Value:
    """`function()` on host 0 and then on the others: what the first writes, the others find.

    Raises:
      HostError: a host failed.
    """
    results: list[Value] = []

    def run() -> None:
        results.append(function())

    for turn in (True, False):
        agreed(tag, run if is_first() == turn else lambda: None)
    return results[0]


def host_array(x: Any) -> np.ndarray:
    """The whole of an array on this host. All hosts must ask for it where it lies on several.

    Large arrays come in slices of their first axis, so that no device holds a whole one beside its share.
    """
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    if x.nbytes <= GATHER_BYTES or x.ndim == 0:
        return multihost_utils.process_allgather(x, tiled=True)
    size = max(1, x.shape[0] * GATHER_BYTES // x.nbytes)
    take = jax.jit(lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, size))
    whole = np.empty(x.shape, x.dtype)
    for start in range(0, x.shape[0], size):
        start = min(start, x.shape[0] - size)
        whole[start : start + size] = multihost_utils.process_allgather(take(x, np.int32(start)), tiled=True)
    return whole
