"""`pbrl translator CONFIG --workdir W`: an M2M100 or NLLB model by training on parallel text; chrF before and after."""

import functools
import hashlib
import json
import random
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from pbrl_jax.config.older import stable_values
from pbrl_jax.config.serialize import to_json
from pbrl_jax.config.tree import Config
from pbrl_jax.core.batching import length_bucket, pad_tokens
from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.core.paths import WorkDir, write_atomic
from pbrl_jax.data.load import load_prompts
from pbrl_jax.data.sources import quickstart
from pbrl_jax.eval.calibrate import pairs_from_file, pairs_from_prompts
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.models.m2m100 import AXES
from pbrl_jax.run.check_verb import begin
from pbrl_jax.text.segments import lines_and_sentences
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.sft import mixed_rows, pool_counts
from pbrl_jax.train.staged import Stage, run_stage
from pbrl_jax.train.state import place_state
from pbrl_jax.train.translation import TranslationBatch, make_translation_step, translator_optimizer_config
from pbrl_jax.translate.load import load_translator
from pbrl_jax.translate.m2m100_translator import M2M100Translator, export_translator
from pbrl_jax.translate.new_translator import new_translator
from pbrl_jax.translate.translator import Segment

Pairs = dict[str, list[tuple[str, str]]]
"""Language -> (text, its English) pairs."""
TrainingPair = tuple[Segment, str]
"""A source segment with its languages, and its translation."""


def parallel_text(config: Config) -> Pairs:
    """The parallel text of a configuration; of the quickstart, questions and responses of its split `encoder`."""
    settings, languages, seed = config.translator, config.data.languages, config.train.seed
    if settings.path:
        return pairs_from_file(settings.path, languages, 0)
    if config.data.source != "quickstart":
        return pairs_from_prompts(load_prompts(config.data, seed, require=("question_en",)), 0)
    chosen = quickstart.problems("encoder", 0, seed, config.data.path)[: config.data.limit or None]
    texts = quickstart.question, quickstart.response
    return {
        code: [(text(problem, code), text(problem, "en")) for problem in chosen for text in texts]
        for code in languages if code != "en"
    }  # fmt: skip


def split_pairs(pairs: Pairs, held_out: int, seed: int) -> tuple[Pairs, Pairs]:
    """(pairs to train on, `held_out` pairs of each language): no held-out pair shares a side with a training pair.

    Raises:
      DataError: a language has no pair left to train on, or there is no language beside English.
    """
    if not pairs:
        raise DataError("There is no parallel text: a language beside English is needed. Set data.languages.")
    training, held = Pairs(), Pairs()
    for code, own in pairs.items():
        unique = list(dict.fromkeys(own))
        random.Random(f"{seed}/translator/{code}").shuffle(unique)
        held[code] = unique[:held_out]
        sides = [{pair[side] for pair in held[code]} for side in (0, 1)]
        training[code] = [p for p in unique[held_out:] if p[0] not in sides[0] and p[1] not in sides[1]]
        if not training[code]:
            raise DataError(
                f"{code} has {len(unique)} different pairs of parallel text, and {len(held[code])} are held out: none "
                "is left to train on. Lower translator.held_out, or give more text."
            )
    return training, held


def training_segments(pairs: Pairs, direction: str) -> dict[str, list[TrainingPair]]:
    """Language -> what is learnt: sentence by sentence where both sides have as many, as a translator reads them, and
    else whole texts."""
    segments: dict[str, list[TrainingPair]] = {}
    for code, own in pairs.items():
        found: dict[TrainingPair, None] = {}
        for text, english in own:
            parts, counterparts = ([part for part, _ in lines_and_sentences(side)] for side in (text, english))
            aligned = len(parts) == len(counterparts)
            for part, counterpart in zip(parts, counterparts, strict=True) if aligned else ((text, english),):
                if direction != "from_english":
                    found[Segment(part, code, "en"), counterpart] = None
                if direction != "into_english":
                    found[Segment(counterpart, "en", code), part] = None
        segments[code] = list(found)
    return segments


def start_translator(config: Config, pairs: Pairs, mesh: Mesh) -> M2M100Translator:
    """The translator that training starts from.

    Raises:
      ConfigError: a source that is not an M2M100 or NLLB model.
    """
    settings = config.translator
    if settings.source == "random":
        lines = [side for own in pairs.values() for pair in own for side in pair]
        lines = [line for text in dict.fromkeys(lines) for line in text.splitlines()]
        of_task = config.data.source == "quickstart" and not settings.path
        options: dict[str, Any] = {"user_symbols": quickstart.USER_SYMBOLS} if of_task else {"byte_fallback": True}
        return new_translator(settings.preset, list(pairs), lines, config.data.vocab_size, config.train.seed, **options)
    translator = load_translator(settings.source, mesh=mesh, dtype="float32")
    if not isinstance(translator, M2M100Translator):
        raise ConfigError(
            f"translator.source {settings.source!r} is a {type(translator).__name__}; expected an M2M100 or NLLB model."
        )
    return translator


class EncodedPairs:
    """Training pairs as tokens; a batch holds as many of each language."""

    def __init__(self, segments: dict[str, list[TrainingPair]], translator: M2M100Translator, config: Config):
        self.spec, self.limit, self.seed = translator.spec, translator.source_limit, config.train.seed
        end = translator.spec.eos_ids[0]
        self.pairs: dict[str, list[tuple[list[int], list[int]]]] = {}
        for code, own in segments.items():
            sources = translator.source_tokens([segment for segment, _ in own])
            targets = translator.tokenizer.encode_batch([text for _, text in own])
            languages = [translator.language_id(segment.target) for segment, _ in own]
            rows = [(s, [i, *t, end]) for s, i, t in zip(sources, languages, targets, strict=True)]
            self.pairs[code] = [row for row in rows if max(map(len, row)) <= self.limit]
            if not self.pairs[code]:
                raise DataError(f"No pair of {code} has at most {self.limit} tokens a side. Give shorter text.")
            if left_out := len(rows) - len(self.pairs[code]):
                print(f"{left_out} of {len(rows)} pairs of {code} have more than {self.limit} tokens a side: left out.")
        self.counts = pool_counts(dict.fromkeys(self.pairs, 1 / len(self.pairs)), config.translator.batch_size)

    @functools.cached_property
    def digest(self) -> str:
        """Identifies the pairs and their order."""
        return hashlib.sha256(repr(self.pairs).encode()).hexdigest()

    def batch(self, step: int) -> TranslationBatch:
        """The pairs of one step, padded to length buckets."""
        sizes = {code: len(own) for code, own in self.pairs.items()}
        rows = [self.pairs[code][row] for code, row in mixed_rows(sizes, self.counts, self.seed, step)]
        sides: list[Any] = []
        for side in zip(*rows, strict=True):
            sides += pad_tokens(side, length_bucket(max(map(len, side)), self.limit), self.spec.pad_id)
        return TranslationBatch(*sides)


def chrf_table(translator: M2M100Translator, held: Pairs, direction: str) -> dict[str, float]:
    """Corpus chrF in [0, 100] of the held-out pairs, `sw-en` and `en-sw` by direction (sacrebleu's default)."""
    from sacrebleu import corpus_chrf

    scores = {}
    for code, pairs in held.items():
        texts, english = map(list, zip(*pairs, strict=True))
        ways = [(code, "en", texts, english), ("en", code, english, texts)]
        for source, target, given, wanted in ways[direction == "from_english" : 1 + (direction != "into_english")]:
            translations = translator.translate(given, source, target)
            scores[f"{source}-{target}"] = round(corpus_chrf(translations, [wanted]).score, 2)
    return scores


def train_translator(config: Config, work: WorkDir, mesh: Mesh, part=None) -> tuple[M2M100Translator, dict[str, Any]]:
    """(the translator after translator.steps, its chrF); resumes from the work directory.

    Raises:
      Interrupted: a stop was requested; the state is saved.
    """
    settings = config.translator
    training, held = split_pairs(parallel_text(config), settings.held_out, config.train.seed)
    translator = start_translator(config, training, mesh)
    data = EncodedPairs(training_segments(training, settings.direction), translator, config)
    before = {} if settings.source == "random" else chrf_table(translator, held, settings.direction)
    optimizer = make_optimizer(translator_optimizer_config(settings))
    state = place_state(translator.params, optimizer, AXES, mesh, donate=True)
    settled = stable_values(settings, "TranslatorTrainingConfig")
    identity = repr((settled, translator.fingerprint, data.digest, config.train.seed))
    stage = Stage(
        "translator", settings.steps, 200, hashlib.sha256(identity.encode()).hexdigest(), part,
        config.guard.max_skipped_updates,
    )  # fmt: skip
    state = run_stage(stage, work, mesh, state, make_translation_step(translator.spec, settings), data.batch)
    translator.params, translator.fingerprint = state.params, stage.fingerprint
    record = {"direction": settings.direction, "pairs": {code: len(own) for code, own in data.pairs.items()},
              "held_out": {code: len(own) for code, own in held.items()},
              "chrf_before": before, "chrf": chrf_table(translator, held, settings.direction)}  # fmt: skip
    return translator, record


def show(record: dict[str, Any]) -> None:
    """Print the chrF of every direction."""
    table = Table(title="chrF of held-out pairs", box=None, collapse_padding=True)
    for name in ("direction", "before", "after"):
        table.add_column(name, justify="left" if name == "direction" else "right")
    for name, score in record["chrf"].items():
        before = record["chrf_before"].get(name)
        table.add_row(name, "" if before is None else f"{before:.1f}", f"{score:.1f}")
    Console().print(table)


def main(config: Config, workdir: str) -> None:
    """Train the translator, and leave it in W/translator and its chrF in W/translator.json."""
    work = begin("translator", config, workdir)
    translator, record = train_translator(config, work, make_mesh(config.mesh))
    translator.params = jax.device_get(translator.params)
    export_translator(translator, str(work.root / "translator"))
    write_atomic(work.root / "translator.json", json.dumps(record, indent=1))
    write_atomic(work.config, to_json(config))
    show(record)
    folder = work.root / "translator"
    print(f"Translator: {folder}. Use it with --reward.functions translation --reward.translator {folder}")
