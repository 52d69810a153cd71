"""One HTTP exchange with a server that is not trusted: bounded, not redirected, without secrets in what is shown."""

import asyncio
import base64
import json
import os
import ssl
import urllib.parse
from collections.abc import Coroutine, Mapping
from typing import Any, NamedTuple, TypeVar

import httpx2

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.urls import HIDDEN, hide_credentials, printable

SHOWN = 300
"""Characters of what a server says that a message repeats."""

Result = TypeVar("Result")


class Request(NamedTuple):
    """What is sent; `content` None is a GET."""

    address: str
    content: bytes | None = None


class Reply(NamedTuple):
    """What a server sent, whole."""

    status: int
    headers: Mapping[str, str]
    content: bytes


def open_client(tls: ssl.SSLContext) -> httpx2.AsyncClient:
    """A client without time-outs and redirects of its own: `exchange` is cancelled from outside.

    Raises:
      ConfigError: the proxy that the environment names cannot be used.
    """
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    try:
        return httpx2.AsyncClient(timeout=None, follow_redirects=False, verify=tls, limits=limits)
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        raise ConfigError(
            f"The proxy in HTTP_PROXY, HTTPS_PROXY or ALL_PROXY cannot be used ({shown_text(str(error), {})}). "
            "Unset it, exempt the server with NO_PROXY, or install what it needs (SOCKS: pip install socksio)."
        ) from error


async def exchange(client: httpx2.AsyncClient, request: Request, headers: Mapping[str, str], most: int) -> Reply:
    """The whole reply to a request.

    Args:
      most: bytes of the longest reply that is read.

    Raises:
      OSError, httpx2.HTTPError: the connection failed.
      ValueError: a reply that is too long, or compressed.
    """
    content, method = bytearray(), "GET" if request.content is None else "POST"
    async with client.stream(method, request.address, content=request.content, headers=dict(headers)) as reply:
        if reply.headers.get("Content-Encoding", "identity") != "identity":
            raise ValueError("the answer is compressed, which was not asked for")
        async for block in reply.aiter_raw():
            content += block
            if len(content) > most:
                raise ValueError(f"the answer has more than {most} bytes")
        return Reply(reply.status_code, reply.headers, bytes(content))


def run_alone(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine in an event loop of its own, which leaves the process's signal handlers alone."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


def request_headers(address: str, key_variable: str) -> dict[str, str]:
    """Headers of every request: the key of an environment variable, or else the user of the address.

    Raises:
      ConfigError: a key with characters that no key has.
    """
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    key = os.environ.get(key_variable, "").strip() if key_variable else ""
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"The key in {key_variable} has characters that no key has. Set the variable again.")
    user = httpx2.URL(address).userinfo
    if key:
        headers["Authorization"] = f"Bearer {key}"
    elif user:
        headers["Authorization"] = f"Basic {base64.b64encode(urllib.parse.unquote_to_bytes(user)).decode()}"
    return headers


def server_address(address: str, field: str) -> httpx2.URL:
    """An address without the user in it.

    Raises:
      ConfigError: no address; names the config field that holds it.
    """
    shown = hide_credentials(address)
    try:
        url = httpx2.URL(address)
        host = url.host
    except httpx2.InvalidURL as error:
        raise ConfigError(f"{field} is {shown!r}, which is no address ({error}).") from None
    if not host:
        raise ConfigError(f"{field} is {shown!r}; expected a host behind ://.")
    return url.copy_with(username=None, password=None, fragment=None)


def read_json(content: bytes) -> Any:
    """The JSON of a reply.

    Raises:
      ValueError: it is no JSON, holds a number that JSON has not, or is nested too deeply.
    """
    try:
        return json.loads(content, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("the answer is nested too deeply") from None


def shown_text(text: str, headers: Mapping[str, str]) -> str:
    """The beginning of what a server or a library says, without the key in `headers`."""
    for secret in (value.rpartition(" ")[2] for name, value in headers.items() if name == "Authorization"):
        text = text.replace(secret, HIDDEN)
    return printable(hide_credentials(text)[:SHOWN])


def _no_number(name: str) -> None:
    raise ValueError(f"the answer holds {name}, which is no number of JSON")
