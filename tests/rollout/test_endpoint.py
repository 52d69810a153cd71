"""The client of chat endpoints against a local server: answers, refusals, retries, time-outs, the budget."""

import dataclasses
import json
import threading
import time

import pytest
from tiny_endpoint import TinyEndpoint

from pbrl_jax import Config, EndpointConfig, with_values
from pbrl_jax.config.serialize import from_json, to_json
from pbrl_jax.core.errors import ConfigError, CutAnswer, EndpointError
from pbrl_jax.rollout import endpoint as module
from pbrl_jax.rollout.endpoint import Endpoint, without_thoughts

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


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"url": "http://x"},
        *({"url": url, "model": "m"} for url in ("localhost:1", "http://", "http://[::1", "http://h:x")),
    ],
)
def test_settings_that_cannot_work(settings):
    with pytest.raises(ConfigError, match="endpoint.url"):
        Endpoint(EndpointConfig(**settings))


def failure(reply, error=EndpointError, **changes) -> str:
    """The message of a request that fails."""
    with TinyEndpoint(reply).served() as config, pytest.raises(error) as caught:
        client(config, **{"retries": 0} | changes).ask(ASKED)
    return str(caught.value)


def raw(content: bytes, status: int = 200, **headers):
    """A reply of these bytes."""
    return lambda body: (status, headers, [content])


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_key_follows_a_redirect(status, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-SECRET")
    with (other := TinyEndpoint(lambda body: "4")).served() as there:
        where = there.url.replace("127.0.0.1", "localhost") + "/steal?token=T0P"
        said = failure(raw(b"", status, Location=where), retries=3)
    assert not other.seen
    assert f"answered {status}" in said and "redirects to http://localhost" in said and "set endpoint.url" in said
    assert "T0P" not in said and "sk-SECRET" not in said


@pytest.mark.parametrize("part", ["body", "headers"])
def test_the_time_limit_bounds_the_whole_call(part):
    """A server that sends a little now and then."""

    def drip():
        yield b"HTTP/1.1 200 OK\r\n" + b"Content-Length: 100\r\n\r\n" * (part == "body")
        for number in range(100):
            time.sleep(0.02)
            yield b" " if part == "body" else b"X-%d: x\r\n" % number

    start = time.monotonic()
    said = failure(lambda body: (0, {}, drip()), timeout=0.15)
    assert "no whole answer within 0.15 s" in said and time.monotonic() - start < 1.5


@pytest.mark.parametrize(
    "url",
    ["http://me:pw-SECRET@{}/v1?api-version=2024", "http://{}/v1/?api-version=2024&api-key=k-SECRET",
     "http://{}/v1/chat/completions?api-version=2024&sig=s-SECRET"],
)  # fmt: skip
def test_credentials_of_a_url_are_used_and_never_shown(url, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with (endpoint := TinyEndpoint(lambda body: "4")).served() as config:
        config = dataclasses.replace(config, url=url.format(config.url.split("/")[2]), retries=0)
        assert client(config).ask(ASKED) == "4"
    ((path, headers, _),) = endpoint.seen
    assert path.startswith("/v1/chat/completions?api-version=2024")
    assert path.endswith("SECRET") != (headers.get("Authorization") == "Basic bWU6cHctU0VDUkVU")
    with pytest.raises(EndpointError) as caught:
        client(config).ask(ASKED)  # the server is gone
    saved = to_json(with_values(Config(), endpoint={"url": config.url}))
    for text in (str(caught.value), repr(config), saved):
        assert "SECRET" not in text and "***" in text
    monkeypatch.setattr("pbrl_jax.config.endpoint._given", {})  # another process
    with pytest.raises(ConfigError, match="credentials are not saved.*endpoint.key_variable"):
        client(from_json(saved, Config).endpoint, model="m")


def test_the_key_is_shown_by_no_message(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " sk-SECRET\n")
    said = failure(lambda body: (401, "Incorrect key: Bearer sk-SECRET \x1b[31m"))
    assert "Incorrect key: Bearer *** \\x1b[31m" in said
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\nSECRET")
    assert "SECRET" not in failure(lambda body: "4", ConfigError)


@pytest.mark.parametrize(
    "content, what",
    [
        (b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"choices": NaN}', "NaN, which is no number of JSON"),
        (b'{"choices": -Infinity}', "-Infinity, which is no number of JSON"),
        (b'{"choices": ' + b"9" * 5000 + b"}", "ValueError"),
        (b'{"choices": [{"message": {"content": [{"type": "text"}]}}]}', "no text in the answer"),
        (b'{"error": {"message": "overloaded"}}', "overloaded"),
        (b"[1, 2]", "no text in the answer"),
        (b"<html>gateway</html>", "JSONDecodeError"),
        (b"\xff\xfe", "failed"),
    ],
)
def test_an_answer_that_is_none_is_one_error(content, what):
    assert what in failure(raw(content))


def test_a_reply_without_end_is_not_read(monkeypatch):
    monkeypatch.setattr(module, "MAX_REPLY_BYTES", 1000)
    sent = []

    def blocks():
        for _ in range(10**6):
            sent.append(1)
            yield b"x" * 1000

    assert "more than 1000 bytes" in failure(lambda body: (200, {}, blocks())) and len(sent) < 10**5
    assert "compressed" in failure(raw(b"\x1f\x8b", **{"Content-Encoding": "gzip"}))


@pytest.mark.parametrize("used", [None, "many", -5, 0, True, 1.5, 10**30])
def test_no_count_of_a_server_lowers_the_budget(used):
    answer = {"choices": [{"message": {"content": "4"}}], "usage": {"total_tokens": used}}
    with TinyEndpoint(lambda body: answer).served() as config:
        own = client(config)
        own.ask(ASKED)
        assert 10 < own.tokens < 100, "by the bytes"


def test_parts_and_half_characters_of_an_answer():
    parts = {"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "\ud800b"}]}}]}  # fmt: skip  # noqa: E501
    with TinyEndpoint(lambda body: parts).served() as config:
        assert client(config).ask(ASKED) == "a\ufffdb"


def test_an_answer_that_was_cut_is_no_answer():
    """Neither is it asked for again, nor are thoughts that a server gives apart taken for it."""
    cut = {"choices": [{"message": {"content": "half a sen"}, "finish_reason": "length"}]}
    thinks = {"choices": [{"message": {"content": None, "reasoning_content": "So A."}, "finish_reason": "length"}]}
    for answer, text in ((cut, "half a sen"), (thinks, "")):
        with (endpoint := TinyEndpoint(lambda body, answer=answer: answer)).served() as config:
            with pytest.raises(CutAnswer, match="ends at its token limit") as caught:
                client(config).ask(ASKED)
            assert caught.value.text == text and len(endpoint.seen) == 1
    assert "no text" in failure(
        lambda body: {"choices": [{"message": {"content": None, "reasoning_content": "So A."}}]}
    )


def test_an_answer_that_a_filter_stopped_is_not_asked_for_again():
    """It would be stopped each time."""
    stopped = {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}
    with (endpoint := TinyEndpoint(lambda body: stopped)).served() as config:
        with pytest.raises(CutAnswer, match="stopped by the server's content filter") as caught:
            client(config).ask(ASKED)
        assert caught.value.text == "" and len(endpoint.seen) == 1


def test_a_model_that_names_its_limit_otherwise():
    def reasoner(body):
        refused = {"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}}
        return (400, json.dumps(refused)) if "max_tokens" in body else f"{body['max_completion_tokens']} {body['seed']}"

    with (endpoint := TinyEndpoint(reasoner)).served() as config:
        asked = client(config, retries=0)
        assert [asked.ask(ASKED, max_tokens=9, seed=n) for n in (1, 2)] == ["9 1", "9 2"] and len(endpoint.seen) == 3
    assert "Unsupported" in failure(lambda body: (400, "Unsupported 'max_completion_tokens'"))


def test_thoughts():
    assert without_thoughts(" <think>\nA or B?</think>\n\nB ") == "B" and without_thoughts("<think>A or") == ""
    assert without_thoughts("A <think>b</think>") == "A <think>b</think>"
    # DeepSeek-R1's template, and those of later reasoning models, end the prompt with the first tag.
    assert without_thoughts("A or B?\nMaybe </think>\n\nB") == "B"


@pytest.mark.parametrize(
    "asked, waits",
    [("7", 7.0), ("900", 60.0), ("-3", 1.0), ("nan", 1.0), ("inf", 1.0), ("soon", 1.0),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 1.0), ("Wed, 21 Oct 2099 07:28:00 GMT", 60.0)],
)  # fmt: skip
def test_how_long_a_server_asks_to_wait(asked, waits):
    replies, slept = iter([raw(b"", 429, **{"Retry-After": asked, "Content-Length": "0"})(None), "4"]), []
    with TinyEndpoint(lambda body: next(replies)).served() as config:
        assert client(config, slept).ask(ASKED) == "4"
    assert slept == [waits]


@pytest.mark.parametrize("proxy", ["ftp://me:secret@127.0.0.1:1", "http://[::1"])
def test_a_proxy_that_cannot_be_used_is_named_at_once(proxy, monkeypatch):
    """A SOCKS proxy needs a package that httpx does not bring."""
    monkeypatch.setenv("ALL_PROXY", proxy)
    waits: list[float] = []
    with TinyEndpoint(lambda body: "4").served() as config, pytest.raises(ConfigError, match="ALL_PROXY") as refused:
        client(config, waits).ask(ASKED)
    assert not waits and "secret" not in str(refused.value)
