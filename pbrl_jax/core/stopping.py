"""The stop request, which train.signals sets, and work that ends early when there is one.

Several hosts must stop at the same step (train.signals.stop_agreed), so with several hosts nothing here ends early.
"""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

LOOK_SECONDS = 0.2
"""Seconds between two checks for a request while threads work."""

_stop = threading.Event()
_alone = True


class Interrupted(Exception):
    """Work ended early because of a stop request; results written before are kept."""


def request_stop() -> None:
    """Ask this process to save its results and stop."""
    _stop.set()


def clear_request(alone: bool) -> None:
    """Clear an earlier request; `alone`: this process is the only one of its run."""
    global _alone
    _alone = alone
    _stop.clear()


def stop_requested() -> bool:
    """Whether this process was asked to save and stop."""
    return _stop.is_set()


def ends_early() -> bool:
    """Whether work of a single process should stop now."""
    return _alone and _stop.is_set()


def check_stop() -> None:
    """Raise Interrupted if `ends_early()`."""
    if ends_early():
        raise Interrupted


def map_until_stop(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> list[Result | None]:
    """`function(item)` of all items, in threads; None for items that were not finished when a stop was requested.

    Threads that still wait at that time are abandoned; as daemons, they do not block the process's exit.
    """
    results: list[Result | None] = [None] * len(items)
    errors: list[BaseException] = []
    numbers = iter(range(len(items)))

    def work() -> None:
        for number in numbers:
            if errors or ends_early():
                return
            try:
                results[number] = function(items[number])
            except BaseException as error:  # raised in the calling thread
                errors.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(items)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive() and not ends_early():
            thread.join(LOOK_SECONDS)
    if errors:
        raise errors[0]
    return list(results)
