"""Settings of an OpenAI-compatible endpoint; `config.tree` holds the whole tree."""

from dataclasses import dataclass

from pbrl_jax.config.fields import identity, operational
from pbrl_jax.core.urls import hide_credentials

_given: dict[str, str] = {}
"""URL without credentials -> the URL that this process was given."""


@dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible endpoint that writes references, translates or judges."""

    url: str = operational("")
    """Base URL of `/chat/completions`, such as http://localhost:8000/v1; empty: no endpoint. A query string is kept
    after the path. Credentials in it are used but never shown or saved: the field holds `***`."""
    model: str = identity("")
    """Name of the model at the endpoint."""
    key_variable: str = operational("OPENAI_API_KEY")
    """Environment variable with the API key, which is never written to a file. Unset: no key is sent."""
    timeout: float = operational(60.0, at_least=0.001)
    """Seconds that a request may take, including reading its answer."""
    retries: int = operational(3, at_least=0)
    """Further attempts after a time-out, a lost connection, or an answer 408, 409, 429 or 5xx; waits double."""
    max_requests: int = operational(0, at_least=0)
    """Requests that a command may send, retries included; 0: no limit."""
    max_tokens: int = operational(0, at_least=0)
    """Tokens (prompts and answers, as the endpoint counts them) that a command may use; 0: no limit."""
    parallel: int = operational(8, at_least=1)
    """Requests under way at a time."""

    def __post_init__(self):
        # Another type is refused with the other fields, in `config.checks`.
        shown = hide_credentials(self.url) if isinstance(self.url, str) else self.url
        if shown != self.url:
            _given[shown] = self.url
            object.__setattr__(self, "url", shown)

    @property
    def full_url(self) -> str:
        """The URL with its credentials, where this process was given them."""
        return _given.get(self.url, self.url)
