"""The numbers of eval.json from graded rows: per language, over languages, and compared with an earlier evaluation.

Accuracies and shares are fractions in [0, 1]; intervals are 95 % bootstrap intervals over problems.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pbrl_jax.core.errors import DataError
from pbrl_jax.eval.fidelity import share
from pbrl_jax.eval.statistics import (
    Values,
    bootstrap_interval,
    majority_at_k,
    mean_at_k,
    mean_interval,
    paired_test,
    pass_at_k,
)
from pbrl_jax.text.answers import same_answer

Rows = Sequence[Mapping[str, Any]]
FIDELITY = {"right_language": "right_language", "line_pass_rate": "line_pass", "word_pass_rate": "word_pass",
            "code_switch_share": "code_switch"}  # fmt: skip
"""Name in the table -> name in a row."""


def rows_by(field: str, rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    """Value of a field ("key", "language") -> its rows, in order."""
    table: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        table.setdefault(row[field], []).append(row)
    return table


def accuracies(rows: Rows) -> dict[str, float]:
    """Key -> share of correct samples of the problem."""
    return {key: float(np.mean([row["correct"] for row in samples])) for key, samples in rows_by("key", rows).items()}


def votes(samples: Rows) -> list[int]:
    """One number per sample, equal for equal answers; -1 without an answer."""
    answers: list[str] = []
    numbers = []
    for row in samples:
        answer = row["extracted"]
        if answer is None:
            numbers.append(-1)
            continue
        place = next((i for i, earlier in enumerate(answers) if same_answer(answer, earlier)), len(answers))
        answers += [answer] if place == len(answers) else []
        numbers.append(place)
    return numbers


def sample_metrics(rows: Rows) -> dict[str, float]:
    """pass@k, mean@k and maj@k for k = 1, 2, 4 ... and all samples; {} if each problem has one sample."""
    problems = list(rows_by("key", rows).values())
    count = min(len(samples) for samples in problems)
    if count == 1:
        return {}
    correct_NS = [[row["correct"] for row in samples[:count]] for samples in problems]
    votes_NS = [votes(samples[:count]) for samples in problems]
    metrics = {}
    for k in sorted({*(2**power for power in range(count.bit_length())), count}):
        metrics[f"pass@{k}"] = float(pass_at_k(correct_NS, k).mean())
        metrics[f"mean@{k}"] = float(mean_at_k(correct_NS, k).mean())
        metrics[f"maj@{k}"] = float(majority_at_k(votes_NS, correct_NS, k).mean())
    return metrics


def language_row(rows: Rows, seed: int) -> dict[str, Any]:
    """The table's entry of one language."""
    interval = bootstrap_interval(list(accuracies(rows).values()), seed)
    entry: dict[str, Any] = {
        "accuracy": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "n": len(rows_by("key", rows)),
        "extraction_failures": float(np.mean([row["extracted"] is None for row in rows])),
    }
    for name, field in FIDELITY.items():
        entry[name] = share([row.get(field) for row in rows])
    if "completion" in rows[0]:
        entry["marker_missing"] = float(np.mean([row["marker_missing"] for row in rows]))
        entry["mean_tokens"] = float(np.mean([row["tokens"] for row in rows]))
        entry["truncated"] = float(np.mean([row["truncated"] for row in rows]))
        entry["mean_characters"] = float(np.mean([len(row["completion"]) for row in rows]))
    names = rows[0]["published"]
    entry["published"] = {name: float(np.mean([row["published"][name] for row in rows])) for name in names}
    return entry | sample_metrics(rows)


def mean_of(languages: Iterable[str], columns: Mapping[str, list[float]], seed: int) -> dict[str, Any] | None:
    """{languages, accuracy, low, high} of the mean over the evaluated ones of `languages`; None without any."""
    codes = [code for code in languages if code in columns]
    if not codes:
        return None
    interval = mean_interval([columns[code] for code in codes], seed)
    return {"languages": codes, "accuracy": interval.mean, "low": interval.low, "high": interval.high}


def summary(rows: Rows, seen: Sequence[str] = (), seed: int = 0) -> dict[str, Any]:
    """The numbers of eval.json.

    Args:
      rows: graded rows, at least one.
      seen: languages of the policy's training; (): no means of seen and unseen languages.
      seed: of the bootstrap.
    """
    tables = {code: language_row(part, seed) for code, part in rows_by("language", rows).items()}
    columns = {code: list(accuracies(part).values()) for code, part in rows_by("language", rows).items()}
    others = [code for code in columns if code != "en"]
    mean, overall = mean_of(others, columns, seed), mean_of(columns, columns, seed)
    result: dict[str, Any] = {
        "languages": tables,
        "mean_non_english": None if mean is None else mean["accuracy"],
        "mean_non_english_interval": None if mean is None else [mean["low"], mean["high"]],
        "gap_to_english": None if mean is None or "en" not in tables else tables["en"]["accuracy"] - mean["accuracy"],
        "mean": overall and overall["accuracy"],
        "worst_language": None,
        "published_mean_non_english": {
            name: float(np.mean([tables[code]["published"][name] for code in others]))
            for name in rows[0]["published"]
            if others
        },
    }
    if others:
        worst = min(others, key=lambda code: tables[code]["accuracy"])
        result["worst_language"] = {"language": worst, "accuracy": tables[worst]["accuracy"]}
    if seen:
        result["seen"] = mean_of([code for code in others if code in seen], columns, seed)
        result["unseen"] = mean_of([code for code in others if code not in seen], columns, seed)
    return result


# Comparison with an earlier evaluation of the same problems.


def compare(base_rows: Rows, rows: Rows, seed: int = 0) -> dict[str, Any]:
    """Comparison of an evaluation with a base: points, relative gain and significance per language and over languages.

    Returns:
      languages: code -> {base, base_low, base_high, points, relative, low, high, p_bootstrap, p_mcnemar}: the base's
        accuracy and interval, then the change and its interval; `relative` is None for a base of 0;
      mean_non_english: the same for the mean over languages except English, if they have equally many problems;
      english_retention: English accuracy over that of the base; None without English or for a base of 0.

    Raises:
      DataError: the two evaluations have different problems.
    """
    before, after = accuracies(base_rows), accuracies(rows)
    if set(before) != set(after):
        lacking, more = sorted(set(before) - set(after)), sorted(set(after) - set(before))
        raise DataError(
            f"The base has {len(before)} problems and this evaluation {len(after)}: {len(lacking)} only in the base "
            f"({', '.join(lacking[:3])}), {len(more)} only here ({', '.join(more[:3])}). Run both with the same "
            "--benchmark, --languages and --limit."
        )
    pairs = {
        code: ([before[key] for key in keys], [after[key] for key in keys])
        for code, part in rows_by("language", rows).items()
        if (keys := dict.fromkeys(row["key"] for row in part))
    }
    tests = {code: _comparison(*sides, seed) for code, sides in pairs.items()}
    others = [sides for code, sides in pairs.items() if code != "en"]
    result: dict[str, Any] = {"languages": tests, "mean_non_english": None, "english_retention": None}
    if len({len(base) for base, _ in others}) == 1:
        base, new = np.mean(others, axis=0)
        result["mean_non_english"] = _comparison(base, new, seed)
    if "en" in tests and tests["en"]["base"] > 0:
        result["english_retention"] = (tests["en"]["base"] + tests["en"]["points"]) / tests["en"]["base"]
    return result


def _comparison(before: Values, after: Values, seed: int) -> dict[str, Any]:
    test, interval = paired_test(before, after, seed), bootstrap_interval(before, seed)
    base = interval.mean
    return {
        "base": base,
        "base_low": interval.low,
        "base_high": interval.high,
        "points": test.difference,
        "relative": test.difference / base if base else None,
        "low": test.low,
        "high": test.high,
        "p_bootstrap": test.p_bootstrap,
        "p_mcnemar": test.p_mcnemar,
    }
