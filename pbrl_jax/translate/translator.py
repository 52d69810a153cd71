"""From texts to translations, whatever model writes them: cutting, protecting, checking, joining.

Formulas and tags are hidden behind names that a model copies. A piece whose names or numbers did not come through is
written again with its numbers hidden too, and then as it stands. Nothing is cut off in silence: what is longer than the
model reads is cut into parts that fit, and a translation that reached the length limit says so.
"""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.text.languages import language
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
"""What a model that follows instructions is asked."""
UNSPACED = ("zh", "ja")
"""Languages that put no space between sentences."""


class Segment(NamedTuple):
    """What a model translates at a time; languages are codes of pbrl_jax.text.languages."""

    text: str
    source: str
    target: str


class Written(NamedTuple):
    """What a model wrote; `complete` is false where it reached the length limit."""

    text: str
    complete: bool


class Translation(NamedTuple):
    """One text's translation.

    `complete`: every part ended by itself. `numbers_agree`: source and translation hold the same numbers (see
    pbrl_jax.text.segments.numbers_agree); a number that is spelled out in one of them counts as lost.
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
        """The part as it stood."""
        return unmask(self.masked.text, self.masked.spans) or ""


class Translator(ABC):
    """Translates texts between the languages of pbrl_jax.text.languages."""

    @property
    def fingerprint(self) -> str:
        """Names the model and all else that a translation depends on besides the text."""
        return ""

    uses_incomplete = True
    """Whether a translation that is not complete is of use: cut at the length limit it is, missing it is not."""
    whole_texts = False
    """Whether the model reads texts of several sentences; otherwise it gets one sentence at a time."""

    @abstractmethod
    def write(self, segments: Sequence[Segment]) -> list[Written]:
        """What the model makes of segments that fit, in their order."""

    @abstractmethod
    def fits(self, text: str) -> bool:
        """Whether the model reads the whole text at a time."""

    def translate(
        self, texts: Sequence[str], source_language: str | Sequence[str], target_language: str | Sequence[str]
    ) -> list[str]:
        """The translations of `texts`, in their order; warns if some reached the length limit.

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
        """As `translate`, with what is known about each translation."""
        sources, targets = (one_each(codes, len(texts)) for codes in (source_language, target_language))
        foreign = [row for row in range(len(texts)) if sources[row] != targets[row]]
        pieces = [piece for row in foreign for piece in self.pieces(row, texts[row])]
        written = self._write_pieces(pieces, sources, targets)
        found = [Translation(text, True, True) for text in texts]
        for row in foreign:
            parts = [(piece, part) for piece, part in zip(pieces, written, strict=True) if piece.row == row]
            text = _joined(parts, targets[row])
            complete = all(part.complete for _, part in parts)
            found[row] = Translation(text, complete, numbers_agree(texts[row], text))
        return found

    def pieces(self, row: int, text: str) -> list[Piece]:
        """The parts that are translated apart: sentences, or as many of them as the model reads at a time."""
        masked = mask(text, FORMULA)
        if self.whole_texts and self.fits(masked.text):
            parts = [(masked.text, "")]
        elif self.whole_texts:
            parts = self._packed(list(lines_and_sentences(masked.text)))
        else:
            parts = list(lines_and_sentences(masked.text))
        return [Piece(row, Masked(part, names_in(part, masked.spans)), breaks) for part, breaks in parts]

    def _packed(self, sentences: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Neighbouring sentences together while they fit."""
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
        """Up to three attempts at each piece; the first whose names and numbers came through is taken."""
        best: list[Written | None] = [None] * len(pieces)
        for index, piece in enumerate(pieces):
            if not _LETTER.search(_without_names(piece.masked)):
                best[index] = Written(piece.plain(), True)
        todo = [index for index, done in enumerate(best) if done is None]
        for attempt in (_formulas_hidden, _numbers_hidden, _nothing_hidden):
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
        return [Written("", False) if written is None else written for written in best]

    def _write_fitting(self, segments: list[Segment]) -> list[Written]:
        """`write`, with segments that are too long cut into parts, and equal ones written once."""
        rows = [[one._replace(text=part) for part in fitting_parts(one.text, self.fits)] for one in segments]
        unique = list(dict.fromkeys(part for row in rows for part in row))
        found = dict(zip(unique, self.write(unique) if unique else [], strict=True))
        joined = []
        for row in rows:
            written = [found[part] for part in row]
            text = _space(row[0].target).join(part.text for part in written)
            joined.append(Written(text, all(part.complete for part in written)))
        return joined


def one_each(codes: str | Sequence[str], count: int) -> list[str]:
    """A language code for each of `count` texts; ConfigError for unknown codes or another number of them."""
    found = [codes] * count if isinstance(codes, str) else list(codes)
    if len(found) != count:
        raise ConfigError(f"{len(found)} languages for {count} texts; give one for all, or one for each.")
    for code in dict.fromkeys(found):
        language(code)
    return found


def _formulas_hidden(piece: Piece) -> Masked:
    return piece.masked


def _numbers_hidden(piece: Piece) -> Masked | None:
    masked = mask(piece.masked.text, NUMBER)
    return Masked(masked.text, {**piece.masked.spans, **masked.spans}) if masked.spans else None


def _nothing_hidden(piece: Piece) -> Masked | None:
    return Masked(piece.plain(), {}) if piece.masked.spans else None


def _without_names(masked: Masked) -> str:
    return unmask(masked.text, dict.fromkeys(masked.spans, "")) or ""


def _space(target: str) -> str:
    return "" if target in UNSPACED else " "


def _joined(parts: list[tuple[Piece, Written]], target: str) -> str:
    pieces = [text for piece, written in parts for text in (written.text, piece.breaks or _space(target))]
    return "".join(pieces[:-1] + [parts[-1][0].breaks] if parts else [])
