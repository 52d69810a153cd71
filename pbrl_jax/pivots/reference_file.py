"""The user's own references, from a JSON lines file."""

import decimal
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.core.paths import HALF_A_CHARACTER, as_path, encodes, parse_json
from pbrl_jax.core.records import Prompt, Reference
from pbrl_jax.data.row_errors import RowErrors
from pbrl_jax.pivots.filter import answer_value
from pbrl_jax.pivots.references import normalised
from pbrl_jax.text.answers import split_response
from pbrl_jax.text.languages import answer_sentence, nfc
from pbrl_jax.text.values import canonical

_FORMULA = re.compile(r"[\\^_√]|[A-Za-z]\s*[-+*/(]")


def read_reference_file(path: str | os.PathLike, prompts: Sequence[Prompt]) -> dict[str, Reference]:
    """References of a JSON lines file, by English question.

    A line is `{"question": ..., "reasoning": ..., "answer": ...}` or `{"question": ..., "response": ...}`. Instead of
    `question`, the English text, it may have the `id` of a prompt; it then also applies to the problem's other
    languages. Other fields, and problems without a prompt, are ignored. A bare answer ("18") is put into the answer
    sentence ("The answer is 18."), as rewards compare it with sentences.

    Raises:
      ConfigError: the path is empty.
      DataError: no such file, invalid lines (each is listed), two references for one problem.
    """
    if not os.fspath(path):
        raise ConfigError("pivot.source is file, but pivot.file is empty. Name a JSON lines file: --pivot.file FILE.")
    file = as_path(path)
    if not file.exists() or file.is_dir():
        kind = "a folder" if file.exists() else "nothing"
        raise DataError(f"pivot.file {file} is {kind}, expected a JSON lines file of references. Change pivot.file.")
    # Rows of several languages may spell one English question with other spaces or composed letters.
    by_id = {prompt.id: normalised(prompt.question_en) for prompt in prompts}
    known = set(by_id.values())
    errors = RowErrors(str(file))
    references: dict[str, Reference] = {}
    first_row: dict[str, int] = {}
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        row, problem = _parse_row(line)
        if problem:
            errors.add(number, problem)
            continue
        question = normalised(row["question"]) if "question" in row else by_id.get(row["id"])
        if question not in known:
            continue
        reference = _row_reference(row)
        if references.setdefault(question, reference) != reference:
            errors.add(number, f"another reference for the problem of row {first_row[question]}, expected one")
        first_row.setdefault(question, number)
    errors.check()
    asked = {prompt.question_en: normalised(prompt.question_en) for prompt in prompts}
    return {question: references[key] for question, key in asked.items() if key in references}


def _parse_row(line: bytes) -> tuple[dict[str, Any], str]:
    """(the row, "") or ({}, the problem with it)."""
    try:
        row = parse_json(line)
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
    if not encodes(row):
        return {}, f"holds {HALF_A_CHARACTER}, expected text"
    if type(row.get("answer")) in (int, float) and math.isfinite(row["answer"]):
        row["answer"] = canonical(decimal.Decimal(repr(row["answer"])))
    for name in ({"question"} & set(row)) | set(needed):
        if not isinstance(row[name], str):
            return {}, f"{name} is {type(row[name]).__name__}, expected text"
    return row, ""


def _row_reference(row: dict[str, Any]) -> Reference:
    if "response" in row:
        return Reference(*split_response(nfc(row["response"]), "en"))
    return Reference(nfc(row["reasoning"].strip()), _announced(nfc(row["answer"].strip())))


def _announced(answer: str) -> str:
    """A bare answer in the English answer sentence, in a box if it is a formula or would be read differently."""
    if not answer or split_response(answer, "en")[1]:
        return answer
    sentence = answer_sentence(answer.removesuffix("."), "en")
    boxed = answer_sentence(f"\\boxed{{{answer}}}", "en")
    plain = not _FORMULA.search(answer) and answer_value(sentence, "en") == answer_value(answer, "en")
    return sentence if plain else boxed
