"""Signals as one request: what they mean, how soon they are answered, and what ends the process."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from pbrl_jax.run.library import own_signal_handlers
from pbrl_jax.train.signals import SAME_SECONDS, SIGNALS, Requests, watch_signals


def meanings(*times):
    requests = Requests()
    return [requests.receive(now) for now in times]


def test_only_a_third_later_signal_ends_the_process():
    assert meanings(0, 0.1) == ["stop", "same"]
    assert meanings(0, 60) == ["stop", "same"], "a second one never does"
    assert meanings(0, 0.1, 0.2, 0.3) == ["stop", "same", "same", "same"], "a burst is one request"
    assert meanings(0, 0.1, SAME_SECONDS + 1) == ["stop", "same", "end"]
    assert meanings(0, 5, 10) == ["stop", "same", "end"]


WORK = """
import signal
import sys, time
from pbrl_jax.mesh.watch import phase
from pbrl_jax.train.signals import stop_requested, watch_signals
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's children ignore it, and a run then does, too
watch_signals()
with phase("generate"):
    print("ready", flush=True)
    if sys.argv[1] == "blocked":
        import ctypes
        ctypes.CDLL(None).sleep(6)  # as inside a compiled program: no handler runs
    while not stop_requested():
        time.sleep(0.05)
    if sys.argv[1] == "slow":
        time.sleep(60)
print("saved", flush=True)
"""


@pytest.fixture
def work():
    started = []

    def start(how):
        process = subprocess.Popen(
            [sys.executable, "-c", WORK, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_every_signal_saves_and_says_what_it_waits_for(work, name):
    process = work("quick")
    process.send_signal(getattr(signal, name))
    assert f"{name}: stopping at the next safe point" in (said := process.stderr.readline())
    assert "in phase 'generate'" in said
    assert process.wait(30) == 0 and process.stdout.read() == "saved\n"


def test_it_says_so_at_once_inside_a_compiled_program(work):
    process = work("blocked")
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.stderr.readline()
    assert time.monotonic() - sent < 4
    assert process.wait(60) == 0


def test_a_burst_is_one_request_and_a_third_later_one_ends(work):
    process = work("slow")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process.send_signal(number)
    time.sleep(SAME_SECONDS + 0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert "ending without saving" in process.stderr.read()
    second = work("slow")
    for _ in range(2):
        second.send_signal(signal.SIGTERM)
        time.sleep(SAME_SECONDS + 0.5)
        assert second.poll() is None
    assert "One more ends" in second.stderr.readline() + second.stderr.readline()


def test_a_run_in_a_thread_leaves_signals_to_its_program():
    """Of a server or a notebook's worker: Python sets handlers in the main thread alone, and raised ValueError."""
    before, failures = [signal.getsignal(number) for number in SIGNALS], []

    def run():
        try:
            with own_signal_handlers():
                watch_signals()
        except ValueError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failures and [signal.getsignal(number) for number in SIGNALS] == before
