"""A step's record as a row of the log: metrics per language and per reward, and rows for the sample files."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pbrl_jax.core.records import STATE_FINITE, Prompt, Rollout, Scores
from pbrl_jax.rewards.combine import Combined
from pbrl_jax.rollout.decode import completions
from pbrl_jax.text.tokenizers import Tokenizer
from pbrl_jax.train.step import Record, Scored


def read_record(record: Record, tokenizer: Tokenizer) -> tuple[dict[str, Any], list[dict]]:
    """(metrics, rows for the sample file) of a step; waits for the device."""
    described, rows = ({}, []) if record.scored is None else describe(record.scored, record.step, tokenizer)
    update = {name: value for name, value in record.metrics.items() if name != STATE_FINITE}
    return described | read_metrics(update) | dict(record.times), rows


def read_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """An update's metrics on the host. Where no token is in the loss, means over tokens are absent, not 0."""
    found = jax.device_get(dict(metrics))
    if found.get("loss/count", 1) == 0:
        found = {name: value for name, value in found.items() if not np.isnan(value)}
    return found


def describe(scored: Scored, step: int, tokenizer: Tokenizer) -> tuple[dict[str, Any], list[dict]]:
    """(metrics, rows for the sample file) of the batch that step `step` was trained on."""
    rollout, rewards, texts_B = scored.host_rollout, scored.rewards, scored.texts_B
    if rollout is None or texts_B is None:  # nothing has left the device yet
        rollout = jax.device_get(scored.batch.rollout)
        rewards = jax.device_get(rewards)
        texts_B = completions(rollout, tokenizer)
    samples = len(rollout.lengths_B) // len(scored.prompts_P)
    prompts_B = [prompt for prompt in scored.prompts_P for _ in range(samples)]
    metrics = reward_metrics(rewards.each, rewards.right_language_B, prompts_B)
    metrics |= rollout_metrics(rollout, prompts_B) | dict(scored.extra)
    return metrics, sample_rows(step, prompts_B, texts_B, rewards)


def by_language(name: str, values_B, keep_B, languages_B: Sequence[str], of=np.mean) -> dict[str, float]:
    """`<name>/<language>`: mean, or another statistic, of the kept rows of each language."""
    values, keep, languages = np.asarray(values_B, float), np.asarray(keep_B, bool), np.asarray(languages_B)
    found = {}
    for language in dict.fromkeys(languages_B):
        rows = keep & (languages == language)
        if rows.any():
            found[f"{name}/{language}"] = float(of(values[rows]))
    return found


def spread(values) -> float:
    """The unbiased standard deviation, as of `reward_std` and in TRL; 0 of one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def reward_metrics(each: Mapping[str, Scores], right_B, prompts_B: Sequence[Prompt]) -> dict[str, float]:
    """TRL's `rewards/<name>/mean` and `/std`, the same per language and part, and `language/consistency`."""
    languages = [prompt.language for prompt in prompts_B]
    everything = np.ones(len(languages), bool)
    metrics = {"language/consistency": float(np.mean(right_B))}
    metrics |= by_language("language/consistency", right_B, everything, languages)
    for name, scores in each.items():
        values, valid = np.asarray(scores.value_B), np.asarray(scores.valid_B)
        failed, scored = np.asarray(scores.failed_B), max(1, int((valid | scores.failed_B).sum()))
        metrics[f"rewards/{name}/valid_share"] = 1 - float(failed.sum()) / scored
        if not valid.any():
            continue  # no mean of nothing: invalid is not zero
        metrics[f"rewards/{name}/mean"] = float(values[valid].mean())
        metrics[f"rewards/{name}/std"] = spread(values[valid])
        metrics |= by_language(f"rewards/{name}/mean", values, valid, languages)
        metrics |= by_language(f"rewards/{name}/std", values, valid, languages, spread)
        for part, part_values in scores.parts.items():
            metrics[f"rewards/{name}/{part}/mean"] = float(np.asarray(part_values)[valid].mean())
    return metrics


def rollout_metrics(rollout: Rollout, prompts_B: Sequence[Prompt]) -> dict[str, float]:
    """Truncation per language and the number of sampled tokens."""
    languages = [prompt.language for prompt in prompts_B]
    everything = np.ones(len(languages), bool)
    metrics = by_language("completions/clipped_ratio", rollout.truncated_B, everything, languages)
    return metrics | {"num_tokens": int(np.asarray(rollout.lengths_B).sum())}


def unfiltered_metrics(rounds: Sequence[Scored]) -> dict[str, float]:
    """Means over everything that was sampled for a batch, in all rounds of dynamic sampling: `<metric>/unfiltered`.

    The metrics of the same names without the suffix are of the groups that were kept, which are chosen by reward.
    """

    def mean(name: str, pairs: Sequence[tuple[Any, Any]]) -> dict[str, float]:
        values, keep = (np.concatenate([np.asarray(x) for x in column]) for column in zip(*pairs, strict=True))
        return {f"{name}/unfiltered": float(values[keep].mean())} if keep.any() else {}

    rollouts, rewards = [one.host_rollout for one in rounds], [one.rewards for one in rounds]
    lengths = [np.asarray(rollout.lengths_B) for rollout in rollouts if rollout is not None]
    truncated = [np.asarray(rollout.truncated_B, float) for rollout in rollouts if rollout is not None]
    right = [np.asarray(one.right_language_B, float) for one in rewards]
    metrics = mean("reward", [(one.total.value_B, one.total.valid_B) for one in rewards])
    for name, columns in (
        ("completions/mean_length", lengths), ("completions/clipped_ratio", truncated), ("language/consistency", right),
    ):  # fmt: skip
        metrics |= mean(name, [(column, np.ones(len(column), bool)) for column in columns])
    for name in rewards[0].each:
        metrics |= mean(f"rewards/{name}/mean", [(one.each[name].value_B, one.each[name].valid_B) for one in rewards])
    return metrics


def sample_rows(step: int, prompts_B: Sequence[Prompt], texts_B: Sequence[str], rewards: Combined) -> list[dict]:
    """One dict per response with the fields of samples/step_<n>.jsonl; `translation` is there where a reward
    translates, "" for a response that was not translated."""
    total, each, translation_B = rewards.total, rewards.each, rewards.translation_B
    values, valid = np.asarray(total.value_B), np.asarray(total.valid_B)
    parts = {
        f"{name}/{part}": np.asarray(column)
        for name, scores in each.items()
        for part, column in {"value": np.where(scores.valid_B, scores.value_B, np.nan), **scores.parts}.items()
    }
    return [
        {
            "step": step,
            "prompt_id": prompt.id,
            "language": prompt.language,
            "prompt": prompt.question,
            "completion": texts_B[row],
            "reference": None if prompt.reference is None else prompt.reference.text,
            "reward": float(values[row]),
            "parts": {name: float(column[row]) for name, column in parts.items() if not np.isnan(column[row])},
            "valid": bool(valid[row]),
        }
        | ({} if translation_B is None else {"translation": translation_B[row]})
        for row, prompt in enumerate(prompts_B)
    ]
