"""What `Encoder.embed` costs beside direct calls of the compiled encoder on the same texts.

    python benchmarks/embed_speed.py --encoder DIR --texts questions.txt --json embed.json

Cases: 8 texts of one length; 7 short texts and a long one; all lines of `--texts`. The direct calls take the chunks of
the texts sorted by length, 32 rows a call, each padded to the longest of its rows only: the least that can be computed,
with a program for every length that occurs, where `embed` has few. Figures are medians of CPU seconds; programs are
compiled before.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

#: Rows of a direct call.
ROWS = 32


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Encoder.embed beside direct calls of the compiled encoder.")
    parser.add_argument("--encoder", required=True, help="a folder that load_encoder reads")
    parser.add_argument("--texts", help="a file with one text a line; default: 96 sentences of 8 to 90 words")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="file for the results")
    return parser.parse_args(arguments)


def sentences(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    words = "janet sells nine eggs for two dollars each day at the market and keeps three of them".split()
    return [" ".join(rng.choice(words, size=rng.integers(8, 91))) for _ in range(count)]


def median(run: Callable, rounds: int) -> float:
    """CPU seconds of a call, after one that compiles."""
    run()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times)


def direct(encoder, texts: Sequence[str]) -> np.ndarray:
    """Vectors of all chunks of the texts, sorted by length, `ROWS` rows a call, padded to the longest of them."""
    from pbrl_jax.weights.encoders import embed_tokens

    pieces = [chunk for ids in encoder.tokenizer.encode_batch(list(texts)) for chunk in encoder.chunks(ids)]
    pieces.sort(key=len)
    program, found = embed_tokens(encoder.spec), []
    for start in range(0, len(pieces), ROWS):
        rows = pieces[start : start + ROWS]
        mask = np.arange(len(rows[-1]))[None] < np.array([len(row) for row in rows])[:, None]
        tokens = np.zeros(mask.shape, np.int32)
        tokens[mask] = np.concatenate(rows)
        found.append(np.asarray(program(encoder.params, tokens, mask)))
    return np.concatenate(found)


def main(arguments: list[str] | None = None) -> None:
    from pbrl_jax import load_encoder

    flags = parse(arguments)
    encoder = load_encoder(flags.encoder)
    text = "Janet sells nine eggs for two dollars each day at the market. " * 3
    lines = open(flags.texts, encoding="utf-8").read().splitlines() if flags.texts else sentences(96)
    cases = {
        "8 texts of one length": [text] * 8,
        "7 short texts, one of 2,000 words": [text] * 7 + ["word " * 2000],
        f"{len(lines)} texts": [line for line in lines if line.strip()],
    }
    results = []
    for name, texts in cases.items():
        short, long = ([t for t in texts if (len(t) > 4000) == side] for side in (False, True))
        own = median(lambda texts=texts: encoder.embed(texts), flags.rounds)
        call = sum(median(lambda part=part: direct(encoder, part), flags.rounds) for part in (short, long) if part)
        results.append({"case": name, "embed_cpu_s": own, "direct_cpu_s": call, "ratio": own / call})
        print(f"{name}: embed {own:.3f} CPU-s, direct {call:.3f} CPU-s, ratio {own / call:.2f}", flush=True)
    if flags.json:
        with open(flags.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
