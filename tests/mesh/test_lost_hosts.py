"""Two real processes that do nothing but talk: one fails or dies, the other ends within the bound, with a message."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pbrl_jax.mesh import watch

LOST_SECONDS = 5
BOUND_SECONDS = LOST_SECONDS + 30
"""What docs/scaling.md states, for this PBRL_LOST_SECONDS."""

CODE = """
import os, sys, time
from pbrl_jax.mesh import agree
from pbrl_jax.core.errors import DataError, PbrlError
from pbrl_jax.mesh.hosts import join_hosts
from pbrl_jax.mesh.watch import phase, watched_run

def body(how):
    agree.exchange("stop", False)
    with phase("generate"):
        time.sleep(2)
        print("ready", file=sys.stderr, flush=True)
        if agree.host() == 0:
            time.sleep(1000 if how == "dies while nobody listens" else 0)
        elif how == "fails":
            raise DataError("Row 3 is empty.")
        else:
            time.sleep(1000)
        agree.exchange("stop", False)

try:
    with watched_run(join_hosts(), 0):
        body(sys.argv[1])
except PbrlError as error:
    print("Error:", error, file=sys.stderr)
    sys.exit(1)
"""


def start(how, number, address, folder):
    variables = {
        "PBRL_COORDINATOR": address,
        "PBRL_PROCESSES": "2",
        "PBRL_PROCESS": str(number),
        "PBRL_LOST_SECONDS": str(LOST_SECONDS),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(watch.__file__).parents[2]),
    }
    with open(folder / str(number), "w") as output:
        return subprocess.Popen([sys.executable, "-c", CODE, how], stderr=output, env={**os.environ, **variables})


@pytest.mark.parametrize("how", ["fails", "dies", "dies while nobody listens"])
def test_the_other_ends(tmp_path, how):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    first, second = (start(how, number, address, tmp_path) for number in range(2))
    while "ready" not in (tmp_path / "1").read_text():
        assert second.poll() is None, (tmp_path / "1").read_text()
        time.sleep(0.05)
    if how != "fails":
        second.send_signal(signal.SIGKILL)
    began = time.monotonic()
    assert first.wait(300) == 1
    assert time.monotonic() - began < BOUND_SECONDS
    told = (tmp_path / "0").read_text()
    if how == "fails":
        assert second.wait(60) == 1 and "Error: Row 3 is empty." in (tmp_path / "1").read_text()
        assert "Error: Host 1 of 2 ended. Row 3 is empty." in told
        return
    assert second.wait(60) == -signal.SIGKILL
    assert "Error: Host 1 of 2 has been silent for" in told and "It was in phase 'generate'" in told
    assert "Traceback" not in told and told.count("Error: ") == 1
    if how == "dies while nobody listens":
        assert "This host was in phase 'generate'" in told and "in body" in told, "the stacks"
