"""One command at a time in a work directory: W/run.lock names the process that writes there.

On one machine the file is held by flock, which the system releases when the process ends for any reason. flock does not
work across machines on every shared disk, nor on `gs://`, so the holder also increments a heartbeat in the file. If the
heartbeat of another machine does not change for STALE_SECONDS, its process counts as dead and the lock is taken over.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.paths import as_path, is_model_config, is_remote
from pbrl_jax.core.urls import hide_credentials

FILE = "run.lock"
BEAT_SECONDS, STALE_SECONDS = 10.0, 60.0
OLD_SECONDS = 600.0
"""An older heartbeat means a dead process, even if the clocks of two machines differ."""


def _boot() -> str:
    """The boot id of this machine; "" if the system does not provide one."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """Start time of a process on this machine, in clock ticks; "" if it does not exist or the time is unknown."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _read(path: epath.Path) -> dict[str, Any]:
    """The JSON object in a file, as the holder of a lock; {} if there is no file, or it is being written."""
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _runs_here(holder: dict[str, Any]) -> bool | None:
    """Whether the holder is a live process on this machine; None if it is on another machine."""
    if holder.get("host") != socket.gethostname() or holder.get("boot") != _boot():
        return None
    pid = holder.get("pid")
    return isinstance(pid, int) and _process_start(pid) == holder.get("ticks", "")


def _beats(path: epath.Path, holder: dict[str, Any]) -> bool:
    """Whether the holder on another machine still updates its heartbeat; waits up to STALE_SECONDS."""
    at = holder.get("at")
    if not isinstance(at, int | float) or time.time() - at > OLD_SECONDS:
        return False
    print(f"{_described(path, holder)} Waiting up to {STALE_SECONDS:.0f} s for its next heartbeat.", file=sys.stderr)
    end = time.monotonic() + STALE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, BEAT_SECONDS / 4))
        current = _read(path)
        if current and current != holder:
            return True
        if not path.exists():
            return False  # it has ended
    return False


def _described(path: epath.Path, holder: dict[str, Any]) -> str:
    return (
        f"{path.parent} is in use by process {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')}, "
        f"which started at {holder.get('started', '?')}: {holder.get('command', 'pbrl')}."
    )


def _refuse(path: epath.Path, holder: dict[str, Any]) -> None:
    raise CheckpointError(
        f"{_described(path, holder)} Wait until it ends, stop it (kill -TERM {holder.get('pid', 'PID')} on its host "
        "saves its state), or use another --workdir."
    )


class _Lock:
    """A lock that is held; `descriptor` is None where flock cannot hold the file."""

    def __init__(self, path: epath.Path, descriptor: int | None):
        self.path, self.descriptor = path, descriptor
        self.holder: dict[str, Any] = {
            "host": socket.gethostname(), "pid": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "command": hide_credentials(" ".join(["pbrl", *sys.argv[1:]])),
            "boot": _boot(), "ticks": _process_start(os.getpid()),
            "key": secrets.token_hex(8), "beat": 0, "at": time.time(),
        }  # fmt: skip
        self.done = threading.Event()
        self.write()
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def write(self) -> None:
        """Write the holder with its heartbeat."""
        content = json.dumps(self.holder).encode()
        if self.descriptor is None:
            self.path.write_bytes(content)
        else:
            os.pwrite(self.descriptor, content, 0)
            os.ftruncate(self.descriptor, len(content))

    def _beat(self) -> None:
        while not self.done.wait(BEAT_SECONDS):
            current = _read(self.path)
            if current.get("key", self.holder["key"]) != self.holder["key"]:
                print(f"Error: this run's lock was taken over. {_described(self.path, current)}", file=sys.stderr)
                os._exit(1)  # two runs would delete each other's files
            self.holder |= {"beat": self.holder["beat"] + 1, "at": time.time()}
            with contextlib.suppress(OSError):  # a full disk: the run itself reports it
                self.write()

    def release(self) -> None:
        """Remove the file."""
        self.done.set()
        if _read(self.path).get("key") == self.holder["key"]:
            self.path.unlink(missing_ok=True)
        if self.descriptor is not None:
            os.close(self.descriptor)


def _flocked(path: epath.Path) -> int | None:
    """The descriptor of the locked file; None if the file system has no flock.

    Raises:
      CheckpointError: a live process holds the lock.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                _refuse(path, _read(path))
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # its holder has just removed it


def _take(path: epath.Path) -> _Lock:
    descriptor = None if is_remote(path) else _flocked(path)
    if holder := _read(path):
        here = _runs_here(holder)
        if (here and descriptor is None) or (here is None and _beats(path, holder)):
            if descriptor is not None:
                os.close(descriptor)
            _refuse(path, _read(path) or holder)
        print(f"Taking over {path.parent}: process {holder.get('pid')} on {holder.get('host')} has ended.")
    lock = _Lock(path, descriptor)
    if descriptor is None and (current := _read(path)).get("key") != lock.holder["key"]:  # another process was faster
        lock.done.set()
        _refuse(path, current)
    return lock


def refuse_model(workdir: str | os.PathLike) -> None:
    """Raise CheckpointError for the folder of a model: a run would replace the config.json of a Hugging Face model, and
    one of this package would be read in place of the run's own."""
    root = as_path(workdir)
    ours = [file.name for file in root.glob("pbrl_*.json")] if root.exists() else []
    if ours or is_model_config(_read(root / "config.json")):
        what = f"{ours[0]} would hide that" if ours else "its config.json would be replaced by that"
        raise CheckpointError(
            f"--workdir {os.fspath(workdir)!r} is the folder of a model: {what} of the run. Name another folder; a "
            "model to train is --policy.source."
        )


@contextlib.contextmanager
def held(workdir: str | os.PathLike) -> Iterator[None]:
    """Holds the lock of a work directory inside the block. Folders that were created for it and are empty at the end
    are removed.

    Raises:
      CheckpointError: another command holds the lock (names its host, process, start and command); or as
        `refuse_model`.
    """
    root = as_path(workdir)
    refuse_model(root)
    created = [] if is_remote(root) else [folder for folder in (root, *root.parents) if not folder.exists()]
    root.mkdir(parents=True, exist_ok=True)
    lock = _take(root / FILE)
    try:
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):  # not empty
            for folder in created:
                os.rmdir(folder)
