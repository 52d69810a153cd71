"""A thread that looks after a run: it says which phase is slow, and ends the run when another of its hosts is gone.

Every host gives a sign of life every few seconds and leaves a word when it fails. Whoever reads that another one has
failed, or has been silent for PBRL_LOST_SECONDS, ends too, with that host's words or its last phase and with the
stacks of its own threads. jax.distributed's heartbeats are behind it, and end a process in which no thread runs.
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

#: Seconds of silence after which a host counts as lost; PBRL_LOST_SECONDS sets another number.
LOST_SECONDS = 60
#: Seconds that a process which knows of a failure has to end by itself.
GRACE_SECONDS = 10
#: Times as long a host may be silent before the first step: libraries that load models and train vocabularies may let
#: no thread run meanwhile. jax's heartbeats, which need none, notice a death there.
START_PATIENCE = 10
#: What errors of collectives and of the store say when another process is gone.
GONE = (
    "Gloo", "NCCL", "nccl", "closed by peer", "Connection reset", "Connection refused", "Broken pipe", "UNAVAILABLE",
    "coordination service", "unhealthy", "CANCELLED", "ABORTED", "DEADLINE_EXCEEDED",
)  # fmt: skip
AGAIN = "Run the same command on all hosts again: it goes on from the last step that was saved."

_phases: list[tuple[str, float]] = []
_begun = threading.Event()


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """What the run does inside the block, for whoever asks where it is."""
    if _phases:
        _begun.set()  # something within the run's own phase
    _phases.append((name, time.monotonic()))
    try:
        yield
    finally:
        _phases.pop()


def lost_seconds() -> float:
    """PBRL_LOST_SECONDS, or the default."""
    text = os.environ.get("PBRL_LOST_SECONDS", "")
    return float(text) if text.isdigit() and int(text) else LOST_SECONDS


def where() -> str:
    """The phase under way and its seconds, in words."""
    if not _phases:
        return "between two phases"
    name, since = _phases[-1]
    return f"in phase {name!r} for {time.monotonic() - since:.0f} s"


def show_stacks() -> None:
    """The stacks of all threads, on standard error."""
    stream = sys.stderr if hasattr(sys.stderr, "fileno") else sys.__stderr__
    if stream is not None:
        stream.flush()
        faulthandler.dump_traceback(stream, all_threads=True)


class Watch(threading.Thread):
    """The thread. `slow` is the seconds after which a phase is slow (0: none is), `limit` those of a lost host."""

    def __init__(self, slow: float, limit: float, client: Any = None):
        super().__init__(name="watch", daemon=True)
        self.slow, self.limit, self.client = slow, limit, client
        self.pause = min(5.0, limit / 10, slow / 2 or limit)
        self.done, self.ending, self.failed = threading.Event(), 0.0, False
        self.silent: set[int] = set()
        self._told: tuple[float, float] = (0.0, 0.0)
        self._seen: dict[int, tuple[Any, float]] = {}
        self._looked, self._beats = time.monotonic(), 0

    def run(self) -> None:
        while not self.done.wait(self.pause):
            self._look_at_phase()
            if self.client is None:
                continue
            try:
                self._look_at_hosts()
            except RuntimeError:  # host 0 does not answer: jax ends this process, or the next look is better
                pass
            if self.ending and time.monotonic() - self.ending > (3 if self.failed else 1) * GRACE_SECONDS:
                self._end_now()

    def _look_at_phase(self) -> None:
        if not (self.slow and _phases):
            return
        name, since = _phases[-1]
        told, after = self._told if self._told[0] == since else (since, self.slow)
        if time.monotonic() - since > after:
            self._told = (told, 2 * after)
            print(f"Slow: host {agree.host()} is {where()}. Where its threads are:", file=sys.stderr)
            show_stacks()

    def _look_at_hosts(self) -> None:
        now, self._beats = time.monotonic(), self._beats + 1
        if now - self._looked > self.limit / 2:
            self._seen.clear()  # this process itself stood still: it may not judge others
        self._looked = now
        words = json.dumps([self._beats, where(), not _begun.is_set()])
        self.client.key_value_set(f"{agree.FOLDER}/alive/{agree.host()}", words, True)
        for number, told in self._read("ended").items():
            if number != agree.host():
                self.note(f"Host {number} of {agree.host_count()} ended. {told}")
        for number, told in self._read("alive").items():
            beat, place, starting = json.loads(told)
            limit = START_PATIENCE * self.limit if starting else self.limit
            if self._seen.get(number, (None,))[0] != beat:
                self._seen[number] = (beat, now)
            elif number != agree.host() and now - self._seen[number][1] > limit:
                self.silent.add(number)
                self.note(
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

    def note(self, words: str) -> None:
        """Another host is gone: this one has GRACE_SECONDS to end by itself."""
        if not agree.lost():
            agree.note_lost(words)
        self.ending = self.ending or time.monotonic()

    def _end_now(self) -> None:
        if not self.failed:  # else the main thread has said it, and something holds up its end
            print(f"Error: {agree.lost()} This host was {where()}:", file=sys.stderr)
            show_stacks()
            self.tell("It followed another one.")
            wait_for_others(self)
        os._exit(1)

    def tell(self, words: str) -> None:
        """Leave a word for the others, once."""
        with contextlib.suppress(RuntimeError):  # there is one already, or nobody is left to read it
            self.client.key_value_set(f"{agree.FOLDER}/ended/{agree.host()}", words)

    def others_ended(self) -> bool:
        """Whether every host that lives has left its word."""
        return len(self.silent | set(self._read("ended"))) >= agree.host_count()


def wait_for_others(watch: Watch) -> None:
    """Host 0 carries the store: it stays until the others have read it and left their own words."""
    if not agree.is_first():
        return
    end = time.monotonic() + 2 * GRACE_SECONDS
    with contextlib.suppress(RuntimeError):
        while time.monotonic() < end and not watch.others_ended():
            time.sleep(0.2)


@contextlib.contextmanager
def watched_run(hosts: int, slow: float) -> Iterator[None]:
    """Runs the block under a Watch.

    Args:
      hosts: processes of this run, which jax.distributed has joined.
      slow: see Watch.

    Raises:
      HostLost: another host is gone; in place of the error that this had for a consequence.
    """
    _begun.clear()
    watch = Watch(slow, lost_seconds(), agree.store() if hosts > 1 else None)
    if hosts > 1:
        faulthandler.enable()  # jax aborts the process when host 0 is gone; then the stacks are told too
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
    """End with all hosts: tell them, or find out which of them this error comes from (HostLost)."""
    cause = error.__cause__ or error
    gone = not isinstance(cause, PbrlError) and any(word in str(cause) for word in GONE)
    end = time.monotonic() + watch.limit + 3 * watch.pause
    while gone and not agree.lost() and time.monotonic() < end:
        time.sleep(0.1)
    watch.tell(agree.described(error))
    watch.failed, watch.ending = True, time.monotonic()
    atexit.register(_leave, watch)
    if gone and agree.lost():
        raise HostLost(f"{agree.lost()} Here: {str(cause).splitlines()[0][:300]}") from error


def _leave(watch: Watch) -> None:
    """The end of a process that failed: without jax's own, which waits for hosts that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    wait_for_others(watch)
    os._exit(1)
