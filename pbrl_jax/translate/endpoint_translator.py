"""An OpenAI-compatible endpoint as a translator: the same request as a policy gets, the same protection of formulas."""

import sys
from collections.abc import Sequence

from pbrl_jax.core.errors import EndpointError
from pbrl_jax.rollout.endpoint import Endpoint
from pbrl_jax.text.languages import LANGUAGES
from pbrl_jax.translate.translator import REQUEST, Segment, Translator, Written

LONGEST_TEXT = 8000
"""Characters sent at a time; longer texts are cut between sentences."""


class EndpointTranslator(Translator):
    """See `Translator.translate`. What the endpoint does not answer is an incomplete translation, and is said."""

    whole_texts = True
    uses_incomplete = False

    def __init__(self, endpoint: Endpoint, max_tokens: int = 2048):
        self.endpoint, self.max_tokens = endpoint, max_tokens

    @property
    def fingerprint(self) -> str:
        """Names the model; an endpoint does not say more of itself."""
        return f"endpoint:{self.endpoint.config.model}:{self.max_tokens}"

    def fits(self, text: str) -> bool:
        return len(text) <= LONGEST_TEXT

    def write(self, segments: Sequence[Segment]) -> list[Written]:
        requests = [
            [{"role": "user", "content": REQUEST.format(
                source=LANGUAGES[one.source].name, target=LANGUAGES[one.target].name, text=one.text
            )}]
            for one in segments
        ]  # fmt: skip
        answers = self.endpoint.ask_all(requests, temperature=0.0, max_tokens=self.max_tokens)
        failed = [answer for answer in answers if isinstance(answer, EndpointError)]
        if failed:
            print(f"{len(failed)} of {len(answers)} translations did not come: {failed[0]}", file=sys.stderr)
        return [Written("", False) if isinstance(a, EndpointError) else Written(a.strip(), True) for a in answers]
