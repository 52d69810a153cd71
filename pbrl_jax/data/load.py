"""Loads prompts from any data source, with the checks that all sources share."""

import hashlib
import json
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pbrl_jax.config.tree import DataConfig
from pbrl_jax.core.characters import CONTROL, visible
from pbrl_jax.core.errors import ConfigError, DataError, lookup
from pbrl_jax.core.records import Prompt, Question
from pbrl_jax.data.row_errors import SHOWN_ERRORS
from pbrl_jax.data.sources import SOURCES
from pbrl_jax.data.sources.common import language_of, prompt_id, row_of
from pbrl_jax.text.answers import read_gold, same_answer
from pbrl_jax.text.languages import check_languages
from pbrl_jax.text.normalise import FORMAT
from pbrl_jax.text.prompts import format_prompts
from pbrl_jax.text.tokenizers import Tokenizer
from pbrl_jax.text.wording import OURS, Wording

READABLE_GOLDS = 0.9
"""A data set of whose gold answers fewer can be read is refused."""
REPEATED, OTHER_GOLD = (f"a question that stood before, with {whose} answer" for whose in ("the same", "another"))
ODD_ROWS = {
    "a question without a visible character": 0.1, "control characters": 0.1,
    REPEATED: 0.5, OTHER_GOLD: 0.1,
}  # fmt: skip
"""Kind of row -> the largest share of a data set that may be so."""
NAMED_ONLY = 10
"""So few odd rows are never refused."""
REQUIREMENTS = ("answer", "question_en", "reference")
OVERLONG = ("error", "drop")


def load_prompts(
    data: DataConfig,
    seed: int,
    *,
    split: str | None = None,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    require: Sequence[str] = (),
) -> list[Prompt]:
    """The prompts that `data` describes; the keyword arguments replace single fields of it.

    Args:
      data: source, path, split, languages, columns, limit.
      seed: chooses rows where a limit is set.
      require: fields that every row must have: answer, question_en, reference.

    Raises:
      ConfigError: unknown source, split or language, or columns for a source without.
      DataError: missing files, bad rows, or rows without a required field; with file and row numbers.
    """
    rows = lookup(SOURCES, data.source, "data source")
    if data.columns and data.source != "table":
        raise ConfigError(f"data.columns is only for the source 'table', not for {data.source!r}. Remove it.")
    codes = check_languages(data.languages if languages is None else languages)
    extra = {"columns": data.columns} if data.source == "table" else {}
    wanted = data.limit if limit is None else limit
    prompts = rows(data.path, split or data.split, codes, wanted, seed, **extra)
    if languages is None and (line := languages_without_rows(prompts, codes)):
        print(line, file=sys.stderr)
    for field in require:
        _require(prompts, field, data.source)
    if "answer" in require:
        check_golds(prompts)
    for line in check_rows(prompts):
        print(visible(line), file=sys.stderr)
    return prompts


def languages_without_rows(prompts: Sequence[Prompt], codes: Sequence[str]) -> str:
    """A line about the languages of `codes` that no prompt is in; "" where there are none."""
    found = {prompt.language for prompt in prompts}
    if not (lacking := [code for code in codes if code not in found]):
        return ""
    others = f"; all {len(prompts)} are in {found.pop()}" if len(found) == 1 else ""
    return f"Note: data.languages names {', '.join(lacking)}, and the data has no row in them{others}."


def _require(prompts: Sequence[Prompt], field: str, source: str) -> None:
    if field not in REQUIREMENTS:
        raise ConfigError(f"Unknown required field {field!r}; expected one of {', '.join(REQUIREMENTS)}.")
    lacking = [prompt for prompt in prompts if not getattr(prompt, field)]
    if lacking:
        raise DataError(
            f"Source {source!r}: {len(lacking)} of {len(prompts)} rows have no {field}, the first at "
            f"{_places(lacking)}. Add the column, or choose a pivot.source or reward that does not need it."
        )


def check_golds(prompts: Sequence[Prompt]) -> str:
    """A line that says how many gold answers can be compared with a response's, "" where there are none.

    Raises:
      DataError: fewer than READABLE_GOLDS of them can; names the first that cannot.
    """
    golds = [(prompt, prompt.answer) for prompt in prompts if prompt.answer is not None]
    lost = [(prompt, answer) for prompt, answer in golds if read_gold(answer, prompt.language) is None]
    if not golds:
        return ""
    first = f"; the first that cannot, {_places([lost[0][0]])}: {lost[0][1][:60]!r}" if lost else ""
    said = f"Gold answers: {len(golds) - len(lost)} of {len(golds)} can be read{first}."
    if len(lost) > (1 - READABLE_GOLDS) * len(golds):
        raise DataError(
            f"{said} No response can equal the others. Give the answers alone (a number, an option letter, LaTeX, or "
            "a solution that ends in '#### N')."
        )
    return said


def check_rows(prompts: Sequence[Prompt]) -> list[str]:
    """A line for each kind of odd row: how many there are, and the first few.

    Raises:
      DataError: more of one kind than the share that ODD_ROWS allows.
    """
    seen: dict[tuple[str, Question], Prompt] = {}
    odd: dict[str, list[Prompt]] = {kind: [] for kind in ODD_ROWS}
    for prompt in prompts:
        first = seen.setdefault((prompt.language, prompt.asked), prompt)
        texts = (prompt.question, prompt.question_en, prompt.answer or "", *(one.text for one in prompt.references))
        if not FORMAT.sub("", prompt.question).strip():
            odd["a question without a visible character"].append(prompt)
        if any(map(CONTROL.search, texts)):
            odd["control characters"].append(prompt)
        if first is not prompt:
            answers = first.answer, prompt.answer
            equal = answers[0] == answers[1] or None in answers or same_answer(*answers)
            odd[REPEATED if equal else OTHER_GOLD].append(prompt)
    lines = []
    for kind, found in odd.items():
        if found:
            line = f"{len(found)} of {len(prompts)} rows have {kind}, the first at {_places(found)}."
            lines.append(line)
            if len(found) > max(NAMED_ONLY, ODD_ROWS[kind] * len(prompts)):
                raise DataError(f"{line} At most {ODD_ROWS[kind]:.0%} may. Correct or remove these rows.")
    return lines


def refuse_trained(prompts: Sequence[Prompt], trained: Sequence[Prompt]) -> None:
    """Refuse evaluation prompts whose questions are trained on, too, in the same language (DataError)."""
    known = {(prompt.language, _bare(prompt)) for prompt in trained}
    same = [prompt for prompt in prompts if (prompt.language, _bare(prompt)) in known]
    if same:
        raise DataError(
            f"{len(same)} of {len(prompts)} evaluation problems are also training rows, the first at {_places(same)} "
            f"of the evaluation: {same[0].question[:60]!r}. Name other problems (eval.source, eval.path), or "
            "set eval.training_rows true to evaluate on these."
        )


def _bare(prompt: Prompt) -> tuple[str, ...]:
    """What is asked, without system turns, in one form for equal text: widths, spaces, case and invisible marks."""
    said = [text for role, text in prompt.turns if role != "system"] or [prompt.question]
    return tuple(" ".join(FORMAT.sub("", unicodedata.normalize("NFKC", text)).casefold().split()) for text in said)


def with_english(prompts: Sequence[Prompt]) -> list[Prompt]:
    """`prompts`; if none of them is English, also an English row of each problem that has English text.

    They are for replay (`data.english_share`): a policy that trains only on other languages forgets English.
    """
    if any(prompt.language == "en" for prompt in prompts):
        return list(prompts)
    found = {}
    for prompt in prompts:
        if prompt.question_en and row_of(prompt.id) not in found:
            found[row_of(prompt.id)] = prompt._replace(
                id=prompt_id(row_of(prompt.id), "en"), language="en", question=prompt.question_en, turns=()
            )
    return [*prompts, *found.values()]


def dataset_fingerprint(prompts: Sequence[Prompt], wording: Wording = OURS) -> str:
    """Hex digest of every field of every row, in order, without a table's further columns, and of the user's own words
    around them; identifies the data set."""
    digest = hashlib.sha256(wording.digest.encode())
    for prompt in prompts:
        fields = list(prompt[: Prompt._fields.index("columns")])
        if fields[-1] == ():  # rows without further references keep the digest of versions without
            fields.pop()
        fields += [prompt.turns] if prompt.turns else []
        digest.update(json.dumps(fields, ensure_ascii=False, default=str).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def fit_prompts(
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    max_prompt_length: int,
    overlong: str = "error",
    **form: Any,
) -> tuple[list[Prompt], list[list[int]]]:
    """The prompts of at most `max_prompt_length` tokens, and the ids of each.

    Args:
      prompts: any rows.
      tokenizer: the policy's.
      max_prompt_length: in tokens, the beginning-of-sequence token included.
      overlong: `error` refuses longer prompts, `drop` leaves them out and prints how many of each language.
      form: style, thinking and wording, as in format_prompts.

    Raises:
      DataError: too long prompts: their number per language, the first rows, and the longest length; or a language
        none of whose prompts fits.
    """
    if overlong not in OVERLONG:
        raise ConfigError(f"data.overlong_prompts is {overlong!r}; expected one of {', '.join(OVERLONG)}.")
    if not prompts:
        raise DataError("No prompts to encode. Check data.languages, data.split and data.limit.")
    encoded = format_prompts([p.asked for p in prompts], [p.language for p in prompts], tokenizer, **form)
    fits = [len(ids) <= max_prompt_length for ids in encoded]
    kept = [pair for pair, fit in zip(zip(prompts, encoded, strict=True), fits, strict=True) if fit]
    long = [prompt for prompt, fit in zip(prompts, fits, strict=True) if not fit]
    if long:
        counts = ", ".join(f"{code} {n}" for code, n in sorted(Counter(p.language for p in long).items()))
        found = f"{len(long)} of {len(prompts)} prompts are longer than {max_prompt_length} tokens ({counts})"
        advice = f"the first at {_places(long)}; the longest has {max(map(len, encoded))}. Raise "
        advice += "rollout.max_prompt_length (of an evaluation: eval.max_prompt_length)"
        if overlong == "error":
            raise DataError(f"{found}; {advice}, or set data.overlong_prompts to drop.")
        lost = lost_languages([p.language for p in prompts], [prompt.language for prompt, _ in kept])
        if lost:
            raise DataError(f"{found}: none of {lost} is left; {advice}, or leave these languages out.")
        print(f"Dropped: {found}.")
    return [prompt for prompt, _ in kept], [ids for _, ids in kept]


def lost_languages(all_rows: Sequence[str], kept: Sequence[str]) -> str:
    """The languages of `all_rows` that none of the kept rows has, with commas between."""
    return ", ".join(code for code in dict.fromkeys(all_rows) if code not in set(kept))


def _places(prompts: Sequence[Prompt]) -> str:
    """`row 3 (sw), row 9 (th)`, counting from 1."""
    shown = [f"row {row_of(p.id) + 1} ({language_of(p.id)})" for p in prompts[:SHOWN_ERRORS]]
    return ", ".join(shown)
