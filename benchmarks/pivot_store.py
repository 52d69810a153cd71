"""The pivot store at a million references: seconds and peak memory to fill, open, look up and append.

    python benchmarks/pivot_store.py [--references 1000000] [--batch 256] [--folder DIR]

Each measurement is a process of its own; seconds are of the clock and of the processor (cpu); memory is the peak, the
imports (the first line) among it. append_first and append_last are means of 256 batches, merges among them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time


def reference(number: int):
    """A synthetic reference of about 850 bytes."""
    from pbrl_jax.pivots.references import Origin, StoredReference

    words = " ".join(f"w{(number * 7919 + place * 104729) % 9973}" for place in range(100))
    origin = Origin(f"Question {number}: {words[:150]}?", "expert", "revision", "{question}", 0.0, 512, 0)
    return StoredReference(origin, f"Step {number}: {words}", f"The answer is {number}.", True)


def measured(what: str, folder: str, count: int, batch: int) -> dict[str, float]:
    """Run one measurement here; {what: seconds, ..., "peak_mb": megabytes}."""
    from pbrl_jax.pivots.store import PivotStore

    store, seconds = PivotStore(folder), {}

    def timed(name: str, call):
        start, cpu = time.perf_counter(), time.process_time()
        result = call()
        seconds[name] = round(time.perf_counter() - start, 3)
        seconds[f"{name}_cpu"] = round(time.process_time() - cpu, 3)
        return result

    if what == "fill":
        spent = []
        for start in range(0, count, batch):
            rows = [reference(number) for number in range(start, min(start + batch, count))]
            begin = time.perf_counter(), time.process_time()
            store.add_references(rows)
            spent.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
        for place, part in (("first", spent[:256]), ("last", spent[-256:])):
            for kind, values in zip(("", "_cpu"), zip(*part, strict=True), strict=True):
                seconds[f"append_{place}{kind}"] = round(sum(values) / len(values), 4)
        seconds |= {"fill": round(sum(wall for wall, _ in spent), 1), "longest": round(max(spent)[0], 2)}
    elif what == "open":
        key = reference(0).key
        assert timed("open", lambda: store.missing([key, "absent"])) == ["absent"]
        assert timed("again", lambda: store.missing([key])) == []
        timed("fingerprint", store.fingerprint)
        some = [reference(number).key for number in range(0, count, count // 32)]
        assert len(timed("look_up_32", lambda: store.references(some))) == len(some)
    elif what == "append":
        store.missing([])
        rows = [reference(-1 - number) for number in range(32)]
        timed("append_32", lambda: store.add_references(rows))
    elif what == "read all":
        assert len(timed("read_all", store.references)) >= count
    return seconds | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def main() -> None:
    """Print one line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=256, help="references written at a time")
    parser.add_argument("--folder", help="where the store is made; default: a temporary folder")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.only:
        print(json.dumps(measured(flags.only, flags.folder, flags.references, flags.batch)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = flags.folder or os.path.join(temporary, "store")
        for what in ("imports", "fill", "open", "append", "read all"):
            command = [sys.executable, __file__, "--only", what, "--folder", folder, "--references",
                       str(flags.references), "--batch", str(flags.batch)]  # fmt: skip
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            print(f"{what:9}", "  ".join(f"{name} {value}" for name, value in found.items()), flush=True)
        files = [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names]
        print(f"{len(files)} files, {sum(map(os.path.getsize, files)) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
