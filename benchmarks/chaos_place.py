"""Where the faults of chaos.py happen: commands in processes of their own, a judge, and runs that nobody disturbed."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from resume_driver import Driver  # noqa: E402

from pbrl_jax.checkpoint import list_checkpoints  # noqa: E402

STEPS = 6
SETTINGS = (
    f"--train.max-steps {STEPS} --train.save-steps 1 --train.save-total-limit 9 --data.limit 4 --eval.limit 1 "
    "--rollout.segment-length 4 --optim.learning-rate 3e-3 --optim.eps 1e-4 --log.no-tensorboard --train.no-packed "
    "--log.compilation-cache= --reward.language-gate penalty --guard.max-invalid-share 0 --guard.patience 1 "
    "--reward.functions cosine judge chaos_reward:length --reward.reward-weights 1 1 1 --endpoint.model tiny "
    "--endpoint.retries 1 --endpoint.timeout 5"
).split()
HOSTS = ["--data.limit", "8", "--train.prompts-per-step", "8"]
"""Two hosts have rows of their own each."""
REWARD = """
import os, pathlib
FILE = pathlib.Path(os.environ["CHAOS_FAILURES"])
def length(completions, step):
    left = int(FILE.read_text())
    if left and step[0] >= 2:
        FILE.write_text(str(left - 1))
        raise ConnectionError("reset by peer")
    return [len(text) % 7 / 7 for text in completions]
"""


class Outcome(NamedTuple):
    """What a fault did: the exit statuses, seconds to the end, and why it is not as it should be ("" where it is)."""

    statuses: tuple[int, ...]
    seconds: float
    wrong: str = ""


class Endpoint:
    """A judge whose verdict is a function of the question; it can be dead, or cut connections in the middle."""

    def __init__(self) -> None:
        self.cut, self.left = 0, -1
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.server: ThreadingHTTPServer | None = None
        self.lock = threading.Lock()

    def open(self) -> None:
        """Serve, on the same port as before."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with outer.lock:
                    outer.left -= outer.left > 0
                    outer.cut -= (cuts := outer.cut > 0)
                    dead = outer.left == 0
                text = "AB"[hashlib.sha256(json.dumps(json.loads(body)["messages"]).encode()).digest()[0] % 2]
                content = json.dumps({"choices": [{"message": {"content": text}}], "usage": {"total_tokens": 9}})
                if dead:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                with contextlib.suppress(OSError):
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content[: len(content) // 2 if cuts else None].encode())
                    self.close_connection = True

            def log_message(self, *arguments):
                pass

        self.left, self.cut = -1, 0
        ThreadingHTTPServer.allow_reuse_address = True
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Refuse connections."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None


class Place:
    """Where the faults happen: drivers, the endpoint, and the undisturbed runs."""

    def __init__(self, folder: Path):
        self.folder, self.endpoint, self.failures = folder, Endpoint(), folder / "failures"
        (folder / "chaos_reward.py").write_text(REWARD)
        self.failures.write_text("0")
        self.endpoint.open()
        self.drivers, self.whole, self.took = list[Driver](), dict[int, Path](), dict[int, float]()

    def driver(self, number: int) -> Driver:
        """Driver `number`, with a compilation cache that all share."""
        while len(self.drivers) <= number:
            (own := self.folder / f"driver_{len(self.drivers)}").mkdir()
            ignored = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's reach ends here
            self.drivers.append(
                Driver(own, JAX_COMPILATION_CACHE_DIR=str(self.folder / "cache"), CHAOS_FAILURES=str(self.failures),
                       JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
                       PYTHONPATH=os.pathsep.join(map(str, (ROOT, ROOT / "tests", self.folder))))
            )  # fmt: skip
            signal.signal(signal.SIGHUP, ignored)
        return self.drivers[number]

    def start(self, workdir: Path, number: int = 0, hosts: int = 1, **how) -> Driver:
        """The command, in driver `number`."""
        url = f"http://127.0.0.1:{self.endpoint.port}/v1"
        command = ["train", ROOT / "configs/tiny_cpu.py", "--workdir", workdir, *SETTINGS, "--endpoint.url", url]
        driver = self.driver(number)
        driver.start([*command, *(HOSTS if hosts > 1 else [])], **how)
        return driver

    def together(self, workdir: Path, hosts: int, hold=()) -> list[Driver]:
        """The command on one host, or on several."""
        if hosts == 1:
            return [self.start(workdir, hold=hold)]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            joins = {"PBRL_COORDINATOR": f"127.0.0.1:{probe.getsockname()[1]}", "PBRL_PROCESSES": str(hosts),
                     "PBRL_LOST_SECONDS": "8"}  # fmt: skip
        return [
            self.start(workdir, number, hosts, hold=hold, environment=joins | {"PBRL_PROCESS": str(number)})
            for number in range(hosts)
        ]

    def to_the_end(self, workdir: Path, hosts: int) -> list[tuple[int, str]]:
        """(exit status, output) of the command on each host; how long it took is what the next fault goes by."""
        start = time.monotonic()
        ended = [driver.end() for driver in self.together(workdir, hosts)]
        self.took[hosts] = time.monotonic() - start
        return ended

    def undisturbed(self, hosts: int) -> Path:
        """The work directory of the run that nobody disturbed."""
        if hosts not in self.whole:
            workdir = self.folder / f"whole_{hosts}" / "run"
            ended = self.to_the_end(workdir, hosts)
            if any(status for status, _ in ended):
                sys.exit(f"The undisturbed run failed:\n{ended[0][1]}")
            if not all(row["grad_norm"] > 0 for row in facts(workdir)["rows"]):
                sys.exit("The undisturbed run does not learn: nothing could differ from it.")
            self.whole[hosts] = workdir
            self.took[hosts] /= 3  # it has compiled, which the next ones need not
        return self.whole[hosts]

    def standing_at(self, step: int, hosts: int) -> Path:
        """A new work directory of the run as it stood after this step; 0: nothing was saved."""
        target = Path(tempfile.mkdtemp(dir=self.folder)) / "run"
        if step:
            shutil.copytree(self.undisturbed(hosts), target)
            (target / "final.json").unlink()
            for other, folder in list_checkpoints(target / "checkpoints"):
                if other > step:
                    folder.rmtree()
        return target

    def close(self) -> None:
        for driver in self.drivers:
            driver.close()
        self.endpoint.close()


def facts(workdir: Path) -> dict:
    """All that a run leaves, except times."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        "final": json.loads((workdir / "final.json").read_text()),
        "rows": [{k: v for k, v in row.items() if not k.startswith(("step_time", "time/"))} for row in rows],
        "samples": {file.name: file.read_text() for file in (workdir / "samples").iterdir()},
    }


def ended(driver: Driver, since: float, expected: tuple[int, ...], words: str = "") -> Outcome:
    """The end of a command, which should have one of these statuses and say `words`."""
    status, output = driver.end()
    wrong = "" if status in expected and words in output else f"exit {status}: {output[-600:]}"
    if "Traceback" in output and "chaos_reward.py" not in output:  # a reward's own exceptions are shown
        wrong = wrong or f"a traceback: {output[-600:]}"
    return Outcome((status,), time.monotonic() - since, wrong)
