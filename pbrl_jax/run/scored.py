"""Responses of the start policy with their rewards, for SFT on the best of them and DPO on pairs."""

import json
from collections.abc import Callable
from math import isfinite
from typing import Any, NamedTuple

import jax
import numpy as np

from pbrl_jax.config.older import stable_repr
from pbrl_jax.core.errors import DataError
from pbrl_jax.core.paths import as_path, numbered_json_lines, write_json_lines
from pbrl_jax.core.records import Question
from pbrl_jax.logs.progress import Progress
from pbrl_jax.rewards.translation import loaded_comet, loaded_translator
from pbrl_jax.train.experiment import Experiment
from pbrl_jax.train.guard import failed_in_a_row
from pbrl_jax.train.hosted import hosted_functions
from pbrl_jax.train.start import start_params
from pbrl_jax.train.step import draw, sample_batch
from pbrl_jax.train.trained import Frozen

FILE = "scored.jsonl"
DRAWN = {
    "data": ("prompt_style", "thinking", "english_share", "language_weights", "language_temperature"),
    "train": ("prompts_per_step",),
}
"""Section -> settings that say which prompts are answered, and in which form."""
EXPECTED = (
    "expected what `pbrl sft` or `pbrl dpo` writes to scored.jsonl (prompt_id, language, question, completions, "
    "tokens, finite rewards or null), or for `pbrl dpo` pairs (prompt, chosen, rejected)"
)


def _is_list(value: Any, valid: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(valid, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**32


#: Field of a row -> whether a value is one of it.
FIELDS: dict[str, Callable[[Any], bool]] = {
    "prompt_id": _is_id,
    "language": _is_text,
    "question": lambda value: _is_text(value) or _is_list(value, lambda turn: _is_list(turn, _is_text)),
    "completions": lambda value: _is_list(value, _is_text),
    "tokens": lambda value: _is_list(value, lambda row: _is_list(row, _is_id)),
    "rewards": lambda value: _is_list(value, lambda x: x is None or (type(x) in (int, float) and isfinite(x))),
}


class ScoredGroup(NamedTuple):
    """A prompt, its responses as text and as tokens (with the end of sequence), and their rewards (None: invalid)."""

    prompt_id: int
    language: str
    question: Question
    completions: list[str]
    tokens: list[list[int]]
    rewards: list[float | None]


def sample_groups(experiment: Experiment, prompts: int) -> list[ScoredGroup]:
    """algo.num_generations scored responses to each of the first `prompts` prompts (rounded up to whole batches).

    Raises:
      Interrupted: a stop was requested; nothing was written.
      RewardError: rewards go on failing.
    """
    config, G = experiment.config, experiment.config.algo.num_generations
    count = -(-prompts // config.train.prompts_per_step)
    groups: list[ScoredGroup] = []
    failed = 0
    with jax.set_mesh(experiment.mesh), Progress("responses", count, unit="batch") as progress:
        params = start_params(experiment.policy, config, experiment.mesh)
        functions = hosted_functions(experiment)._replace(params=lambda _state, _frozen: params)
        for number in range(count):
            found = sample_batch(functions, None, Frozen(), draw(experiment, number, {"batch": number}))
            failed = failed_in_a_row(config, failed, number + 1, found.rewards.valid_B)
            total, rollout, texts_B = found.rewards.total, found.host_rollout, found.texts_B
            if rollout is None or texts_B is None:
                raise ValueError("The rollout was not decoded on the host.")
            for place, prompt in enumerate(found.prompts_P):
                rows = range(place * G, place * G + G)
                tokens = [np.asarray(rollout.tokens_BR[b])[: int(rollout.lengths_B[b])].tolist() for b in rows]
                rewards = [float(total.value_B[b]) if total.valid_B[b] else None for b in rows]
                texts = [texts_B[b] for b in rows]
                groups.append(ScoredGroup(prompt.id, prompt.language, prompt.asked, texts, tokens, rewards))
            progress.advance()
    return groups


def scored_groups(experiment: Experiment, prompts: int) -> list[ScoredGroup]:
    """Sampled groups, kept in the work directory for the next start and made anew where they are of another experiment.

    Raises:
      DataError: a line that is no scored group, or none at all.
      Interrupted: as in sample_groups.
    """
    file, origin = experiment.work.root / FILE, experiment.work.root / f"{FILE}.origin"
    made_from = origin_of(experiment, prompts)
    if not (file.exists() and origin.exists() and origin.read_text() == made_from):
        origin.unlink(missing_ok=True)
        write_json_lines(file, [group._asdict() for group in sample_groups(experiment, prompts)])
        for models in (loaded_translator, loaded_comet):  # what trains on the responses needs none of them
            models.cache_clear()
        origin.write_text(made_from)
    return read_groups(str(file))


def origin_of(experiment: Experiment, prompts: int) -> str:
    """What the responses of a work directory were made from, as JSON; others are sampled where it differs."""
    config = experiment.config
    settings = stable_repr(config.reward, "RewardConfig"), stable_repr(config.rollout, "RolloutConfig")
    parts = [dict(experiment.fingerprints), prompts, *settings, config.train.seed, config.algo.num_generations]
    default, form = type(config)(), dict[str, Any]()
    for section, names in DRAWN.items():
        given, usual = getattr(config, section), getattr(default, section)
        form |= {name: getattr(given, name) for name in names if getattr(given, name) != getattr(usual, name)}
    return json.dumps([*parts, form] if form else parts)


def read_groups(path: str) -> list[ScoredGroup]:
    """The groups of a JSON lines file (DataError for anything else)."""
    if not as_path(path).exists():
        raise DataError(f"{path} does not exist. Name a scored.jsonl, or leave the path empty to sample responses.")
    groups = []
    for number, row in numbered_json_lines(path):
        missing = [name for name in FIELDS if name not in row]
        if missing:
            raise DataError(f"{path}, line {number}: lacks {', '.join(missing)}; {EXPECTED}.")
        group = ScoredGroup(*(row[name] for name in FIELDS))
        wrong = [name for name, value in zip(FIELDS, group, strict=True) if not FIELDS[name](value)]
        if wrong:
            raise DataError(f"{path}, line {number}: {wrong[0]} is {str(row[wrong[0]])[:60]!r}; {EXPECTED}.")
        if isinstance(group.question, list):
            group = group._replace(question=tuple((role, content) for role, content in group.question))
        if not len(group.completions) == len(group.tokens) == len(group.rewards):
            raise DataError(f"{path}, line {number}: completions, tokens and rewards have different lengths.")
        groups.append(group)
    if not groups:
        raise DataError(f"{path} holds no scored responses.")
    return groups
