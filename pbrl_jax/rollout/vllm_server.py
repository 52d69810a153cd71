"""Requests to a vLLM server: many at a time, sent again while it does not respond, and what its answers may hold."""

import asyncio
import json
import math
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import httpx2

from pbrl_jax.config.rollout import RolloutConfig
from pbrl_jax.core.errors import EndpointError
from pbrl_jax.core.stopping import LOOK_SECONDS, Interrupted
from pbrl_jax.rollout.transport import (
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

KEY_VARIABLE = "VLLM_API_KEY"
"""Environment variable of the server's key; vLLM itself reads the same one."""
RETRIED = (408, 409, 429)
RETRY_SECONDS = 1.0
"""Seconds between two attempts at a server that does not respond."""
PARALLEL = 256
"""Requests under way at a time, one for each prompt; the server batches their rows itself."""
SPARE_BYTES = 1 << 20
"""Bytes of a reply beside its tokens; a longer one is no answer."""


class NotReady(Exception):
    """An answer that says that the server could not do yet what it was asked."""


def never() -> bool:
    """No request to stop."""
    return False


class Patience:
    """How long a server is waited for: `seconds` since the last `renew`."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.renew()

    def renew(self) -> None:
        """The server has done something."""
        self._end = time.monotonic() + self.seconds

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self._end


class Asked(NamedTuple):
    """Requests under way; `found` holds `read(content, number)` of those that were answered. Each answer renews the
    patience where `renews`."""

    requests: Sequence[Request]
    read: Callable[[bytes, int], Any]
    should_stop: Callable[[], bool]
    found: dict[int, Any]
    renews: bool


class VllmServer:
    """A vLLM server, asked with one policy about failures: what cannot be answered is an EndpointError at once, and a
    server that does not respond is asked again for rollout.vllm_timeout seconds.

    Args:
      settings: address and time-out.
      most: bytes of the longest reply.

    Raises:
      ConfigError: no address, or a key with characters that no key has.
    """

    def __init__(self, settings: RolloutConfig, most: int = SPARE_BYTES):
        self.address, self.seconds, self._most = settings.vllm_address, settings.vllm_timeout, most
        self._base = str(server_address(self.address, "rollout.vllm_address")).rstrip("/").removesuffix("/v1")
        self._headers = request_headers(self.address, KEY_VARIABLE)
        self._tls = ssl.create_default_context()

    def post(self, path: str, content: Any) -> Request:
        """A request of this server."""
        return Request(self._base + path, json.dumps(content).encode())

    def get(self, path: str) -> Request:
        """A request without content."""
        return Request(self._base + path)

    def load(self, folder: str, should_stop: Callable[[], bool] = never, patience: Patience | None = None) -> None:
        """Have the server take the weights in a folder, and forget what it has computed with those before them.

        Raises:
          EndpointError, Interrupted: as `ask_all`.
        """
        reload = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        for path, content in (("/collective_rpc", reload), ("/reset_prefix_cache", {})):
            self.ask_all([self.post(path, content)], _accepted, should_stop, patience)

    def ask_all(self, requests: Sequence[Request], read: Callable[[bytes, int], Any] = lambda content, number: None,
                should_stop: Callable[[], bool] = never, patience: Patience | None = None,
                again: Callable[[Patience], None] | None = None) -> list[Any]:  # fmt: skip
        """`read(content, number)` of the reply to each request, in their order.

        Args:
          read: may raise ValueError, for an answer that cannot be used, or NotReady, to ask once more.
          should_stop: asked every 0.2 s.
          patience: of the caller; default: rollout.vllm_timeout seconds from the last answer.
          again: called with the patience before requests are sent again: the server may have been started anew.

        Raises:
          EndpointError: the server refuses a request, answers in another form, or does not answer in time.
          Interrupted: `should_stop()` was true.
        """
        asked = Asked(requests, read, should_stop, {}, renews=patience is None)
        patience, told = patience or Patience(self.seconds), not asked.renews
        while problem := run_alone(self._round(asked, patience)):
            if not told:
                print(f"The vLLM server {self.address} {problem}; waiting for it, {self.seconds:g} s at most.")
                told = True
            start = time.monotonic()
            while time.monotonic() < start + RETRY_SECONDS:
                if should_stop():
                    raise Interrupted
                time.sleep(LOOK_SECONDS)
            if again is not None:
                again(patience)
        return [asked.found[number] for number in range(len(requests))]

    async def _round(self, asked: Asked, patience: Patience) -> str:
        """Send every request that has no answer yet, once. Empty where all are answered, else why one is not."""
        places, problem = asyncio.Semaphore(PARALLEL), ""
        async with open_client(self._tls) as client:

            async def send(number: int) -> tuple[int, Reply]:
                async with places:
                    return number, await exchange(client, asked.requests[number], self._headers, self._most)

            numbers = [number for number in range(len(asked.requests)) if number not in asked.found]
            tasks = [asyncio.create_task(send(number)) for number in numbers]
            pending: set[asyncio.Task] = set(tasks)
            try:
                while pending:
                    done, pending = await asyncio.wait(
                        pending, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                    if asked.should_stop():
                        raise Interrupted
                    for task in done:
                        problem = self._take(task, asked, patience) or problem
                    if patience.is_over and (pending or problem):
                        raise self._given_up(problem)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return problem

    def _take(self, task: asyncio.Task, asked: Asked, patience: Patience) -> str:
        """Read what a request brought; why it is to be sent again, or empty."""
        try:
            number, reply = task.result()
        except (OSError, httpx2.HTTPError, ValueError) as error:
            return f"failed ({type(error).__name__}: {shown_text(str(error), self._headers)})"
        if reply.status >= 300:
            return self._refused(asked.requests[number], reply)
        try:
            asked.found[number] = asked.read(reply.content, number)
        except NotReady as error:
            return str(error)
        except ValueError as error:
            raise EndpointError(
                f"The vLLM server {self.address} gave an answer that cannot be used: {error}. Its version is to have "
                "the interface of 0.32 (return_token_ids and logprobs of /v1/completions)."
            ) from None
        if asked.renews:
            patience.renew()
        return ""

    def _refused(self, request: Request, reply: Reply) -> str:
        """Why a request is to be sent again.

        Raises:
          EndpointError: it would be refused again.
        """
        path = request.address.removeprefix(self._base)
        text = shown_text(reply.content.decode(errors="replace").strip(), self._headers)
        problem = f"answered {reply.status} to {path}: {text}"
        if reply.status in RETRIED or reply.status >= 500:
            return problem
        advice = "Check rollout.vllm_address."
        if reply.status in (401, 403):
            advice = f"Put its key into {KEY_VARIABLE}."
        elif reply.status in (404, 405) and not path.startswith("/v1/"):
            advice = "Its development mode is off. Start it by `bash launch/gpu_node.sh serve MODEL`."
        elif reply.status == 404 and request.content is not None:
            advice = (
                "It was started anew with another model or --served-model-name; the same command goes on from here."
            )
        elif reply.status < 400:
            advice = "It redirects, and no key is sent there. " + advice
        raise EndpointError(f"The vLLM server {self.address} {problem}. {advice}")

    def _given_up(self, problem: str) -> EndpointError:
        return EndpointError(
            f"The vLLM server {self.address} {problem or 'has not finished an answer'}, for {self.seconds:g} s. Check "
            "that it runs, or raise --rollout.vllm-timeout. The same command goes on from what is saved."
        )


def _accepted(content: bytes, number: int) -> None:
    answer = read_json(content) if content else None
    if isinstance(answer, dict) and answer.get("success", True) is not True:
        raise NotReady("still uses its cache of prompts")


def read_group(content: bytes, samples: int, longest: int, vocab_size: int, eos_ids: Sequence[int]
               ) -> list[tuple[list[int], list[float]]]:  # fmt: skip
    """(token ids, log-probs) of each row in an answer of /v1/completions.

    Raises:
      NotReady: the server broke a row off (finish_reason abort), as it does while it is paused or shut down.
      ValueError: it is not `samples` rows of 1 to `longest` ids below `vocab_size`, each ending at the first of
        `eos_ids` or at `longest` tokens, with a finite log-prob of at most 0 for each.
    """
    answer = read_json(content)
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if any(choice.get("finish_reason") == "abort" for choice in choices):
            raise NotReady("broke off its answer (finish_reason abort)")
        rows = [(choice["token_ids"], choice["logprobs"]["token_logprobs"]) for choice in choices]
        counts = [(len(tokens), len(logp)) for tokens, logp in rows]
    except (KeyError, TypeError, AttributeError):
        raise ValueError("a choice without token_ids or logprobs.token_logprobs") from None
    if len(rows) != samples:
        raise ValueError(f"{len(rows)} responses where {samples} were asked for")
    for (tokens, logp), (count, given) in zip(rows, counts, strict=True):
        if not 0 < count <= longest or count != given:
            raise ValueError(f"a response of {count} tokens with {given} log-probs, of at most {longest}")
        wrong = [token for token in tokens if type(token) is not int or not 0 <= token < vocab_size]
        if wrong:
            raise ValueError(f"token {wrong[0]!r} of a policy with {vocab_size} ids: the server has another model")
        odd = [x for x in logp if type(x) not in (int, float) or not math.isfinite(x) or x > 1e-3]
        if odd:
            raise ValueError(f"a log-prob {odd[0]!r}")
        early = [place for place, token in enumerate(tokens) if token in eos_ids]
        if (early[0] + 1 if early else longest) != count:
            raise ValueError(f"a response of {count} tokens that ends neither with {tuple(eos_ids)} nor at {longest}")
    return rows
