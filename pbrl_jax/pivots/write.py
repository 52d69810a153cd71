"""An English reference for every prompt: the data set's own, a file's, or written by the expert and kept in the store.

One problem in eight languages is one English question and so one reference; problems are told apart by the text of
`question_en`. What a filter drops takes its prompts with it, counted by language.
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
from pbrl_jax.data.sources.common import row_of
from pbrl_jax.logs.progress import Progress
from pbrl_jax.pivots.agreement import choose
from pbrl_jax.pivots.filter import FilterReport, filter_report, keep_reference
from pbrl_jax.pivots.reference_file import read_reference_file
from pbrl_jax.pivots.references import Origin, StoredReference
from pbrl_jax.pivots.store import PivotStore
from pbrl_jax.text.answers import split_response

TEMPLATE = "{question}"
"""The expert is given the question as it is."""
SHOWN = 5

Sampler = Callable[..., list[str | EndpointError]]
"""English questions -> one response each, in their order. Where several samples are asked for, the second argument is
the sample's number, from 1. An error stands for a response that did not come; one that was cut has no answer."""


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
    disagreed: int = 0
    """Distinct problems dropped because their samples do not agree (pivot.min_agreement)."""

    def describe(self) -> str:
        """One line for the console."""
        counts = self.problems
        parts = [f"{counts.right} right", f"{counts.unverified} not verified", f"{counts.wrong} wrong"]
        parts.append(f"{counts.no_answer} without an answer")
        text = f"references ({self.source}): {counts.kept} of {counts.total} kept ({', '.join(parts)})"
        text += f"; {self.disagreed} without agreement" * bool(self.disagreed)
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
    the JSON lines file `config.pivot.file` (see `read_reference_file`); `policy` and `endpoint` take them from the
    store and let the expert write what is missing. All but the first are filtered by `filter.keep_reference`, and
    several samples of one question by `agreement.choose`. A function of its
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
    found = source.find(prompts, _Means(config, store, sample_texts, progress, who))
    outcomes = _outcomes(prompts, found, config) if source.filtered else [(True, None)] * len(prompts)
    return _kept(prompts, found, outcomes, config)


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
      EndpointError: responses that did not come; the others of their batch are stored.
      Interrupted: a stop was requested; whole batches, and an endpoint's answers so far, are stored.
      ValueError: `sample_texts` gave another number of responses than it was asked for.
    """
    golds = _english_golds(prompts)
    who = (expert, revision, template)
    # Sample by sample, so that a batch is asked for with one seed.
    numbers = {
        _origin(question, config, who, sample): sample for sample in range(config.pivot.samples) for question in golds
    }
    origins = {origin.key: origin for origin in numbers}
    missing = store.missing(origins)
    written: dict[str, StoredReference] = {}
    size = config.eval.batch_size
    done = len(origins) - len(missing)
    stage = progress("references", len(origins), done=done, unit="question") if progress and missing else None
    with stage or contextlib.nullcontext():
        for sample in range(config.pivot.samples):
            wanted = [origins[key] for key in missing if numbers[origins[key]] == sample]
            for start in range(0, len(wanted), size):
                batch = wanted[start : start + size]
                new = _asked(batch, sample_texts, sample, golds, store)
                written |= {stored.key: stored for stored in new}
                if stage:
                    stage.advance(len(batch))
    return written


def _asked(batch: list[Origin], sample_texts: Sampler, sample: int, golds: dict[str, str | None],
           store: PivotStore) -> list[StoredReference]:  # fmt: skip
    """The expert's answers to a batch, stored."""
    questions = [origin.question for origin in batch]
    responses = sample_texts(questions, sample) if sample else sample_texts(questions)
    if len(responses) != len(batch):
        raise ValueError(f"sample_texts gave {len(responses)} responses to {len(batch)} questions.")
    pairs = list(zip(batch, responses, strict=True))
    new = [_stored(origin, text, golds) for origin, text in pairs if isinstance(text, str)]
    new += [StoredReference(origin, cut.text, "") for origin, cut in pairs if isinstance(cut, CutAnswer)]
    store.add_references(new)
    check_stop()
    if failed := [error for _, error in pairs if not isinstance(error, str | CutAnswer)]:
        raise EndpointError(
            f"{len(failed)} of {len(batch)} questions got no answer, and {len(new)} are stored; the same command goes "
            f"on from there. The first: {failed[0]}"
        )
    return new


class _Means(NamedTuple):
    """What a source of references may use; the fields are arguments of `attach_references`."""

    config: Config
    store: PivotStore
    sample_texts: Sampler | None
    progress: Callable[..., Progress] | None
    who: tuple[str, str, str]
    """(expert, revision, template)."""


class Found(NamedTuple):
    """The reference of each prompt (None: it has none), and how many were asked for.

    `more` holds the further references of a question, `disagreed` the questions whose samples do not agree.
    """

    references: list[Reference | None]
    asked: int = 0
    more: Mapping[str, tuple[Reference, ...]] = MappingProxyType({})
    disagreed: frozenset[str] = frozenset()


class Source(NamedTuple):
    """`find(prompts, means)` gives what a source has; `filtered`: whether it is checked."""

    find: Callable[[Sequence[Prompt], _Means], Found]
    filtered: bool


def _from_dataset(prompts: Sequence[Prompt], means: _Means) -> Found:
    bare = [prompt for prompt in prompts if prompt.reference is None or not prompt.reference.text]
    if bare:
        raise DataError(
            f"pivot.source is dataset, but {len(bare)} of {len(prompts)} rows have no reference: {_rows(bare)}. "
            "Choose a data set with references, or let the start policy write them: --pivot.source policy, then "
            "`pbrl pivots CONFIG`."
        )
    return Found([prompt.reference for prompt in prompts])


def _from_file(prompts: Sequence[Prompt], means: _Means) -> Found:
    _check_questions(prompts)
    references = read_reference_file(means.config.pivot.file, prompts)
    return Found([references.get(prompt.question_en) for prompt in prompts])


def _from_expert(prompts: Sequence[Prompt], means: _Means) -> Found:
    config, store, sample_texts, progress, who = means
    expert, revision, template = who
    if not expert or not revision:
        raise ValueError("An expert writes: attach_references needs the expert's name and revision.")
    _check_questions(prompts)
    golds, pivot = _english_golds(prompts), config.pivot
    keys = {question: [_origin(question, config, who, n).key for n in range(pivot.samples)] for question in golds}
    written = {}
    if sample_texts is not None:
        written = write_references(prompts, sample_texts, store, config, expert, revision, progress, template=template)
    # The store comes second: where two writers raced, its first line is what every later run reads.
    found = written | store.references(key for own in keys.values() for key in own)
    absent = [question for question, own in keys.items() if not found.keys() >= set(own)]
    if absent:
        raise DataError(
            f"{store.path} lacks the references of {len(absent)} of {len(keys)} questions by {expert!r}, the first: "
            f"{absent[0]!r}. Type `pbrl pivots CONFIG` with the same settings to write them."
        )
    chosen = {
        question: choose([found[key].reference for key in own], golds[question], pivot.references)
        for question, own in keys.items()
    }
    return Found(
        [chosen[prompt.question_en].references[0] for prompt in prompts],
        len(written),
        {question: choice.references[1:] for question, choice in chosen.items()},
        frozenset(question for question, choice in chosen.items() if choice.share < pivot.min_agreement),
    )


SOURCES = {
    "dataset": Source(_from_dataset, filtered=False),
    "file": Source(_from_file, filtered=True),
    "policy": Source(_from_expert, filtered=True),
    "endpoint": Source(_from_expert, filtered=True),
}
"""Where references come from: the values of `pivot.source`."""


def _outcomes(prompts: Sequence[Prompt], found: Found, config: Config) -> list[tuple[bool, bool | None]]:
    """`keep_reference` of each prompt; of a missing reference, and without agreement, it is (False, None)."""
    seen: dict[tuple, tuple[bool, bool | None]] = {}
    for prompt, reference in zip(prompts, found.references, strict=True):
        if (prompt.question_en, prompt.answer) not in seen:
            outcome: tuple[bool, bool | None] = (False, None)
            if reference is not None and prompt.question_en not in found.disagreed:
                outcome = keep_reference(reference, prompt.answer, keep_wrong=config.pivot.keep_wrong)
            seen[prompt.question_en, prompt.answer] = outcome
    return [seen[prompt.question_en, prompt.answer] for prompt in prompts]


def _kept(
    prompts: Sequence[Prompt],
    found: Found,
    outcomes: Sequence[tuple[bool, bool | None]],
    config: Config,
) -> tuple[list[Prompt], AttachReport]:
    rows = list(zip(prompts, found.references, outcomes, strict=True))
    kept = [
        prompt._replace(reference=reference, more_references=tuple(found.more.get(prompt.question_en, ())))
        for prompt, reference, (keep, _) in rows
        if keep
    ]
    problems = {
        (p.question_en, p.answer, reference): outcome
        for p, reference, outcome in rows
        if reference is not None and p.question_en not in found.disagreed
    }
    report = AttachReport(
        source=config.pivot.source,
        prompts=len(prompts),
        kept=len(kept),
        problems=filter_report(problems.values()),
        dropped=dict(Counter(p.language for p, reference, (keep, _) in rows if reference is not None and not keep)),
        missing=dict(Counter(p.language for p, reference, _ in rows if reference is None)),
        asked=found.asked,
        fingerprint=_fingerprint(kept),
        disagreed=len(found.disagreed),
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
    """What a reference of an English question depends on; `who` is (expert, revision, template)."""
    pivot = config.pivot
    return Origin(question, *who, pivot.temperature, pivot.max_completion_length, config.train.seed + sample)


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


def _rows(prompts: Sequence[Prompt]) -> str:
    shown = ", ".join(f"row {row_of(p.id) + 1} ({p.language}, id {p.id})" for p in prompts[:SHOWN])
    return shown + (f" and {len(prompts) - SHOWN} more" if len(prompts) > SHOWN else "")


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    """Hex digest of the distinct (English question, reference) pairs, whatever their order."""
    pairs = sorted({(p.question_en, *(text for reference in p.references for text in reference)) for p in prompts})
    digest = hashlib.sha256(b"[")
    for number, pair in enumerate(pairs):  # the JSON of the list, a pair at a time: a million references are a gigabyte
        digest.update(b", " * bool(number) + json.dumps(pair).encode())
    digest.update(b"]")
    return digest.hexdigest()
