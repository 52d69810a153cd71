"""Agreement between the hosts of a run: all-gathers of JSON values through jax.distributed's key-value store.

No device takes part, so values can be exchanged while programs run, and a failed host can still report its failure.
All hosts must call the same exchanges in the same order. With one host an exchange is the identity.
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
"""Time limit of one wait for another host's value; lost hosts are noticed between two waits."""
GATHER_BYTES = 1 << 28
"""Bytes of an array that are gathered at a time."""

_turns = itertools.count()
_own_turns: dict[str, Iterator[int]] = collections.defaultdict(itertools.count)
_local = threading.local()
_lost: list[str] = []


def note_lost_host(message: str) -> None:
    """Record that a host has ended or stopped responding; calls that wait for it raise HostLost with this message."""
    _lost.append(message)


def lost_host_message() -> str:
    """The message about the first lost host; "" if none was lost."""
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
      tag: name of the exchange, by which hosts at different points of the program are detected.
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
    for number in range(host_count()):
        sent_tag, sent = json.loads(zlib.decompress(_wait_for(client, f"{folder}/{turn}/{number}")))
        if sent_tag != tag:
            raise HostLost(
                f"Host {number} is at {sent_tag!r} where host {host()} is at {tag!r}. All hosts must run the same "
                "command with the same files, settings and version."
            )
        values.append(sent)
    if turn:
        client.key_value_delete(f"{folder}/{turn - 1}/{host()}")  # all hosts are at this turn and have read it
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
    """Results of `function()` on every host, by host number; if it raises on one, all hosts raise with its message.

    Raises:
      HostError: names the host. All hosts are then at the same point of the program, so that the state can be saved.
    """
    if host_count() == 1:
        return [function()]
    value, failure = None, None
    try:
        value = function()
    except HostLost:
        raise
    except Exception as error:  # any kind, because the other hosts wait for this one
        failure = error
    if failure is not None and not isinstance(failure, PbrlError):
        traceback.print_exception(failure)
    results = exchange(tag, [value, None if failure is None else error_text(failure)])
    for number, (_, message) in enumerate(results):
        if message is not None:
            raise HostError(f"Host {number} of {host_count()} failed. {message}") from failure
    return [result for result, _ in results]


def error_text(error: BaseException) -> str:
    """The message of an error of this package; type and message of any other error."""
    return str(error) if isinstance(error, PbrlError) else f"{type(error).__name__}: {error}"


def in_turn(tag: str, function: Callable[[], Value]) -> Value:
    """Call `function()` on host 0, then on the other hosts, which can read files that host 0 wrote.

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
    """A global array as NumPy on this host. If its shards are on several hosts, all of them must call this.

    Large arrays are gathered in slices of their first axis, so that no device holds a full copy in addition to its
    shard.
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
