"""Programs compiled beside the steps of a run: a step compiles what it needs, a thread the others.

A step waits for its own program and never takes another, so that no result depends on timing. Compiling releases
Python's lock, so the thread takes little from the steps but processor time.
"""

import contextlib
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax


class Program:
    """One program, compiled by whoever needs it first; others wait."""

    def __init__(self, make: Callable[[], Callable]):
        self._make, self._lock = make, threading.Lock()
        self.made: Callable | None = None
        """The compiled program, where there is one."""

    def get(self) -> Callable:
        """The compiled program; waits until there is one."""
        with self._lock:
            if self.made is None:
                self.made = self._make()
        return self.made


class Background:
    """A thread that compiles programs one after another."""

    def __init__(self):
        self._queue: deque[Program] = deque()
        self._lock, self._stopped = threading.Lock(), False
        self._thread: threading.Thread | None = None
        self.error: Exception | None = None
        """What a program of the thread failed with."""

    def add(self, programs: Iterable[Program]) -> None:
        """Compile these too; the thread ends when there is nothing to do."""
        with self._lock:
            self._queue.extend(programs)
            if self._queue and not self._stopped and self._thread is None:
                self._thread = threading.Thread(target=self._work, name="compile", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if self._stopped or not self._queue:
                    self._thread = None
                    return
                program = self._queue.popleft()
            try:
                program.get()
            except Exception as error:
                self.error = error
                self.stop()

    def stop(self) -> None:
        """Begin no further program."""
        with self._lock:
            self._stopped = True

    def join(self) -> None:
        """Wait for the programs under way, and for those that wait unless the thread was stopped."""
        if (thread := self._thread) is not None:
            thread.join()


_current: list[Background] = []
_waited = [0.0]


@contextlib.contextmanager
def background_compiles() -> Iterator[Background]:
    """Inside, programs that are not needed yet are compiled in a thread, which ends with the block."""
    background = Background()
    _current.append(background)
    try:
        yield background
    finally:
        _current.remove(background)
        background.stop()
        background.join()


def waited_seconds() -> float:
    """Seconds that steps of this process have waited for programs to be compiled."""
    return _waited[0]


@contextlib.contextmanager
def _waiting() -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        _waited[0] += time.perf_counter() - start


def in_background() -> bool:
    """Whether a thread compiles what is not needed yet."""
    return bool(_current)


class Variants:
    """`program(*args, bucket=b)` for several b, each a program of its own.

    The first call compiles its variant and leaves the others to the thread of `background_compiles`, which begins them
    when that call is made, or compiles them, too, where there is none. Shapes and shardings of the arguments are those
    of the first call.

    Args:
      program: a jitted function with the static argument `bucket`.
      buckets: all that may be asked for.
      ahead: False: each variant is compiled where it is first called.
    """

    def __init__(self, program: jax.stages.Wrapped, buckets: Iterable[Any], ahead: bool = True):
        self._program, self._buckets, self._ahead = program, tuple(buckets), ahead
        self._variants: dict[Any, Program] = {}
        self._rest: list[Program] = []

    def prepare(self, args: tuple, needed: Iterable[Any]) -> None:
        """Begin to compile what is needed, for arguments like these; the others come after the first call, whose
        programs have the processor until then."""
        if self._variants or not self._ahead:
            return
        shapes, mesh = jax.tree.map(shape_of, args), jax.sharding.get_mesh()

        def make(bucket):
            with contextlib.nullcontext() if mesh.empty else jax.set_mesh(mesh):
                return self._program.lower(*shapes, bucket=bucket).compile()

        self._variants = {bucket: Program(functools.partial(make, bucket)) for bucket in self._buckets}
        first = list(dict.fromkeys(needed))
        self._rest = [self._variants[bucket] for bucket in self._buckets if bucket not in first]
        # From the end: the caller takes them from the beginning.
        needed_first = [self._variants[bucket] for bucket in first[::-1]]
        if _current:
            _current[-1].add(needed_first)
            return
        with _waiting():
            for program in needed_first + self._rest:
                program.get()

    def __call__(self, *args, bucket: Any = None) -> Any:
        """The variant of `bucket`.

        Raises:
          Exception: what a program of the thread failed with.
        """
        if not self._ahead:
            return self._program(*args, bucket=bucket)
        if _current and (error := _current[-1].error) is not None:
            raise error
        self.prepare(args, (bucket,))
        if (compiled := self._variants[bucket].made) is None:
            with _waiting():
                compiled = self._variants[bucket].get()
        if _current and self._rest:
            _current[-1].add(self._rest)
            self._rest = []
        return compiled(*args)


def shape_of(x: Any) -> Any:
    """An array's shape and type, and its sharding where it was given one."""
    if not isinstance(x, jax.Array):
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding if x.committed else None)
