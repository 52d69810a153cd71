"""The report of a run: reads its work directory and writes one self-contained HTML file."""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from pbrl_jax.core.errors import DataError
from pbrl_jax.core.paths import WorkDir, read_json_lines, read_json_object, work_dir, write_atomic
from pbrl_jax.report.data import ACCURACY, AUDITS, ReportData
from pbrl_jax.report.page import page
from pbrl_jax.report.plots import accuracy_png
from pbrl_jax.report.shapes import (
    AUDIT,
    CONTAMINATION,
    EVALUATION,
    FINAL,
    RESPONSE,
    SAMPLE,
    STEP,
    SUMMARY,
    checked,
    read_object,
    read_rows,
)

QUICKSTART_RUN = "rl"
"""Folder of the reinforcement learning stage in a quickstart's work directory."""


def write_report(path: str | os.PathLike, data: ReportData) -> epath.Path:
    """Writes the page atomically and returns its path.

    Raises:
      DataError: no accuracies, metrics or audit, or a value that cannot be shown.
    """
    if not data.summary.get("languages") and not data.metrics and not data.audit:
        raise DataError(
            "Nothing to report: found neither accuracies per language (summary.json) nor metrics (metrics.jsonl). "
            "Train first: pbrl train configs/tiny_cpu.py --workdir runs/tiny"
        )
    _check_summary(data.summary)
    path = epath.Path(path)
    write_atomic(path, page(data).encode("utf-8", "replace"))  # lone surrogates cannot be encoded
    return path


def _check_summary(summary: Mapping[str, Any]) -> None:
    """Raises DataError for the first value of a summary that cannot be shown."""
    for language, record in _entries(summary, "languages"):
        sides = ("before", "after") if not isinstance(record, Mapping) or "before" in record else ("after",)
        for side in sides:
            value = record.get(side) if isinstance(record, Mapping) else record
            if not isinstance(record, Mapping) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise DataError(
                    f"Accuracy {side!r} of language {language!r} is {value!r}; expected a fraction from 0 to 1, as in "
                    '{"languages": {"sw": {"before": 0.43, "after": 0.68}}}.'
                )
    for name, record in _entries(summary, "controls"):
        if not isinstance(record, Mapping | int | float):
            raise DataError(f"Control {name!r} is {record!r}; expected a share or a record with mean_non_english.")
    for stage, seconds in _entries(summary, "seconds"):
        if not isinstance(seconds, int | float):
            raise DataError(f"Stage {stage!r} took {seconds!r}; expected a number of seconds.")
    checked(summary, SUMMARY, "The summary")


def _entries(summary: Mapping[str, Any], name: str) -> Iterable[tuple[str, Any]]:
    part = summary.get(name)
    return part.items() if isinstance(part, Mapping) else ()


def report_workdirs(workdirs: Sequence[str | os.PathLike], out: str | os.PathLike | None = None) -> epath.Path:
    """Writes the HTML report of one or several work directories, and returns its path.

    The page shows the first run; others are compared with it. Missing files are listed on the page.

    Args:
      workdirs: of `pbrl train`, `pbrl quickstart`, `pbrl audit` or `pbrl eval`.
      out: the file; default: in the first work directory `report.html`, or `comparison.html` for several.

    Raises:
      DataError: a folder that does not exist, is given twice or holds nothing to report, or an invalid file in it.
    """
    roots = distinct_roots(workdirs)
    runs = [read_run(root) for root in roots]
    data = runs[0]
    if len(runs) > 1:
        labels = run_labels(roots)
        compared = {label: run for label, run in zip(labels, runs, strict=True)}
        data = dataclasses.replace(data, title="Comparison of " + ", ".join(labels), runs=compared)
    name = "comparison.html" if len(runs) > 1 else "report.html"
    return write_report(out or roots[0] / name, data)


def write_picture(path: str | os.PathLike, data: ReportData) -> epath.Path:
    """Writes accuracy per language before and after, with intervals, as a small PNG.

    Raises:
      DataError: there are no accuracies per language.
    """
    if not data.summary.get("languages"):
        raise DataError("No accuracies per language to draw. Give a work directory with summary.json or evaluations.")
    _check_summary(data.summary)
    write_atomic(path, accuracy_png(data.summary))
    return epath.Path(path)


def distinct_roots(workdirs: Sequence[str | os.PathLike]) -> list[epath.Path]:
    """The work directories as absolute paths.

    Raises:
      DataError: one is given twice.
    """
    roots = [work_dir(workdir).root for workdir in workdirs]
    repeated = sorted({str(root) for root in roots if roots.count(root) > 1})
    if repeated:
        raise DataError(f"{', '.join(repeated)} is given twice. Name each work directory once.")
    return roots


def run_labels(roots: Sequence[epath.Path]) -> list[str]:
    """Short names of work directories: the last folder, with parent folders as far as needed to make names unique."""
    for depth in range(1, max((len(root.parts) for root in roots), default=0) + 1):
        labels = ["/".join(root.parts[-depth:]) for root in roots]
        if len(set(labels)) == len(labels):
            return labels
    return [str(root) for root in roots]


# Reading work directories.


def read_run(workdir: str | os.PathLike) -> ReportData:
    """The data of the work directory of `pbrl train`, `pbrl quickstart`, `pbrl audit` or `pbrl eval`.

    Raises:
      DataError: the folder does not exist or holds nothing to report, or a file in it is invalid.
    """
    paths = work_dir(workdir)
    if not paths.root.is_dir():
        raise DataError(f"No work directory at {paths.root}. Give the folder that a run was started with (--workdir).")
    run, missing = run_folder(paths), []
    metrics = read_rows(run.metrics, STEP)
    evaluations = read_evaluations(run, metrics)
    result = read_object(paths.root / "eval.json", EVALUATION)
    summary = read_json_object(paths.root / "summary.json")
    summary_of_result = evaluation_summary(result)
    summary = summary or summary_of_result or trained_summary(evaluations)
    if not summary:
        missing.append("summary.json or evaluations (accuracies before and after: set train.eval_steps)")
    if not metrics and not result:
        missing.append(f"{paths.metrics.name} (curves over the steps)")
    samples = responses(paths, result) if result else read_samples(run)
    if not samples:
        missing.append("samples/ (sampled responses)")
    config = read_json_object(paths.config)
    if not config and not result:
        missing.append("config.json (the resolved config)")
    audit = {title: table for title, name in AUDITS.items() if (table := read_object(paths.root / name, AUDIT))}
    if not summary and not metrics and not audit:
        raise DataError(f"Nothing to report in {paths.root}: no " + ", no ".join(missing) + ".")
    return ReportData(
        title=f"Report of {paths.root.name}",
        summary=summary,
        metrics=tuple(metrics),
        samples=tuple(samples),
        config=config or {name: value for name, value in result.items() if not isinstance(value, Mapping)},
        evaluations=tuple(evaluations),
        audit=audit,
        contamination=_contamination(paths.root, result),
        evaluation=result if summary_of_result else {},
        missing=tuple(missing),
    )


def run_folder(paths: WorkDir) -> WorkDir:
    """The folder with curves and samples: the work directory, or the run inside that of a quickstart."""
    inner = work_dir(paths.root / QUICKSTART_RUN)
    return inner if not paths.metrics.exists() and inner.metrics.exists() else paths


def evaluation_summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of an eval.json, with the base of its comparison, if any, as `before`; {} for no result."""
    if not isinstance(result.get("languages"), Mapping):
        return {}
    against = (result.get("against_base") or {}).get("languages") or {}
    languages = {}
    for code, row in result["languages"].items():
        languages[code] = {"after": row["accuracy"], "intervals": {"after": [row["low"], row["high"]]}}
        if code in against:
            base = against[code]
            languages[code] |= {"before": base["base"], "change": [base["low"], base["high"]]}
            if "base_low" in base:
                languages[code]["intervals"]["before"] = [base["base_low"], base["base_high"]]
    return {
        "languages": languages,
        "problems_per_language": {code: row["n"] for code, row in result["languages"].items()},
        "benchmark": f"{result.get('benchmark')}, {result.get('protocol')}",
    }


def read_evaluations(run: WorkDir, metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of evaluations.jsonl (else rows of metrics.jsonl with accuracies), and the accuracies of final.json."""
    final = read_object(run.final, FINAL)
    rows = read_rows(run.evaluations, STEP) or [row for row in metrics if _has_accuracy(row)]
    if _has_accuracy(final.get("metrics") or {}) and final.get("step") is not None:
        rows = [row for row in rows if row["step"] < final["step"]] + [{"step": final["step"], **final["metrics"]}]
    return rows


def _has_accuracy(row: Mapping[str, Any]) -> bool:
    return any(name.startswith(ACCURACY) for name in row)


def trained_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The summary of a training run: `before` is its first evaluation, `after` its last one; {} without evaluations.

    With a single evaluation (at the end) there is no `before`.
    """
    if not rows:
        return {}
    first, last = rows[0], rows[-1]
    languages, counts = {}, {}
    for name, value in last.items():
        if name.startswith(ACCURACY):
            code = name.removeprefix(ACCURACY)
            languages[code] = {"after": value}
            if len(rows) > 1 and name in first:
                languages[code]["before"] = first[name]
            if f"eval/problems/{code}" in last:
                counts[code] = last[f"eval/problems/{code}"]
    return {"languages": languages} | ({"problems_per_language": counts} if len(counts) == len(languages) else {})


def _contamination(root: epath.Path, result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The records of contamination.json of a training run, else of an evaluation's result."""
    if record := read_object(root / "contamination.json", CONTAMINATION):
        return record.get("benchmarks") or {}
    return {str(result.get("benchmark")): result["contamination"]} if result.get("contamination") else {}


def read_samples(paths: WorkDir) -> list[dict[str, Any]]:
    """The rows of all sample files, in the order of their steps."""
    if not paths.samples.is_dir():
        return []
    matches = ((re.fullmatch(r"step_(\d+)\.jsonl", path.name), path) for path in paths.samples.iterdir())
    numbered = sorted((int(match[1]), path) for match, path in matches if match)
    rows = [{"step": step, **row} for step, path in numbered for row in read_json_lines(path)]
    return [checked(row, SAMPLE, f"{paths.samples}, step {row['step']}") for row in rows]


def responses(paths: WorkDir, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The responses of an evaluation as samples: the reward is 1 for a correct one, its parts are published grades."""
    file = paths.root / "responses.jsonl"
    rows = [row for row in read_json_lines(file) if "completion" in row and "correct" in row]
    for row in rows:
        checked(row, RESPONSE, str(file))
    return [
        {
            "step": 0,
            "prompt_id": row["key"],
            "language": row["language"],
            "prompt": row.get("question"),
            "completion": row["completion"],
            "gold": row.get("gold"),
            "reward": float(row["correct"]),
            "parts": {name: float(value) for name, value in (row.get("published") or {}).items()},
            "valid": True,
        }
        for row in rows
    ]
