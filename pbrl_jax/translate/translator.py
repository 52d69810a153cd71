"""Translators: texts are split, formulas protected, translations checked and joined, whatever model writes them.

Formulas and tags are replaced by placeholders that a model copies. A piece whose placeholders or numbers are not in its
translation is written again with its numbers replaced too, and then unchanged. Texts longer than the model's limit are
split into parts that fit, and a translation that reached the length limit is marked as incomplete.
"""

import logging
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from pbrl_jax.core.characters import visible
from pbrl_jax.core.errors import ConfigError, EndpointError
from pbrl_jax.core.stopping import ends_early
from pbrl_jax.rollout.endpoint import Endpoint, without_thoughts
from pbrl_jax.text.languages import LANGUAGES, language
from pbrl_jax.text.segments import (
    FORMULA,
    NUMBER,
    Masked,
    fitting_parts,
    lines_and_sentences,
    mask,
    names_in,
    numbers_agree,
    unmask,
)

_LOGGER = logging.getLogger(__name__)
_LETTER = re.compile(r"[^\W\d_]")
REQUEST = (
    "Translate the following text from {source} into {target}. Keep every number, formula, symbol and tag exactly as "
    "it is, and keep the line breaks. Write only the translation, without any explanation or comment.\n\n{text}"
)
"""The request to a model that follows instructions."""
UNSPACED = ("zh", "ja")
"""Languages that put no space between sentences."""
ENDPOINT_CHARACTERS = 8000
"""Characters sent to an endpoint at a time; longer texts are split between sentences."""


class Segment(NamedTuple):
    """The input of a model; languages are codes of pbrl_jax.text.languages."""

    text: str
    source: str
    target: str


class Written(NamedTuple):
    """The output of a model; `complete` is false where it reached the length limit."""

    text: str
    complete: bool


class Translation(NamedTuple):
    """One text's translation.

    `complete`: no part reached the length limit. `numbers_agree`: source and translation hold the same numbers (see
    pbrl_jax.text.segments.numbers_agree); a number that is spelled out in one of them counts as missing.
    """

    text: str
    complete: bool
    numbers_agree: bool


class Piece(NamedTuple):
    """A part of text number `row`, with the line breaks behind it."""

    row: int
    masked: Masked
    breaks: str

    def plain(self) -> str:
        """The part with its formulas."""
        return unmask(self.masked.text, self.masked.spans) or ""


class Translator(ABC):
    """Translates texts between the languages of pbrl_jax.text.languages."""

    @property
    def fingerprint(self) -> str:
        """Identifies the model and its settings: all that a translation depends on besides the text."""
        return ""

    uses_incomplete = True
    """Whether incomplete translations are used: truncated ones are, missing ones are not."""
    whole_texts = False
    """Whether the model gets texts of several sentences; otherwise one sentence at a time."""

    @abstractmethod
    def write(self, segments: Sequence[Segment]) -> list[Written]:
        """The model's translations of segments that fit, in their order."""

    @abstractmethod
    def fits(self, text: str) -> bool:
        """Whether the text is within the model's limit."""

    def translate(
        self, texts: Sequence[str], source_language: str | Sequence[str], target_language: str | Sequence[str]
    ) -> list[str]:
        """The translations of `texts`, in their order; logs a warning if some reached the length limit.

        Args:
          texts: any length, several lines or sentences; formulas, tags and numbers are kept.
          source_language, target_language: one code ("sw") for all texts, or one for each.

        Raises:
          ConfigError: a language that this package or this model does not know.
        """
        found = self.translations(texts, source_language, target_language)
        cut = sum(not translation.complete for translation in found)
        if cut:
            _LOGGER.warning("%d of %d translations reached the length limit and may lack their end.", cut, len(found))
        return [translation.text for translation in found]

    def translations(
        self, texts: Sequence[str], source_language: str | Sequence[str], target_language: str | Sequence[str]
    ) -> list[Translation]:
        """As `translate`, with whether each translation is complete and keeps its numbers."""
        sources, targets = (language_codes(codes, len(texts)) for codes in (source_language, target_language))
        foreign = [row for row in range(len(texts)) if sources[row] != targets[row]]
        pieces = [piece for row in foreign for piece in self.pieces(row, texts[row])]
        written = self._write_pieces(pieces, sources, targets)
        found = [Translation(text, True, True) for text in texts]
        for row in foreign:
            parts = [(piece, part) for piece, part in zip(pieces, written, strict=True) if piece.row == row]
            text = _join(parts, targets[row])
            complete = all(part.complete for _, part in parts)
            found[row] = Translation(text, complete, numbers_agree(texts[row], text))
        return found

    def pieces(self, row: int, text: str) -> list[Piece]:
        """The parts that are translated separately: sentences, or as many of them as fit."""
        masked = mask(text, FORMULA)
        if self.whole_texts and self.fits(masked.text):
            parts = [(masked.text, "")]
        elif self.whole_texts:
            parts = self._pack(list(lines_and_sentences(masked.text)))
        else:
            parts = list(lines_and_sentences(masked.text))
        return [Piece(row, Masked(part, names_in(part, masked.spans)), breaks) for part, breaks in parts]

    def _pack(self, sentences: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Neighbouring sentences joined while they fit."""
        packed: list[tuple[str, str]] = []
        for sentence, breaks in sentences:
            if packed:
                joined = packed[-1][0] + (packed[-1][1] or " ") + sentence
                if self.fits(joined):
                    packed[-1] = (joined, breaks)
                    continue
            packed.append((sentence, breaks))
        return packed

    def _write_pieces(self, pieces: list[Piece], sources, targets) -> list[Written]:
        """Up to three attempts at each piece; the first that keeps its placeholders and numbers is used."""
        best: list[Written | None] = [None] * len(pieces)
        for index, piece in enumerate(pieces):
            if not _LETTER.search(_without_placeholders(piece.masked)):
                best[index] = Written(piece.plain(), True)
        todo = [index for index, done in enumerate(best) if done is None]
        for attempt in (lambda piece: piece.masked, _mask_numbers, _mask_nothing):
            asked = [(index, masked) for index in todo if (masked := attempt(pieces[index])) is not None]
            segments = [Segment(m.text, sources[pieces[i].row], targets[pieces[i].row]) for i, m in asked]
            for (index, masked), written in zip(asked, self._write_fitting(segments), strict=True):
                text = unmask(written.text, masked.spans)
                if text is None:
                    continue
                agree = numbers_agree(pieces[index].plain(), text)
                if agree or best[index] is None:
                    best[index] = Written(text, written.complete)
                if agree:
                    todo.remove(index)
        if ends_early():  # attempts may be missing: these are translated again next time
            best = [None if index in todo else written for index, written in enumerate(best)]
        return [Written("", False) if written is None else written for written in best]

    def _write_fitting(self, segments: list[Segment]) -> list[Written]:
        """`write`, with segments that are too long split into parts, and equal ones written once."""
        rows = [[one._replace(text=part) for part in fitting_parts(one.text, self.fits)] for one in segments]
        unique = list(dict.fromkeys(part for row in rows for part in row))
        found = dict(zip(unique, self.write(unique) if unique else [], strict=True))
        joined = []
        for row in rows:
            written = [found[part] for part in row]
            text = _space(row[0].target).join(part.text for part in written)
            joined.append(Written(text, all(part.complete for part in written)))
        return joined


def language_codes(codes: str | Sequence[str], count: int) -> list[str]:
    """A language code for each of `count` texts; ConfigError for unknown codes or a wrong number of them."""
    found = [codes] * count if isinstance(codes, str) else list(codes)
    if len(found) != count:
        raise ConfigError(f"{len(found)} languages for {count} texts; give one for all, or one for each.")
    for code in dict.fromkeys(found):
        language(code)
    return found


def _mask_numbers(piece: Piece) -> Masked | None:
    masked = mask(piece.masked.text, NUMBER)
    return Masked(masked.text, {**piece.masked.spans, **masked.spans}) if masked.spans else None


def _mask_nothing(piece: Piece) -> Masked | None:
    return Masked(piece.plain(), {}) if piece.masked.spans else None


def _without_placeholders(masked: Masked) -> str:
    return unmask(masked.text, dict.fromkeys(masked.spans, "")) or ""


def _space(target: str) -> str:
    return "" if target in UNSPACED else " "


def _join(parts: list[tuple[Piece, Written]], target: str) -> str:
    pieces = [text for piece, written in parts for text in (written.text, piece.breaks or _space(target))]
    return "".join(pieces[:-1] + [parts[-1][0].breaks] if parts else [])


class EndpointTranslator(Translator):
    """An OpenAI-compatible endpoint. A text that it does not answer is an incomplete translation; they are counted."""

    whole_texts = True
    uses_incomplete = False

    def __init__(self, endpoint: Endpoint, max_tokens: int = 2048):
        self.endpoint, self.max_tokens = endpoint, max_tokens

    @property
    def fingerprint(self) -> str:
        """The model's name and the length limit; an endpoint reports no revision."""
        return f"endpoint:{self.endpoint.config.model}:{self.max_tokens}"

    def fits(self, text: str) -> bool:
        return len(text) <= ENDPOINT_CHARACTERS

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
            print(
                f"{len(failed)} of {len(answers)} texts were not translated: {visible(str(failed[0]))}", file=sys.stderr
            )
        texts = ["" if isinstance(answer, EndpointError) else without_thoughts(answer) for answer in answers]
        return [Written(text, bool(text)) for text in texts]
