"""An English reference for every prompt: from the data set, from a file, or written by the expert and stored.

A problem in eight languages has one English question and so one reference; problems are identified by `question_en`.
Prompts whose reference is dropped by the filter are removed, and counted by language.
"""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import CutAnswer, DataError, EndpointError, lookup
from pbrl_jax.core.records import Prompt, Reference
from pbrl_jax.core.stopping import check_stop
from pbrl_jax.data.load import lost_languages
from pbrl_jax.data.sources.common import row_of
from pbrl_jax.logs.progress import Progress
from pbrl_jax.pivots.agreement import choose
from pbrl_jax.pivots.filter import FilterReport, filter_report, keep_reference
from pbrl_jax.pivots.reference_file import read_reference_file
from pbrl_jax.pivots.references import Origin, StoredReference
from pbrl_jax.pivots.store import PivotStore
from pbrl_jax.text.answers import split_response

TEMPLATE = "{question}"
"""The prompt of the expert is the question alone."""
SHOWN = 5

Sampler = Callable[..., list[str | EndpointError]]
"""English questions -> one response each, in their order. With several samples per question the second argument is the
sample's number, from 1. An error stands for a missing response, CutAnswer for one that was cut."""


class AttachReport(NamedTuple):
    """Counts of attach_references."""

    source: str
    prompts: int
    """Given prompts, of which `kept` were returned."""
    kept: int
    problems: FilterReport
    """References of distinct problems; not verified with source `dataset`."""
    dropped: dict[str, int]
    """Language -> prompts removed because their reference was wrong or had no answer."""
    missing: dict[str, int]
    """Language -> prompts removed because the file has no reference for them."""
    asked: int
    """References that the expert wrote in this call."""
    fingerprint: str
    """Digest of the kept questions and references, independent of their order."""
    disagreed: int = 0
    """Distinct problems dropped because their samples do not agree (pivot.min_agreement)."""
    lacking: Mapping[str, int] = MappingProxyType({})
    """Part that the reward compares (reasoning, answer) -> kept references without it."""
    lost: str = ""
    """Languages that have no prompt left, with commas between."""
    read: bool = True
    """Whether a reward reads them."""

    def describe(self) -> str:
        """One line for the console."""
        if not self.read:
            return f"references ({self.source}): no reward reads them"
        counts = self.problems
        parts = [f"{counts.right} right", f"{counts.unverified} not verified", f"{counts.wrong} wrong"]
        parts.append(f"{counts.no_answer} without an answer")
        text = f"references ({self.source}): {counts.kept} of {counts.total} kept ({', '.join(parts)})"
        text += f"; {self.disagreed} without agreement" * bool(self.disagreed)
        text += f"; {self.kept} of {self.prompts} prompts have one"
        for what, by_language in (("dropped", self.dropped), ("not in the file", self.missing)):
            if by_language:
                text += f"; {what}: " + ", ".join(f"{code} {n}" for code, n in sorted(by_language.items()))
        for part, count in self.lacking.items():
            text += f"; {count} have no {part} part, for which similarities are 0 (reward.parts whole compares all)"
        text += f"; none of {self.lost} is left" * bool(self.lost)
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

    `config.pivot.source` is the source of references: `dataset` uses `Prompt.reference`; `file` reads the JSON lines
    file `config.pivot.file` (see `read_reference_file`); `policy` and `endpoint` take them from the store and let the
    expert write missing ones. All but the first are filtered by `filter.keep_reference`, and several samples of one
    question by `agreement.choose`. A second call returns the same without asking the expert.

    Args:
      sample_texts: the expert; None: the store must hold every reference.
      progress: makes the progress of a stage, e.g. `Progress` or `functools.partial(Progress, part=(2, 7))`.
      expert, revision, template: as in `store.Origin`; `expert` and `revision` are required for `policy` and
        `endpoint`, as they identify the expert's references.

    Raises:
      ConfigError: an unknown source, or no file given.
      DataError: a prompt without a reference (`dataset`) or without an English question, a damaged file or store,
        missing references without an expert, or no prompt left.
    """
    find = lookup(SOURCES, config.pivot.source, "source of references (pivot.source)")
    if not prompts:
        raise DataError("Found no prompts to attach references to. Check data.path, data.split and data.languages.")
    who = (expert, revision, template)
    candidates = find(prompts, _SourceInputs(config, store, sample_texts, progress, who))
    outcomes = [(True, None)] * len(prompts) if find is _from_dataset else _filter(prompts, candidates, config)
    return _keep(prompts, candidates, outcomes, config)


def unread_references(prompts: Sequence[Prompt], config: Config) -> tuple[list[Prompt], AttachReport]:
    """As `attach_references` with the source `dataset`, for rewards that read no references: rows may lack them."""
    candidates = Candidates([prompt.reference for prompt in prompts])
    kept, report = _keep(prompts, candidates, [(True, None)] * len(prompts), config)
    return kept, report._replace(read=False)


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
    """Let the expert answer every distinct English question without a stored reference.

    Questions are asked in batches of `config.eval.batch_size`, in the order of the prompts, and every batch is stored:
    an interrupted call loses at most one batch. Wrong responses are stored too: they are filtered when they are read,
    so that a changed `pivot.keep_wrong` needs no new responses.

    Returns:
      The new references by key.

    Raises:
      EndpointError: missing responses; all others are stored. After a batch without any response no more is asked.
      Interrupted: a stop was requested; whole batches, and an endpoint's answers so far, are stored.
      ValueError: `sample_texts` gave another number of responses than questions.
    """
    golds = _english_golds(prompts)
    who = (expert, revision, template)
    # Ordered by sample, so that a batch has one seed.
    numbers = {
        _origin(question, config, who, sample): sample for sample in range(config.pivot.samples) for question in golds
    }
    origins = {origin.key: origin for origin in numbers}
    missing = store.missing(origins)
    written: dict[str, StoredReference] = {}
    failed: list[EndpointError] = []
    size = config.eval.batch_size
    done = len(origins) - len(missing)
    stage = progress("references", len(origins), done=done, unit="question") if progress and missing else None
    with stage or contextlib.nullcontext():
        for sample in range(config.pivot.samples):
            pending = [origins[key] for key in missing if numbers[origins[key]] == sample]
            for start in range(0, len(pending), size):
                batch = pending[start : start + size]
                new, errors = _write_batch(batch, sample_texts, sample, golds, store)
                written |= {stored.key: stored for stored in new}
                failed += errors
                if failed and not new:
                    raise _unanswered(failed, written)
                if stage:
                    stage.advance(len(new))
    if failed:
        raise _unanswered(failed, written)
    return written


def _unanswered(failed: list[EndpointError], written: Mapping[str, StoredReference]) -> EndpointError:
    total = len(failed) + len(written)
    return EndpointError(
        f"{len(failed)} of {total} questions got no answer, and {len(written)} are stored; the same command "
        f"continues from there. The first error: {failed[0]}"
    )


def _write_batch(batch: list[Origin], sample_texts: Sampler, sample: int, golds: dict[str, str | None],
                 store: PivotStore) -> tuple[list[StoredReference], list[EndpointError]]:  # fmt: skip
    """Ask the expert a batch of questions and store its references; also the errors of those without a response."""
    questions = [origin.question for origin in batch]
    responses = sample_texts(questions, sample) if sample else sample_texts(questions)
    if len(responses) != len(batch):
        raise ValueError(f"sample_texts gave {len(responses)} responses to {len(batch)} questions.")
    pairs = list(zip(batch, responses, strict=True))
    new = [_stored(origin, text, golds) for origin, text in pairs if isinstance(text, str)]
    new += [StoredReference(origin, cut.text, "") for origin, cut in pairs if isinstance(cut, CutAnswer)]
    store.add_references(new)
    check_stop()
    return new, [error for _, error in pairs if not isinstance(error, str | CutAnswer)]


class _SourceInputs(NamedTuple):
    """Inputs of a source of references; the fields are arguments of `attach_references`."""

    config: Config
    store: PivotStore
    sample_texts: Sampler | None
    progress: Callable[..., Progress] | None
    who: tuple[str, str, str]
    """(expert, revision, template)."""


class Candidates(NamedTuple):
    """The reference of each prompt (None for a missing one), and the number of new ones from the expert.

    `more` holds further references by question, `disagreed` the questions whose samples do not agree.
    """

    references: list[Reference | None]
    asked: int = 0
    more: Mapping[str, tuple[Reference, ...]] = MappingProxyType({})
    disagreed: frozenset[str] = frozenset()


def _from_dataset(prompts: Sequence[Prompt], inputs: _SourceInputs) -> Candidates:
    bare = [prompt for prompt in prompts if prompt.reference is None or not prompt.reference.text]
    if bare:
        raise DataError(
            f"pivot.source is dataset, but {len(bare)} of {len(prompts)} rows have no reference: {_rows(bare)}. "
            "Choose a data set with references, or let the start policy write them: --pivot.source policy, then "
            "`pbrl pivots CONFIG`."
        )
    return Candidates([prompt.reference for prompt in prompts])


def _from_file(prompts: Sequence[Prompt], inputs: _SourceInputs) -> Candidates:
    check_questions(prompts)
    references = read_reference_file(inputs.config.pivot.file, prompts)
    return Candidates([references.get(prompt.question_en) for prompt in prompts])


def _from_expert(prompts: Sequence[Prompt], inputs: _SourceInputs) -> Candidates:
    config, store, sample_texts, progress, who = inputs
    expert, revision, template = who
    if not expert or not revision:
        raise ValueError("An expert writes: attach_references needs the expert's name and revision.")
    check_questions(prompts)
    golds, pivot = _english_golds(prompts), config.pivot
    keys = {question: [_origin(question, config, who, n).key for n in range(pivot.samples)] for question in golds}
    written = {}
    if sample_texts is not None:
        written = write_references(prompts, sample_texts, store, config, expert, revision, progress, template=template)
    # Stored references take precedence: if two writers raced, every later run reads the stored one.
    stored = written | store.references(key for sample_keys in keys.values() for key in sample_keys)
    absent = [question for question, sample_keys in keys.items() if not stored.keys() >= set(sample_keys)]
    if absent:
        raise DataError(
            f"{store.path} lacks the references of {len(absent)} of {len(keys)} questions by {expert!r}, the first: "
            f"{absent[0]!r}. Type `pbrl pivots CONFIG` with the same settings to write them."
        )
    chosen = {
        question: choose([stored[key].reference for key in sample_keys], golds[question], pivot.references)
        for question, sample_keys in keys.items()
    }
    return Candidates(
        [chosen[prompt.question_en].references[0] for prompt in prompts],
        len(written),
        {question: choice.references[1:] for question, choice in chosen.items()},
        frozenset(question for question, choice in chosen.items() if choice.share < pivot.min_agreement),
    )


SOURCES: dict[str, Callable[[Sequence[Prompt], _SourceInputs], Candidates]] = {
    "dataset": _from_dataset,
    "file": _from_file,
    "policy": _from_expert,
    "endpoint": _from_expert,
}
"""pivot.source -> function that finds the candidates."""


def _filter(prompts: Sequence[Prompt], candidates: Candidates, config: Config) -> list[tuple[bool, bool | None]]:
    """`keep_reference` of each prompt; (False, None) for a missing reference, and for samples that disagree."""
    outcomes: dict[tuple, tuple[bool, bool | None]] = {}
    for prompt, reference in zip(prompts, candidates.references, strict=True):
        if (prompt.question_en, prompt.answer) not in outcomes:
            outcome: tuple[bool, bool | None] = (False, None)
            if reference is not None and prompt.question_en not in candidates.disagreed:
                outcome = keep_reference(reference, prompt.answer, keep_wrong=config.pivot.keep_wrong)
            outcomes[prompt.question_en, prompt.answer] = outcome
    return [outcomes[prompt.question_en, prompt.answer] for prompt in prompts]


def _keep(
    prompts: Sequence[Prompt], candidates: Candidates, outcomes: Sequence[tuple[bool, bool | None]], config: Config
) -> tuple[list[Prompt], AttachReport]:
    """The prompts with kept references, and the report; DataError if none is kept."""
    rows = list(zip(prompts, candidates.references, outcomes, strict=True))
    kept = [
        prompt._replace(reference=reference, more_references=candidates.more.get(prompt.question_en, ()))
        for prompt, reference, (keep, _) in rows
        if keep
    ]
    problems = {
        (p.question_en, p.answer, reference): outcome
        for p, reference, outcome in rows
        if reference is not None and p.question_en not in candidates.disagreed
    }
    references = {prompt.reference for prompt in kept if prompt.reference is not None}
    parts = ("reasoning", "answer") if config.reward.parts == "split" else (config.reward.parts,)
    lacking = {part: sum(not getattr(one, part).strip() for one in references) for part in parts if part != "whole"}
    report = AttachReport(
        source=config.pivot.source,
        prompts=len(prompts),
        kept=len(kept),
        problems=filter_report(problems.values()),
        dropped=dict(Counter(p.language for p, reference, (keep, _) in rows if reference is not None and not keep)),
        missing=dict(Counter(p.language for p, reference, (keep, _) in rows if reference is None and not keep)),
        asked=candidates.asked,
        fingerprint=_fingerprint(kept),
        disagreed=len(candidates.disagreed),
        lacking={part: count for part, count in lacking.items() if count},
        lost=lost_languages([prompt.language for prompt in prompts], [prompt.language for prompt in kept]),
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
            "Change pivot.file or data.source."
        )
    prompt, reference = examples[0]
    return DataError(
        text + f"The first: to {prompt.question_en!r} the reference is {reference.text!r}, the gold answer "
        f"{prompt.answer!r}. A reference ends in an answer such as 'The answer is 18.'. Use a better expert "
        "(train the start policy in English with `pbrl sft CONFIG`), raise pivot.max_completion_length, or keep wrong "
        "references with --pivot.keep_wrong."
    )


def _origin(question: str, config: Config, who: tuple[str, str, str], sample: int = 0) -> Origin:
    """The origin of a reference of an English question; `who` is (expert, revision, template)."""
    pivot = config.pivot
    return Origin(question, *who, pivot.temperature, pivot.max_completion_length, config.train.seed + sample)


def _stored(origin: Origin, response: str, golds: dict[str, str | None]) -> StoredReference:
    reasoning, answer = split_response(response, "en")
    _, verified = keep_reference(Reference(reasoning, answer), golds[origin.question])
    return StoredReference(origin, reasoning, answer, verified)


def _english_golds(prompts: Sequence[Prompt]) -> dict[str, str | None]:
    """Distinct English questions in their order, each with its first known gold answer."""
    golds: dict[str, str | None] = {}
    for prompt in prompts:
        if golds.setdefault(prompt.question_en, prompt.answer) is None:
            golds[prompt.question_en] = prompt.answer
    return golds


def check_questions(prompts: Sequence[Prompt]) -> None:
    """Refuse prompts without the English question that an expert is asked (DataError)."""
    bare = [prompt for prompt in prompts if not prompt.question_en.strip()]
    if bare:
        raise DataError(
            f"{len(bare)} of {len(prompts)} rows have no English question, which references are written for: "
            f"{_rows(bare)}. Give the data set a question_en (data.columns), or remove these rows."
        )


def _rows(prompts: Sequence[Prompt]) -> str:
    shown = ", ".join(f"row {row_of(p.id) + 1} ({p.language}, id {p.id})" for p in prompts[:SHOWN])
    return shown + (f" and {len(prompts) - SHOWN} more" if len(prompts) > SHOWN else "")


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    """Hex digest of the distinct (English question, reference) pairs, independent of their order."""
    pairs = sorted({(p.question_en, *(text for reference in p.references for text in reference)) for p in prompts})
    digest = hashlib.sha256(b"[")
    for number, pair in enumerate(pairs):  # the JSON of the list in parts: that of a million references is a gigabyte
        digest.update(b", " * bool(number) + json.dumps(pair).encode())
    digest.update(b"]")
    return digest.hexdigest()
