"""Runs `pbrl` commands in forked children of one process that has imported everything, and holds them where asked.

Reads one request a line: {"arguments": [...], "output": FILE, "hold": [PLACE, NUMBERS...], "marker": FILE, "flags":
XLA_FLAGS, "environment": {...}}. Answers with the child's process id and, when it has ended, with its exit status
(-9: killed). A child that is held makes the marker and waits there, for a kill or until a stop is requested. `Driver`
is the tests' side of it.

Only this file knows where the holds are: the product has no switch for tests.
"""

import atexit
import functools
import gc
import itertools
import json
import os
import subprocess
import sys
import threading
import time
import traceback
import types
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEVICE_FLAGS = ("--xla_force_host_platform", "--xla_cpu_collective")
"""Flags of the tests' own process that children do not get: they have one device unless they ask for more."""

DEADLINE = 900
"""Seconds after which a child counts as stuck."""


class Driver:
    """Starts, watches and kills the children; `variables` are set before they import anything."""

    def __init__(self, folder: Path, **variables: str):
        self.folder, self.count = folder, itertools.count()
        flags = [flag for flag in os.environ["XLA_FLAGS"].split() if not flag.startswith(DEVICE_FLAGS)]
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": " ".join(flags),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            **variables,
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            cwd=ROOT,
        )  # fmt: skip

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)

    def run(self, arguments, kill=None, **how) -> tuple[int, str]:
        """(exit status, what was printed) of one command; see `start` and `strike`."""
        self.start(arguments, **how)
        if kill is not None:
            self.strike(kill)
        return self.end()

    def start(self, arguments, hold=(), watch=None, flags="", limit=0, environment=(), plain=False) -> None:
        """Start one command.

        Args:
          hold: a place of HOLDS and its numbers; the child waits there.
          watch: a glob pattern (absolute); something of that name replaces the marker of a hold.
          flags: XLA_FLAGS of the child, after those of every child.
          limit: largest file in bytes; 0 is no limit.
          environment: further variables of the child; FAKE_BUCKET: a folder that it takes for an object store.
          plain: permissions of files hold for the child, even if it is root.
        """
        number = next(self.count)
        self.output, self.marker = self.folder / f"output_{number}", self.folder / f"marker_{number}"
        request = {"arguments": list(map(str, arguments)), "output": str(self.output), "marker": str(self.marker),
                   "hold": list(hold), "flags": flags, "limit": limit, "environment": dict(environment),
                   "plain": plain}  # fmt: skip
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        self.pid = int(self.process.stdout.readline())
        self.wanted = Path(watch) if watch else self.marker

    def strike(self, kill, after: float = 0) -> None:
        """Send a signal when the marker or the watched file is there, or so many seconds later."""
        self.reach()
        time.sleep(after)
        os.kill(self.pid, kill)

    def reach(self) -> None:
        """Wait until the marker or the watched file is there."""
        self._wait_for(self.wanted, self.pid, self.output)

    def release(self) -> None:
        """Let a child go on that is held."""
        self.marker.unlink()

    def end(self) -> tuple[int, str]:
        """(exit status, what was printed) of the command, when it has ended."""
        status = int(self.process.stdout.readline())
        return status, self.output.read_text()

    def _wait_for(self, wanted: Path, pid: int, output: Path) -> None:
        end = time.monotonic() + DEADLINE
        while not list(wanted.parent.parent.glob(f"{wanted.parent.name}/{wanted.name}")):
            assert time.monotonic() < end, f"{wanted} did not appear:\n{output.read_text()}"
            assert Path(f"/proc/{pid}").exists(), f"the command ended before {wanted} appeared:\n{output.read_text()}"
            time.sleep(0.001)


def wait(marker: str, stops: bool = True) -> None:
    """The hold itself, until the marker is removed; a requested stop ends it, too, where `stops`. A save that is under
    way in its thread ends first: what is held is known to come after it."""
    from pbrl_jax.train.signals import stop_requested

    for thread in threading.enumerate():
        if thread.name == "save" and thread is not threading.current_thread():
            thread.join()
    Path(marker).touch()
    end = time.monotonic() + DEADLINE
    while Path(marker).exists() and not (stops and stop_requested()):
        assert time.monotonic() < end, "nobody came"
        time.sleep(0.005)


def in_generate(marker: str, call: int) -> None:
    """Between the first and the second segment of rollout number `call`."""
    from pbrl_jax.train import hosted

    make, calls = hosted.make_generate, itertools.count(1)

    def make_held(*settings):
        run = make(*settings)

        def generate(params, prompts, key, sampling, should_stop):
            looks, number = itertools.count(), next(calls)

            def look():
                if number == call and next(looks) == 0:
                    wait(marker)
                return should_stop()

            return run(params, prompts, key, sampling, look)

        return generate

    hosted.make_generate = make_held


def fails_in_reward(_marker: str, call: int) -> None:
    """An error of our own in rollout number `call`, where the host reads its rows."""
    from pbrl_jax.train import hosted

    decode, calls = hosted.completions, itertools.count(1)

    def failing(*arguments):
        if next(calls) == call:
            raise ZeroDivisionError("nothing to divide by")
        return decode(*arguments)

    hosted.completions = failing


def in_update(marker: str, call: int, name: str = "make_policy_update", stops: bool = True) -> None:
    """Update number `call` is dispatched; nothing of it is logged or saved. `stops`: as in `wait`."""
    from pbrl_jax.train import fused, hosted

    module = fused if name == "make_fused_step" else hosted
    make, calls = getattr(module, name), itertools.count(1)

    def make_held(*settings):
        update = make(*settings)

        def held(*arguments, **more):
            result = update(*arguments, **more)
            if next(calls) == call:
                wait(marker, stops)
            return result

        if hasattr(update, "prepare"):
            held.prepare = update.prepare
        return held

    setattr(module, name, make_held)


def in_fused(marker: str, call: int) -> None:
    """The fused step number `call` is dispatched."""
    in_update(marker, call, "make_fused_step")


def in_evaluation(marker: str, call: int) -> None:
    """Before evaluation number `call` of the parameters."""
    from pbrl_jax.train import loop

    evaluated, calls = loop.evaluated, itertools.count(1)

    def held(*arguments):
        if next(calls) == call:
            wait(marker)
        return evaluated(*arguments)

    loop.evaluated = held


def clock_steps(marker: str, after: float, seconds: float) -> None:
    """The wall clock of this process jumps by so many seconds, so long after now; the marker says that it was read."""
    real, start = time.time, time.monotonic()

    def jumped():
        if time.monotonic() - start < after:
            return real()
        Path(marker).touch()
        return real() + seconds

    time.time = jumped


def before_rename(marker: str, step: int, number: int) -> None:
    """Right before rename `number` (metadata, folder, manifest) of the save of `step`."""
    from pbrl_jax.core import paths

    rename, calls = paths.rename_synced, itertools.count(1)

    def held(old, new):
        if f"step_{step:08d}" in os.fspath(new) and next(calls) == number:
            wait(marker)
        rename(old, new)

    paths.rename_synced = held


def in_write(marker: str, step: int) -> None:
    """The save of `step` does not end; the marker is made when the next update is dispatched beside it."""
    from pbrl_jax.checkpoint import BackgroundSaver, manifest
    from pbrl_jax.train import hosted

    hashed, start, make = manifest.hashed_files, BackgroundSaver.start, hosted.waiting
    started, under_way = threading.Event(), threading.Event()

    def held(folder):
        if f"step_{step:08d}" in os.fspath(folder):
            under_way.set()
            time.sleep(DEADLINE)
        return hashed(folder)

    def watched_start(saver, directory, number, *arguments, **more):
        start(saver, directory, number, *arguments, **more)
        if number == step:
            started.set()

    def make_watched(update):
        waited = make(update)

        def watched(*arguments):
            result = waited(*arguments)
            if started.is_set() and under_way.wait(DEADLINE):
                Path(marker).touch()
            return result

        return watched

    manifest.hashed_files, BackgroundSaver.start, hosted.waiting = held, watched_start, make_watched


HOLDS = {
    "write": in_write,
    "generate": in_generate,
    "reward fails": fails_in_reward,
    "update": in_update,
    "fused": in_fused,
    "rename": before_rename,
    "stuck": functools.partial(in_update, name="make_policy_update", stops=False),
    "evaluate": in_evaluation,
    "clock": clock_steps,
}


def without_override() -> None:
    """Give up what lets root read and write whatever a file's mode says (capabilities 1, 2 and 3 of Linux)."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    for number in range(3):  # effective, permitted, inheritable
        sets[number] &= ~0b1110
    assert libc.capset(header, sets) == 0


def as_bucket(root: str) -> None:
    """What lies below `root` counts as objects of a store: they are written whole, and cannot be renamed."""
    from etils import epath

    from pbrl_jax.core import paths

    known, replace, kind = paths.is_remote, os.replace, type(epath.Path(root))
    write = kind.write_bytes

    def is_remote(path):
        return os.fspath(path).startswith(root) or known(path)

    def no_replace(old, new, **more):
        assert not os.fspath(new).startswith(root), f"an object store cannot rename {old} to {new}"
        replace(old, new, **more)

    def write_whole(path, data):
        if not os.fspath(path).startswith(root):
            return write(path, data)
        part = Path(f"{root}.{threading.get_ident()}")
        part.write_bytes(data)
        replace(part, path)  # a process that is killed leaves the old object or the new one
        return len(data)

    for module in list(sys.modules.values()):
        if getattr(module, "is_remote", None) is known:
            module.is_remote = is_remote
    os.replace, kind.write_bytes = no_replace, write_whole


def keep_programs_of_this_host() -> None:
    """Let a process other than the first write what it compiles to its cache folder, which JAX leaves to the first."""
    from jax._src import compiler

    compiler.distributed = types.SimpleNamespace(global_state=types.SimpleNamespace(process_id=0, client=None))


def child(request: dict) -> int:
    """One command; nothing but its exit status and its files is left."""
    descriptor = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ["XLA_FLAGS"] += f" {request['flags']}"
    os.environ.update(request["environment"])
    if int(os.environ.get("PBRL_PROCESS", 0)):
        keep_programs_of_this_host()
    if "FAKE_BUCKET" in os.environ:
        as_bucket(os.environ["FAKE_BUCKET"])
    if request["limit"]:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit"], resource.RLIM_INFINITY))
    if request["plain"]:
        without_override()
    if request["hold"]:
        place, *numbers = request["hold"]
        HOLDS[place](request["marker"], *numbers)
    from pbrl_jax.cli import main

    return main(request["arguments"])


def serve() -> None:
    """Answer requests until the input ends."""
    from quick_lowering import reuse_contexts

    import pbrl_jax.checkpoint
    import pbrl_jax.run.eval
    import pbrl_jax.run.train  # noqa: F401  the imports are what takes long; no device is touched before the fork
    from pbrl_jax.data.sources import quickstart
    from pbrl_jax.text.langid import identify_language

    reuse_contexts()
    identify_language("a text that loads the model once", ("en", "sw"))
    quickstart.problems("train", 0, 0, "small")
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)  # as in conftest.py
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 99
            try:
                status = child(json.loads(line))
            except SystemExit as leaving:
                status = leaving.code
            except BaseException:
                traceback.print_exc()
            if "PBRL_COORDINATOR" in os.environ:
                atexit._run_exitfuncs()  # several processes say good-bye to each other
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
