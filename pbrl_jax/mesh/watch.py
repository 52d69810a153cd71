"""A watchdog thread that reports slow phases and ends the run when another host is lost.

Every host writes a heartbeat every few seconds, and a message if it fails. If another host has failed, or has sent no
heartbeat for PBRL_LOST_SECONDS, this host ends too: it prints the other host's message or last phase, and the stacks of
its own threads. jax.distributed's heartbeats end a process in which no Python thread can run.
"""

import atexit
import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from pbrl_jax.core.errors import HostLost, PbrlError
from pbrl_jax.mesh import agree

LOST_SECONDS = 60
"""Seconds without a heartbeat after which a host counts as lost; PBRL_LOST_SECONDS overrides it."""
GRACE_SECONDS = 10
"""Seconds that a process has to end by itself after a failure."""
START_PATIENCE = 10
"""Factor on the limit before the first step, since loading models and training vocabularies may block all threads.
Meanwhile jax's heartbeats, which need no Python thread, detect a dead process."""
GONE = (
    "Gloo", "NCCL", "nccl", "closed by peer", "Connection reset", "Connection refused", "Broken pipe", "UNAVAILABLE",
    "coordination service", "unhealthy", "CANCELLED", "ABORTED", "DEADLINE_EXCEEDED",
)  # fmt: skip
"""Parts of error messages of collectives and of the store that mean that another process is gone."""
AGAIN = "Run the same command on all hosts again: it continues from the last saved step."

_phases: list[tuple[str, float]] = []
_begun = threading.Event()


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Name the phase of the run inside the block, for reports."""
    if _phases:
        _begun.set()  # a phase inside the outermost one, "start"
    _phases.append((name, time.monotonic()))
    try:
        yield
    finally:
        _phases.pop()


def lost_seconds() -> float:
    """PBRL_LOST_SECONDS, or the default."""
    text = os.environ.get("PBRL_LOST_SECONDS", "")
    return float(text) if text.isdigit() and int(text) else LOST_SECONDS


def phase_text() -> str:
    """The current phase and its duration."""
    if not _phases:
        return "between two phases"
    name, since = _phases[-1]
    return f"in phase {name!r} for {time.monotonic() - since:.0f} s"


def show_stacks() -> None:
    """Print the stacks of all threads to standard error."""
    for stream in (sys.stderr, sys.__stderr__):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or a notebook's without a descriptor
            if stream is None:
                continue
            stream.flush()
            return faulthandler.dump_traceback(stream, all_threads=True)


class Watch(threading.Thread):
    """The thread.

    Args:
      slow: seconds after which a phase is reported as slow; 0: never.
      limit: seconds without a heartbeat after which a host is lost.
      client: of the key-value store; None in a run of one process.
    """

    def __init__(self, slow: float, limit: float, client: Any = None):
        super().__init__(name="watch", daemon=True)
        self.slow, self.limit, self.client = slow, limit, client
        self.pause = min(5.0, limit / 10, slow / 2 or limit)
        self.done, self.ending, self.failed = threading.Event(), 0.0, False
        self.silent: set[int] = set()
        self._reported: tuple[float, float] = (0.0, 0.0)
        self._seen: dict[int, tuple[Any, float]] = {}
        self._looked, self._beats = time.monotonic(), 0

    def run(self) -> None:
        while not self.done.wait(self.pause):
            self._look_at_phase()
            if self.client is None:
                continue
            try:
                self._look_at_hosts()
            except RuntimeError:  # host 0 does not respond: the next attempt succeeds, or jax ends this process
                pass
            if self.ending and time.monotonic() - self.ending > (3 if self.failed else 1) * GRACE_SECONDS:
                self._end_now()

    def _look_at_phase(self) -> None:
        if not (self.slow and _phases):
            return
        name, since = _phases[-1]
        after = self._reported[1] if self._reported[0] == since else self.slow
        if time.monotonic() - since > after:
            self._reported = (since, 2 * after)
            print(f"Slow: host {agree.host()} is {phase_text()}. Its threads:", file=sys.stderr)
            show_stacks()

    def _look_at_hosts(self) -> None:
        now, self._beats = time.monotonic(), self._beats + 1
        if now - self._looked > self.limit / 2:
            self._seen.clear()  # this process was suspended, so the other heartbeats are out of date
        self._looked = now
        heartbeat = json.dumps([self._beats, phase_text(), not _begun.is_set()])
        self.client.key_value_set(f"{agree.FOLDER}/alive/{agree.host()}", heartbeat, True)
        for number, message in self._read("ended").items():
            if number != agree.host():
                self._lose_host(f"Host {number} of {agree.host_count()} ended. {message}")
        for number, heartbeat in self._read("alive").items():
            beat, place, starting = json.loads(heartbeat)
            limit = START_PATIENCE * self.limit if starting else self.limit
            if self._seen.get(number, (None,))[0] != beat:
                self._seen[number] = (beat, now)
            elif number != agree.host() and now - self._seen[number][1] > limit:
                self.silent.add(number)
                self._lose_host(
                    f"Host {number} of {agree.host_count()} has been silent for {now - self._seen[number][1]:.0f} s. "
                    f"It was {place}: killed, or its machine or network is gone. {AGAIN}"
                )

    def _read(self, folder: str) -> dict[int, str]:
        try:
            entries = self.client.key_value_dir_get(f"{agree.FOLDER}/{folder}/")
        except RuntimeError as error:
            if "NOT_FOUND" not in str(error):
                raise
            entries = []
        return {int(key.rpartition("/")[2]): value for key, value in entries}

    def _lose_host(self, message: str) -> None:
        """Record that another host is gone; this process has GRACE_SECONDS to end by itself."""
        if not agree.lost_host_message():
            agree.note_lost_host(message)
        self.ending = self.ending or time.monotonic()

    def _end_now(self) -> None:
        if not self.failed:  # otherwise the main thread has reported the failure, but is blocked
            print(f"Error: {agree.lost_host_message()} This host was {phase_text()}:", file=sys.stderr)
            show_stacks()
            self.publish_end("It ended because another host did.")
            wait_for_others(self)
        os._exit(1)

    def publish_end(self, message: str) -> None:
        """Write the reason for this host's end for the other hosts, once."""
        with contextlib.suppress(RuntimeError):  # already written, or the store is gone
            self.client.key_value_set(f"{agree.FOLDER}/ended/{agree.host()}", message)

    def others_ended(self) -> bool:
        """Whether every host that is not lost has published its end."""
        return len(self.silent | set(self._read("ended"))) >= agree.host_count()


def wait_for_others(watch: Watch) -> None:
    """On host 0, which runs the store, wait until the other hosts have published their end."""
    if not agree.is_first():
        return
    end = time.monotonic() + 2 * GRACE_SECONDS
    with contextlib.suppress(RuntimeError):
        while time.monotonic() < end and not watch.others_ended():
            time.sleep(0.2)


@contextlib.contextmanager
def watched_run(hosts: int, slow: float) -> Iterator[None]:
    """Run the block under a Watch.

    Args:
      hosts: number of processes of this run.
      slow: see Watch.

    Raises:
      HostLost: another host is gone; replaces the error that resulted from it.
    """
    _begun.clear()
    watch = Watch(slow, lost_seconds(), agree.distributed_client() if hosts > 1 else None)
    if hosts > 1:
        faulthandler.enable()  # jax aborts the process when host 0 is gone: print the stacks then too
    watch.start()
    try:
        with phase("start"):
            yield
    except BaseException as error:
        if hosts > 1:
            _fail(watch, error)
        raise
    finally:
        if hosts == 1 or not watch.ending:
            watch.done.set()


def _fail(watch: Watch, error: BaseException) -> None:
    """End the run on all hosts: publish the error, or raise HostLost if another host caused it."""
    cause = error.__cause__ or error
    gone = not isinstance(cause, PbrlError) and any(word in str(cause) for word in GONE)
    end = time.monotonic() + watch.limit + 3 * watch.pause
    while gone and not agree.lost_host_message() and time.monotonic() < end:
        time.sleep(0.1)
    watch.publish_end(agree.error_text(error))
    watch.failed, watch.ending = True, time.monotonic()
    atexit.register(_leave, watch)
    if gone and (message := agree.lost_host_message()):
        raise HostLost(f"{message} Here: {str(cause).splitlines()[0][:300]}") from error


def _leave(watch: Watch) -> None:
    """Exit after a failure without jax's shutdown, which would wait for lost hosts."""
    sys.stdout.flush()
    sys.stderr.flush()
    wait_for_others(watch)
    os._exit(1)
