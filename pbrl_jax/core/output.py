"""Standard output and error that keep working after their reader has gone (`| head`, a lost ssh connection), and
warnings that are said once."""

import functools
import io
import logging
import os
import sys


@functools.cache
def warn_once(logger: str, text: str) -> None:
    """A warning of a module's logger, once in a process."""
    logging.getLogger(logger).warning("%s", text)


class KeptOutput(io.FileIO):
    """An open descriptor. After its first failed write, all output is discarded, also that of child processes."""

    def write(self, content) -> int:
        try:
            return super().write(content) or 0
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return len(content)


def keep_output() -> None:
    """Write the process's stdout and stderr through KeptOutput; streams that other code has replaced are unchanged."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper) or stream is not getattr(sys, f"__{name}__"):
            continue
        unbuffered = isinstance(stream.buffer, io.FileIO)  # as PYTHONUNBUFFERED makes it
        if isinstance(stream.buffer if unbuffered else getattr(stream.buffer, "raw", None), KeptOutput):
            continue
        kept = KeptOutput(stream.fileno(), "w", closefd=False)
        stream.flush()
        replaced = io.TextIOWrapper(
            kept if unbuffered else io.BufferedWriter(kept), encoding=stream.encoding, errors=stream.errors,
            line_buffering=stream.line_buffering, write_through=stream.write_through,
        )  # fmt: skip
        setattr(sys, name, replaced)
        setattr(sys, f"__{name}__", replaced)
