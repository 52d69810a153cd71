"""One stored reference, all that it depends on, and the key that it is found under."""

import hashlib
import json
import unicodedata
from typing import Any, NamedTuple

from pbrl_jax.core.records import Reference


class Origin(NamedTuple):
    """All that a reference depends on."""

    question: str
    expert: str
    """The expert's name: a folder or a hub id."""
    revision: str
    """Fingerprint of the expert's weights and tokenizer, or its revision at the hub."""
    template: str
    """How the question was put to the expert, `{question}` standing for it."""
    temperature: float
    max_tokens: int
    seed: int

    @property
    def key(self) -> str:
        """32 hex digits of the SHA-256 of the fields; spellings of one question share it (`normalised`)."""
        return sha256(list(self._replace(question=normalised(self.question), temperature=float(self.temperature))))[:32]


class StoredReference(NamedTuple):
    """One reference and where it comes from. `verified` is None where no gold answer was known."""

    origin: Origin
    reasoning: str
    answer: str
    verified: bool | None = None

    @property
    def key(self) -> str:
        return self.origin.key

    @property
    def reference(self) -> Reference:
        """The two parts that rewards look at."""
        return Reference(self.reasoning, self.answer)


def normalised(question: str) -> str:
    """A question with its accents composed (NFC) and its white space as single spaces."""
    return " ".join(unicodedata.normalize("NFC", question).split())


def sha256(value: Any) -> str:
    """Hex digest of a JSON value, whatever the order of its names."""
    content = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()
