"""Saves that are written while training goes on.

A save stops the caller for the copy of its arrays to the host. A thread of this host then writes them, hashes what it
has written, and commits the checkpoint together with the threads of the other hosts. A failure waits for the caller's
next look; a process that is killed meanwhile resumes from the checkpoint before.
"""

import os
import threading
from collections.abc import Iterator
from typing import Any

from pbrl_jax.checkpoint.save import save_in_parts
from pbrl_jax.core.errors import CheckpointError, HostLost
from pbrl_jax.core.stopping import LOOK_SECONDS
from pbrl_jax.mesh.agree import error_text, exchange, host_count, own_turns
from pbrl_jax.mesh.watch import phase

THREAD = "save"
"""Name of the thread, and of its exchanges with those of the other hosts."""


class BackgroundSaver:
    """Makes the checkpoints of one directory, one after the other. The first of a process is read back.

    On several hosts all make the same calls in the same order. As a context manager it waits, at the end of its block,
    for the save under way.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._proved = False

    def start(self, directory: str | os.PathLike, step: int, tree: Any, meta: dict[str, Any], keep: int) -> None:
        """Waits for the save before, copies the arrays of `tree`, and returns; arguments as of `save_checkpoint`.

        Raises:
          CheckpointError: that save has failed, or this one cannot begin.
        """
        self.wait()
        saving = save_in_parts(directory, step, tree, meta, keep, prove=not self._proved)
        del tree
        for _ in saving:
            self._thread = threading.Thread(target=self._write, args=(saving,), name=THREAD, daemon=True)
            self._thread.start()
            break

    def _write(self, saving: Iterator[None]) -> None:
        try:
            with own_turns(THREAD):
                for _ in saving:
                    raise AssertionError("a save has two parts")
            self._proved = True
        except Exception as error:  # raised again in the caller's thread
            self._failure = error

    def ended(self) -> bool:
        """Whether no save is under way, on no host.

        Raises:
          CheckpointError: the last one has failed, here or on another host. It is raised once, on all hosts.
        """
        if self._thread is None:
            return True
        running, failure = self._thread.is_alive(), self._failure
        answers = exchange("save under way", [running, None if failure is None else error_text(failure)])
        messages = {number: message for number, (_, message) in enumerate(answers) if message is not None}
        if messages or not any(running for running, _ in answers):
            self._thread = self._failure = None
        if failure is not None:
            raise failure
        for number, message in messages.items():
            raise CheckpointError(f"Host {number} of {host_count()} failed. {message}")
        return self._thread is None

    def wait(self) -> None:
        """Returns when no save is under way; raises as `ended` does."""
        with phase("save"):
            while not self.ended():
                if self._thread is not None:
                    self._thread.join(LOOK_SECONDS if host_count() > 1 else None)

    def __enter__(self) -> "BackgroundSaver":
        return self

    def __exit__(self, _kind, error: BaseException | None, _traceback) -> None:
        if error is None:
            self.wait()
        elif self._thread is not None and isinstance(error, Exception) and not isinstance(error, HostLost):
            self._thread.join()  # the error that ends the run is the one to tell
