"""A stored reference, everything that it depends on, and its key."""

import hashlib
import json
import unicodedata
from typing import Any, NamedTuple

from pbrl_jax.core.records import Reference


class Origin(NamedTuple):
    """Everything that a reference depends on."""

    question: str
    expert: str
    """The expert's name: a folder or a hub id."""
    revision: str
    """Fingerprint of the expert's weights and tokenizer, or its revision on the hub."""
    template: str
    """The prompt of the expert, with `{question}` for the question."""
    temperature: float
    max_tokens: int
    seed: int

    @property
    def key(self) -> str:
        """32 hex digits of the SHA-256 of the fields; spellings of one question share it (`normalised`)."""
        return sha256(list(self._replace(question=normalised(self.question), temperature=float(self.temperature))))[:32]


class StoredReference(NamedTuple):
    """A reference and its origin. `verified` is None without a gold answer."""

    origin: Origin
    reasoning: str
    answer: str
    verified: bool | None = None

    @property
    def key(self) -> str:
        return self.origin.key

    @property
    def reference(self) -> Reference:
        """The two parts that rewards compare."""
        return Reference(self.reasoning, self.answer)


def normalised(question: str) -> str:
    """A question in NFC, with single spaces as white space."""
    return " ".join(unicodedata.normalize("NFC", question).split())


def sha256(value: Any) -> str:
    """Hex digest of a JSON value, independent of the order of object names."""
    content = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()
