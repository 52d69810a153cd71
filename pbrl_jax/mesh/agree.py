"""Agreement between the hosts of a run: all-gathers of JSON values through jax.distributed's key-value store.

No device takes part, so that values can be exchanged while programs run, and a host that has failed can still report
it. One `exchange` is one all-gather; all hosts make the same ones in the same order. With one host it is the identity.
"""

import collections
import contextlib
import itertools
import json
import threading
import traceback
import zlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from pbrl_jax.core.errors import HostError, HostLost, PbrlError

Value = TypeVar("Value")

FOLDER = "pbrl"
WAIT_MILLISECONDS = 2_000
"""Length of one wait for another host's value; lost hosts are noticed between two waits."""
GATHER_BYTES = 1 << 28
"""Bytes of an array that are gathered at once."""

_turns = itertools.count()
_own_turns: dict[str, Iterator[int]] = collections.defaultdict(itertools.count)
_local = threading.local()
_lost: list[str] = []


def note_lost_host(message: str) -> None:
    """Record that a host has ended or stopped responding; calls that wait for it raise HostLost with this message."""
    _lost.append(message)


def lost_host_message() -> str:
    """The message about the first host that was lost; "" if there is none."""
    return _lost[0] if _lost else ""


def host() -> int:
    """This host's number, counting from 0."""
    return jax.process_index()


def host_count() -> int:
    """Number of processes in this run."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this is host 0, which writes logs, reports and models."""
    return jax.process_index() == 0


def distributed_client() -> Any:
    """The client of jax.distributed's key-value store; None in a run of one process."""
    from jax._src.distributed import global_state  # jax has no public name for it; orbax uses the same

    return global_state.client


@contextlib.contextmanager
def own_turns(name: str) -> Iterator[None]:
    """Inside the block, number this thread's exchanges apart from those of the main thread, which go on meanwhile. The
    other hosts have a thread of the same name, which makes the same ones in the same order."""
    _local.name = name
    try:
        yield
    finally:
        _local.name = ""


def exchange(tag: str, value: Any) -> list[Any]:
    """All-gather: the values of all hosts, by host number.

    Args:
      tag: names the exchange; hosts at different places of the program are detected by it.
      value: any JSON value.

    Raises:
      HostLost: a host has ended, or is at an exchange of another tag.
    """
    if host_count() == 1:
        return [value]
    name = getattr(_local, "name", "")
    client, turn = distributed_client(), next(_own_turns[name] if name else _turns)
    folder = f"{FOLDER}/turn{name and f'/{name}'}"
    content = zlib.compress(json.dumps([tag, value]).encode(), 1)
    client.key_value_set_bytes(f"{folder}/{turn}/{host()}", content)
    values = []
    for other in range(host_count()):
        theirs, answer = json.loads(zlib.decompress(_wait_for(client, f"{folder}/{turn}/{other}")))
        if theirs != tag:
            raise HostLost(
                f"Host {other} is at {theirs!r} where host {host()} is at {tag!r}. All hosts must run the same command "
                "with the same files, settings and version."
            )
        values.append(answer)
    if turn:
        client.key_value_delete(f"{folder}/{turn - 1}/{host()}")  # read by all: they are at this turn
    return values


def _wait_for(client: Any, key: str) -> bytes:
    while True:
        try:
            return client.blocking_key_value_get_bytes(key, WAIT_MILLISECONDS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise HostLost(f"Host 0, which runs the key-value store, does not respond: {error}") from error
        if message := lost_host_message():
            raise HostLost(message)


def agreed(tag: str, function: Callable[[], Any]) -> list[Any]:
    """`function()` of every host, by host number; if one raises, all raise with its message.

    Raises:
      HostError: names the host. All hosts are then at the same place of the program, so that a state can be saved.
    """
    if host_count() == 1:
        return [function()]
    value, failure = None, None
    try:
        value = function()
    except HostLost:
        raise
    except Exception as error:  # of any kind: the others must not wait for this host
        failure = error
    if failure is not None and not isinstance(failure, PbrlError):
        traceback.print_exception(failure)
    answers = exchange(tag, [value, None if failure is None else error_text(failure)])
    for other, (_, message) in enumerate(answers):
        if message is not None:
            raise HostError(f"Host {other} of {host_count()} failed. {message}") from failure
    return [answer for answer, _ in answers]


def error_text(error: BaseException) -> str:
    """The message of an error of this package; with its type for any other."""
    return str(error) if isinstance(error, PbrlError) else f"{type(error).__name__}: {error}"


def in_turn(tag: str, function: Callable[[], Value]) -> Value:
    """`function()` on host 0 and then on the others, which can read what host 0 wrote.

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
    """A global array on this host. If its shards are on several hosts, all of them must call this.

    Large arrays are gathered in slices of their first axis, so that no device holds a full copy beside its shard.
    """
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    if x.nbytes <= GATHER_BYTES or x.ndim == 0:
        return multihost_utils.process_allgather(x, tiled=True)
    size = max(1, x.shape[0] * GATHER_BYTES // x.nbytes)
    take = jax.jit(lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, size))
    full = np.empty(x.shape, x.dtype)
    for start in range(0, x.shape[0], size):
        start = min(start, x.shape[0] - size)
        full[start : start + size] = multihost_utils.process_allgather(take(x, np.int32(start)), tiled=True)
    return full
