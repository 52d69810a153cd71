"""What hosts tell each other, with two threads as two hosts and a dictionary as their store."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from pbrl_jax.core.errors import DataError, HostError, HostLost
from pbrl_jax.mesh import agree


class Store:
    """The calls of jax's store that `agree` makes."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set_bytes(self, key, value):
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get_bytes(self, key, milliseconds):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, milliseconds / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: timed out")
            return self.values[key]

    def key_value_delete(self, key):
        with self.changed:
            del self.values[key]


@pytest.fixture
def two_hosts(monkeypatch):
    """Runs a function of the host's number on both; their results, exceptions included. The store is an attribute."""
    store, mine = Store(), threading.local()

    class Turns:
        def __next__(self):
            return next(mine.turns)

    monkeypatch.setattr(agree, "distributed_client", lambda: store)
    monkeypatch.setattr(agree, "_turns", Turns())
    monkeypatch.setattr(agree, "_lost", [])
    monkeypatch.setattr(agree, "WAIT_MILLISECONDS", 20)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: mine.number)

    def one(function, number):
        mine.number, mine.turns = number, itertools.count()
        try:
            return function(number)
        except Exception as error:
            return error

    def run(function):
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda number: one(function, number), range(2)))

    run.store = store
    return run


def test_all_learn_all_and_the_store_stays_small(two_hosts):
    def talk(number):
        return [agree.exchange("lengths", {"host": number, "turn": turn, "text": "zażółć"}) for turn in range(5)]

    first, second = two_hosts(talk)
    assert first == second
    assert first[3] == [{"host": host, "turn": 3, "text": "zażółć"} for host in range(2)]
    assert len(two_hosts.store.values) <= 2 * 2


def test_an_error_of_one_is_that_of_all(two_hosts, capfd):
    def fail(number):
        return agree.agreed("rewards", lambda: 1 / (1 - number))

    for found in two_hosts(fail):
        assert isinstance(found, HostError) and "Host 1 of 2 failed. ZeroDivisionError" in str(found)
    assert capfd.readouterr().err.count("Traceback") == 1, "the host that failed shows where"


def test_an_error_for_users_has_no_traceback(two_hosts, capfd):
    def fail(number):
        raise DataError(f"row {number} is empty")

    for found in two_hosts(lambda number: agree.agreed("data", lambda: fail(number))):
        assert str(found) == "Host 0 of 2 failed. row 0 is empty"
    assert not capfd.readouterr().err


def test_hosts_at_different_places_end(two_hosts):
    first, second = two_hosts(lambda number: agree.exchange(("stop", "rewards")[number], 1))
    assert isinstance(first, HostLost) and "Host 1 is at 'rewards' where host 0 is at 'stop'" in str(first)
    assert isinstance(second, HostLost)


def test_nobody_waits_for_a_host_that_is_lost(two_hosts):
    def leave(number):
        if number == 0:
            return agree.exchange("stop", False)
        agree.note_lost_host("Host 1 of 2 ended. Its words.")

    assert str(two_hosts(leave)[0]) == "Host 1 of 2 ended. Its words."


def test_the_first_host_goes_first(two_hosts):
    order = []
    assert two_hosts(lambda number: agree.in_turn("write", lambda: order.append(number) or number)) == [0, 1]
    assert order == [0, 1]


def test_a_host_alone_talks_to_itself():
    assert agree.exchange("stop", {"a": np}) == [{"a": np}]
    assert agree.agreed("x", lambda: 3) == [3] and agree.in_turn("x", lambda: 4) == 4
    with pytest.raises(ZeroDivisionError):
        agree.agreed("x", lambda: 1 / 0)
    assert np.array_equal(agree.host_array(jax.numpy.arange(3)), [0, 1, 2])
