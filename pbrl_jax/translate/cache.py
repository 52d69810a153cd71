"""A cache of translations in memory and in a file; keys are hashes of translator, languages and text."""

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

from pbrl_jax.core.errors import DataError
from pbrl_jax.core.paths import append_json_lines, as_path, read_json_lines
from pbrl_jax.core.stopping import check_stop, ends_early
from pbrl_jax.translate.translator import Translator

BATCH = 256
"""Texts that are translated between writes of the file."""


class CachedTranslator:
    """A translator that translates each text once.

    Args:
      translator: the translator behind the cache; its fingerprint is part of every key.
      path: JSON lines file of `{"key", "text"}`, appended to; "" keeps translations in memory only. A last line that
        is incomplete is dropped, and its text translated again.
      uses_incomplete: whether incomplete translations are kept; default: the translator's own setting.
    """

    def __init__(self, translator: Translator, path: str | os.PathLike = "", uses_incomplete: bool | None = None):
        self.translator, self.path = translator, as_path(path) if path else None
        self.uses_incomplete = translator.uses_incomplete if uses_incomplete is None else uses_incomplete
        rows: list[dict[str, Any]] = [] if self.path is None else read_json_lines(self.path)
        if broken := [number for number, row in enumerate(rows, start=1) if set(row) != {"key", "text"}]:
            raise DataError(f"{self.path}, line {broken[0]}, has other fields than key and text. Delete that line.")
        self._texts: dict[str, str] = {row["key"]: row["text"] for row in rows}

    def __len__(self) -> int:
        """Number of cached translations."""
        return len(self._texts)

    def key(self, text: str, source: str, target: str) -> str:
        """32 hex digits of the SHA-256 of all that the translation depends on."""
        content = json.dumps([self.translator.fingerprint, source, target, text], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:32]

    def translate(self, texts: Sequence[str], sources: Sequence[str], target: str) -> list[str | None]:
        """The translations into `target`, in order; None if an endpoint did not answer, or if the translation is
        truncated and `uses_incomplete` is off. A text in the target language, or of white space, is returned unchanged.

        Args:
          sources: a language code for each text.
        """
        keys = [self.key(text, source, target) for text, source in zip(texts, sources, strict=True)]
        todo: dict[str, tuple[str, str]] = {}
        for key, text, source in zip(keys, texts, sources, strict=True):
            if source != target and text.strip() and key not in self._texts:
                todo.setdefault(key, (text, source))
        pending = list(todo.items())
        for start in range(0, len(pending), BATCH):
            batch = pending[start : start + BATCH]
            results = self.translator.translations([t for _, (t, _) in batch], [s for _, (_, s) in batch], target)
            new = {
                key: translation.text
                for (key, _), translation in zip(batch, results, strict=True)
                if translation.complete or (self.uses_incomplete and not ends_early())
            }
            self._texts |= new
            if self.path is not None:
                append_json_lines(self.path, [{"key": key, "text": text} for key, text in new.items()])
            check_stop()
        return [
            text if source == target or not text.strip() else self._texts.get(key)
            for key, text, source in zip(keys, texts, sources, strict=True)
        ]
