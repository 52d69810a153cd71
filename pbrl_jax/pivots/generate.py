"""An English reference for every prompt: the data set's own, a file's, or written by the expert and kept in the store.

One problem in eight languages is one English question and so one reference; problems are told apart by the text of
`question_en`. What a filter drops takes its prompts with it, counted by language.
"""

import contextlib
import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from pbrl_jax.core.config import Config
from pbrl_jax.core.errors import ConfigError, DataError, lookup
from pbrl_jax.core.paths import as_path
from pbrl_jax.core.progress import Progress
from pbrl_jax.core.records import Prompt, Reference
from pbrl_jax.data.sources.common import RowErrors, row_of
from pbrl_jax.pivots.filter import FilterReport, answer_value, filter_report, keep_reference
from pbrl_jax.pivots.store import Origin, PivotStore, StoredReference
from pbrl_jax.text.answers import split_response
from pbrl_jax.text.languages import answer_sentence

TEMPLATE = "{question}"
"""The expert is given the question as it is."""
SHOWN = 5

Sampler = Callable[[list[str]], list[str]]
"""English questions -> one response each, in their order."""


class AttachReport(NamedTuple):
    """What became of the prompts."""

    source: str
    prompts: int
    """Prompts given, of which `kept` came back."""
    kept: int
    problems: FilterReport
    """References of distinct problems; nothing is verified where the source is `dataset`."""
    dropped: dict[str, int]
    """Prompts removed because their reference was wrong or had no answer, by language."""
    missing: dict[str, int]
    """Prompts removed because the file has no reference for them, by language."""
    asked: int
    """Questions that the expert answered now, and not in an earlier run."""
    fingerprint: str
    """Digest of the questions and references in use, whatever their order."""

    def describe(self) -> str:
        """One line for the console."""
        counts = self.problems
        parts = [f"{counts.right} right", f"{counts.unverified} not verified", f"{counts.wrong} wrong"]
        parts.append(f"{counts.no_answer} without an answer")
        text = f"references ({self.source}): {counts.kept} of {counts.total} kept ({', '.join(parts)})"
        text += f"; {self.kept} of {self.prompts} prompts have one"
        for what, by_language in (("dropped", self.dropped), ("not in the file", self.missing)):
            if by_language:
                text += f"; {what}: " + ", ".join(f"{code} {n}" for code, n in sorted(by_language.items()))
        return text


def attach_references(
    prompts: Sequence[Prompt],
    config: Config,
    store: PivotStore,
    sample_texts: Sampler | None = None,
    progress: Callable[..., Progress] | None = None,
    *,
    expert: str = "",
    revision: str = "",
    template: str = TEMPLATE,
) -> tuple[list[Prompt], AttachReport]:
    """The prompts with their English references, without those whose reference is dropped.

    `config.pivot.source` says where references come from: `dataset` takes `Prompt.reference` as it is; `file` reads
    the JSON lines file `config.pivot.path` (see `read_reference_file`); `policy` takes them from the store and lets
    the expert write what is missing. The last two are filtered by `filter.keep_reference`. A function of its
    arguments and the store: a second call asks the expert nothing and returns the same.

    Args:
      sample_texts: answers English questions; None: the store must hold every reference.
      progress: makes the progress of a stage, e.g. `Progress` or `functools.partial(Progress, part=(2, 7))`.
      expert, revision, template: who answers and how it is asked, as in `store.Origin`; where the source is `policy`
        the first two are needed, for they tell this expert's references from another's.

    Raises:
      ConfigError: an unknown source, or no file given.
      DataError: a prompt without a reference (`dataset`) or without an English question, a damaged file or store,
        references that are missing and nobody to ask, or no prompt left.
    """
    source = lookup(SOURCES, config.pivot.source, "source of references (pivot.source)")
    if not prompts:
        raise DataError("Found no prompts to attach references to. Check data.path, data.split and data.languages.")
    who = (expert, revision, template)
    references, asked = source.find(prompts, _Means(config, store, sample_texts, progress, who))
    outcomes = _outcomes(prompts, references, config) if source.filtered else [(True, None)] * len(prompts)
    return _kept(prompts, references, outcomes, config, asked)


def write_references(
    prompts: Sequence[Prompt],
    sample_texts: Sampler,
    store: PivotStore,
    config: Config,
    expert: str,
    revision: str,
    progress: Callable[..., Progress] | None = None,
    *,
    template: str = TEMPLATE,
) -> dict[str, StoredReference]:
    """Lets the expert answer every distinct English question that the store has no reference for.

    `config.eval.batch_size` questions are asked at a time, in the order of the prompts, and stored at once: an
    interrupted call loses at most one batch. All responses are stored, wrong ones too: the filter comes later, so
    that a changed `pivot.keep_wrong` asks nobody again.

    Returns:
      The new references by key.

    Raises:
      ValueError: `sample_texts` gave another number of responses than it was asked for.
    """
    golds = _english_golds(prompts)
    who = (expert, revision, template)
    origins = {origin.key: origin for origin in (_origin(question, config, who) for question in golds)}
    missing = store.missing(origins)
    written: dict[str, StoredReference] = {}
    size = config.eval.batch_size
    done = len(origins) - len(missing)
    stage = progress("references", len(origins), done=done, unit="question") if progress and missing else None
    with stage or contextlib.nullcontext():
        for start in range(0, len(missing), size):
            batch = [origins[key] for key in missing[start : start + size]]
            responses = sample_texts([origin.question for origin in batch])
            if len(responses) != len(batch):
                raise ValueError(f"sample_texts gave {len(responses)} responses to {len(batch)} questions.")
            new = [_stored(origin, text, golds) for origin, text in zip(batch, responses, strict=True)]
            store.add_references(new)
            written |= {stored.key: stored for stored in new}
            if stage:
                stage.advance(len(batch))
    return written


def read_reference_file(path: str | os.PathLike, prompts: Sequence[Prompt]) -> dict[str, Reference]:
    """References of a JSON lines file, by English question.

    A line is `{"question": ..., "reasoning": ..., "answer": ...}` or `{"question": ..., "response": ...}`. In place
    of `question`, the English text, it may name a prompt by `id`; then it serves the problem's other languages too.
    Further fields are ignored, and so are problems that no prompt asks. A bare answer ("18") is put into the answer
    sentence ("The answer is 18."), as rewards compare it with sentences.

    Raises:
      ConfigError: the path is empty.
      DataError: no such file, lines that cannot be used (each is named), two references for one problem.
    """
    if not os.fspath(path):
        raise ConfigError("pivot.source is file, but pivot.path is empty. Give it a JSON lines file of references.")
    path = as_path(path)
    if not path.exists() or path.is_dir():
        found = "a folder" if path.exists() else "nothing"
        raise DataError(f"pivot.path {path} is {found}, expected a JSON lines file of references. Change pivot.path.")
    by_id = {prompt.id: prompt.question_en for prompt in prompts}
    by_text = {_matching(prompt.question_en): prompt.question_en for prompt in prompts}
    errors = RowErrors(str(path))
    references: dict[str, Reference] = {}
    first_row: dict[str, int] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        row, what = _usable_row(line)
        if what:
            errors.add(number, what)
            continue
        named = by_text.get(_matching(row["question"])) if "question" in row else by_id.get(row["id"])
        if named is None:
            continue
        reference = _row_reference(row)
        if references.setdefault(named, reference) != reference:
            errors.add(number, f"another reference for the problem of row {first_row[named]}, expected one")
        first_row.setdefault(named, number)
    errors.check()
    return references


class _Means(NamedTuple):
    """What a source of references may use; the fields are arguments of `attach_references`."""

    config: Config
    store: PivotStore
    sample_texts: Sampler | None
    progress: Callable[..., Progress] | None
    who: tuple[str, str, str]
    """(expert, revision, template)."""


class Source(NamedTuple):
    """`find(prompts, means)` gives the reference of each prompt (None: it has none) and how many were asked for."""

    find: Callable[[Sequence[Prompt], _Means], tuple[list[Reference | None], int]]
    filtered: bool


def _from_dataset(prompts: Sequence[Prompt], means: _Means) -> tuple[list[Reference | None], int]:
    bare = [prompt for prompt in prompts if prompt.reference is None or not prompt.reference.text]
    if bare:
        raise DataError(
            f"pivot.source is dataset, but {len(bare)} of {len(prompts)} rows have no reference: {_rows(bare)}. "
            "Choose a data set with references, or let the start policy write them: --pivot.source policy, then "
            "`pbrl pivots CONFIG`."
        )
    return [prompt.reference for prompt in prompts], 0


def _from_file(prompts: Sequence[Prompt], means: _Means) -> tuple[list[Reference | None], int]:
    _check_questions(prompts)
    references = read_reference_file(means.config.pivot.path, prompts)
    return [references.get(prompt.question_en) for prompt in prompts], 0


def _from_policy(prompts: Sequence[Prompt], means: _Means) -> tuple[list[Reference | None], int]:
    config, store, sample_texts, progress, who = means
    expert, revision, template = who
    if not expert or not revision:
        raise ValueError("pivot.source is policy: attach_references needs the expert's name and revision.")
    _check_questions(prompts)
    keys = {question: _origin(question, config, who).key for question in _english_golds(prompts)}
    written = {}
    if sample_texts is not None:
        written = write_references(prompts, sample_texts, store, config, expert, revision, progress, template=template)
    # The store comes second: where two writers raced, its first line is what every later run reads.
    found = written | store.references(keys.values())
    absent = [question for question, key in keys.items() if key not in found]
    if absent:
        raise DataError(
            f"{store.path} lacks the references of {len(absent)} of {len(keys)} questions by {expert!r}, the first: "
            f"{absent[0]!r}. Type `pbrl pivots CONFIG` with the same settings to write them."
        )
    return [found[keys[prompt.question_en]].reference for prompt in prompts], len(written)


SOURCES = {
    "dataset": Source(_from_dataset, filtered=False),
    "file": Source(_from_file, filtered=True),
    "policy": Source(_from_policy, filtered=True),
}
"""Where references come from: the values of `pivot.source`."""


def _outcomes(
    prompts: Sequence[Prompt], references: Sequence[Reference | None], config: Config
) -> list[tuple[bool, bool | None]]:
    """`keep_reference` of each prompt; of a missing reference it is (False, None)."""
    seen: dict[tuple, tuple[bool, bool | None]] = {}
    for prompt, reference in zip(prompts, references, strict=True):
        if (prompt.question_en, prompt.answer) not in seen:
            outcome = (False, None)
            if reference is not None:
                outcome = keep_reference(reference, prompt.answer, keep_wrong=config.pivot.keep_wrong)
            seen[prompt.question_en, prompt.answer] = outcome
    return [seen[prompt.question_en, prompt.answer] for prompt in prompts]


def _kept(
    prompts: Sequence[Prompt],
    references: Sequence[Reference | None],
    outcomes: Sequence[tuple[bool, bool | None]],
    config: Config,
    asked: int,
) -> tuple[list[Prompt], AttachReport]:
    rows = list(zip(prompts, references, outcomes, strict=True))
    kept = [prompt._replace(reference=reference) for prompt, reference, (keep, _) in rows if keep]
    problems = {(p.question_en, p.answer, found): outcome for p, found, outcome in rows if found is not None}
    report = AttachReport(
        source=config.pivot.source,
        prompts=len(prompts),
        kept=len(kept),
        problems=filter_report(problems.values()),
        dropped=dict(Counter(p.language for p, reference, (keep, _) in rows if reference is not None and not keep)),
        missing=dict(Counter(p.language for p, reference, _ in rows if reference is None)),
        asked=asked,
        fingerprint=_fingerprint(kept),
    )
    if not kept:
        raise _nothing_left(report, rows)
    return kept, report


def _nothing_left(report: AttachReport, rows: Iterable[tuple]) -> DataError:
    examples = [(p, reference) for p, reference, _ in rows if reference is not None]
    text = f"No prompt has a usable reference: {report.describe()}. "
    if not examples:
        return DataError(
            text + "The file's questions must be the English questions of the data, or its ids their prompt ids. "
            "Change pivot.path or data.source."
        )
    prompt, reference = examples[0]
    return DataError(
        text + f"The first: to {prompt.question_en!r} the reference is {reference.text!r}, the gold answer "
        f"{prompt.answer!r}. A reference ends in an answer such as 'The answer is 18.'. Use a better expert "
        "(train the start policy in English with `pbrl sft CONFIG`), raise pivot.max_completion_length, or keep wrong "
        "references with --pivot.keep_wrong."
    )


def _origin(question: str, config: Config, who: tuple[str, str, str]) -> Origin:
    """What the reference of an English question depends on; `who` is (expert, revision, template)."""
    return Origin(question, *who, config.pivot.temperature, config.pivot.max_completion_length, config.train.seed)


def _stored(origin: Origin, response: str, golds: dict[str, str | None]) -> StoredReference:
    reasoning, answer = split_response(response, "en")
    _, verified = keep_reference(Reference(reasoning, answer), golds[origin.question])
    return StoredReference(origin, reasoning, answer, verified)


def _english_golds(prompts: Sequence[Prompt]) -> dict[str, str | None]:
    """Distinct English questions in their order, each with the first gold answer that is known."""
    golds: dict[str, str | None] = {}
    for prompt in prompts:
        if golds.setdefault(prompt.question_en, prompt.answer) is None:
            golds[prompt.question_en] = prompt.answer
    return golds


def _check_questions(prompts: Sequence[Prompt]) -> None:
    bare = [prompt for prompt in prompts if not prompt.question_en.strip()]
    if bare:
        raise DataError(
            f"{len(bare)} of {len(prompts)} rows have no English question, which references are written for: "
            f"{_rows(bare)}. Give the data set a question_en (data.columns), or remove these rows."
        )


def _usable_row(line: bytes) -> tuple[dict[str, Any], str]:
    """(the row, "") or ({}, what is wrong with it)."""
    try:
        row = json.loads(line)
    except ValueError as error:
        return {}, f"is not JSON ({error})"
    if not isinstance(row, dict):
        return {}, f"is {type(row).__name__}, expected an object"
    if "question" not in row and "id" not in row:
        return {}, f"has {sorted(row)}, expected question or id"
    if "id" in row and "question" not in row and type(row["id"]) is not int:
        return {}, f"id is {row['id']!r}, expected a prompt's number"
    needed = ("response",) if "response" in row else ("reasoning", "answer")
    if not set(needed) <= set(row):
        return {}, f"has {sorted(row)}, expected response, or reasoning and answer"
    if type(row.get("answer")) in (int, float):
        row["answer"] = str(row["answer"])
    for name in ({"question"} & set(row)) | set(needed):
        if not isinstance(row[name], str):
            return {}, f"{name} is {type(row[name]).__name__}, expected text"
    return row, ""


def _row_reference(row: dict[str, Any]) -> Reference:
    if "response" in row:
        return Reference(*split_response(row["response"], "en"))
    return Reference(row["reasoning"].strip(), _announced(row["answer"].strip()))


def _announced(answer: str) -> str:
    """A bare answer in the English answer sentence; in a box where the sentence would be read otherwise."""
    if not answer or split_response(answer, "en")[1]:
        return answer
    sentence = answer_sentence(answer.removesuffix("."), "en")
    boxed = answer_sentence(f"\\boxed{{{answer}}}", "en")
    plain = answer_value(sentence, "en") == answer_value(answer, "en")
    return sentence if plain else boxed


def _matching(question: str) -> str:
    """Two spellings of one question (composition of accents, white space) match."""
    return " ".join(unicodedata.normalize("NFC", question).split())


def _rows(prompts: Sequence[Prompt]) -> str:
    shown = ", ".join(f"row {row_of(p.id) + 1} ({p.language}, id {p.id})" for p in prompts[:SHOWN])
    return shown + (f" and {len(prompts) - SHOWN} more" if len(prompts) > SHOWN else "")


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    """Hex digest of the distinct (English question, reference) pairs, whatever their order."""
    pairs = sorted({(prompt.question_en, *prompt.reference) for prompt in prompts})
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
