"""The data of a report, and numbers derived from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pbrl_jax.eval.statistics import wilson_interval
from pbrl_jax.report.shapes import is_number
from pbrl_jax.text.languages import LANGUAGES

ACCURACY = "eval/accuracy/"
Series = Sequence[tuple[float, float]]
"""(step, value), steps increasing, values finite."""

REAL_MODELS = (
    ("on one or more NVIDIA GPUs (for a TPU VM: '.[tpu]')", "pip install -e '.[cuda]'"),
    ("the paper's smaller policy: the English expert writes the references, once",
     "pbrl pivots configs/llama31_8b_pbrlsvr.py --workdir runs/llama31_8b"),
    ("train; the same command continues after an interruption",
     "pbrl train configs/llama31_8b_pbrlsvr.py --workdir runs/llama31_8b"),
    ("this page for that run", "pbrl report runs/llama31_8b"),
    ("the same on a Cloud TPU slice, recreated whenever it is preempted",
     "TPU_NAME=my-tpu ZONE=us-east5-a ACCELERATOR_TYPE=v5p-32 SPOT=1 bash launch/tpu_vm.sh loop "
     "train configs/qwen3_32b_pbrlsvr.py --workdir gs://my-bucket/qwen3_32b"),
)  # fmt: skip
"""(comment, command): next steps with real models."""

CONTROLS = {
    "shuffled": ("Shuffled references", "references of other questions: no gain is expected"),
    "answer": ("Gold answers", "the gold answer as the only reward: an upper limit"),
    "sft_continued": ("Continued SFT", "supervised training on as many responses as the rollouts had"),
}
"""The controls of `pbrl quickstart` (see quickstart/controls.py): name -> (title, what it shows)."""

AUDITS = {"configured reward": "audit.json", "plain cosine": "audit_plain_cosine.json"}
"""The rewards that `pbrl audit` attacks: title -> file in the work directory."""


@dataclass(frozen=True)
class ReportData:
    """The data of a report. `summary`, `metrics` or `audit` is required; everything else is optional.

    Attributes:
      title: heading of the page.
      summary: the record of summary.json. `languages` maps a code to `{before, after}`, where `before` is optional,
        with optional bootstrap intervals `intervals: {before: [low, high], after: [low, high]}` and, of the change,
        `change: [low, high]`; `mean_non_english` and `gap_to_english` are pairs `{before, after}` (computed if absent);
        `problems_per_language` is a number or a map from code to number, and gives Wilson intervals; `controls` maps a
        name to a record with `mean_non_english` (and `languages`), a pair `{before, after}`, or the share after;
        `seeds` is a list of such records with `seed`, or of numbers; `seconds` maps a stage to seconds, with `total`.
        Shares are fractions in [0, 1].
      metrics: rows of metrics.jsonl.
      evaluations: rows with accuracies over the steps, `{step, eval/...}`.
      samples: rows of samples/step_<n>.jsonl, with the fields of pbrl_jax.logs.samples.SAMPLE_FIELDS.
      config: the resolved config as nested mappings.
      audit: title -> language -> attack -> AUC in [0, 1], as in audit.json.
      contamination: benchmark -> its record in contamination.json.
      next_commands: (comment, command) pairs.
      evaluation: the result of `pbrl eval`, eval.json.
      missing: descriptions of files that were not found.
      runs: label -> run, this one first, if several are compared.
    """

    title: str = "Training report"
    summary: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[Mapping[str, Any], ...] = ()
    samples: tuple[Mapping[str, Any], ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    evaluations: tuple[Mapping[str, Any], ...] = ()
    audit: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    contamination: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    next_commands: tuple[tuple[str, str], ...] = REAL_MODELS
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    runs: Mapping[str, "ReportData"] = field(default_factory=dict)


class Intervals(NamedTuple):
    """95 % intervals of a language's accuracies: the method, and `before` and `after` -> (low, high)."""

    method: str
    bounds: Mapping[str, tuple[float, float]]


def problem_count(summary: Mapping[str, Any], language: str) -> int | None:
    """Number of evaluation problems of a language; None if the summary does not have it."""
    count = summary.get("problems_per_language")
    count = count.get(language) if isinstance(count, Mapping) else count
    return int(count) if count else None


def accuracy_intervals(summary: Mapping[str, Any], language: str) -> Intervals | None:
    """The summary's bootstrap intervals, else Wilson intervals from the number of problems, else None."""
    record, count = summary["languages"][language], problem_count(summary, language)
    if any((record.get("intervals") or {}).values()):
        return Intervals("bootstrap", {side: tuple(ends) for side, ends in record["intervals"].items() if ends})
    if not count:
        return None
    sides = [side for side in ("before", "after") if record.get(side) is not None]
    return Intervals("Wilson", {side: wilson_interval(record[side], count) for side in sides})


def interval_methods(summary: Mapping[str, Any]) -> str:
    """The methods of a summary's intervals, such as `Wilson`; "" without intervals."""
    by_language = (accuracy_intervals(summary, code) for code in summary.get("languages") or {})
    return " and ".join(dict.fromkeys(intervals.method for intervals in by_language if intervals))


def order_languages(summary: Mapping[str, Any], more: Sequence[str] = ()) -> list[str]:
    """The languages of a summary, and `more`: English first, then by gain."""
    languages = summary.get("languages") or {}
    gains = {code: record["after"] - record.get("before", 0.0) for code, record in languages.items()}
    return sorted({*languages, *more}, key=lambda code: (code != "en", -gains.get(code, 0.0), code))


def pair(record: Any, name: str) -> tuple[float | None, float | None]:
    """(before, after) of `mean_non_english`, `gap_to_english` or a language code; None for a missing value.

    Numbers of the record are used if present, else they are computed from its languages. A record that is a number is
    the mean after, one that is `{before, after}` the mean.
    """
    if isinstance(record, int | float):
        record = {"mean_non_english": {"after": record}}
    languages = record.get("languages") or {}
    if name in languages:
        given = languages[name]
    elif name == "mean_non_english" and ("before" in record or "after" in record):
        given = record
    else:
        given = record.get(name)
    if isinstance(given, int | float):
        return None, float(given)
    if isinstance(given, Mapping):
        return given.get("before"), given.get("after")
    others = [value for code, value in languages.items() if code != "en"]
    if name == "mean_non_english" and others:
        return _mean([record.get("before") for record in others]), _mean([record["after"] for record in others])
    if name == "gap_to_english" and "en" in languages and others:
        english, mean = pair(record, "en"), pair(record, "mean_non_english")
        return _difference(english[0], mean[0]), _difference(english[1], mean[1])
    return None, None


def _difference(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None if a value is None."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if len(numbers) == len(values) else None


def mean_record(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of several records, as a record for `pair`; None for values that one of them lacks."""
    sides = zip(*(pair(record, "mean_non_english") for record in records), strict=True)
    before, after = (_mean(side) for side in sides)
    english = _mean([pair(record, "en")[1] for record in records])
    return {"mean_non_english": {"before": before, "after": after}, "languages": {"en": {"after": english}}}


def series_of(metrics: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """(step, value) of the rows in which a metric is a finite number."""
    return [(row["step"], row[name]) for row in metrics if _is_number(row.get(name)) and _is_number(row.get("step"))]


def _is_number(value: Any) -> bool:
    return is_number(value) and not isinstance(value, bool)


def metric_names(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of all metrics that are a number in some row, in order of appearance."""
    names = dict.fromkeys(name for row in metrics for name, value in row.items() if _is_number(value))
    return [name for name in names if name != "step"]


def language_metrics(metrics: Sequence[Mapping[str, Any]], languages: Sequence[str] = ()) -> dict[str, list[str]]:
    """Language code -> names of the metrics that end in `/<code>`, for known languages and `languages`."""
    names: dict[str, list[str]] = {}
    for name in metric_names(metrics):
        code = name.rpartition("/")[2]
        if "/" in name and (code in LANGUAGES or code in languages):
            names.setdefault(code, []).append(name)
    return names


def end_means(series: Series, share: float = 0.1) -> tuple[float, float]:
    """Means of the first and the last tenth of a series, since single steps are too noisy to compare."""
    count = max(1, int(len(series) * share))
    values = [value for _, value in series]
    return sum(values[:count]) / count, sum(values[-count:]) / count


def evaluation_lines(data: ReportData) -> dict[str, Series]:
    """`English` and `other languages` -> (step, accuracy); {} if no accuracy was measured during training."""
    names = {"other languages": "eval/mean_non_english", "English": ACCURACY + "en"}
    lines = {label: series_of(data.evaluations, name) for label, name in names.items()}
    return {label: line for label, line in lines.items() if line}


def gap_line(data: ReportData) -> tuple[str, Series]:
    """(`accuracy` or `reward`, series of English minus the mean of the others): of accuracies if there are any, else of
    the first reward function with values per language."""
    lines = evaluation_lines(data)
    if len(lines) == 2:
        english = dict(lines["English"])
        return "accuracy", [(step, english[step] - mean) for step, mean in lines["other languages"] if step in english]
    rewards = (name for name in metric_names(data.metrics) if name.startswith("rewards/") and name.endswith("/en"))
    name, gaps = next(rewards, ""), []
    for row in data.metrics if name else ():
        others = [row[key] for key in row if key.startswith(name[:-2]) and key != name and _is_number(row[key])]
        if others and _is_number(row.get(name)) and _is_number(row.get("step")):
            gaps.append((row["step"], row[name] - sum(others) / len(others)))
    return "reward", gaps


def part_lines(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Reward function or part -> series of means; `rewards/cosine/answer/mean` has the label `cosine, answer`."""
    lines: dict[str, Series] = {}
    for name in metric_names(metrics):
        first, *parts = name.split("/")
        if first == "rewards" and parts[-1:] == ["mean"] and len(parts) > 1:
            lines[", ".join(parts[:-1])] = series_of(metrics, name)
    return lines
