"""Settings of an OpenAI-compatible endpoint; `config.tree` holds the whole tree."""

from dataclasses import dataclass

from pbrl_jax.config.fields import identity, operational
from pbrl_jax.core.urls import hide_credentials

_given: dict[str, str] = {}
"""A URL as it is shown -> as it was given to this process, with its credentials."""


@dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible endpoint: it writes references, translates, judges."""

    url: str = operational("")
    """Where `/chat/completions` is, for example http://localhost:8000/v1; empty: no endpoint, nothing is asked. A query
    string stays behind the path. Credentials in it are used and never shown or saved: the field holds `***`."""
    model: str = identity("")
    """Name of the model at the endpoint."""
    key_variable: str = operational("OPENAI_API_KEY")
    """Environment variable that holds the key; the key itself is never written anywhere. Unset: no key is sent."""
    timeout: float = operational(60.0, at_least=0.001)
    """Seconds a request may take from its beginning to the last byte of its answer."""
    retries: int = operational(3, at_least=0)
    """Further attempts after a time-out, a lost connection, or an answer 408, 409, 429 or 5xx; waits double."""
    max_requests: int = operational(0, at_least=0)
    """Requests a command may send, retries included; 0: no limit."""
    max_tokens: int = operational(0, at_least=0)
    """Tokens (prompts and answers, as the endpoint counts them) a command may use; 0: no limit."""
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
