"""English prompts in other languages: translated in batches, each translation checked, what fails listed with reasons.

The paper needs no human data in the target languages; a mistranslated question is a wrong problem, so numbers,
formulas, names, the language and the way back into English are looked at before a row is used.
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from pbrl_jax.core.errors import DataError
from pbrl_jax.core.paths import append_json_lines, as_path, read_json_lines, write_atomic
from pbrl_jax.text.langid import is_right_language
from pbrl_jax.text.segments import FORMULA, numbers_agree

ALIKE = 0.75  # ASSUMED
"""Share of letters that a name and a word must have in common (difflib) to be the same name: Tomás is Tomas."""
_WORDS = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_NAME = re.compile(r"(?<=[^\W_][ ,;])\s*([A-Z][a-z]{2,})\b")

Translate = Callable[[Sequence[str], Sequence[str], str], list[str | None]]
"""(texts, their languages, target) -> translations; None where there is none (assets.translation_cache)."""
Similarity = Callable[[str, str], float]


class Checks(NamedTuple):
    """What a translation must pass. `min_agreement` is the least similarity in [0, 1] of the translation back into
    English with the question; without `back` there is no way back, and names are not looked at."""

    back: bool = True
    min_agreement: float = 0.35  # ASSUMED


class Report(NamedTuple):
    """Counts of (row, language) pairs; `reasons` counts those of rejected ones, which may have several."""

    accepted: int
    rejected: int
    unanswered: int
    reasons: dict[str, int]


def names_in(text: str) -> list[str]:
    """Capitalised words inside sentences: mostly names. A name that only opens sentences is not found."""
    return list(dict.fromkeys(_NAME.findall(FORMULA.sub(" ", text))))


def lost_names(source: str, texts: Sequence[str]) -> list[str]:
    """Names of an English text that no word of `texts` resembles."""
    words = {word.casefold() for text in texts for word in _WORDS.findall(text)}
    return [name for name in names_in(source) if not any(_alike(name.casefold(), word) for word in words)]


def _alike(name: str, word: str) -> bool:
    return word.startswith(name) or difflib.SequenceMatcher(None, name, word).ratio() >= ALIKE


def faults(source: str, translation: str, back: str | None, target: str, similarity: Similarity,
           checks: Checks) -> list[str]:  # fmt: skip
    """What is wrong with a translation of an English text, in words; [] where nothing is.

    Args:
      back: the translation in English again; None: not asked for.
      similarity: of two English texts, in [0, 1].
    """
    if not translation.strip():
        return ["empty"]
    found = []
    if not numbers_agree(source, translation):
        found.append("numbers differ")
    if Counter(FORMULA.findall(source)) != Counter(FORMULA.findall(translation)):
        found.append("formulas differ")
    if is_right_language(translation, target, (target, "en")) is False:
        found.append("wrong language")
    if back is None:
        return found
    if lost := lost_names(source, (translation, back)):
        found.append("names lost: " + ", ".join(lost))
    if not numbers_agree(source, back):
        found.append("numbers differ on the way back")
    if (agreement := similarity(source, back)) < checks.min_agreement:
        found.append(f"back-translation agrees by {agreement:.2f}")
    return found


def read_questions(path: str, column: str) -> list[dict[str, Any]]:
    """The rows of a JSON lines file; each has an `id`, its number in the file where it names none.

    Raises:
      DataError: no rows, a row without text in `column`, or an id twice.
    """
    rows = [{"id": number, **row} for number, row in enumerate(read_json_lines(path))]
    if not rows:
        raise DataError(f"{path} has no rows. Expected JSON lines with an English question in {column!r}.")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get(column), str) or not row[column].strip():
            raise DataError(
                f"{path}, row {number}: no text in {column!r}; it has {', '.join(row)}. Name the column: --column NAME."
            )
    twice = [name for name, count in Counter(str(row["id"]) for row in rows).items() if count > 1]
    if twice:
        raise DataError(f"{path} has the id {twice[0]!r} more than once. Ids tell finished rows from others.")
    return rows


class Files(NamedTuple):
    """Where `translate_rows` writes: accepted rows, rejected rows, and what they were made with."""

    out: str
    rejected: str
    settings: str


def beside(out: str) -> Files:
    """OUT.jsonl -> OUT.rejected.jsonl and OUT.settings.json beside it."""
    stem = out.removesuffix(".jsonl")
    return Files(out, f"{stem}.rejected.jsonl", f"{stem}.settings.json")


def same_settings(files: Files, settings: dict[str, Any]) -> None:
    """Note what the files are made with; refuse to go on with something else.

    Raises:
      DataError: names what differs.
    """
    place = as_path(files.settings)
    if place.exists():
        before = json.loads(place.read_text())
        differ = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
        if differ:
            shown = "; ".join(f"{name} was {before.get(name)!r}, is {settings.get(name)!r}" for name in differ)
            raise DataError(f"{files.out} was begun with other settings: {shown}. Use another output file.")
    elif as_path(files.out).exists():
        raise DataError(f"{files.out} exists and was not written by `pbrl translate`. Use another output file.")
    write_atomic(place, json.dumps(settings, indent=1, ensure_ascii=False))


def translate_rows(rows: Sequence[dict[str, Any]], column: str, targets: Sequence[str], files: Files,
                   translate: Translate, similarity: Similarity, checks: Checks, *, batch_size: int = 64,
                   tick: Callable[[int], Any] | None = None, cut_is_none: bool = True) -> Report:  # fmt: skip
    """Translate every row into every target; accepted and rejected rows are appended batch by batch, so that a stopped
    call goes on where it was and ends with the same files.

    An accepted row keeps its other columns and has `question` (translated), `question_en`, `language`; a rejected one
    has `id, language, question_en, question, back, reasons`.

    Args:
      cut_is_none: what a missing translation means: cut at the length limit (rejected), or not answered (left for the
        next call).
    """
    accepted, rejected = read_json_lines(files.out), read_json_lines(files.rejected)
    done = {(str(row["id"]), row["language"]) for row in (*accepted, *rejected)}
    todo = [(row, target) for target in targets for row in rows if (str(row["id"]), target) not in done]
    unanswered = 0
    for start in range(0, len(todo), batch_size):
        batch = todo[start : start + batch_size]
        good: list[dict[str, Any]] = []
        bad: list[dict[str, Any]] = []
        for row, target, text, back in _translated(batch, column, translate, checks):
            missing = text is None or (checks.back and back is None)
            if missing and not cut_is_none:
                unanswered += 1
                continue
            own = ["reached the length limit"] if missing else faults(
                row[column], text, back if checks.back else None, target, similarity, checks
            )  # fmt: skip
            record = {"id": row["id"], "language": target, "question_en": row[column], "question": text}
            (bad if own else good).append(record | {"back": back, "reasons": own} if own else row | record)
        append_json_lines(files.out, good)
        append_json_lines(files.rejected, bad)
        accepted, rejected = accepted + good, rejected + bad
        if tick is not None:
            tick(len(batch))
    reasons = Counter(re.split(r": | by ", reason)[0] for row in rejected for reason in row["reasons"])
    return Report(len(accepted), len(rejected), unanswered, dict(reasons))


def _translated(batch, column: str, translate: Translate, checks: Checks) -> Iterator[tuple]:
    """(row, target, translation, translation back or None) of a batch; one call per target and one for the way back."""
    found: list[str | None] = [None] * len(batch)
    for target in dict.fromkeys(target for _, target in batch):
        own = [place for place, (_, other) in enumerate(batch) if other == target]
        texts = translate([batch[place][0][column] for place in own], ["en"] * len(own), target)
        for place, text in zip(own, texts, strict=True):
            found[place] = text
    back: list[str | None] = [None] * len(batch)
    if checks.back:
        back = translate([text or "" for text in found], [target for _, target in batch], "en")
    for (row, target), text, english in zip(batch, found, back, strict=True):
        yield row, target, text, english
