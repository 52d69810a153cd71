"""What a run, a quickstart or an evaluation left in its work directory, as the data of a report."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from pbrl_jax.core.errors import DataError
from pbrl_jax.core.paths import WorkDir, read_json_lines, work_dir
from pbrl_jax.report.data import ACCURACY, ReportData

QUICKSTART_RUN = "rl"
"""Folder of a quickstart's reinforcement learning, which has the curves and the samples."""
AUDITS = {"configured reward": "audit.json", "plain cosine": "audit_plain_cosine.json"}


def read_run(workdir: str | os.PathLike) -> ReportData:
    """The data of one work directory: of `pbrl train`, `pbrl quickstart`, `pbrl audit` or `pbrl eval`.

    Raises:
      DataError: the folder does not exist, holds nothing to report, or a file in it is not what it should be.
    """
    paths = work_dir(workdir)
    if not paths.root.is_dir():
        raise DataError(f"No work directory at {paths.root}. Give the folder that a run was started with (--workdir).")
    run, missing = run_folder(paths), []
    metrics = read_json_lines(run.metrics)
    evaluations = read_evaluations(run, metrics)
    result = _read_object(paths.root / "eval.json")
    summary = _read_object(paths.root / "summary.json")
    summary_of_result = evaluation_summary(result)
    summary = summary or summary_of_result or trained_summary(evaluations)
    if not summary:
        missing.append("summary.json or evaluations (accuracies before and after: set train.eval_steps)")
    if not metrics and not result:
        missing.append(f"{paths.metrics.name} (curves over the steps)")
    samples = responses(paths, result) if result else read_samples(run)
    if not samples:
        missing.append("samples/ (sampled responses)")
    config = _read_object(paths.config)
    if not config and not result:
        missing.append("config.json (the resolved config)")
    found = {title: _read_object(paths.root / name) for title, name in AUDITS.items()}
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
            languages[code]["before"] = against[code]["base"]
            languages[code]["change"] = [against[code]["low"], against[code]["high"]]
    return {
        "languages": languages,
        "problems_per_language": {code: row["n"] for code, row in result["languages"].items()},
        "benchmark": f"{result.get('benchmark')}, {result.get('protocol')}",
    }


def read_evaluations(run: WorkDir, metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of evaluations.jsonl (else those of metrics.jsonl with accuracies), and final.json's behind them."""
    final = _read_object(run.final)
    rows = read_json_lines(run.evaluations) or [row for row in metrics if _has_accuracy(row)]
    if _has_accuracy(final.get("metrics") or {}):
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
    found = _read_object(root / "contamination.json")
    if found:
        return found.get("benchmarks") or {}
    return {str(result.get("benchmark")): result["contamination"]} if "contamination" in result else {}


def _read_object(path: epath.Path) -> dict[str, Any]:
    """A file's JSON object; {} where there is no file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}. Delete it, or let the run write it again.") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a {type(value).__name__}; expected a JSON object.")
    return value


def read_samples(paths: WorkDir) -> list[dict[str, Any]]:
    """The rows of all sample files, in the order of their steps."""
    if not paths.samples.is_dir():
        return []
    found = ((re.fullmatch(r"step_(\d+)\.jsonl", path.name), path) for path in paths.samples.iterdir())
    numbered = sorted((int(match[1]), path) for match, path in found if match)
    return [{"step": step, **row} for step, path in numbered for row in read_json_lines(path)]


def responses(paths: WorkDir, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The responses of an evaluation as samples: right is a reward of 1, and the grades are its parts."""
    rows = [row for row in read_json_lines(paths.root / "responses.jsonl") if "completion" in row and "correct" in row]
    return [
        {
            "step": 0,
            "prompt_id": row["key"],
            "language": row["language"],
            "prompt": row.get("question"),
            "completion": row["completion"],
            "gold": row.get("gold"),
            "reward": float(row["correct"]),
            "parts": {name: float(value) for name, value in row.get("published", {}).items()},
            "valid": True,
        }
        for row in rows
    ]
