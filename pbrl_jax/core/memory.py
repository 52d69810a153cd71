"""Memory of this process."""

import mmap
import threading

THREAD_BYTES = 32 * 2**20
"""Address space for a thread: its stack (8 MiB by default on Linux), what Python allocates in it, and a reserve."""

_start = threading.Thread.start


def require_address_space(count: int) -> None:
    """Raises MemoryError where this process cannot map `count` further bytes. Nothing is kept and no page is used."""
    try:
        mmap.mmap(-1, count).close()
    except OSError as error:
        raise MemoryError(f"{count:,} bytes are not available") from error


def check_memory_before_threads() -> None:
    """From now on starting any thread of this process without memory raises MemoryError.

    Before CPython 3.15 `Thread.start` waits for ever where a new thread runs out of memory before it can say that it
    runs (CPython issue 140746), also in libraries that start threads of their own.
    """

    def start(self: threading.Thread) -> None:
        require_address_space(THREAD_BYTES)
        _start(self)

    threading.Thread.start = start  # type: ignore[method-assign]
