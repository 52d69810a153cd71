"""What every step benchmark has in common: its flags going in, its clock, its table and JSON file coming out.

Standard library only, so that compare.py and every library's environment can import it.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

WARMUP_STEPS = 2
PHASES = ("rollout", "reward", "reference", "update")

_SIZES = [  # flag, default, meaning
    ("--vocab", 8192, "vocabulary size"),
    ("--d", 256, "model width"),
    ("--layers", 4, "decoder layers"),
    ("--heads", 8, "query heads"),
    ("--kv-heads", 4, "key-value heads"),
    ("--head-dim", 32, "width of one head"),
    ("--ffn", 1024, "feed-forward width"),
    ("--prompts", 4, "prompts per step"),
    ("--group", 8, "responses per prompt"),
    ("--prompt-len", 64, "prompt tokens, the BOS included"),
    ("--response-len", 64, "most response tokens, the EOS included"),
    ("--mean-response", 0, "mean of the geometric response length; 0: every response has full length"),
]


def add_workload_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what work a step does (everything but --json)."""
    for flag, default, meaning in _SIZES:
        parser.add_argument(flag, type=int, default=default, help=meaning)
    parser.add_argument(
        "--ragged-prompts", action="store_true", help="prompt lengths uniform between a quarter and all of --prompt-len"
    )
    parser.add_argument("--beta", type=float, default=0.04, help="KL coefficient; 0 needs no reference pass")
    parser.add_argument(
        "--steps", type=int, default=8, help=f"steps to run; the first {WARMUP_STEPS} warm up and are left out"
    )
    parser.add_argument("--seed", type=int, default=0, help="weights, prompts and sampling")


def check_workload(flags: argparse.Namespace) -> None:
    """Exit with one clear sentence where the flags contradict each other."""
    if flags.steps <= WARMUP_STEPS:
        raise SystemExit(
            f"--steps is {flags.steps}, but the first {WARMUP_STEPS} only warm up: ask for at least {WARMUP_STEPS + 1}."
        )
    if flags.mean_response == 1 or flags.mean_response < 0:
        raise SystemExit(f"--mean-response is {flags.mean_response}: use 0 (full length) or at least 2.")
    if flags.heads % flags.kv_heads:
        raise SystemExit(f"--heads {flags.heads} is no multiple of --kv-heads {flags.kv_heads}.")
    if flags.vocab < 16 or flags.prompt_len < 4:
        raise SystemExit("--vocab must be at least 16 and --prompt-len at least 4.")


def parse_flags(description: str, argv: list[str] | None = None, add_more=None) -> argparse.Namespace:
    """Flags of one step script: the workload, --json FILE, and what `add_more(parser)` adds for this library alone."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_workload_flags(parser)
    if add_more is not None:
        add_more(parser)
    parser.add_argument("--json", default="", metavar="FILE", help="write the result there")
    flags = parser.parse_args(argv)
    check_workload(flags)
    return flags


def workload_dict(flags: argparse.Namespace) -> dict:
    """The workload flags alone, by attribute name."""
    parser = argparse.ArgumentParser(add_help=False)
    add_workload_flags(parser)
    return {name: getattr(flags, name) for name in vars(parser.parse_args([]))}


def workload_argv(flags: argparse.Namespace) -> list[str]:
    """The workload flags as a command line for another process."""
    argv = []
    for name, value in workload_dict(flags).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            argv += [flag] if value else []
        else:
            argv += [flag, str(value)]
    return argv


def cpu_name(phase: str) -> str:
    """The key of a phase's CPU seconds in a step's record."""
    return f"{phase}_cpu"


def peak_rss_bytes() -> int:
    """Highest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts kibibytes, macOS bytes


class StepClock:
    """Collects wall and CPU seconds per phase and closes one record per step. Phases that a library runs fused are
    null. `<phase>_cpu` counts the processor time of all threads."""

    def __init__(self, fused_phases: tuple[str, ...] = ()):
        self.fused_phases = fused_phases
        self.steps: list[dict] = []
        self._phases: dict[str, float] = {}
        self._response_tokens = 0
        self._compilations = 0
        self._wall = self._cpu = None

    def start(self) -> None:
        """Step 0 begins now; what was compiled to build the model does not count."""
        self._compilations = 0
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def add(self, phase: str, seconds: float, cpu_seconds: float) -> None:
        for name, value in ((phase, seconds), (cpu_name(phase), cpu_seconds)):
            self._phases[name] = self._phases.get(name, 0.0) + value

    def timed(self, phase: str, call, *args, **kwargs):
        """Run the call and put its time down to the phase. Asynchronous work must be waited for inside."""
        begin, cpu_begin = time.perf_counter(), time.process_time()
        result = call(*args, **kwargs)
        self.add(phase, time.perf_counter() - begin, time.process_time() - cpu_begin)
        return result

    def add_response_tokens(self, count: int) -> None:
        self._response_tokens += int(count)

    def add_compilation(self) -> None:
        self._compilations += 1

    def end_step(self) -> None:
        """The running step ends and the next one begins."""
        wall, cpu = time.perf_counter(), time.process_time()
        record = {}
        for phase in PHASES:
            for name in (phase, cpu_name(phase)):
                record[name] = None if phase in self.fused_phases else self._phases.get(name, 0.0)
        record |= {
            "total": wall - self._wall,
            "cpu_seconds": cpu - self._cpu,
            "response_tokens": self._response_tokens,
            "compilations": self._compilations,
        }
        self.steps.append(record)
        self._phases, self._response_tokens, self._compilations = {}, 0, 0
        self._wall, self._cpu = wall, cpu


def finish(library: str, version: str, flags: dict, clock: StepClock, counts_compilations: bool, path: str) -> None:
    """Print the table and write the JSON file, if a path is given."""
    _print_table(f"{library} {version}", clock.steps)
    warm = clock.steps[WARMUP_STEPS:]
    result = {
        "library": library,
        "version": version,
        "flags": flags,
        "steps": [{key: value for key, value in step.items() if key != "compilations"} for step in warm],
        "first_step_seconds": clock.steps[0]["total"],
        "peak_rss_bytes": peak_rss_bytes(),
        "compilations_after_warmup": sum(step["compilations"] for step in warm) if counts_compilations else None,
    }
    print(
        f"first step {result['first_step_seconds']:.2f} s, peak memory {result['peak_rss_bytes'] / 2**20:.0f} MiB, "
        f"compilations after warm-up: {result['compilations_after_warmup']}"
    )
    if path:
        Path(path).write_text(json.dumps(result, indent=1) + "\n")


def _print_table(title: str, steps: list[dict]) -> None:
    columns = (*PHASES, "total", *map(cpu_name, PHASES), "cpu_seconds")

    def row(label, cells, tokens, compilations=""):
        shown = "".join(f"{'-' if cell is None else format(cell, '.4f'):>14}" for cell in cells)
        print(f"{label:<8}{shown}{tokens:>8}{compilations:>9}")

    warm = steps[WARMUP_STEPS:]
    medians = [None if warm[0][name] is None else statistics.median(step[name] for step in warm) for name in columns]
    print(title)
    print("step    " + "".join(f"{name:>14}" for name in columns) + f"{'tokens':>8}{'compiled':>9}")
    for index, step in enumerate(steps):
        label = "warm-up" if index < WARMUP_STEPS else str(index)
        row(label, [step[name] for name in columns], step["response_tokens"], step["compilations"])
    row("median", medians, round(statistics.median(step["response_tokens"] for step in warm)))
