"""A client of OpenAI-compatible chat endpoints (vLLM, SGLang, llama.cpp, hosted ones): time-outs, retries, a budget.

What a server sends is not trusted: its size, depth and numbers are bounded, redirects are refused, and neither the key
nor credentials of the URL appear in a message.
"""

import asyncio
import email.utils
import json
import math
import re
import ssl
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx2

from pbrl_jax.config.endpoint import EndpointConfig
from pbrl_jax.core.characters import visible
from pbrl_jax.core.errors import ConfigError, CutAnswer, EndpointError
from pbrl_jax.core.stopping import map_until_stop
from pbrl_jax.core.urls import HIDDEN, hide_credentials, printable
from pbrl_jax.rollout.transport import (
    SHOWN,
    Reply,
    Request,
    exchange,
    open_client,
    read_json,
    request_headers,
    run_alone,
    server_address,
    shown_text,
)

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before the first retry, and at most before any."""
RETRIED = (408, 409, 429)
MAX_REPLY_BYTES = 1 << 24
"""A longer reply is no answer."""
MAX_TOKENS_REPORTED = 1 << 24
"""A larger count of tokens is no count."""
BYTES_PER_TOKEN = 4
"""Where a server reports no count of tokens, it is estimated from the bytes of request and answer."""
CUT = {
    "length": "ends at its token limit. Raise the limit: reasoning models need thousands of tokens.",
    "content_filter": "was stopped by the server's content filter.",
}
"""finish_reason of an answer that is not whole -> what became of it; it would be no other if it was asked for again."""
NEWER_LIMIT = "max_completion_tokens"
"""What some models of OpenAI take in place of max_tokens; they refuse the other and name this one."""
_THOUGHT = re.compile(r"^\s*<think>(.*?</think>|.*)|^((?!<think>).)*</think>", re.DOTALL | re.IGNORECASE)
"""A thought at the beginning, also without its first tag, which some templates write at the end of the prompt."""

Messages = Sequence[dict[str, str]]


class Endpoint:
    """`ask(messages)` gives the text of one answer. Safe to call from several threads.

    Args:
      config: where, how long, how often, how much.
      sleep: waits between attempts; tests pass their own.

    Raises:
      ConfigError: no address or no model, or a key with characters that no key has.
    """

    config: EndpointConfig

    def __init__(self, config: EndpointConfig, sleep: Callable[[float], None] = time.sleep):
        if not config.url or not config.model:
            raise ConfigError(
                f"endpoint.url is {config.url!r} and endpoint.model {config.model!r}; expected an address and a model. "
                "Use --endpoint.url http://localhost:8000/v1 --endpoint.model NAME."
            )
        if not config.url.startswith(("http://", "https://")):
            raise ConfigError(f"endpoint.url is {config.url!r}; expected http://... or https://...")
        if HIDDEN in config.full_url:
            raise ConfigError(
                f"endpoint.url is {config.url!r}: credentials are not saved. Give the whole --endpoint.url again, or "
                "put the key into an environment variable (endpoint.key_variable)."
            )
        self.config, self._sleep, self._lock = config, sleep, threading.Lock()
        self.requests = self.tokens = 0
        self._newer = False
        self._address, self._headers = _address(config), request_headers(config.full_url, config.key_variable)
        self._tls = ssl.create_default_context()

    def ask(self, messages: Messages, **sampling: Any) -> str:
        """The text of the answer.

        Args:
          messages: `{"role", "content"}` each.
          sampling: temperature, max_tokens, seed, top_p, as the interface names them.

        Raises:
          CutAnswer: the answer ends at its token limit, or where the server's filter stopped it.
          EndpointError: no usable answer after all attempts, a request that was refused, or the budget is spent.
        """
        if self._newer and "max_tokens" in sampling:
            sampling[NEWER_LIMIT] = sampling.pop("max_tokens")
        body = json.dumps({"model": self.config.model, "messages": list(messages), **sampling}).encode()
        wait = FIRST_WAIT
        for attempt in range(self.config.retries + 1):
            self._spend()
            try:
                reply = self._send(body)
                if reply.status < 300:
                    return self._read(reply.content, len(body))
                if reply.status == 400 and "max_tokens" in sampling and NEWER_LIMIT.encode() in reply.content:
                    self._newer = True
                    return self.ask(messages, **sampling)
                problem = f"answered {reply.status}: {self._shown(reply.content.decode(errors='replace').strip())}"
                if reply.status not in RETRIED and reply.status < 500:
                    raise EndpointError(f"The endpoint {self.config.url} {problem}. {self._advice(reply)}")
                wait = max(wait, _asked_wait(reply.headers))
            except (OSError, httpx2.HTTPError, ValueError) as error:
                problem = f"failed ({type(error).__name__}: {self._shown(str(error))})"
            if attempt < self.config.retries:
                self._sleep(min(wait, LONGEST_WAIT))
                wait *= 2
        raise EndpointError(
            f"The endpoint {self.config.url} {problem}; that was attempt {self.config.retries + 1} of "
            f"{self.config.retries + 1}. Check that it runs, or raise endpoint.timeout or endpoint.retries."
        )

    def ask_all(self, many: Sequence[Messages], **sampling: Any) -> list[str | EndpointError]:
        """The answers to many requests, `config.parallel` at a time, in their order; an error in place of an answer
        that did not come. After a request to stop it does not wait for answers that are missing."""

        def one(messages: Messages) -> str | EndpointError:
            try:
                return self.ask(messages, **sampling)
            except EndpointError as error:
                return error

        answers = map_until_stop(one, many, self.config.parallel)
        return [EndpointError("A stop was requested.") if answer is None else answer for answer in answers]

    def _spend(self) -> None:
        config = self.config
        with self._lock:
            for limit, spent, name in (
                (config.max_requests, self.requests, "max_requests"),
                (config.max_tokens, self.tokens, "max_tokens"),
            ):
                if limit and spent >= limit:
                    raise EndpointError(f"The budget is spent: endpoint.{name} = {limit}. Raise it to go on.")
            self.requests += 1

    def _send(self, body: bytes) -> Reply:
        """One request, in an event loop of its own: that alone ends it in time whatever the server does.

        Raises:
          OSError, httpx2.HTTPError: no whole reply came in time.
          ValueError: a reply that is too long.
        """
        try:
            return run_alone(asyncio.wait_for(self._exchange(body), self.config.timeout))
        except TimeoutError:
            raise TimeoutError(f"no whole answer within {self.config.timeout:g} s") from None

    async def _exchange(self, body: bytes) -> Reply:
        async with open_client(self._tls) as client:
            return await exchange(client, Request(self._address, body), self._headers, MAX_REPLY_BYTES)

    def _read(self, content: bytes, sent: int) -> str:
        """The text of an answer; its tokens are counted. What a server gives apart as `reasoning_content` is no part.

        Raises:
          CutAnswer: it ends at the token limit, or where a filter stopped it.
          ValueError: an answer of another form.
        """
        answer = read_json(content)
        usage = answer.get("usage") if isinstance(answer, dict) else None
        used = usage.get("total_tokens") if isinstance(usage, dict) else None
        if type(used) is not int or not 0 < used <= MAX_TOKENS_REPORTED:
            used = (sent + len(content)) // BYTES_PER_TOKEN
        with self._lock:
            self.tokens += used
        try:
            choice = answer["choices"][0]
            text, reason = _joined(choice["message"]["content"]), choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError):
            text, reason = None, None
        if reason in CUT:
            raise CutAnswer(f"An answer of {self.config.url} {CUT[reason]}", text if isinstance(text, str) else "")
        if not isinstance(text, str):
            raise ValueError(f"no text in the answer {content[:SHOWN].decode(errors='replace')}")
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # JSON may hold half a character

    def _shown(self, text: str) -> str:
        return shown_text(text, self._headers)

    def _advice(self, reply: Reply) -> str:
        if reply.status < 400:
            there = printable(hide_credentials(reply.headers.get("Location", "another address")))
            return f"It redirects to {there[:SHOWN]}, where no key is sent. If that is right, set endpoint.url to it."
        return f"Check endpoint.url, endpoint.model and the key in {self.config.key_variable}."


def without_thoughts(text: str) -> str:
    """An answer without the `<think>` part that a server or a policy left in it; "" where that has no end."""
    return _THOUGHT.sub("", text, count=1).strip()


def texts_of(answers: Sequence[str | EndpointError], told: str) -> list[str]:
    """The answers without thoughts, "" for a missing one. `told` says how many of how many are missing ("{} of {}")."""
    if failed := [answer for answer in answers if isinstance(answer, EndpointError)]:
        print(f"{told.format(len(failed), len(answers))}: {visible(str(failed[0]))}", file=sys.stderr)
    return ["" if isinstance(answer, EndpointError) else without_thoughts(answer) for answer in answers]


def _address(config: EndpointConfig) -> str:
    """Where requests go (ConfigError: no address)."""
    url = server_address(config.full_url, "endpoint.url")
    return str(url.copy_with(path=url.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"))


def _joined(content: Any) -> Any:
    """The text of a message: some servers send a list of its parts."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    return content


def _asked_wait(headers: Mapping[str, str]) -> float:
    """Seconds that a reply's Retry-After asks for, as a number or a date; 0 where it does not."""
    asked = headers.get("Retry-After", "0")
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(asked).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
