"""How many answers several readers take as a careful reader does.

    python benchmarks/answer_readers.py FORMS.jsonl

Each line is {"text", "language", "answer"}: a response, its language, and the answer that it gives (null: none; "?":
open, any will do). The other readers are written after the published rules of the programs they are named after:
simple-evals (MGSM), lm-evaluation-harness (flexible-extract), verl (gsm8k, strict and flexible) and math-verify.
"""

import argparse
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

from pbrl_jax.eval.benchmarks.scoring import INVALID, harness_flexible
from pbrl_jax.text.answers import extract_answer, same_answer

PREFIXES = {
    "en": "Answer", "bn": "উত্তর", "de": "Antwort", "es": "Respuesta", "fr": "Réponse", "ja": "答え", "ru": "Ответ",
    "sw": "Jibu", "te": "సమాధానం", "th": "คำตอบ", "zh": "答案",
}  # fmt: skip
"""The word behind which simple-evals looks for the number."""


def simple_evals(text: str, language: str) -> str | None:
    """The last number behind the last answer word of the language, commas taken out."""
    prefix = PREFIXES.get(language, "Answer")
    if prefix not in text:
        return None
    numbers = re.findall(r"\d+\.?\d*", text.rsplit(prefix, 1)[1].replace(",", ""))
    return numbers[-1].rstrip(".") if numbers else None


def lm_eval_flexible(text: str, language: str) -> str | None:
    """The last thing that looks like a number."""
    found = harness_flexible(text)
    return None if found == INVALID else re.sub(r"[$,]|\.$", "", found)


def verl_strict(text: str, language: str) -> str | None:
    """The number behind the last `#### `."""
    found = re.findall(r"#### (-?[0-9.,]+)", text[-300:])
    return found[-1].replace(",", "").replace("$", "") if found else None


def verl_flexible(text: str, language: str) -> str | None:
    """The last run of digits, dots and commas that is no dot alone."""
    found = [token for token in re.findall(r"-?[0-9.,]+", text[-300:]) if token not in ("", ".")]
    return found[-1].replace(",", "").rstrip(".") if found else None


READERS: dict[str, Callable[[str, str], str | None]] = {
    "simple-evals (MGSM)": simple_evals,
    "lm-eval flexible-extract": lm_eval_flexible,
    "verl gsm8k, strict": verl_strict,
    "verl gsm8k, flexible": verl_flexible,
    "pbrl_jax": extract_answer,
}


def is_right(found: str | None, wanted: str | None) -> bool:
    """Whether a reader took what a careful one takes."""
    return wanted == "?" or (found is None if wanted is None else same_answer(found, wanted))


def math_verify_is_right(text: str, wanted: str | None) -> bool:
    """The same for math-verify, which compares parsed values."""
    import math_verify

    parsed = math_verify.parse(text)
    if wanted in (None, "?"):
        return wanted == "?" or not parsed
    return bool(parsed) and bool(math_verify.verify(math_verify.parse(f"${wanted}$"), parsed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("forms", type=Path)
    forms = [json.loads(line) for line in parser.parse_args().forms.read_text(encoding="utf-8").splitlines()]
    judges = {name: lambda f, read=read: is_right(read(f["text"], f["language"]), f["answer"])
              for name, read in READERS.items()}  # fmt: skip
    judges["math-verify"] = lambda f: math_verify_is_right(f["text"], f["answer"])
    print("| reader | English | other languages | all | ms per answer |\n|---|---|---|---|---|")
    for name, judge in judges.items():
        judge(forms[0])
        start = time.process_time()
        right = [(f["language"] == "en", judge(f)) for f in forms]
        spent = 1000 * (time.process_time() - start) / len(forms)
        groups = [[r for e, r in right if e is english] for english in (True, False)]
        cells = [f"{100 * sum(g) / len(g):.0f}" if g else "" for g in (*groups, [r for _, r in right])]
        print(f"| {name} | {' | '.join(cells)} | {spent:.2f} |")


if __name__ == "__main__":
    main()
