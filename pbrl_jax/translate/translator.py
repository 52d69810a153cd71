"""The common part of all translators: splitting of texts, protection of formulas, checks and joining of translations.

Formulas and tags are replaced by placeholders that a model copies. If a translation lacks placeholders or numbers, the
piece is translated again with placeholders for its numbers too, and then without placeholders. Texts longer than the
model's limit are split, and a translation that reached the length limit is marked as incomplete.
"""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from pbrl_jax.core.characters import as_texts
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.stopping import ends_early
from pbrl_jax.rollout.endpoint import Endpoint, texts_of
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
"""Languages without spaces between sentences."""
ENDPOINT_CHARACTERS = 8000
"""Maximum characters of a request to an endpoint; longer texts are split between sentences."""


class Segment(NamedTuple):
    """The input of a model; languages are codes of pbrl_jax.text.languages."""

    text: str
    source: str
    target: str


class Written(NamedTuple):
    """The output of a model; `complete` is false if it reached the length limit."""

    text: str
    complete: bool


class Translation(NamedTuple):
    """The translation of one text.

    `complete`: no part reached the length limit. `numbers_agree`: source and translation contain the same numbers (see
    pbrl_jax.text.segments.numbers_agree); a number word in one of them counts as missing.
    """

    text: str
    complete: bool
    numbers_agree: bool


class Piece(NamedTuple):
    """A part of text number `row`, and the line breaks after it."""

    row: int
    masked: Masked
    breaks: str

    def plain(self) -> str:
        """The part without placeholders."""
        return unmask(self.masked.text, self.masked.spans) or ""


class Translator(ABC):
    """Translates texts between the languages of pbrl_jax.text.languages."""

    @property
    def fingerprint(self) -> str:
        """Identifies everything that a translation depends on besides the text: the model and its settings."""
        return ""

    uses_incomplete = True
    """Whether incomplete translations are used; False if they may be missing answers."""
    whole_texts = False
    """Whether the model translates texts of several sentences; otherwise one sentence at a time."""

    @abstractmethod
    def write(self, segments: Sequence[Segment]) -> list[Written]:
        """The model's translations of segments within its limit, in their order."""

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
          ConfigError: a language that this package or the model does not support.
          DataError: one text in place of a list, or something in it that is no text.
        """
        results = self.translations(texts, source_language, target_language)
        cut = sum(not translation.complete for translation in results)
        if cut:
            _LOGGER.warning("%d of %d translations reached the length limit and may lack their end.", cut, len(results))
        return [translation.text for translation in results]

    def translations(
        self, texts: Sequence[str], source_language: str | Sequence[str], target_language: str | Sequence[str]
    ) -> list[Translation]:
        """As `translate`, and whether each translation is complete and keeps its numbers."""
        texts = as_texts(texts, "Texts to translate")
        sources, targets = (language_codes(codes, len(texts)) for codes in (source_language, target_language))
        foreign = [row for row in range(len(texts)) if sources[row] != targets[row]]
        pieces = [piece for row in foreign for piece in self.pieces(row, texts[row])]
        written = self._write_pieces(pieces, sources, targets)
        results = [Translation(text, True, True) for text in texts]
        for row in foreign:
            parts = [(piece, part) for piece, part in zip(pieces, written, strict=True) if piece.row == row]
            text = _join(parts, targets[row])
            complete = all(part.complete for _, part in parts)
            results[row] = Translation(text, complete, numbers_agree(texts[row], text))
        return results

    def pieces(self, row: int, text: str) -> list[Piece]:
        """The parts that are translated separately: sentences, or groups of sentences within the model's limit."""
        masked = mask(text, FORMULA)
        if self.whole_texts and self.fits(masked.text):
            parts = [(masked.text, "")]
        elif self.whole_texts:
            parts = self._pack(list(lines_and_sentences(masked.text)))
        else:
            parts = list(lines_and_sentences(masked.text))
        return [Piece(row, Masked(part, names_in(part, masked.spans)), breaks) for part, breaks in parts]

    def _pack(self, sentences: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Consecutive sentences joined up to the model's limit."""
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
            inputs = [(index, masked) for index in todo if (masked := attempt(pieces[index])) is not None]
            segments = [Segment(m.text, sources[pieces[i].row], targets[pieces[i].row]) for i, m in inputs]
            for (index, masked), written in zip(inputs, self._write_fitting(segments), strict=True):
                text = unmask(written.text, masked.spans)
                if text is None:
                    continue
                agree = numbers_agree(pieces[index].plain(), text)
                if agree or best[index] is None:
                    best[index] = Written(text, written.complete)
                if agree:
                    todo.remove(index)
        if ends_early():  # attempts may be missing, so these pieces are translated again in the next run
            best = [None if index in todo else written for index, written in enumerate(best)]
        return [Written("", False) if written is None else written for written in best]

    def _write_fitting(self, segments: list[Segment]) -> list[Written]:
        """`write` of segments of any length: long ones are split, and equal ones are translated once."""
        rows = [
            [segment._replace(text=part) for part in fitting_parts(segment.text, self.fits)] for segment in segments
        ]
        unique = list(dict.fromkeys(part for row in rows for part in row))
        results = dict(zip(unique, self.write(unique) if unique else [], strict=True))
        joined = []
        for row in rows:
            written = [results[part] for part in row]
            text = _space(row[0].target).join(part.text for part in written)
            joined.append(Written(text, all(part.complete for part in written)))
        return joined


def language_codes(codes: str | Sequence[str], count: int) -> list[str]:
    """A language code for each of `count` texts; ConfigError for unknown codes or a wrong number of them."""
    codes = [codes] * count if isinstance(codes, str) else list(codes)
    if len(codes) != count:
        raise ConfigError(f"{len(codes)} languages for {count} texts; give one for all, or one for each.")
    for code in dict.fromkeys(codes):
        language(code)
    return codes


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
    """An OpenAI-compatible endpoint. A text without an answer is an incomplete translation; their number is printed."""

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
                source=LANGUAGES[source].name, target=LANGUAGES[target].name, text=text
            )}]
            for text, source, target in segments
        ]  # fmt: skip
        answers = self.endpoint.ask_all(requests, temperature=0.0, max_tokens=self.max_tokens)
        return [Written(text, bool(text)) for text in texts_of(answers, "{} of {} texts were not translated")]
