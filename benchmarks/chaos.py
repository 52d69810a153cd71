"""Faults against a tiny run: what each of them loses, changes, and how long the run takes to stop.

    python benchmarks/chaos.py --faults 100 --seed 0 --json chaos.json

Real `pbrl train` commands on configs/tiny_cpu.py, in processes of their own (tests/resume_driver.py). Each fault meets
a run that stands at a step drawn from the seed; afterwards the same command runs to the end. `same` says that the
parameters, the log, the samples and final.json are those of a run that nobody disturbed, bit by bit; `kept` that every
checkpoint that was complete before the fault is still whole (a damaged one: that it was named and the one before it
used); `stop` are the seconds from the fault to the end of the process.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from chaos_place import STEPS, Outcome, Place, ended, facts

from pbrl_jax.checkpoint import list_checkpoints, manifest

PHASES = (
    ("generate", 1), ("update", 1), ("rename", 1), ("rename", 2), ("rename", 3), ("evaluate", 1), ("write", 0),
    "checkpoints/step_*.tmp-*", "checkpoints/step_{next}/manifest.json", "checkpoints/step_{next}", "run.lock",
)  # fmt: skip
"""Where a process is killed: what it is held in, or the file that is waited for."""


class Draw(random.Random):
    """Random numbers of a fault, and its turn: how many of its kind came before."""

    turn = 0

    def turned(self, options: tuple) -> Any:
        """Each of the options in turn."""
        return options[self.turn % len(options)]


# The faults: each gets (place, work directory, its step, random numbers) and leaves an ended process.


def killed_at_random(place: Place, workdir: Path, step: int, draw: Draw) -> Outcome:
    """At the latest when it is about to evaluate its last parameters, where it is held."""
    driver = place.start(workdir, hold=("evaluate", 1))
    time.sleep(draw.uniform(0.3, place.took[1]))
    os.kill(driver.pid, signal.SIGKILL)
    return ended(driver, time.monotonic(), (-9,))


def killed_in_a_phase(place: Place, workdir: Path, step: int, draw: Draw) -> Outcome:
    phase = draw.turned(PHASES)
    if isinstance(phase, str):
        how = {"watch": workdir / phase.format(next=f"{step + 1:08d}")}
    else:
        step_of = {"rename": (step + 1, phase[1]), "write": (step + 1,)}  # of a save that is to come
        how = {"hold": (phase[0], *step_of.get(phase[0], phase[1:]))}
    driver = place.start(workdir, **how)
    driver.strike(signal.SIGKILL)
    return ended(driver, time.monotonic(), (-9,))


def a_host_killed(place: Place, workdir: Path, step: int, draw: Draw) -> Outcome:
    """One of two, or both, at a random moment; the other one notices."""
    drivers = place.together(workdir, 2, hold=("evaluate", 1))
    time.sleep(draw.uniform(0.3, place.took[2]))
    since, victims = time.monotonic(), draw.turned(((0,), (1,), (0, 1)))
    for number in victims:
        os.kill(drivers[number].pid, signal.SIGKILL)
    outcomes = [ended(drivers[number], since, (-9,) if number in victims else (1, -6)) for number in (0, 1)]
    seconds = max(outcome.seconds for outcome in outcomes)
    return Outcome(tuple(s for o in outcomes for s in o.statuses), seconds, "".join(o.wrong for o in outcomes))


def full_disk(place: Place, workdir: Path, step: int, draw: Draw) -> Outcome:
    driver = place.start(workdir, limit=draw.choice((3_000, 30_000, 100_000, 300_000)))
    return ended(driver, time.monotonic(), (1,), "Free space")


def read_only(place: Place, workdir: Path, step: int, draw: Draw) -> Outcome:
    """The work directory cannot be written any more, in the middle of an update."""
    driver = place.start(workdir, hold=("update", draw.randint(1, STEPS - step)), plain=True)
    driver.reach()
    entries = [workdir, *workdir.rglob("*")]
    for entry in entries:
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    driver.release()
    outcome = ended(driver, time.monotonic(), (1,), "Error: ")
    for entry in entries:
        if entry.exists():
            entry.chmod(0o755 if entry.is_dir() else 0o644)
    return outcome


def signals(place: Place, workdir: Path, step: int, draw: Draw) -> Outcome:
    """One to three; only a third one, more than two seconds after the first, ends the process unsaved."""
    count, kinds = draw.turned((1, 2, 3)), (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    driver = place.start(workdir, hold=("stuck", draw.randint(1, STEPS - step)))
    driver.reach()
    since, last = time.monotonic(), draw.choice(kinds)
    os.kill(driver.pid, last)
    while "stopping at the next safe point" not in driver.output.read_text():
        time.sleep(0.01)
    if count > 1:
        os.kill(driver.pid, last := draw.choice(kinds))
    time.sleep(2.5 if count > 1 else 0.5)
    if count < 3:
        driver.release()
        return ended(driver, since, (0,), "saved." if step < STEPS - 1 else "")
    os.kill(driver.pid, last := draw.choice(kinds))
    return ended(driver, since, (128 + last,), "for the third time")


def second_process(place: Place, workdir: Path, step: int, draw: Draw) -> Outcome:
    """It is told who holds the work directory; the first one ends as if nothing had been."""
    first = place.start(workdir, hold=("generate", draw.randint(1, STEPS - step)))
    first.reach()
    place.driver(1)
    since = time.monotonic()
    second = ended(place.start(workdir, number=1), since, (1,), f"is in use by process {first.pid}")
    first.release()
    rest = ended(first, since, (0,))
    return Outcome((*second.statuses, *rest.statuses), second.seconds, second.wrong + rest.wrong)


def clock_step(place: Place, workdir: Path, step: int, draw: Draw) -> Outcome:
    """Forwards or back, by seconds to a year, while it runs."""
    jump = draw.choice((-1, 1)) * 10 ** draw.uniform(0, 7.5)
    driver = place.start(workdir, hold=("clock", draw.uniform(0, place.took[1] / 2), jump))
    outcome = ended(driver, time.monotonic(), (0,))
    return Outcome(outcome.statuses, 0.0, outcome.wrong or ("" if driver.marker.exists() else "the clock stood still"))


def damaged_newest(place: Place, workdir: Path, step: int, draw: Draw) -> Outcome:
    """A flipped bit, half a file, or no manifest; nothing runs meanwhile."""
    folder = Path(list_checkpoints(workdir / "checkpoints")[0][1])
    file = draw.choice([file for file in folder.rglob("*") if file.is_file() and file.stat().st_size])
    content, how = bytearray(file.read_bytes()), draw.choice(("bit", "half", "manifest"))
    if how == "manifest":
        (folder / "manifest.json").unlink()
    elif how == "half":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
    return Outcome((), 0.0)


def dead_endpoint(place: Place, workdir: Path, step: int, draw: Draw) -> Outcome:
    """It answers some requests, and then none."""
    place.endpoint.left = draw.randint(1, 12)
    outcome = ended(place.start(workdir), time.monotonic(), (1,), "of the rewards are invalid")
    place.endpoint.close()
    place.endpoint.open()
    return outcome


def reward_raises(place: Place, workdir: Path, step: int, draw: Draw) -> Outcome:
    """Once: the batch is scored again. Twice in a row: the run stops before it is used."""
    count = draw.choice((1, 2))
    place.failures.write_text(str(count))
    outcome = ended(place.start(workdir), time.monotonic(), (count - 1,), "" if count == 1 else "are invalid")
    place.failures.write_text("0")
    return outcome._replace(seconds=outcome.seconds * (count - 1))


def connection_cut(place: Place, workdir: Path, step: int, draw: Draw) -> Outcome:
    """One reply ends in the middle: the request is made again."""
    place.endpoint.cut = 1
    return ended(place.start(workdir), time.monotonic(), (0,))._replace(seconds=0.0)


def out_of_memory(place: Place, workdir: Path, step: int, draw: Draw) -> Outcome:
    """The process gets no more memory from the middle of an update on."""
    driver = place.start(workdir, hold=("update", draw.randint(1, STEPS - step)))
    driver.reach()
    pages = int(Path(f"/proc/{driver.pid}/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + draw.randint(0, 4 << 20)
    resource.prlimit(driver.pid, resource.RLIMIT_AS, (most, most))
    since = time.monotonic()
    driver.release()
    status, output = driver.end()
    return Outcome((status,), time.monotonic() - since)


KINDS = {
    "killed at a random moment": killed_at_random,
    "killed in a phase": killed_in_a_phase,
    "one or both of two hosts killed": a_host_killed,
    "full disk": full_disk,
    "read-only": read_only,
    "one to three signals": signals,
    "second process": second_process,
    "clock step": clock_step,
    "damaged newest checkpoint": damaged_newest,
    "dead endpoint": dead_endpoint,
    "reward that raises": reward_raises,
    "connection cut": connection_cut,
    "out of memory": out_of_memory,
}


class Row(NamedTuple):
    """One fault: its kind, the step it met, its outcome, and what came after."""

    kind: str
    step: int
    outcome: Outcome
    kept: bool
    same: bool


def meet(place: Place, kind: str, draw: Draw) -> Row:
    """A fault, and the command again until the end, where the run is not there yet."""
    hosts = 2 if KINDS[kind] is a_host_killed else 1
    step = draw.randint(2 if kind == "damaged newest checkpoint" else 0, STEPS - 2)
    whole, workdir = place.undisturbed(hosts), place.standing_at(step, hosts)
    before = [other for other, _ in list_checkpoints(workdir / "checkpoints")]
    outcome = KINDS[kind](place, workdir, step, draw)
    whole_now = [n for n, folder in list_checkpoints(workdir / "checkpoints") if manifest.damage(folder) is None]
    over = (workdir / "final.json").exists()  # the run got over it
    finished = [] if over else place.to_the_end(workdir, hosts)
    kept = set(before) <= set(whole_now)
    if kind == "damaged newest checkpoint":
        kept = set(before[1:]) <= set(whole_now) and "Skipped a damaged checkpoint" in finished[0][1]
    same = all(status == 0 for status, _ in finished) and facts(workdir) == facts(whole)
    if kept and same and not outcome.wrong:
        shutil.rmtree(workdir.parent)
    elif not same:
        outcome = outcome._replace(wrong=f"{outcome.wrong}\nafterwards: {finished[0][1][-600:] if finished else ''}")
    return Row(kind, step, outcome, kept, same)


def faults(seed: int, count: int, kinds: list[str]) -> Iterator[tuple[str, Draw]]:
    """So many faults: every kind in turn, in an order of the seed, each with random numbers of its own."""
    order = list(kinds)
    random.Random(seed).shuffle(order)
    for number in range(count):
        draw = Draw(f"{seed}/{number}")
        draw.turn = number // len(order)
        yield order[number % len(order)], draw


def table(rows: list[Row]) -> str:
    """The rows by kind, as Markdown."""
    names = "fault", "times", "same", "kept", "exit statuses", "seconds to stop, at most"
    lines = [f"| {' | '.join(names)} |", "|---|---:|---:|---:|---|---:|"]
    for kind in KINDS:
        own = [row for row in rows if row.kind == kind]
        if own:
            statuses = sorted({str(status) for row in own for status in row.outcome.statuses}, key=lambda s: int(s))
            slowest = max(row.outcome.seconds for row in own)
            lines.append(
                f"| {kind} | {len(own)} | {sum(row.same for row in own)} | {sum(row.kept for row in own)} | "
                f"{', '.join(statuses) or 'none'} | {slowest:.1f} |"
            )
    return "\n".join(lines)


def run(flags: argparse.Namespace) -> list[Row]:
    """All faults; a line for each as it is done."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="chaos_") as folder:
        place = Place(Path(folder))
        try:
            for number, (kind, draw) in enumerate(faults(flags.seed, flags.faults, flags.kinds), start=1):
                start = time.monotonic()
                rows.append(row := meet(place, kind, draw))
                good = row.same and row.kept and not row.outcome.wrong
                told = "" if good else f" WRONG (same {row.same}, kept {row.kept}): {row.outcome.wrong}"
                print(f"{number}. {kind} at step {row.step}, {time.monotonic() - start:.0f} s{told}", flush=True)
                if flags.json:
                    plain = [row._replace(outcome=row.outcome._asdict())._asdict() for row in rows]
                    Path(flags.json).write_text(json.dumps(plain))
        except KeyboardInterrupt:
            print("Stopped; what follows is of the faults so far.")
        finally:
            place.close()
    return rows


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Faults against a tiny run.")
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--json", help="file for the rows")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    flags, start = parse(arguments), time.monotonic()
    rows = run(flags)
    wrong = [row for row in rows if row.outcome.wrong]
    lost, different = (sum(not getattr(row, name) for row in rows) for name in ("kept", "same"))
    print(table(rows))
    print(f"{len(rows)} faults in {(time.monotonic() - start) / 60:.0f} minutes: {lost} lost, {different} different, "
          f"{len(wrong)} that ended otherwise than they should.")  # fmt: skip
    if lost or different or wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
