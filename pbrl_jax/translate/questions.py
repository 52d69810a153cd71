"""Batch translation of English questions; each translation is checked, and rejected ones are listed with reasons.

The paper needs no human data in the target languages. A mistranslated question is a wrong problem, so numbers,
formulas, names, the language and the back-translation into English are checked before a row is used.
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from pbrl_jax.core.errors import DataError
from pbrl_jax.core.paths import (
    append_json_lines,
    as_path,
    numbered_json_lines,
    read_json_lines,
    read_json_object,
    write_atomic,
)
from pbrl_jax.core.stopping import check_stop
from pbrl_jax.text.langid import is_right_language
from pbrl_jax.text.segments import FORMULA, numbers_agree

NAME_SIMILARITY = 0.75  # ASSUMED
"""Smallest similarity (difflib) of two spellings of a name: Tomás is Tomas."""
_WORDS = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_NAME = re.compile(r"(?<=[^\W_][ ,;])\s*([A-Z][a-z]{2,})\b")

Translate = Callable[[Sequence[str], Sequence[str], str], list[str | None]]
"""(texts, their languages, target) -> translations, None for a missing one (see CachedTranslator.translate)."""
Similarity = Callable[[str, str], float]


class Checks(NamedTuple):
    """Optional checks: with `back`, a translation is translated back into English, must keep its names, and must have
    at least the similarity `min_agreement`, in [0, 1], with the question."""

    back: bool = True
    min_agreement: float = 0.35  # ASSUMED


class Files(NamedTuple):
    """The files of `translate_rows`: accepted rows, rejected rows, their settings, the cache of translations."""

    out: str
    rejected: str
    settings: str
    cache: str


class Job(NamedTuple):
    """Settings of a translation job.

    `column` holds the English question. A missing translation was cut at the length limit and is rejected with
    `cut_is_none`; otherwise it was not answered and is left for the next call. `similarity` compares two English texts,
    in [0, 1].
    """

    column: str
    targets: Sequence[str]
    files: Files
    translate: Translate
    similarity: Similarity
    checks: Checks
    batch_size: int = 64
    cut_is_none: bool = True


class Counts(NamedTuple):
    """Numbers of (row, language) pairs; `reasons` counts the reasons of rejected ones, which may have several."""

    accepted: int
    rejected: int
    unanswered: int
    reasons: dict[str, int]


def proper_names(text: str) -> list[str]:
    """Capitalised words inside sentences, mostly names. Names at the beginning of a sentence are not found."""
    return list(dict.fromkeys(_NAME.findall(FORMULA.sub(" ", text))))


def missing_names(source: str, texts: Sequence[str]) -> list[str]:
    """Names of an English text without a similar word in `texts`."""
    words = {word.casefold() for text in texts for word in _WORDS.findall(text)}
    return [name for name in proper_names(source) if not any(_same_name(name.casefold(), word) for word in words)]


def _same_name(name: str, word: str) -> bool:
    return word.startswith(name) or difflib.SequenceMatcher(None, name, word).ratio() >= NAME_SIMILARITY


def translation_faults(source: str, translation: str, back: str | None, target: str, job: Job) -> list[str]:
    """Reasons to reject a translation of an English text; [] for none.

    Args:
      back: the translation translated back into English; None without that check.
    """
    if not translation.strip():
        return ["empty"]
    faults = []
    if not numbers_agree(source, translation):
        faults.append("numbers differ")
    if Counter(FORMULA.findall(source)) != Counter(FORMULA.findall(translation)):
        faults.append("formulas differ")
    if is_right_language(translation, target, (target, "en")) is False:
        faults.append("wrong language")
    if back is None:
        return faults
    if missing := missing_names(source, (translation, back)):
        faults.append("names lost: " + ", ".join(missing))
    if not numbers_agree(source, back):
        faults.append("numbers differ on the way back")
    if (agreement := job.similarity(source, back)) < job.checks.min_agreement:
        faults.append(f"back-translation agrees by {agreement:.2f}")
    return faults


def read_questions(path: str, column: str) -> list[dict[str, Any]]:
    """The rows of a JSON lines file; `id` defaults to the row's number.

    Raises:
      DataError: no rows, a row without text in `column`, or a repeated id.
    """
    if not as_path(path).is_file():
        raise DataError(f"No file {path!r}. Expected JSON lines with an English question in {column!r}.")
    numbered = numbered_json_lines(path)
    rows = [{"id": place, **row} for place, (_, row) in enumerate(numbered)]
    if not rows:
        raise DataError(f"{path} has no rows. Expected JSON lines with an English question in {column!r}.")
    for number, row in numbered:
        if not isinstance(row.get(column), str) or not row[column].strip():
            raise DataError(
                f"{path}, line {number}: no text in {column!r}; it has {', '.join(row)}. Name it: --column NAME."
            )
    repeated = [name for name, count in Counter(str(row["id"]) for row in rows).items() if count > 1]
    if repeated:
        raise DataError(f"{path} has the id {repeated[0]!r} more than once. Give each row its own id.")
    return rows


def output_files(out: str) -> Files:
    """OUT.jsonl, OUT.rejected.jsonl, OUT.settings.json and OUT.cache.jsonl.

    Raises:
      DataError: another ending, by which a reader takes the file for something else.
    """
    if not out.endswith(".jsonl"):
        raise DataError(f"{out} would hold JSON lines. Use an output file that ends in .jsonl.")
    stem = out.removesuffix(".jsonl")
    return Files(out, f"{stem}.rejected.jsonl", f"{stem}.settings.json", f"{stem}.cache.jsonl")


def check_settings(files: Files, settings: dict[str, Any]) -> None:
    """Write the settings file, or compare with the settings of an earlier call.

    Raises:
      DataError: other settings, which it lists, or an output file of something else.
    """
    path = as_path(files.settings)
    if path.exists():
        before = read_json_object(path)
        differ = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
        if differ:
            shown = "; ".join(f"{name} was {before.get(name)!r}, is {settings.get(name)!r}" for name in differ)
            raise DataError(f"{files.out} was started with other settings: {shown}. Use another output file.")
    elif as_path(files.out).exists():
        raise DataError(f"{files.out} exists and was not written by `pbrl translate`. Use another output file.")
    write_atomic(path, json.dumps(settings, indent=1, ensure_ascii=False))


def translate_rows(rows: Sequence[dict[str, Any]], job: Job, tick: Callable[[int], Any] = lambda _: None) -> Counts:
    """Translate every row into every target language. Accepted and rejected rows are appended batch by batch: a call
    after an interruption continues and gives the same files.

    An accepted row keeps its other columns and has `question` (translated), `question_en`, `language`; a rejected one
    has `id, language, question_en, question, back, reasons`. `tick` gets the number of pairs of each batch.
    """
    accepted, rejected = read_json_lines(job.files.out), read_json_lines(job.files.rejected)
    done = {(str(row["id"]), row["language"]) for row in (*accepted, *rejected)}
    todo = [(row, target) for target in job.targets for row in rows if (str(row["id"]), target) not in done]
    unanswered = 0
    for start in range(0, len(todo), job.batch_size):
        batch = todo[start : start + job.batch_size]
        good, bad = [], []
        for row, target, text, back in _translate_batch(batch, job):
            missing = text is None or (job.checks.back and back is None)
            if missing and not job.cut_is_none:
                unanswered += 1
                continue
            source = row[job.column]
            reasons = ["reached the length limit"] if missing else translation_faults(source, text, back, target, job)
            record = {"id": row["id"], "language": target, "question_en": source, "question": text}
            if reasons:
                bad.append(record | {"back": back, "reasons": reasons})
            else:
                good.append(row | record)
        append_json_lines(job.files.out, good)
        append_json_lines(job.files.rejected, bad)
        accepted, rejected = accepted + good, rejected + bad
        tick(len(batch))
        check_stop()
    counts = Counter(re.split(r": | by ", reason)[0] for row in rejected for reason in row["reasons"])
    return Counts(len(accepted), len(rejected), unanswered, dict(counts))


def _translate_batch(batch: Sequence[tuple[dict[str, Any], str]], job: Job) -> Iterator[tuple]:
    """(row, target, translation, back-translation) of a batch; one call per target, and one for back-translation."""
    texts: dict[int, str | None] = {}
    for target in dict.fromkeys(target for _, target in batch):
        indices = [i for i, (_, language) in enumerate(batch) if language == target]
        questions = [batch[i][0][job.column] for i in indices]
        texts |= dict(zip(indices, job.translate(questions, ["en"] * len(indices), target), strict=True))
    ordered = [texts[i] for i in range(len(batch))]
    back: Sequence[str | None] = [None] * len(batch)
    if job.checks.back:
        back = job.translate([text or "" for text in ordered], [target for _, target in batch], "en")
    for (row, target), text, english in zip(batch, ordered, back, strict=True):
        yield row, target, text, english
