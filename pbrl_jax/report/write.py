"""The report of a run: what goes in, and `write_report`, which makes one HTML file that needs nothing else.

In:  accuracies before and after per language, the rows of metrics.jsonl, sampled responses, the audit's table, the
     resolved config, other runs to compare with; each where there is one.
Out: a single file with pictures, style and script inside, to be opened, mailed or kept.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from pbrl_jax.core.errors import DataError
from pbrl_jax.core.paths import work_dir, write_atomic
from pbrl_jax.report.data import ReportData
from pbrl_jax.report.page import page
from pbrl_jax.report.read import read_run


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
    write_atomic(path, page(data))
    return path


def _check_summary(summary: Mapping[str, Any]) -> None:
    """Names the first value of a summary that no picture can be made of."""
    for language, record in (summary.get("languages") or {}).items():
        sides = ("before", "after") if not isinstance(record, Mapping) or "before" in record else ("after",)
        for side in sides:
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


def report_workdir(workdir: str | os.PathLike) -> epath.Path:
    """Makes `W/report.html`; as report_workdirs of one work directory."""
    return report_workdirs([workdir])


def write_picture(path: str | os.PathLike, data: ReportData) -> epath.Path:
    """The report's main figure as a small PNG, for a README: accuracy per language before and after, with intervals.

    Raises:
      DataError: there are no accuracies per language.
    """
    if not data.summary.get("languages"):
        raise DataError("No accuracies per language to draw. Give a work directory with summary.json or evaluations.")
    _check_summary(data.summary)
    from pbrl_jax.report.picture import picture_bytes  # matplotlib is slow to import

    write_atomic(path, picture_bytes(data.summary))
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
