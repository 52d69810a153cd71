"""Threads in a process that gets no more memory."""

import subprocess
import sys
import textwrap

import pytest

from pbrl_jax.core.memory import require_address_space

EXHAUSTED = """
    import resource, threading
    from pbrl_jax.core.memory import check_memory_before_threads

    check_memory_before_threads()
    first = threading.Thread(target=int)
    first.start()
    first.join()  # the next thread takes its stack: there is enough memory to begin it
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), resource.RLIM_INFINITY))
    kept = []
    try:
        while True:
            kept.append(bytearray(10_000))
    except MemoryError:
        pass
    try:
        threading.Thread(target=int).start()
    except MemoryError:
        print("refused")
"""


def test_a_thread_without_memory_is_an_error_and_not_a_wait():
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EXHAUSTED)], capture_output=True, text=True, timeout=60
    )
    assert found.stdout == "refused\n", found.stderr


def test_address_space_that_exists_is_not_kept():
    require_address_space(1 << 20)
    with pytest.raises(MemoryError, match="1,152,921,504,606,846,976 bytes"):
        require_address_space(1 << 60)
