"""Programs compiled beside the steps of a run: a step and a thread compile what the step needs, the thread the others
after the first step.

A step waits for its own program and never takes another, so that no result depends on timing. Compiling releases
Python's lock, so the thread takes little from the steps but processor time, which the first step has for itself.
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

    def wait(self) -> Callable:
        """`get` for a step, which compiles what it needs next while the thread makes this one; counts in
        `waited_seconds`."""
        if self.made is not None:
            return self.made
        start = time.perf_counter()
        try:
            while self._lock.locked() and (other := _next_needed()) is not None:
                other.get()
            return self.get()
        finally:
            _waited[0] += time.perf_counter() - start


class Background:
    """A thread that compiles programs one after another; those that no step needs yet from `begin_rest` on."""

    def __init__(self):
        self._needed: deque[Program] = deque()
        self._later: deque[Program] = deque()
        self._rest: list[Program] = []
        self._lock, self._stopped = threading.Lock(), False
        self._thread: threading.Thread | None = None
        self.error: Exception | None = None
        """What a program of the thread failed with."""

    def add(self, programs: Iterable[Program]) -> None:
        """Compile these, which a step needs; the thread ends when there is nothing to do."""
        with self._lock:
            self._needed.extend(programs)
            self._begin()

    def keep(self, programs: Iterable[Program]) -> None:
        """Compile these after the first step."""
        with self._lock:
            self._rest.extend(programs)

    def begin_rest(self) -> None:
        """A step has ended: compile what was kept."""
        with self._lock:
            self._later.extend(self._rest)
            self._rest.clear()
            self._begin()

    def next_needed(self) -> Program | None:
        """The next program that a step needs and nobody has begun, for the caller to compile; None: there is none."""
        with self._lock:
            return self._needed.popleft() if self._needed and not self._stopped else None

    def _begin(self) -> None:
        if (self._needed or self._later) and not self._stopped and self._thread is None:
            self._thread = threading.Thread(target=self._work, name="compile", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if self._stopped or not (queue := self._needed or self._later):
                    self._thread = None
                    return
                program = queue.popleft()
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


def _next_needed() -> Program | None:
    return _current[-1].next_needed() if _current else None


def waited_seconds() -> float:
    """Seconds that steps of this process have waited for programs to be compiled."""
    return _waited[0]


def in_background() -> bool:
    """Whether a thread compiles what is not needed yet."""
    return bool(_current)


def compile_needed(programs: Iterable[Program]) -> None:
    """Begin to compile what a step is about to need; without `background_compiles`, wait for it."""
    if _current:
        _current[-1].add(programs)
    else:
        for program in programs:
            program.wait()


def compile_later(programs: Iterable[Program]) -> None:
    """Compile after the first step what later ones may need; without `background_compiles`, now."""
    if _current:
        _current[-1].keep(programs)
    else:
        compile_needed(programs)


def compile_rest() -> None:
    """Begin to compile what was left for later: a step has ended."""
    if _current:
        _current[-1].begin_rest()


def raise_errors() -> None:
    """Raise what a program of the thread failed with."""
    if _current and (error := _current[-1].error) is not None:
        raise error


class Variants:
    """`program(*args, bucket=b)` for several b, each a program of its own.

    The first call compiles its variant and leaves the others for later (`compile_later`). Shapes and shardings of the
    arguments are those of the first call.

    Args:
      program: a jitted function with the static argument `bucket`.
      buckets: all that may be asked for.
      ahead: False: each variant is compiled where it is first called.
    """

    def __init__(self, program: jax.stages.Wrapped, buckets: Iterable[Any], ahead: bool = True):
        self._program, self._buckets, self._ahead = program, tuple(buckets), ahead
        self._variants: dict[Any, Program] = {}

    def prepare(self, args: tuple, needed: Iterable[Any]) -> None:
        """Begin to compile what is needed, for arguments like these; the others come later."""
        if self._variants or not self._ahead:
            return
        shapes, mesh = jax.tree.map(shape_of, args), jax.sharding.get_mesh()

        def make(bucket):
            with contextlib.nullcontext() if mesh.empty else jax.set_mesh(mesh):
                return self._program.lower(*shapes, bucket=bucket).compile()

        self._variants = {bucket: Program(functools.partial(make, bucket)) for bucket in self._buckets}
        first = list(dict.fromkeys(needed))
        # From the end: the caller takes them from the beginning.
        compile_needed([self._variants[bucket] for bucket in first[::-1]])
        compile_later([self._variants[bucket] for bucket in self._buckets if bucket not in first])

    def __call__(self, *args, bucket: Any = None) -> Any:
        """The variant of `bucket`.

        Raises:
          Exception: what a program of the thread failed with.
        """
        if not self._ahead:
            return self._program(*args, bucket=bucket)
        raise_errors()
        self.prepare(args, (bucket,))
        return self._variants[bucket].wait()(*args)


def shape_of(x: Any) -> Any:
    """An array's shape and type, and its sharding where it was given one."""
    if not isinstance(x, jax.Array):
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding if x.committed else None)
