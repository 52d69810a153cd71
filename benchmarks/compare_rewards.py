"""Rewards beside each other on the quickstart task: one start policy, the same number of generated tokens.

  python benchmarks/compare_rewards.py --workdir runs/rewards --starts runs/q0 runs/q1 runs/q2     # three seeds
  python benchmarks/compare_rewards.py --workdir runs/rewards --seeds 0 --only embedding_split shuffled
  python benchmarks/compare_rewards.py --workdir runs/tiny --tiny --seeds 0 --tokens 4000          # no effect
  python benchmarks/compare_rewards.py --workdir runs/unseen --languages en sw id es de --only embedding_split
  python benchmarks/compare_rewards.py --workdir runs/n --only embedding_split --prompts-seen 250 500 1000 2000

Every seed has a start policy, an encoder, references and a translator of its own (a small M2M100, trained on the
responses of the split `encoder`, as the encoder is); all rewards share them. Every run samples --tokens tokens.

With --languages the runs train on those languages alone and are evaluated on all: the table then has a column for
languages that were trained on and one for those that were not. With --prompts-seen each run is made once for every
number of problems (in each language), which are repeated where the tokens reach further: a curve of gain by data.

W/comparison.json, .md and .png hold every finished run, as in compare_algorithms.py. A judge is not compared: no policy
of this size follows a judge's instructions.
"""

import argparse
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from comparison import (
    base_config,
    finished,
    markdown,
    mean_non_english,
    parsed,
    parser,
    reinforced,
    run_all,
    run_seed,
    summary_of,
    unscheduled,
    write,
)

from pbrl_jax import Config, with_values
from pbrl_jax.core.paths import work_dir
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.quickstart.controls import shuffled_references
from pbrl_jax.quickstart.stages import Stages, cached
from pbrl_jax.run.translator import train_translator
from pbrl_jax.translate.m2m100_translator import export_translator

#: Settings of the quickstart's reward that only cosines and parts read, at their defaults.
NO_COSINE = {"similarity": "raw", "similarity_floor": 0.0}
WHOLE = {"parts": "whole"}
#: Settings of a translation by words: it is no cosine.
CHRF = {"translation_similarity": "chrf", **NO_COSINE}


def semantic(name: str, **settings) -> dict:
    """A reward beside the quickstart's penalty of repetition."""
    return {"functions": (name, "repetition"), "reward_weights": (1.0, 0.2), **settings}


#: Settings that make each reward; all else is the quickstart's.
REWARDS: dict[str, dict] = {
    "embedding_whole": semantic("cosine", **WHOLE),
    "embedding_split": semantic("cosine"),
    "translation_embedding": semantic("translation"),
    "translation_chrf": semantic("translation", **CHRF),
    "hybrid": semantic("hybrid", hybrid_answer="cosine", hybrid_reasoning="translation"),
    "alignment": semantic("alignment"),
    "implicit": semantic("implicit", rejected_value=-5.0, **NO_COSINE),  # its values are about -2 at the start
    "gold_answer": {"functions": ("answer",), "reward_weights": (1.0,), **NO_COSINE},
    "shuffled": semantic("cosine"),
}
#: Rewards that read the translator.
TRANSLATED = ("translation_embedding", "translation_chrf", "hybrid")


def translator_config(config: Config, tiny: bool) -> Config:
    """The translator's training."""
    sizes = {"preset": "tiny", "steps": 20, "batch_size": 16, "held_out": 4} if tiny else {"steps": 600}
    return with_values(config, translator=sizes)


def translator_stage(stages: Stages, tiny: bool) -> str:
    """The folder of the seed's translator, trained once."""
    config, work = translator_config(stages.config, tiny), work_dir(stages.work.root / "translator")

    def make():
        translator, record = train_translator(config, work, make_mesh(config.mesh))
        export_translator(translator, str(work.root / "translator"))
        return record

    cached(stages, "translator", make)
    return str(work.root / "translator")


def reward_config(config: Config, name: str, translator: str) -> Config:
    """The quickstart with another reward."""
    reward = dict(REWARDS[name]) | ({"translator": translator} if name in TRANSLATED else {})
    return unscheduled(config, reward=reward)


def reinforce(stages: Stages, name: str, config: Config, tokens: float, tiny: bool) -> dict:
    """Train with one reward; `name` may end in `@N`: with N problems of each language alone."""
    reward, _, prompts = name.partition("@")
    if prompts:
        config = with_values(config, data={"limit": int(prompts)})
    translator = translator_stage(stages, tiny) if reward in TRANSLATED else ""
    change = shuffled_references if reward == "shuffled" else None
    return reinforced(stages, name, reward_config(config, reward, translator), tokens, change)


def measures(seen: tuple[str, ...]) -> Mapping[str, Callable[[dict], float]]:
    """Further columns: replies in the right language; and, by whether a language was trained on, accuracy and its gap
    to English."""
    found: dict[str, Callable[[dict], float]] = {
        "right_language": functools.partial(mean_non_english, key="right_language")
    }

    def mean_of(trained: bool, gap: bool, table: dict) -> float:
        rows = [row["accuracy"] for code, row in table.items() if code != "en" and (code in seen) == trained]
        return float(table["en"]["accuracy"] - np.mean(rows) if gap else np.mean(rows))

    for name, trained in (("seen", True), ("unseen", False)) if seen else ():
        found[name] = functools.partial(mean_of, trained, False)
        found[f"gap_{name}"] = functools.partial(mean_of, trained, True)
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    options = parser(str(__doc__).split("\n")[0], tuple(REWARDS), 400_000)
    options.add_argument("--languages", nargs="+", default=[], help="languages to train on; default: all")
    options.add_argument("--prompts-seen", type=int, nargs="+", default=[], help="numbers of problems of each language")
    flags = parsed(options, arguments)
    known = base_config(0, flags.tiny).data.languages
    if unknown := sorted({*flags.languages} - {*known}):
        options.error(f"--languages {' '.join(unknown)}: the task has {' '.join(known)}")
    if flags.languages and not {*known} - {*flags.languages, "en"}:
        options.error("--languages names all languages: leave one out, or leave the option out")
    if flags.prompts_seen:
        flags.only = [f"{name}@{count}" for name in flags.only for count in flags.prompts_seen]
    return flags


def main(arguments: list[str] | None = None) -> dict[str, dict]:
    """Run what is not done yet; write and print the comparison of all that is."""
    flags = parse(arguments)
    seen = tuple(flags.languages)
    runs = {name: functools.partial(reinforce, tiny=flags.tiny) for name in flags.only}

    def prepare(stages: Stages, config: Config) -> Config:
        return with_values(config, data={"languages": seen}) if seen else config

    run_all(flags, lambda root, seed: run_seed(root, seed, flags, runs, prepare))
    root = Path(flags.workdir)
    names = sorted({*flags.only, *REWARDS}, key=[*flags.only, *REWARDS].index)
    seeds, columns = finished(root, names), measures(seen)
    summary = summary_of(seeds, names, "embedding_split", columns)
    record = {"settings": vars(flags), "rewards": REWARDS, "seeds": seeds, "summary": summary}
    write(root, record, markdown(summary, "reward", "embedding_split", tuple(columns)), summary)
    return summary


if __name__ == "__main__":
    main()
