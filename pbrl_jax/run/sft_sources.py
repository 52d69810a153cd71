"""What `pbrl sft` learns, by sft.source: pivots, translated references, the policy's own filtered samples, a file."""

from collections.abc import Callable
from math import inf

from pbrl_jax.algos.preference import ROUNDING
from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import DataError, lookup
from pbrl_jax.core.paths import WorkDir, write_json_lines
from pbrl_jax.core.records import Prompt
from pbrl_jax.data.responses import read_examples
from pbrl_jax.data.sources.quickstart import Example
from pbrl_jax.logs.progress import Progress
from pbrl_jax.pivots.store import open_store
from pbrl_jax.pivots.write import attach_references
from pbrl_jax.run.assemble import build_experiment, policy_for_rows, reference_expert, run_policy, training_prompts
from pbrl_jax.run.scored import ScoredGroup, read_groups, scored_groups
from pbrl_jax.text.languages import nfc
from pbrl_jax.translate.cache import CachedTranslator
from pbrl_jax.translate.load import load_translator
from pbrl_jax.weights.policies import Policy

TRANSLATED, TRANSLATIONS = "translated.jsonl", "translations.jsonl"
#: Texts translated between two marks of progress.
TRANSLATED_AT_A_TIME = 256

Rows = tuple[Policy, list[Example] | None]


def supervised_rows(config: Config, work: WorkDir) -> Rows:
    """(start policy, rows to learn); None for the pivots, which `run.sft.supervised` makes.

    Raises:
      PbrlError: whatever is wrong with the data, the models or the settings.
      Interrupted: a stop was requested while responses were sampled.
    """
    return lookup(SFT_SOURCES, config.sft.source, "value of sft.source")(config, work)


def pivots(config: Config, work: WorkDir) -> Rows:
    """English questions and references."""
    return run_policy(config, work, training_prompts(config)), None


def from_file(config: Config, work: WorkDir) -> Rows:
    """Rows with a question and a response, or whole conversations."""
    rows = read_examples(config.sft.path, config.data.split, config.data.languages)
    return policy_for_rows(config, work), rows


def translated(config: Config, work: WorkDir) -> Rows:
    """Every prompt with its English reference in its own language. Each reference is translated once, and kept in the
    work directory; translated.jsonl shows the rows."""
    prompts = training_prompts(config)
    policy = run_policy(config, work, prompts)
    file, kept = work.root / TRANSLATED, work.root / TRANSLATIONS
    if file.exists() and not kept.exists():  # of a version that kept the rows alone
        return policy, read_examples(str(file))
    prompts, report = attach_references(
        prompts, config, open_store(config.pivot, work.root), progress=Progress, **reference_expert(policy, config)
    )
    print(report.describe())
    translator = CachedTranslator(load_translator(config.sft.translator), kept)
    by_language: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_language.setdefault(prompt.language, []).append(prompt)
    responses: dict[int, str] = {}
    with Progress("translate", len(prompts), unit="text") as progress:
        for code, own in by_language.items():
            for start in range(0, len(own), TRANSLATED_AT_A_TIME):
                part = own[start : start + TRANSLATED_AT_A_TIME]
                texts = translator.translate([p.reference.text for p in part if p.reference], ["en"] * len(part), code)
                responses |= {p.id: nfc(text or "") for p, text in zip(part, texts, strict=True)}
                progress.advance(len(part))
    rows = [Example(p.language, p.asked, responses[p.id]) for p in prompts if responses[p.id].strip()]
    if not rows:
        raise DataError(f"sft.translator {config.sft.translator} translates every reference as nothing. Use another.")
    if not kept.exists():  # only English, which is not translated
        write_json_lines(kept, [])
    write_json_lines(file, [row._asdict() for row in rows])
    return policy, rows


def samples(config: Config, work: WorkDir) -> Rows:
    """The best response of each group, where it is good enough (rejection sampling)."""
    given = read_groups(config.sft.path) if config.sft.path else None  # before any model is loaded
    experiment = build_experiment(config, work)
    groups = scored_groups(experiment, config.sft.prompts) if given is None else given
    rows = [row for group in groups if (row := best_of(group, config.sft.min_reward)) is not None]
    print(f"{len(rows)} of {len(groups)} groups have a response with a reward of {config.sft.min_reward:g} or more.")
    if not rows:
        best = max((value for group in groups for value in group.rewards if value is not None), default=None)
        raise DataError(
            f"No response reaches sft.min_reward={config.sft.min_reward:g}; the best of {len(groups)} groups has "
            f"{best}. Lower it, or train a better start policy."
        )
    return experiment.policy, rows


def best_of(group: ScoredGroup, least: float) -> Example | None:
    """The response with the highest valid reward; None where it is below `least` or empty."""
    valid = [(value, -i) for i, value in enumerate(group.rewards) if value is not None]
    value, place = max(valid, default=(-inf, 0))
    if value < least - ROUNDING or not (text := group.completions[-place]).strip():
        return None
    return Example(group.language, group.question, text)


#: sft.source -> (config, work) -> (start policy, rows).
SFT_SOURCES: dict[str, Callable[[Config, WorkDir], Rows]] = {
    "pivot": pivots,
    "translated": translated,
    "samples": samples,
    "file": from_file,
}
