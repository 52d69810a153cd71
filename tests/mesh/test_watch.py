"""The thread that looks after a run: slow phases, hosts that fail and hosts that fall silent."""

import io
import json
import time

import pytest

from pbrl_jax.mesh import agree, watch
from pbrl_jax.mesh.watch import Watch, lost_seconds, phase, phase_text, watched_run


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Store:
    """The calls of jax's store that a Watch makes, on a dictionary."""

    def __init__(self, **values):
        self.values = {f"pbrl/{key.replace('_', '/')}": value for key, value in values.items()}

    def key_value_set(self, key, value, allow_overwrite=False):
        if key in self.values and not allow_overwrite:
            raise RuntimeError("ALREADY_EXISTS")
        self.values[key] = value

    def key_value_dir_get(self, folder):
        found = [(key, value) for key, value in self.values.items() if key.startswith(folder)]
        if not found:
            raise RuntimeError("NOT_FOUND")
        return found


@pytest.fixture
def nobody_lost(monkeypatch):
    monkeypatch.setattr(agree, "_lost", [])
    monkeypatch.setattr(agree, "host_count", lambda: 2)


def test_a_slow_phase_is_told_with_the_stacks(capfd):
    """Once, and again when it has lasted twice as long; a quick one never."""
    with watched_run(1, 0.3):
        with phase("generate"):
            pass
        with phase("a slow reward"):
            wait_until(lambda: time.monotonic() > watch._phases[-1][1] + 1.1)
    told = capfd.readouterr().err
    assert told.count("Slow: host 0 is in phase 'a slow reward' for") == 2 and "generate" not in told
    assert "Current thread" in told and "test_a_slow_phase_is_told_with_the_stacks" in told
    assert phase_text() == "between two phases"


def test_stacks_are_shown_beside_a_stream_without_a_descriptor(capfd, monkeypatch):
    """A notebook's stderr has a method fileno, which raises."""
    monkeypatch.setattr(watch.sys, "__stderr__", open(2, "w", closefd=False))
    monkeypatch.setattr(watch.sys, "stderr", io.StringIO())
    watch.show_stacks()
    assert "Current thread" in capfd.readouterr().err


def test_nothing_is_slow_where_nobody_asked(capfd):
    with watched_run(1, 0), phase("reward"):
        time.sleep(0.05)
    assert not capfd.readouterr().err


def test_a_silent_host_is_noticed(nobody_lost):
    """Not while its sign of life changes; then with its last phase and the seconds."""
    store = Store(alive_1=json.dumps([1, "in phase 'generate' for 3 s", False]))
    looking = Watch(0, 0.4, store)
    for beat in range(8):
        time.sleep(0.1)
        store.values["pbrl/alive/1"] = json.dumps([beat, "in phase 'update' for 2 s", False])
        looking._look_at_hosts()
    assert not agree.lost_host_message() and not looking.ending
    wait_until(lambda: looking._look_at_hosts() or time.sleep(0.05) or agree.lost_host_message())
    assert "Host 1 of 2 has been silent for 0 s. It was in phase 'update' for 2 s" in agree.lost_host_message()
    assert "Run the same command" in agree.lost_host_message() and looking.ending
    assert json.loads(store.values["pbrl/alive/0"])[0] > 8, "and it gives its own"


def test_a_host_that_stood_still_judges_nobody(nobody_lost):
    looking = Watch(0, 0.4, Store(alive_1=json.dumps([1, "x", False])))
    looking._look_at_hosts()
    time.sleep(0.6)
    looking._look_at_hosts()
    assert not agree.lost_host_message()


def test_a_host_that_loads_may_be_silent_for_longer(nobody_lost):
    looking = Watch(0, 0.2, Store(alive_1=json.dumps([1, "in phase 'start' for 9 s", True])))
    end = time.monotonic() + 1
    while time.monotonic() < end:
        looking._look_at_hosts()
        time.sleep(0.05)
    assert not agree.lost_host_message()
    wait_until(lambda: looking._look_at_hosts() or time.sleep(0.05) or agree.lost_host_message())


def test_the_words_of_a_host_that_failed_are_read(nobody_lost):
    store = Store(ended_1="The disk is full.")
    looking = Watch(0, 60, store)
    looking._look_at_hosts()
    assert agree.lost_host_message() == "Host 1 of 2 ended. The disk is full."
    looking.publish_end("It followed another one.")
    looking.publish_end("And said so once.")
    assert store.values["pbrl/ended/0"] == "It followed another one." and looking.others_ended()


def test_seconds_of_silence(monkeypatch):
    for text, seconds in (("", 60), ("7", 7), ("soon", 60), ("0", 60)):
        monkeypatch.setenv("PBRL_LOST_SECONDS", text)
        assert lost_seconds() == seconds
