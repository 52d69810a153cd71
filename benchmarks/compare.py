"""pbrl_jax beside Tunix and TRL: the same GRPO step, the same machine, taking turns.

    bash benchmarks/peers/setup.sh .peers
    python benchmarks/compare.py --peers .peers --rounds 3 --json compare.json

Every library runs in a process of its own (ours, tunix, trl, ours, tunix, trl, ...), so that a neighbour's load or
a clock that slows down meets all of them. README.md next door says how the numbers are made.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from peers.bench_protocol import (
    PHASES,
    WARMUP_STEPS,
    add_workload_flags,
    check_workload,
    cpu_name,
    workload_argv,
    workload_dict,
)

HERE = Path(__file__).resolve().parent
LIBRARIES = ("ours", "tunix", "trl")
TIMED = (*PHASES, "total")
CPU_TIMED = tuple(cpu_name(phase) for phase in PHASES)
SHOWN_LINES_OF_A_FAILURE = 15


@dataclass(frozen=True)
class Contestant:
    """How to start one library's step script."""

    name: str
    python: Path
    script: Path

    def missing(self, peers: Path) -> str | None:
        """Why it cannot run, or None."""
        if not self.script.exists():
            return f"there is no {self.script.relative_to(HERE.parent)}"
        if not self.python.exists():
            return f"there is no environment at {self.python}; make it with: bash benchmarks/peers/setup.sh {peers}"
        return None


def contestants(peers: Path, chosen: list[str]) -> list[Contestant]:
    everyone = [Contestant("ours", Path(sys.executable), HERE / "grpo_step.py")]
    everyone += [
        Contestant(name, peers / name / "bin" / "python", HERE / "peers" / f"{name}_step.py") for name in LIBRARIES[1:]
    ]
    return [contestant for contestant in everyone if contestant.name in chosen]


def run_once(contestant: Contestant, flags: argparse.Namespace) -> tuple[dict | None, str]:
    """One process; its result and, where there is none, the end of what it printed."""
    environment = dict(os.environ)
    environment.setdefault("JAX_PLATFORMS", "cpu")  # TRL runs on the CPU here, so everybody does
    if contestant.name == "ours":  # works without installing the package
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), environment.get("PYTHONPATH")]))
    else:  # a peer must see its own environment alone
        environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [str(contestant.python), str(contestant.script), *workload_argv(flags), "--json", str(result)]
        try:
            done = subprocess.run(
                command,
                env=environment,
                cwd=HERE.parent,
                timeout=flags.timeout,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        except subprocess.TimeoutExpired:
            return None, f"stopped after {flags.timeout} s (--timeout)"
        if done.returncode == 0 and result.exists():
            return json.loads(result.read_text()), ""
        tail = "\n".join("    " + line for line in done.stdout.splitlines()[-SHOWN_LINES_OF_A_FAILURE:])
        return None, f"exit status {done.returncode}; it printed last:\n{tail}"


def run_rounds(players: list[Contestant], flags: argparse.Namespace) -> tuple[list[dict], list[str]]:
    """All rounds, taking turns. Whoever fails once is left out of the later rounds."""
    runs, failures = [], []
    for round_number in range(1, flags.rounds + 1):
        for player in list(players):
            load_before = os.getloadavg()[0]
            result, problem = run_once(player, flags)
            if result is None:
                failures.append(f"{player.name} failed in round {round_number}: {problem}")
                players.remove(player)
                print(failures[-1], flush=True)
                continue
            runs.append({"contestant": player.name, "round": round_number, "load_before": load_before, **result})
            total = statistics.median(step["total"] for step in result["steps"])
            print(
                f"round {round_number}/{flags.rounds}  {player.name:<6} median step {total:8.3f} s   "
                f"(load before: {load_before:.1f})",
                flush=True,
            )
    return runs, failures


def _over(values: list, reduce):
    """reduce(values), or None where the library could not tell one of them."""
    return None if not values or any(value is None for value in values) else reduce(values)


def summarize(runs: list[dict]) -> dict:
    """One library's figures over the warm steps of all its rounds."""
    steps = [step for run in runs for step in run["steps"]]
    column = {key: [step.get(key) for step in steps] for key in (*TIMED, *CPU_TIMED, "cpu_seconds", "response_tokens")}
    return {
        "version": runs[0]["version"],
        "rounds": len(runs),
        "steps": len(steps),
        "median": {phase: _over(column[phase], statistics.median) for phase in TIMED},
        "best": {phase: _over(column[phase], min) for phase in TIMED},
        "phase_cpu_seconds": {phase: _over(column[cpu_name(phase)], statistics.median) for phase in PHASES},
        "cpu_seconds": _over(column["cpu_seconds"], statistics.median),
        "response_tokens": _over(column["response_tokens"], statistics.mean),
        "response_tokens_per_second": statistics.median(step["response_tokens"] / step["total"] for step in steps),
        "peak_rss_bytes": max(run["peak_rss_bytes"] for run in runs),
        "first_step_seconds": statistics.median(run["first_step_seconds"] for run in runs),
        "compilations_after_warmup": _over([run["compilations_after_warmup"] for run in runs], max),
    }


def figures(summary: dict) -> dict[str, float | None]:
    """The table's rows of one library, by label."""
    rows = {}
    for phase in TIMED:
        rows[f"{phase}, median s"] = summary["median"][phase]
        rows[f"{phase}, best s"] = summary["best"][phase]
    rows |= {f"{phase}, CPU-seconds": summary["phase_cpu_seconds"][phase] for phase in PHASES}
    return rows | {
        "CPU-seconds per step": summary["cpu_seconds"],
        "response tokens per second": summary["response_tokens_per_second"],
        "response tokens per step": summary["response_tokens"],
        "peak memory, MiB": summary["peak_rss_bytes"] / 2**20,
        "first step, s": summary["first_step_seconds"],
        "compilations after warm-up": summary["compilations_after_warmup"],
    }


def ratios(summaries: dict[str, dict]) -> dict[str, dict[str, float]]:
    """ours / peer for every row where both have a figure and the peer's is not 0."""
    if "ours" not in summaries:
        return {}
    ours = figures(summaries["ours"])
    return {
        peer: {row: ours[row] / value for row, value in figures(summary).items() if value and ours[row] is not None}
        for peer, summary in summaries.items()
        if peer != "ours"
    }


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def table(summaries: dict[str, dict]) -> list[list[str]]:
    """Header and rows as text: one column per library, then one ratio per peer."""
    columns = {name: figures(summary) for name, summary in summaries.items()}
    ratio_columns = ratios(summaries)
    header = [
        "",
        *(f"{name} {summaries[name]['version']}" for name in columns),
        *(f"ours/{peer}" for peer in ratio_columns),
    ]
    rows = [
        [
            label,
            *(_cell(figure[label]) for figure in columns.values()),
            *(f"{ratio[label]:.2f}" if label in ratio else "-" for ratio in ratio_columns.values()),
        ]
        for label in next(iter(columns.values()))
    ]
    return [header, *rows]


def as_text(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cells = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = ["  ".join([row[0].ljust(widths[0]), *right[1:]]) for row, right in zip(rows, cells, strict=True)]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def as_markdown(rows: list[list[str]]) -> str:
    rule = ["---", *("---:" for _ in rows[0][1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--peers", type=Path, default=Path(".peers"), metavar="DIR", help="what peers/setup.sh made")
    add_workload_flags(parser)
    parser.add_argument("--rounds", type=int, default=3, help="how often each library runs")
    parser.add_argument("--only", default=",".join(LIBRARIES), help="who takes part, separated by commas")
    parser.add_argument("--timeout", type=int, default=1800, help="seconds one process may take")
    parser.add_argument("--json", default="", metavar="FILE", help="write every run, the summary and the ratios there")
    flags = parser.parse_args()
    check_workload(flags)
    flags.peers = Path(os.path.abspath(flags.peers))  # not resolve(): an environment's python is a link
    flags.chosen = [name.strip() for name in flags.only.split(",") if name.strip()]
    unknown = sorted(set(flags.chosen) - set(LIBRARIES))
    if unknown or not flags.chosen:
        parser.error(f"--only knows {', '.join(LIBRARIES)}, not {', '.join(unknown) or 'an empty list'}")
    if flags.rounds < 1:
        parser.error("--rounds must be at least 1")
    return flags


def main() -> int:
    flags = parse_arguments()
    players, notes = [], []
    for contestant in contestants(flags.peers, flags.chosen):
        reason = contestant.missing(flags.peers)
        if reason:
            notes.append(f"{contestant.name} is left out: {reason}")
            print(notes[-1])
        else:
            players.append(contestant)
    if not players:
        print("Nobody is left to run.")
        return 1
    runs, failures = run_rounds(players, flags)
    by_name = {name: [run for run in runs if run["contestant"] == name] for name in LIBRARIES}
    summaries = {name: summarize(own) for name, own in by_name.items() if own}
    if summaries:
        rows = table(summaries)
        print(
            f"\n{flags.rounds} rounds of {flags.steps} steps, {WARMUP_STEPS} of them warm-up; "
            f"ratios are ours / peer (below 1: ours needs less; tokens per second: above 1 is better)\n\n"
            f"{as_text(rows)}\n\nAs Markdown:\n\n{as_markdown(rows)}"
        )
    if flags.json:
        result = {
            "flags": workload_dict(flags),
            "rounds": flags.rounds,
            "cpu_count": os.cpu_count(),
            "notes": notes + failures,
            "summary": summaries,
            "ratios": ratios(summaries),
            "runs": runs,
        }
        Path(flags.json).write_text(json.dumps(result, indent=1) + "\n")
    print("".join(f"\nNote: {line}" for line in notes + failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
