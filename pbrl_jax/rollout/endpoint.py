"""A client of OpenAI-compatible chat endpoints (vLLM, SGLang, llama.cpp, hosted ones): time-outs, retries, a budget."""

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from pbrl_jax.config.endpoint import EndpointConfig
from pbrl_jax.core.errors import ConfigError, EndpointError
from pbrl_jax.core.stopping import map_until_stop

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before the first retry, and at most before any."""
RETRIED = (408, 409, 429)
SHOWN = 300

Messages = Sequence[dict[str, str]]


class Endpoint:
    """`ask(messages)` gives the text of one answer. Safe to call from several threads.

    Args:
      config: where, how long, how often, how much.
      sleep: waits between attempts; tests pass their own.

    Raises:
      ConfigError: no address or no model.
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
        self.config, self._sleep, self._lock = config, sleep, threading.Lock()
        self.requests = self.tokens = 0

    def ask(self, messages: Messages, **sampling: Any) -> str:
        """The text of the answer.

        Args:
          messages: `{"role", "content"}` each.
          sampling: temperature, max_tokens, seed, top_p, as the interface names them.

        Raises:
          EndpointError: no usable answer after all attempts, a request that was refused, or the budget is spent.
        """
        body = json.dumps({"model": self.config.model, "messages": list(messages), **sampling}).encode()
        wait = FIRST_WAIT
        for attempt in range(self.config.retries + 1):
            self._spend()
            try:
                return self._read(self._send(body))
            except urllib.error.HTTPError as error:
                problem = f"answered {error.code}: {_start_of(error)}"
                if error.code not in RETRIED and error.code < 500:
                    raise EndpointError(
                        f"The endpoint {self.config.url} {problem}. Check endpoint.url, endpoint.model and the key in "
                        f"{self.config.key_variable}."
                    ) from error
                wait = max(wait, _asked_wait(error))
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = f"failed ({type(error).__name__}: {error})"
            if attempt < self.config.retries:
                self._sleep(min(wait, LONGEST_WAIT))
                wait *= 2
        raise EndpointError(
            f"The endpoint {self.config.url} {problem}; that was attempt {self.config.retries + 1} of "
            f"{self.config.retries + 1}. Check that it runs, or raise --endpoint.timeout or --endpoint.retries."
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

    def _send(self, body: bytes) -> Any:
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(self.config.key_variable, "") if self.config.key_variable else ""
        if key:
            headers["Authorization"] = f"Bearer {key}"
        address = self.config.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(address, data=body, headers=headers, method="POST")
        with urllib.request.urlopen(request, timeout=self.config.timeout) as answer:
            return json.loads(answer.read())

    def _read(self, answer: Any) -> str:
        """The text of an answer; its tokens are counted.

        Raises:
          ValueError: an answer of another form.
        """
        try:
            text, usage = answer["choices"][0]["message"]["content"], answer.get("usage") or {}
            used = int(usage.get("total_tokens") or 0)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"no text in the answer {json.dumps(answer)[:SHOWN]}") from error
        if not isinstance(text, str):
            raise ValueError(f"no text in the answer {json.dumps(answer)[:SHOWN]}")
        with self._lock:
            self.tokens += used
        return text


def _start_of(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(SHOWN).decode(errors="replace").strip()
    except OSError:
        return error.reason


def _asked_wait(error: urllib.error.HTTPError) -> float:
    """Seconds that the answer's Retry-After asks for; 0 where it does not."""
    try:
        return max(0.0, float(error.headers.get("Retry-After", 0)))
    except ValueError:
        return 0.0
