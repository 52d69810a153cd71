"""Scored rollout batches as the host knows them, and dynamic sampling: groups without signal are replaced."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pbrl_jax.algos.advantages import SAME_REWARD
from pbrl_jax.core.records import Prompt, Rollout, Scores, TrainBatch
from pbrl_jax.data.batches import next_batch
from pbrl_jax.logs.metrics import PhaseTimer
from pbrl_jax.mesh.sharding import batch_sharding
from pbrl_jax.rewards.combine import Combined
from pbrl_jax.rollout.sampling import step_key
from pbrl_jax.train.experiment import Experiment
from pbrl_jax.train.metrics import reward_metrics, rollout_metrics, sample_rows


class Collected(NamedTuple):
    """A scored rollout batch on the devices, and its B rows as the host knows them, NumPy arrays throughout."""

    batch: TrainBatch
    prompts_B: Sequence[Prompt]
    texts_B: Sequence[str]
    rollout: Rollout
    rewards: Combined
    extra: Mapping[str, float]
    """Further metrics of the whole batch."""

    def describe(self, step: int) -> tuple[dict[str, Any], list[dict]]:
        """(metrics, rows for the sample file) of a batch whose update is step `step`."""
        metrics = reward_metrics(self.rewards.each, self.rewards.right_language_B, self.prompts_B)
        metrics |= rollout_metrics(self.rollout, self.prompts_B) | dict(self.extra)
        scores = self.rewards
        rows = sample_rows(step, self.prompts_B, self.texts_B, scores.total, scores.each, scores.translation_B)
        return metrics, rows


def without_signal(found: Collected, samples: int) -> np.ndarray:
    """Which groups have valid rewards that are all the same (or at most one), [P]."""
    total = found.rewards.total
    value_PG, valid_PG = (np.asarray(x).reshape(-1, samples) for x in (total.value_B, total.valid_B))
    low_P = np.where(valid_PG, value_PG, np.inf).min(axis=1)
    return ~(np.where(valid_PG, value_PG, -np.inf).max(axis=1) - low_P > SAME_REWARD)


def replacements(flat_P: np.ndarray, more_flat_P: np.ndarray, target_size: int) -> np.ndarray:
    """For each group its place among [these groups, further groups]: one without signal gives way to a further one
    with signal, in order; English replay to English, the others to the others (`target_size` groups come first)."""
    P = len(flat_P)
    index_P = np.arange(P)
    for part in (slice(0, target_size), slice(target_size, P)):
        places, others = np.arange(P)[part][flat_P[part]], np.arange(P)[part][~more_flat_P[part]]
        count = min(len(places), len(others))
        index_P[places[:count]] = P + others[:count]
    return index_P


def make_replace(experiment: Experiment, shapes: TrainBatch) -> Callable:
    """`replace(found, more, index_P) -> Collected` with the groups that `index_P` names; `shapes` are a batch's.

    Its device part is compiled here, before the first step: whether a batch needs it is seen only later.
    """
    G = experiment.config.algo.num_generations
    P = shapes.prompts.lengths_P.shape[0]

    def take(one: TrainBatch, other: TrainBatch, index_P):
        rows_B = (index_P[:, None] * G + jnp.arange(G)[None]).reshape(-1)
        return jax.tree.map(
            lambda a, b: jnp.concatenate([a, b])[index_P if a.shape[0] == P and G > 1 else rows_B], one, other
        )

    index = jax.ShapeDtypeStruct((P,), jnp.int32)
    sharding = batch_sharding(experiment.mesh)
    compiled = jax.jit(take, out_shardings=sharding).lower(shapes, shapes, index).compile()

    def replace(found: Collected, more: Collected, index_P: np.ndarray) -> Collected:
        rows_B = (index_P[:, None] * G + np.arange(G)[None]).reshape(-1)

        def chosen(one, other):
            return jax.tree.map(lambda a, b: np.concatenate([np.asarray(a), np.asarray(b)])[rows_B], one, other)

        def listed(one, other):
            both = [*one, *other]
            return [both[row] for row in rows_B]

        return Collected(
            compiled(*jax.device_put((found.batch, more.batch), sharding), index_P.astype(np.int32)),
            listed(found.prompts_B, more.prompts_B),
            listed(found.texts_B, more.texts_B),
            chosen(found.rollout, more.rollout),
            chosen(alike(found.rewards, more.rewards), alike(more.rewards, found.rewards)),
            found.extra,
        )

    return replace


def alike(one: Combined, other: Combined) -> Combined:
    """`one` with those parts and translations only that `other` has, too: a reward that raised has none."""
    each = {
        name: Scores(s.value_B, s.valid_B, {part: x for part, x in s.parts.items() if part in other.each[name].parts})
        for name, s in one.each.items()
    }
    return one._replace(each=each, translation_B=None if other.translation_B is None else one.translation_B)


def make_rounds(experiment: Experiment, collect: Callable[..., Collected], shapes: TrainBatch) -> Callable:
    """`next_collected(step, cursor, params, timer) -> (Collected, cursor behind all prompts that were drawn)`.

    With algo.max_sampling_rounds above 1 groups without signal are replaced by groups of the next prompts (DAPO's
    dynamic sampling, arXiv 2503.14476, section 3.2). Every round is a whole batch, so nothing new is compiled, and a
    function of (step, cursor, parameters) alone, so it resumes.

    Args:
      collect: see `steps.make_collect`.
      shapes: of the batches that it makes.
    """
    config, sampler = experiment.config, experiment.sampler
    G, limit = config.algo.num_generations, config.algo.max_sampling_rounds
    replace = make_replace(experiment, shapes) if limit > 1 else None
    if replace is not None:
        jax.random.fold_in(step_key(config.train.seed, 0), 1)  # compiles; a second round may first come late

    def next_collected(step: int, cursor: dict[str, int], params, timer: PhaseTimer):
        prompts, cursor = next_batch(sampler, cursor)
        found = collect(step, prompts, params, timer)
        if replace is None:
            return found, cursor
        flat_P, rounds, tokens = without_signal(found, G), 1, int(found.rollout.lengths_B.sum())
        flat = int(flat_P.sum())
        while flat_P.any() and rounds < limit:
            prompts, cursor = next_batch(sampler, cursor)
            more = collect(step, prompts, params, timer, rounds)
            more_flat_P = without_signal(more, G)
            found = replace(found, more, replacements(flat_P, more_flat_P, sampler.target_size))
            flat_P, rounds = without_signal(found, G), rounds + 1
            flat, tokens = flat + int(more_flat_P.sum()), tokens + int(more.rollout.lengths_B.sum())
        extra = {"sampling/rounds": rounds, "sampling/flat_share": flat / (rounds * len(flat_P)), "num_tokens": tokens}
        return found._replace(extra={**found.extra, **extra}), cursor

    return next_collected
