"""SIGTERM and SIGINT as a flag: nothing is interrupted, the loops look at safe points."""

import signal
import threading

from pbrl_jax.mesh.agree import exchange

_stop = threading.Event()


def _request(signum, _frame) -> None:
    if _stop.is_set():
        # A second signal means it: the default action ends the process.
        signal.signal(signum, signal.SIG_DFL)
        signal.raise_signal(signum)
    _stop.set()


def watch_signals() -> None:
    """Turn SIGTERM and SIGINT into a stop request, in the main thread."""
    _stop.clear()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _request)


def stop_requested() -> bool:
    """Whether this process was asked to save and end."""
    return _stop.is_set()


def stop_agreed() -> bool:
    """Whether the run shall save and end: any of its hosts was asked to. All hosts ask at the same places."""
    return any(exchange("stop", stop_requested()))
