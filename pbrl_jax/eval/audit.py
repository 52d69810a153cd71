"""The audit of a reward: how often it scores the faithful reply above each attack.

Only replies to the same prompt are compared, like the samples of a group: the AUC of an attack in a language is the
share of problems whose faithful reply scores higher than the attack; a tie counts one half.
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
from pbrl_jax.data.sources.common import problem_of, row_of
from pbrl_jax.data.sources.quickstart import WordProblem
from pbrl_jax.eval.attacks import ATTACKS, Case, attack_reply
from pbrl_jax.rewards.inputs import PivotVectors, RewardInputs
from pbrl_jax.text.answers import extract_answer, same_answer, split_response
from pbrl_jax.text.languages import answer_sentence
from pbrl_jax.text.tokenizers import Tokenizer
from pbrl_jax.weights.encoders import Encoder

HELD_OUT_FAMILIES = ("div", "muladd")
"""Quickstart families without hard negatives: one with one step, one with two."""
HELD_OUT = "/held_out"
"""Suffix of an attack's name for its held-out template on held-out problems."""
BATCH = 128
MIN_PROBLEMS = 3
"""Least number of replies in a language: attacks on a problem need two other problems."""

Table = dict[str, dict[str, float]]
"""language -> attack -> AUC in [0, 1]."""


def audit_table(cases: Sequence[Case], score: Callable[[list[Prompt], list[str]], Scores], seed: int = 0) -> Table:
    """The AUC of every attack in every language of `cases` except English. An attack that changes no reply of a
    language is left out there (see `unmade_attacks`).

    Held-out problems get held-out templates (name + HELD_OUT), other problems get seen templates.

    Args:
      score: prompts and replies -> total scores.

    Raises:
      RewardError: names the first faithful reply or attack without a valid score.
      DataError: no case of a language is held out, or all are.
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
        best = faithful[case.prompt.id]
        wins[case.prompt.language, name].append(1.0 if best > value else 0.5 if best == value else 0.0)
    table: Table = {}
    for language in dict.fromkeys(case.prompt.language for case in cases):
        present = {case.held_out for case in cases if case.prompt.language == language}
        if empty := [name for name in attack_names() if name.endswith(HELD_OUT) not in present]:
            raise DataError(f"The audit has no problem in {language} for {', '.join(empty)}. Raise --limit.")
        named = {name: wins[language, name] for name in attack_names()}
        table[language] = {name: float(np.mean(pairs)) for name, pairs in named.items() if pairs}
    return table


def attacks_on(cases: Sequence[Case], seed: int) -> Iterator[tuple[Case, str, str | None]]:
    """Yield (case, name of the attack, its reply) of every attack on every case; None if it does not change a reply."""
    for case in cases:
        for name in ATTACKS:
            try:
                reply: str | None = attack_reply(name, case.held_out, case, seed)
            except DataError:
                reply = None
            yield case, name + HELD_OUT * case.held_out, reply


def unmade_attacks(cases: Sequence[Case], seed: int = 0) -> list[str]:
    """One line for each attack that does not change some of the replies."""
    counts = Counter(name for _, name, reply in attacks_on(cases, seed) if reply is None)
    return [
        f"Attack {name} does not change {count} of the replies; those pairs are left out."
        for name, count in counts.items()
    ]


def attack_names() -> list[str]:
    """The names of all attacks in a table, seen and held out."""
    return [name + end for end in ("", HELD_OUT) for name in ATTACKS]


def failed_attacks(table: Table, bound: float) -> list[tuple[float, str, str]]:
    """(AUC, language, attack) of the AUCs below `bound`, lowest first."""
    return sorted((auc, code, name) for code, row in table.items() for name, auc in row.items() if auc < bound)


def make_scorer(
    reward: Callable, encoder: Encoder, tokenizer: Tokenizer
) -> Callable[[list[Prompt], list[str]], Scores]:
    """A reward of RewardInputs as a function of prompts and replies, in batches of one size. `tokenizer`: the policy's
    or, without a policy, the encoder's."""

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
        for numbers, rows in by_length([len(reply) for reply in replies], min(BATCH, len(prompts))):
            chosen, texts = [prompts[row] for row in rows], [replies[row] for row in rows]
            pivots = table.rows(np.array([place[prompt.reference] for prompt in chosen]))
            ids = tokenizer.encode_batch(texts)
            tokens, lengths = pad_tokens(ids, max(1, *map(len, ids)))
            total = reward(RewardInputs(chosen, texts, tokens, lengths, pivots, 0)).total
            value[numbers] = np.asarray(total.value_B)[: len(numbers)]
            valid[numbers] = np.asarray(total.valid_B)[: len(numbers)]
        return on_host(Scores, value, valid, {})

    return score


def quickstart_cases(languages: Sequence[str], count: int, seed: int, space: str = "") -> list[Case]:
    """`count` problems of the test split in each language except English, with the replies of the task."""
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
    """(the problem of the same family with the nearest different result, any problem with a different result)."""
    problem = pool[place]
    others = [other for other in (*pool[place + 1 :], *pool[:place]) if other.result != problem.result]
    same_family = [other for other in others if other.family == problem.family]
    if not same_family:
        raise DataError(f"The audit needs two {problem.family} problems with different results. Raise --limit.")
    return min(same_family, key=lambda other: abs(other.result - problem.result)), others[0]


def _further(code: str, languages: Sequence[str]) -> tuple[str, ...]:
    """The next two of `languages` after `code` (cyclic) that are neither `code` nor English: the same one twice if
    there is only one, () if there is none."""
    others = [other for other in languages if other not in (code, "en")]
    start = list(languages).index(code)
    later = [other for other in others if list(languages).index(other) > start]
    return tuple([*later, *others][:2]) if len(others) > 1 else tuple(others * 2)


def file_cases(path: str, prompts: Sequence[Prompt], limit: int = 0) -> list[Case]:
    """Cases of the first `limit` problems in each language (0: all) of a JSON lines file of faithful replies to
    `prompts`, `{"id", "language", "response"}`. Every second one is held out.

    Raises:
      DataError: a row of an unknown prompt, a reply that is wrong or has no steps, a language with fewer than three
        problems, or a prompt without reference or answer.
    """
    known: dict[tuple[Any, Any], Prompt] = {(prompt.id, prompt.language): prompt for prompt in prompts}
    replies: dict[str | int, dict[str, tuple[Prompt, str, str]]] = defaultdict(dict)
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
            problem = problem_of(prompt)
            problem = row_of(prompt.id) if prompt.language in replies[problem] else problem
            replies[problem][prompt.language] = (prompt, reply, prompt.reference.text)
    texts: dict[str, list[str]] = defaultdict(list)
    for row in replies.values():
        for code, (_, reply, _) in row.items():
            texts[code].append(reply)
    few = [f"{len(listed)} in {code}" for code, listed in texts.items() if len(listed) < MIN_PROBLEMS]
    if few or not texts:
        raise DataError(
            f"{PurePath(path).name} has {', '.join(few) or 'no'} replies; the audit needs three problems or more in "
            "each language, and one beside English."
        )
    cases, places = [], Counter[str]()
    for row in replies.values():
        for code, (prompt, reply, english) in row.items():
            place, listed = places[code], texts[code]
            places[code] += 1
            if not limit or place < limit:
                others = tuple(row[other][1] for other in _further(code, list(row)))
                neighbours = tuple(listed[(place + shift) % len(listed)] for shift in (1, 2))
                cases.append(Case(prompt, reply, english, others, neighbours, held_out=place % 2 == 1))
    return cases


def is_faithful(reply: str, prompt: Prompt) -> bool:
    """Whether a reply has steps, followed by the prompt's answer."""
    return bool(split_response(reply, prompt.language)[0]) and same_answer(
        extract_answer(reply, prompt.language), prompt.answer
    )
