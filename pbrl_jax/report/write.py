"""The report of a run: reads what is in its work directory, and writes one HTML file that needs nothing else.

Pictures, style and script are inside the file, to be opened, mailed or kept.
"""

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
"""Folder of a quickstart's reinforcement learning, which has the curves and the samples."""


def write_report(path: str | os.PathLike, data: ReportData) -> epath.Path:
    """Writes the page, whole or not at all, and returns its path.

    Raises:
      DataError: neither accuracies nor metrics, or an accuracy that is no fraction.
    """
    if not data.summary.get("languages") and not data.metrics and not data.audit:
        raise DataError(
            "Nothing to report: found neither accuracies per language (summary.json) nor metrics (metrics.jsonl). "
            "Train first: pbrl train configs/tiny_cpu.py --workdir runs/tiny"
        )
    _check_summary(data.summary)
    path = epath.Path(path)
    write_atomic(path, page(data).encode("utf-8", "replace"))  # halves of surrogate pairs cannot be written
    return path


def _check_summary(summary: Mapping[str, Any]) -> None:
    """Names the first value of a summary that no picture can be made of."""
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
    """Makes one HTML file of what runs left in their work directories, and returns its path.

    The page is of the first run; several are compared with it. What is not there is named on the page.

    Args:
      workdirs: of `pbrl train`, `pbrl quickstart`, `pbrl audit` or `pbrl eval`.
      out: the file; default: `report.html` of the first work directory, `comparison.html` where there are several.

    Raises:
      DataError: a folder does not exist or is given twice, holds nothing to report, or a file in it is not what it
        should be.
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
    """The report's main figure as a small PNG, for a README: accuracy per language before and after, with intervals.

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
    doubles = sorted({str(root) for root in roots if roots.count(root) > 1})
    if doubles:
        raise DataError(f"{', '.join(doubles)} is given twice. Name each work directory once.")
    return roots


def run_labels(roots: Sequence[epath.Path]) -> list[str]:
    """Short names of work directories: the last folder, with as many above it as tell all apart."""
    for depth in range(1, max((len(root.parts) for root in roots), default=0) + 1):
        labels = ["/".join(root.parts[-depth:]) for root in roots]
        if len(set(labels)) == len(labels):
            return labels
    return [str(root) for root in roots]


# Reading work directories.


def read_run(workdir: str | os.PathLike) -> ReportData:
    """The data of one work directory: of `pbrl train`, `pbrl quickstart`, `pbrl audit` or `pbrl eval`.

    Raises:
      DataError: the folder does not exist, holds nothing to report, or a file in it is not what it should be.
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
    found = {title: read_object(paths.root / name, AUDIT) for title, name in AUDITS.items()}
    audit = {title: table for title, table in found.items() if table}
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
    """The folder with curves and samples: the work directory itself, or the run inside a quickstart's."""
    inner = work_dir(paths.root / QUICKSTART_RUN)
    return inner if not paths.metrics.exists() and inner.metrics.exists() else paths


def evaluation_summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of an eval.json, with the base as `before` where it was compared with one; {} for no result."""
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
    """The rows of evaluations.jsonl (else those of metrics.jsonl with accuracies), and final.json's behind them."""
    final = read_object(run.final, FINAL)
    rows = read_rows(run.evaluations, STEP) or [row for row in metrics if _has_accuracy(row)]
    if _has_accuracy(final.get("metrics") or {}) and final.get("step") is not None:
        rows = [row for row in rows if row["step"] < final["step"]] + [{"step": final["step"], **final["metrics"]}]
    return rows


def _has_accuracy(row: Mapping[str, Any]) -> bool:
    return any(name.startswith(ACCURACY) for name in row)


def trained_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Before and after of a training run: its first and its last evaluation; {} where there was none.

    With one evaluation alone (that at the end) there is no `before`.
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
    """contamination.json of a training run, or what an evaluation found."""
    found = read_object(root / "contamination.json", CONTAMINATION)
    if found:
        return found.get("benchmarks") or {}
    return {str(result.get("benchmark")): result["contamination"]} if result.get("contamination") else {}


def read_samples(paths: WorkDir) -> list[dict[str, Any]]:
    """The rows of all sample files, in the order of their steps."""
    if not paths.samples.is_dir():
        return []
    found = ((re.fullmatch(r"step_(\d+)\.jsonl", path.name), path) for path in paths.samples.iterdir())
    numbered = sorted((int(match[1]), path) for match, path in found if match)
    rows = [{"step": step, **row} for step, path in numbered for row in read_json_lines(path)]
    return [checked(row, SAMPLE, f"{paths.samples}, step {row['step']}") for row in rows]


def responses(paths: WorkDir, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The responses of an evaluation as samples: right is a reward of 1, and the grades are its parts."""
    found = paths.root / "responses.jsonl"
    rows = [row for row in read_json_lines(found) if "completion" in row and "correct" in row]
    for row in rows:
        checked(row, RESPONSE, str(found))
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
