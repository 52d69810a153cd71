"""Calibration of an encoder: mean and standard deviation of cosines of matched and mismatched pairs, per language.

Cross-lingual cosines have a narrow range that differs by language, and texts in the same language are more similar to
each other whatever they say: an English reply is similar to an English reference by its language alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pbrl_jax.core.errors import DataError
from pbrl_jax.core.paths import as_path
from pbrl_jax.core.records import Prompt
from pbrl_jax.data.row_errors import RowErrors
from pbrl_jax.data.tables import read_rows
from pbrl_jax.text.languages import known_code

SHRINKAGE = 30  # ASSUMED: LRPO's n / (n + K) with K not stated in the material at hand
"""Number of pairs at which a language's own mean and the mean of all languages have equal weight."""
PREMIUM_WARNING = 0.5
"""Same-language premium, in standard deviations, from which `pbrl calibrate` warns."""
FEWEST_PAIRS = 10

Pairs = Mapping[str, Sequence[tuple[str, str]]]
"""language -> (text, its English counterpart)."""
Embed = Callable[[list[str]], np.ndarray]
"""Texts -> unit vectors [N, E]."""


def calibrate(embed: Embed, key: str, pairs: Pairs) -> dict[str, Any]:
    """The record of calibration.json: `encoder` (its key), `shrinkage`, and per language (English included)
    `pairs, matched_mean, matched_std, mismatched_mean, mismatched_std, auc, same_language_premium, baseline`.

    matched: cos(x_i, e_i). mismatched: cos(x_i, e_j) for all i != j; for English, cos(e_i, e_j) over all English texts
    of the language with most pairs. auc: share of i, j with cos(x_i, e_i) above cos(x_i, e_j). same_language_premium:
    mean of cos(e_i, e_j) minus mismatched mean, in mismatched standard deviations. baseline: mismatched mean, shrunk
    towards that of all languages by n / (n + shrinkage).

    Args:
      key: identifies the encoder (Encoder.key).

    Raises:
      DataError: a language with fewer than FEWEST_PAIRS different pairs.
    """
    rows = {code: _measure(embed, different) for code, different in different_pairs(pairs).items()}
    longest = max(rows, key=lambda code: rows[code]["pairs"])
    english = list(dict.fromkeys(e for _, e in pairs[longest]))
    mean, std = _off_diagonal(embed(english), embed(english))
    rows["en"] = {
        "pairs": len(english), "matched_mean": 1.0, "matched_std": 0.0, "mismatched_mean": mean,
        "mismatched_std": std, "auc": 1.0, "same_language_premium": 0.0,
    }  # fmt: skip
    overall = float(np.mean([row["mismatched_mean"] for code, row in rows.items() if code != "en"]))
    for code, row in rows.items():
        weight = 1.0 if code == "en" else row["pairs"] / (row["pairs"] + SHRINKAGE)
        row["baseline"] = weight * row["mismatched_mean"] + (1 - weight) * overall
    return {"encoder": key, "shrinkage": SHRINKAGE, "languages": rows}


def different_pairs(pairs: Mapping[str, Sequence[tuple[str, str]]]) -> dict[str, list[tuple[str, str]]]:
    """The pairs of each language but English without those that share a text: they would be counted as mismatched.

    Raises:
      DataError: no language, or one with fewer than FEWEST_PAIRS.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for code, own in pairs.items():
        if code != "en":
            by_text = {text: (text, english) for text, english in own}
            found[code] = list({english: (text, english) for text, english in by_text.values()}.values())
            if (count := len(found[code])) < FEWEST_PAIRS:
                raise DataError(
                    f"Calibration has {count} different pairs of {code} and English; it needs {FEWEST_PAIRS} or more."
                )
    if not found:
        raise DataError("Calibration needs parallel text of a language other than English; there is none.")
    return found


def _measure(embed: Embed, unique: Sequence[tuple[str, str]]) -> dict[str, float]:
    text_NE, english_NE = (embed([pair[side] for pair in unique]) for side in (0, 1))
    cosine_NN = text_NE.astype(np.float64) @ english_NE.T.astype(np.float64)
    matched_N = np.diag(cosine_NN)
    mean, std = _off_diagonal(text_NE, english_NE)
    english_mean, _ = _off_diagonal(english_NE, english_NE)
    others = ~np.eye(len(unique), dtype=bool)
    above = (matched_N[:, None] > cosine_NN) + 0.5 * (matched_N[:, None] == cosine_NN)
    return {
        "pairs": len(unique),
        "matched_mean": float(matched_N.mean()),
        "matched_std": float(matched_N.std()),
        "mismatched_mean": mean,
        "mismatched_std": std,
        "auc": float(above[others].mean()),
        "same_language_premium": (english_mean - mean) / max(std, 1e-9),
    }


def _off_diagonal(left_NE: np.ndarray, right_NE: np.ndarray) -> tuple[float, float]:
    cosine_NN = left_NE.astype(np.float64) @ right_NE.T.astype(np.float64)
    values = cosine_NN[~np.eye(len(cosine_NN), dtype=bool)]
    return float(values.mean()), float(values.std())


def premium_warnings(record: Mapping[str, Any]) -> list[str]:
    """One line for each language with a same-language premium of at least PREMIUM_WARNING."""
    return [
        f"Same-language premium: unrelated English texts are {row['same_language_premium']:.1f} standard deviations "
        f"nearer to an English reference than unrelated {code} texts. Keep reward.language_gate on."
        for code, row in record["languages"].items()
        if row["same_language_premium"] >= PREMIUM_WARNING
    ]


def pairs_from_file(path: str, languages: Sequence[str], limit: int) -> dict[str, list[tuple[str, str]]]:
    """Pairs of `languages` from JSON lines `{"lang", "src", "en"}`, plain or .gz; `limit` of each language (0: all).

    Raises:
      DataError: no such file, a row without the three fields, or a language without rows.
    """
    errors = RowErrors(f"Parallel text {path}")
    by_language: dict[str, list[tuple[str, str]]] = {code: [] for code in languages if code != "en"}
    for number, row in read_rows(as_path(path), errors, skip_blank=True):
        code, text, english = (errors.text(number, field, row.get(field)) for field in ("lang", "src", "en"))
        if code and text and english:
            pairs = by_language.get(known_code(code) or code)
            if pairs is not None and (not limit or len(pairs) < limit):
                pairs.append((text, english))
    errors.check()
    missing = [code for code, pairs in by_language.items() if not pairs]
    if missing:
        raise DataError(f"{path} has no text of {', '.join(missing)}. Set data.languages to those it has.")
    return by_language


def pairs_from_prompts(prompts: Sequence[Prompt], limit: int) -> dict[str, list[tuple[str, str]]]:
    """Questions with their English counterparts; `limit` of each language (0: all)."""
    by_language: dict[str, list[tuple[str, str]]] = {}
    for prompt in prompts:
        if prompt.language != "en" and prompt.question_en:
            pairs = by_language.setdefault(prompt.language, [])
            if not limit or len(pairs) < limit:
                pairs.append((prompt.question, prompt.question_en))
    return by_language
