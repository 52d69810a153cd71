"""The report of a run: what goes in, and `write_report`, which makes one HTML file that needs nothing else.

In:  the summary of a comparison (before and after, per language), the rows of metrics.jsonl, sampled responses, the
     resolved config; each where there is one.
Out: a single file with pictures, style and script inside, to be opened, mailed or kept.
"""

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from pbrl_jax.core.errors import DataError
from pbrl_jax.core.paths import read_json_lines, work_dir, write_atomic
from pbrl_jax.eval.report_data import ReportData
from pbrl_jax.eval.report_page import page


def write_report(path: str | os.PathLike, data: ReportData) -> epath.Path:
    """Writes the page, whole or not at all, and returns its path.

    Raises:
      DataError: neither accuracies nor metrics, or an accuracy that is no fraction.
    """
    if not data.summary.get("languages") and not data.metrics:
        raise DataError(
            "Nothing to report: found neither accuracies per language (summary.json) nor metrics (metrics.jsonl). "
            "Train first: pbrl train configs/tiny_cpu.py --workdir runs/tiny"
        )
    _check_summary(data.summary)
    path = epath.Path(path)
    write_atomic(path, page(data))
    return path


def _check_summary(summary: Mapping[str, Any]) -> None:
    """Names the first value of a summary that no picture can be made of."""
    for language, record in (summary.get("languages") or {}).items():
        for side in ("before", "after"):
            value = record.get(side) if isinstance(record, Mapping) else record
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise DataError(
                    f"Accuracy {side!r} of language {language!r} is {value!r}; expected a fraction from 0 to 1, as in "
                    '{"languages": {"sw": {"before": 0.43, "after": 0.68}}}.'
                )
    for name, record in (summary.get("controls") or {}).items():
        if not isinstance(record, Mapping | int | float):
            raise DataError(f"Control {name!r} is {record!r}; expected a share or a record with mean_non_english.")
    for stage, seconds in (summary.get("seconds") or {}).items():
        if not isinstance(seconds, int | float):
            raise DataError(f"Stage {stage!r} took {seconds!r}; expected a number of seconds.")


def report_workdir(workdir: str | os.PathLike) -> epath.Path:
    """Makes `W/report.html` from what a run left in its work directory, and returns its path.

    What is not there is named on the page. Reads summary.json, metrics.jsonl, samples/, config.json.

    Raises:
      DataError: the folder does not exist, holds nothing to report, or a file in it is not what it should be.
    """
    paths = work_dir(workdir)
    if not paths.root.is_dir():
        raise DataError(f"No work directory at {paths.root}. Give the folder that a run was started with (--workdir).")
    missing: list[str] = []
    summary = _read_object(paths.root / "summary.json", "accuracies before and after", missing)
    metrics = read_json_lines(paths.metrics)
    if not metrics:
        missing.append(f"{paths.metrics.name} (curves over the steps)")
    samples = _read_samples(paths)
    if not samples:
        missing.append("samples/ (sampled responses)")
    config = _read_object(paths.config, "the resolved config", missing)
    if not summary and not metrics:
        raise DataError(f"Nothing to report in {paths.root}: no " + ", no ".join(missing) + ".")
    data = ReportData(
        title=f"Report of {paths.root.name}",
        summary=summary,
        metrics=tuple(metrics),
        samples=tuple(samples),
        config=config,
        missing=tuple(missing),
    )
    return write_report(paths.root / "report.html", data)


def _read_object(path: epath.Path, what: str, missing: list[str]) -> dict[str, Any]:
    if not path.exists():
        missing.append(f"{path.name} ({what})")
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}. Delete it, or let the run write it again.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}; expected a JSON object.")
    return value


def _read_samples(paths: Any) -> list[dict[str, Any]]:
    """The rows of all sample files, in the order of their steps."""
    if not paths.samples.is_dir():
        return []
    found = ((re.fullmatch(r"step_(\d+)\.jsonl", path.name), path) for path in paths.samples.iterdir())
    numbered = sorted((int(match[1]), path) for match, path in found if match)
    return [{"step": step, **row} for step, path in numbered for row in read_json_lines(path)]
