"""SIGINT, SIGTERM, SIGHUP and SIGUSR1 as one request: save at the next safe point, and end.

The first one says at once what is waited for. A second one, soon or of another kind (launchers send their own behind
the user's), is the same request. Only a third one, more than SAME_SECONDS after the first, ends the process unsaved.

Python runs handlers only between two instructions of the main thread, which may be inside a compiled program for long.
So a thread reads the signals' numbers from a pipe.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time

from pbrl_jax.core.output import keep_output
from pbrl_jax.core.stopping import clear_request, request_stop, stop_requested
from pbrl_jax.mesh.agree import exchange, host_count
from pbrl_jax.mesh.watch import phase_text

__all__ = ["stop_agreed", "stop_requested", "watch_signals"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
SAME_SECONDS = 2.0
"""Signals within so many seconds of the first are the same request."""


class Requests:
    """Which signals have come. `receive` returns what a signal means: "stop", "same", or "end"."""

    def __init__(self) -> None:
        self.count, self.first = 0, 0.0

    def receive(self, now: float) -> str:
        """Count a signal that came at `now` seconds."""
        self.count += 1
        if self.count == 1:
            self.first = now
            return "stop"
        return "same" if self.count == 2 or now - self.first <= SAME_SECONDS else "end"


class _Receiver(threading.Thread):
    def __init__(self) -> None:
        super().__init__(name="signals", daemon=True)
        self.requests, self._lock = Requests(), threading.RLock()
        self.out, self.into = os.pipe()
        for end in (self.out, self.into):
            os.set_blocking(end, False)

    def run(self) -> None:
        while True:
            select.select([self.out], [], [])
            self.read()

    def read(self, *_) -> None:
        """Take in what has come; the thread and the main thread's handler both call it."""
        with self._lock, contextlib.suppress(BlockingIOError):
            for number in os.read(self.out, 64):
                if number in SIGNALS:
                    self._receive(signal.Signals(number).name, number)

    def _receive(self, name: str, number: int) -> None:
        meaning = self.requests.receive(time.monotonic())
        if meaning == "stop":
            request_stop()
            self._say(f"{name}: stopping at the next safe point, where everything is saved; now {phase_text()}.")
        elif meaning == "end":
            self._say(f"{name}, for the third time: ending without saving.")
            os._exit(128 + number)
        elif time.monotonic() - self.requests.first > SAME_SECONDS:
            self._say(f"{name}: still stopping, {phase_text()}. One more ends the process without saving.")

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # a closed stream, or one that is being written to
            print(text, file=sys.stderr, flush=True)


_receiver: _Receiver | None = None


def watch_signals() -> None:
    """Turn the four signals into a stop request, and keep a closed terminal or pipe from ending the run. SIGHUP stays
    ignored where it was (nohup). In another thread than the main one signals stay as they are: Python sets no
    handlers there."""
    global _receiver
    if _receiver is None:
        _receiver = _Receiver()
        _receiver.start()
    _receiver.requests = Requests()
    clear_request(alone=host_count() == 1)
    keep_output()
    if threading.current_thread() is not threading.main_thread():
        return
    signal.set_wakeup_fd(_receiver.into, warn_on_full_buffer=False)
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _receiver.read)


def stop_agreed() -> bool:
    """Whether the run shall save and end: any of its hosts was asked to. All hosts ask at the same places."""
    return any(exchange("stop", stop_requested()))
