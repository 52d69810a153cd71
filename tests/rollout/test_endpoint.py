"""The client of chat endpoints against a local server: answers, refusals, retries, time-outs, the budget."""

import dataclasses
import threading

import pytest
from tiny_endpoint import TinyEndpoint

from pbrl_jax import EndpointConfig
from pbrl_jax.core.errors import ConfigError, EndpointError
from pbrl_jax.rollout.endpoint import Endpoint

ASKED = [{"role": "user", "content": "2 + 2?"}]


def client(config, waits=None, **changes) -> Endpoint:
    return Endpoint(dataclasses.replace(config, **changes), sleep=([] if waits is None else waits).append)


def test_an_answer_and_what_was_sent(monkeypatch):
    monkeypatch.setenv("TINY_KEY", "secret")
    endpoint = TinyEndpoint(lambda body: "4")
    with endpoint.served() as config:
        own = client(config, key_variable="TINY_KEY")
        assert own.ask(ASKED, temperature=0.0, max_tokens=3) == "4"
        assert client(config, key_variable="").ask(ASKED) == "4"
    (path, headers, body), (_, bare, _) = endpoint.seen
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body == {"model": "tiny", "messages": ASKED, "temperature": 0.0, "max_tokens": 3}
    assert "Authorization" not in bare
    assert (own.requests, own.tokens) == (1, 10)


def test_a_busy_server_is_asked_again_with_longer_waits():
    replies = iter([(500, "down"), (429, "slow down"), "4"])
    waits = []
    with TinyEndpoint(lambda body: next(replies)).served() as config:
        assert client(config, waits).ask(ASKED) == "4"
    assert waits == [1.0, 2.0]


def test_it_gives_up_and_says_so():
    endpoint = TinyEndpoint(lambda body: (503, "down"))
    with endpoint.served() as config, pytest.raises(EndpointError, match="503: down; that was attempt 3 of 3"):
        client(config, retries=2).ask(ASKED)
    assert len(endpoint.seen) == 3


@pytest.mark.parametrize("status, text", [(401, "no key"), (404, "no such model")])
def test_a_refusal_is_not_asked_again(status, text):
    endpoint = TinyEndpoint(lambda body: (status, text))
    with endpoint.served() as config, pytest.raises(EndpointError, match=f"{status}: {text}.*endpoint.model"):
        client(config).ask(ASKED)
    assert len(endpoint.seen) == 1


def test_a_silent_server_times_out():
    stop = threading.Event()
    endpoint = TinyEndpoint(lambda body: stop.wait(5) and "late")
    with endpoint.served() as config:
        with pytest.raises(EndpointError, match="failed .*attempt 2 of 2"):
            client(config, timeout=0.05, retries=1).ask(ASKED)
        stop.set()
    assert len(endpoint.seen) == 2


def test_an_answer_of_another_form_is_an_error():
    with TinyEndpoint(lambda body: None).served() as config, pytest.raises(EndpointError, match="no text"):
        client(config, retries=0).ask(ASKED)


def test_the_budget_holds_across_threads():
    endpoint = TinyEndpoint(lambda body: body["messages"][0]["content"])
    with endpoint.served() as config:
        own = client(config, max_requests=3, parallel=4)
        found = own.ask_all([[{"role": "user", "content": str(n)}] for n in range(5)])
        assert sum(isinstance(answer, EndpointError) for answer in found) == 2
        assert all(answer == str(n) for n, answer in enumerate(found) if isinstance(answer, str))
        with pytest.raises(EndpointError, match="endpoint.max_tokens = 5"):
            tokens = client(config, max_tokens=5)
            tokens.ask(ASKED)
            tokens.ask(ASKED)
    assert len(endpoint.seen) == 4 and own.ask_all([]) == []


@pytest.mark.parametrize("settings", [{}, {"url": "http://x"}, {"url": "localhost:1", "model": "m"}])
def test_settings_that_cannot_work(settings):
    with pytest.raises(ConfigError, match="endpoint.url"):
        Endpoint(EndpointConfig(**settings))
