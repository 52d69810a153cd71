"""Standard output and error that survive their reader: `| head`, or a terminal whose ssh connection is gone."""

import io
import os
import sys


class KeptOutput(io.FileIO):
    """An open descriptor. From its first failure on it leads nowhere, for this process and its children."""

    def write(self, content) -> int:
        try:
            return super().write(content) or 0
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(content)


def keep_output() -> None:
    """Make the process's own streams such outputs. Streams that something else has replaced stay as they are."""
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
