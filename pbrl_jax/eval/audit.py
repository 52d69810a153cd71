"""The audit of a reward: how often it scores the faithful reply above each attack.

Pairs are of one prompt, like the samples of a group: the AUC of an attack in a language is the share of problems whose
faithful reply scores higher than the attack, ties counting one half.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from pbrl_jax.core.batching import by_length, pad_tokens
from pbrl_jax.core.errors import DataError, RewardError
from pbrl_jax.core.paths import numbered_json_lines
from pbrl_jax.core.records import Prompt, Scores, on_host
from pbrl_jax.data.sources import quickstart
from pbrl_jax.data.sources.common import row_of
from pbrl_jax.data.sources.quickstart import WordProblem
from pbrl_jax.eval.attacks import ATTACKS, Case, attack_reply
from pbrl_jax.rewards.inputs import PivotVectors, RewardInputs
from pbrl_jax.text.answers import extract_answer, same_answer, split_response
from pbrl_jax.text.languages import answer_sentence
from pbrl_jax.text.tokenizers import Tokenizer
from pbrl_jax.weights.encoders import Encoder

HELD_OUT_FAMILIES = ("div", "muladd")
"""Quickstart families without hard negatives: one of one step, one of two."""
HELD_OUT = "/held_out"
"""Suffix of an attack's name: its held-out template, on held-out problems."""
BATCH = 128
MIN_PROBLEMS = 3
"""Replies in a language that the audit needs: a problem and two others to make attacks of."""

Table = dict[str, dict[str, float]]
"""language -> attack -> AUC in [0, 1]."""


def audit_table(cases: Sequence[Case], score: Callable[[list[Prompt], list[str]], Scores], seed: int = 0) -> Table:
    """The AUC of every attack in every language of `cases`; English is left out, and so is an attack that can be made
    of no reply in a language (`unmade_attacks`).

    Seen templates are for problems that are not held out, held-out templates (name + HELD_OUT) for those that are.

    Args:
      score: prompts and replies -> total scores.

    Raises:
      RewardError: a faithful reply or an attack without a valid score, named.
      DataError: no cases of a language are held out, or all are.
    """
    cases = [case for case in cases if case.prompt.language != "en"]
    rows = [(case, "", case.faithful) for case in cases]
    for case, name, reply in attacks_on(cases, seed):
        if reply is not None:
            rows.append((case, name, reply))
    scores = score([case.prompt for case, _, _ in rows], [reply for _, _, reply in rows])
    values, valid = np.asarray(scores.value_B, np.float64), np.asarray(scores.valid_B)
    if not valid.all():
        case, name, reply = rows[int(np.argmin(valid))]
        raise RewardError(
            f"The audit needs a score of every reply; {int((~valid).sum())} of {len(valid)} have none. The first is "
            f"{name or 'the faithful reply'} to problem {case.prompt.id} in {case.prompt.language}: {reply!r}."
        )
    faithful = {case.prompt.id: value for (case, _, _), value in zip(rows[: len(cases)], values, strict=False)}
    wins: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (case, name, _), value in zip(rows[len(cases) :], values[len(cases) :], strict=True):
        own = faithful[case.prompt.id]
        wins[case.prompt.language, name].append(1.0 if own > value else 0.5 if own == value else 0.0)
    table: Table = {}
    for language in dict.fromkeys(case.prompt.language for case in cases):
        held = {case.held_out for case in cases if case.prompt.language == language}
        if empty := [name for name in attack_names() if name.endswith(HELD_OUT) not in held]:
            raise DataError(f"The audit has no problem in {language} for {', '.join(empty)}. Raise --limit.")
        named = {name: wins[language, name] for name in attack_names()}
        table[language] = {name: float(np.mean(pairs)) for name, pairs in named.items() if pairs}
    return table


def attacks_on(cases: Sequence[Case], seed: int) -> Iterator[tuple[Case, str, str | None]]:
    """(case, name of the attack, its reply) of every attack on every case; None where it cannot be made of a reply."""
    for case in cases:
        for name in ATTACKS:
            try:
                reply: str | None = attack_reply(name, case.held_out, case, seed)
            except DataError:
                reply = None
            yield case, name + HELD_OUT * case.held_out, reply


def unmade_attacks(cases: Sequence[Case], seed: int = 0) -> list[str]:
    """One line for each attack that cannot be made of some replies, and why."""
    lacking = Counter(name for _, name, reply in attacks_on(cases, seed) if reply is None)
    return [f"Attack {name} does not change {count} of the replies; those pairs are left out." for name, count
            in lacking.items()]  # fmt: skip


def attack_names() -> list[str]:
    """Keys of a language's row: every attack, seen and held out."""
    return [name + end for end in ("", HELD_OUT) for name in ATTACKS]


def failed_attacks(table: Table, bound: float) -> list[tuple[float, str, str]]:
    """(AUC, language, attack) of those below `bound`, the worst first."""
    return sorted((auc, code, name) for code, row in table.items() for name, auc in row.items() if auc < bound)


def make_scorer(
    reward: Callable, encoder: Encoder, tokenizer: Tokenizer
) -> Callable[[list[Prompt], list[str]], Scores]:
    """A reward of RewardInputs as a function of prompts and replies, in batches of one size. `tokenizer` is that of the
    policy, or the encoder's in its place."""

    def score(prompts: list[Prompt], replies: list[str]) -> Scores:
        unique = dict.fromkeys(prompt.reference for prompt in prompts)
        place = {reference: row for row, reference in enumerate(unique)}
        if None in place:
            raise DataError("The audit needs the English reference of every problem; some have none.")
        parts = [[getattr(reference, part) for reference in unique] for part in ("text", "reasoning", "answer")]
        whole, reasoning, answer = (
            encoder.embed(texts) * np.array([bool(t.strip()) for t in texts])[:, None] for texts in parts
        )
        table = PivotVectors(whole, reasoning, answer, np.ones(len(unique), bool))
        value, valid = np.zeros(len(prompts), np.float32), np.zeros(len(prompts), bool)
        for own, rows in by_length([len(reply) for reply in replies], min(BATCH, len(prompts))):
            chosen, texts = [prompts[row] for row in rows], [replies[row] for row in rows]
            pivots = table.rows(np.array([place[prompt.reference] for prompt in chosen]))
            ids = tokenizer.encode_batch(texts)
            tokens, lengths = pad_tokens(ids, max(1, *map(len, ids)))
            total = reward(RewardInputs(chosen, texts, tokens, lengths, pivots, 0)).total
            value[own], valid[own] = np.asarray(total.value_B)[: len(own)], np.asarray(total.valid_B)[: len(own)]
        return on_host(Scores, value, valid, {})

    return score


def quickstart_cases(languages: Sequence[str], count: int, seed: int, space: str = "") -> list[Case]:
    """`count` problems of the test split in each language but English, with the replies of the task."""
    chosen = quickstart.problems("test", count, seed, space)
    return [
        Case(
            prompt=quickstart.prompt(problem, code),
            faithful=quickstart.response(problem, code),
            english=quickstart.response(problem, "en"),
            others=tuple(quickstart.response(problem, other) for other in _further(code, quickstart.LANGUAGES)),
            neighbours=tuple(quickstart.response(other, code) for other in _neighbours(place, chosen)),
            held_out=problem.family in held_out_families(space),
        )
        for place, problem in enumerate(chosen)
        for code in languages
        if code != "en"
    ]


def held_out_families(space: str) -> tuple[str, ...]:
    """Held-out families of a quickstart space: HELD_OUT_FAMILIES if it has them, else its last one."""
    families = quickstart.SPACES[space].families
    return tuple(family for family in families if family in HELD_OUT_FAMILIES) or families[-1:]


def _neighbours(place: int, pool: Sequence[WordProblem]) -> tuple[WordProblem, WordProblem]:
    """(the problem of the same family with the nearest other result, another problem with another result)."""
    own = pool[place]
    others = [problem for problem in (*pool[place + 1 :], *pool[:place]) if problem.result != own.result]
    near = [problem for problem in others if problem.family == own.family]
    if not near:
        raise DataError(f"The audit needs two {own.family} problems with different results. Raise --limit.")
    return min(near, key=lambda problem: abs(problem.result - own.result)), others[0]


def _further(code: str, languages: Sequence[str]) -> tuple[str, ...]:
    """Two languages of `languages` behind `code`, in its order, that are neither it nor English: twice the same where
    there is one, and none where there is none."""
    others = [other for other in languages if other not in (code, "en")]
    start = list(languages).index(code)
    later = [other for other in others if list(languages).index(other) > start]
    return tuple([*later, *others][:2]) if len(others) > 1 else tuple(others * 2)


def file_cases(path: str, prompts: Sequence[Prompt], limit: int = 0) -> list[Case]:
    """Cases of a JSON lines file of faithful replies, `{"id", "language", "response"}`, to `prompts`: of the first
    `limit` problems in each language (0: all). Every second one counts as held out.

    Raises:
      DataError: rows of unknown prompts, replies that are wrong or have no steps, a language with fewer than three
        problems, or prompts without reference or answer.
    """
    known: dict[tuple[Any, Any], Prompt] = {(prompt.id, prompt.language): prompt for prompt in prompts}
    replies: dict[int, dict[str, tuple[Prompt, str, str]]] = defaultdict(dict)
    for number, row in numbered_json_lines(path):
        prompt = known.get((row.get("id"), row.get("language")))
        if prompt is None or not str(row.get("response", "")).strip():
            raise DataError(
                f"{PurePath(path).name}, row {number}: id {row.get('id')!r} and language {row.get('language')!r} are "
                "no prompt of this configuration, or the response is empty. Expected id, language, response."
            )
        if prompt.reference is None or prompt.answer is None:
            raise DataError(f"Problem {prompt.id} in {prompt.language} has no reference or no answer to audit with.")
        reply = str(row["response"]).strip()
        if not is_faithful(reply, prompt):
            raise DataError(
                f"{PurePath(path).name}, row {number}: the audit needs faithful replies, steps and then the answer "
                f"{answer_sentence(prompt.answer, prompt.language)!r}; found {reply!r}. Correct or remove that row."
            )
        if prompt.language != "en":
            replies[row_of(prompt.id)][prompt.language] = (prompt, reply, prompt.reference.text)
    texts: dict[str, list[str]] = defaultdict(list)
    for row in replies.values():
        for code, (_, reply, _) in row.items():
            texts[code].append(reply)
    few = [f"{len(found)} in {code}" for code, found in texts.items() if len(found) < MIN_PROBLEMS]
    if few or not texts:
        raise DataError(
            f"{PurePath(path).name} has {', '.join(few) or 'no'} replies; the audit needs three problems or more in "
            "each language, and one beside English."
        )
    cases, places = [], Counter[str]()
    for row in replies.values():
        for code, (prompt, reply, english) in row.items():
            place, own = places[code], texts[code]
            places[code] += 1
            if not limit or place < limit:
                others = tuple(row[other][1] for other in _further(code, list(row)))
                neighbours = tuple(own[(place + shift) % len(own)] for shift in (1, 2))
                cases.append(Case(prompt, reply, english, others, neighbours, held_out=place % 2 == 1))
    return cases


def is_faithful(reply: str, prompt: Prompt) -> bool:
    """Whether a reply has steps and then the prompt's answer."""
    return bool(split_response(reply, prompt.language)[0]) and same_answer(
        extract_answer(reply, prompt.language), prompt.answer
    )
