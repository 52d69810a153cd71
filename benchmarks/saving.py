"""How long a save stops a run: written before the next step, and written beside the next steps.

    python benchmarks/saving.py --gigabytes 0.5 --json saving.json

Updates of float32 arrays of that size, in place, on the devices at hand; every save removes the one before it, and the
first is proved. Medians over `--saves`: `stopped` are the seconds from the end of an update to the moment the next one
can be dispatched, `update` those of an update, and `lost` what a save has cost in all: `stopped`, and how much longer
the updates beside it took.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax

from pbrl_jax.checkpoint import BackgroundSaver, save_checkpoint

LEAVES = 16


def state_of(gigabytes: float) -> dict[str, jax.Array]:
    """Random arrays, as a state's kernels would be."""
    width = int(gigabytes * 1e9 / 4 / LEAVES / 1024)
    keys = jax.random.split(jax.random.key(0), LEAVES)
    return {f"w{at}": jax.random.normal(key, (width, 1024)) for at, key in enumerate(keys)}


def timed(function, *arguments) -> tuple[float, object]:
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start, result


def measure(flags: argparse.Namespace, background: bool) -> dict[str, float]:
    """Medians over the saves."""
    update = jax.jit(lambda state: jax.tree.map(lambda x: x * 0.999 + 1e-3, state), donate_argnums=0)
    state, saver = update(state_of(flags.gigabytes)), BackgroundSaver()
    alone = []
    for _ in range(5):
        seconds, state = timed(update, state)
        alone.append(seconds)
    usual = statistics.median(alone)
    stopped, written, beside, lost = [], [], [], []
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        for step in range(1, flags.saves + 1):
            start = time.perf_counter()
            if background:
                saver.start(folder, step, state, {}, keep=1)
            else:
                save_checkpoint(folder, step, state, {}, keep=1, prove=step == 1)
            stopped.append(time.perf_counter() - start)
            during = []
            while background and not saver.ended():
                seconds, state = timed(update, state)
                during.append(seconds)
                time.sleep(flags.rest)
            written.append(time.perf_counter() - start)
            beside += during
            lost.append(stopped[-1] + sum(during) - usual * len(during))
    found = {"stopped": stopped, "update": alone, "update beside a save": beside, "written after": written}
    return {name: statistics.median(values) for name, values in (found | {"lost": lost}).items() if values}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=0.5)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--folder", help="where checkpoints go; default: the temporary folder")
    parser.add_argument("--rest", type=float, default=0.5, help="seconds between two updates, in which a step samples")
    parser.add_argument("--json", help="file for the figures")
    flags = parser.parse_args(arguments)
    found = {"before the next step": measure(flags, False), "beside the next steps": measure(flags, True)}
    for name, figures in found.items():
        print(f"{name}: " + ", ".join(f"{what} {seconds:.3f} s" for what, seconds in figures.items()))
    if flags.json:
        Path(flags.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
