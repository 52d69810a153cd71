"""Dynamic sampling: groups without signal are replaced by groups of further prompts (DAPO, arXiv 2503.14476,
section 3.2)."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from pbrl_jax.algos.advantages import SAME_REWARD
from pbrl_jax.core.records import TrainBatch, TrainState
from pbrl_jax.mesh.agree import host_array
from pbrl_jax.mesh.sharding import batch_sharding
from pbrl_jax.rewards.combine import Combined
from pbrl_jax.rollout.sampling import step_key
from pbrl_jax.train.experiment import Experiment
from pbrl_jax.train.metrics import unfiltered_metrics
from pbrl_jax.train.step import Drawn, Scored, StepFunctions, draw
from pbrl_jax.train.trained import Frozen


def with_dynamic_sampling(sample: Callable, experiment: Experiment, shapes: TrainBatch) -> Callable:
    """Sampling in at most algo.max_sampling_rounds rounds: groups without signal are replaced by groups of the next
    prompts.

    Every round is a whole batch, so nothing new is compiled, and a function of (step, cursor, parameters) alone, so a
    run resumes bit by bit.

    Args:
      sample: see `step.sample_batch`.
      shapes: of the batches that it makes.
    """
    config, target_size = experiment.config, experiment.sampler.target_size
    G, limit = config.algo.num_generations, config.algo.max_sampling_rounds
    merge = make_merge(experiment, shapes)
    jax.random.fold_in(step_key(config.train.seed, np.int32(0)), 1)  # compiled now; a second round may first come late

    def call(functions: StepFunctions, state: TrainState | None, frozen: Frozen, drawn: Drawn) -> Scored:
        found = sample(functions, state, frozen, drawn)
        flat_P, rounds, tokens = without_signal(found, G), 1, int(found.host_rollout.lengths_B.sum())
        flat, sampled = int(flat_P.sum()), [found]
        while flat_P.any() and rounds < limit:
            further = draw(experiment, drawn.step, found.cursor, rounds)._replace(timer=drawn.timer)
            more = sample(functions, state, frozen, further)
            more_flat_P = without_signal(more, G)
            sampled.append(more)
            found = merge(found, more, replacements(flat_P, more_flat_P, target_size))
            flat_P, rounds = without_signal(found, G), rounds + 1
            flat, tokens = flat + int(more_flat_P.sum()), tokens + int(more.host_rollout.lengths_B.sum())
        extra = {"sampling/rounds": rounds, "sampling/flat_share": flat / (rounds * len(flat_P)), "num_tokens": tokens}
        return found._replace(extra={**found.extra, **extra, **unfiltered_metrics(sampled)})

    return call


def without_signal(found: Scored, samples: int) -> np.ndarray:
    """Which groups have valid rewards that are all the same (or at most one), of every function where they are scaled
    apart, [P]."""
    total, apart_BF = found.rewards.total, found.batch.rewards_BF
    value_BF = np.asarray(total.value_B)[:, None] if apart_BF is None else host_array(apart_BF)
    valid_BF = np.asarray(total.valid_B)[:, None] & ~np.isnan(value_BF)
    value_PGF, valid_PGF = (x.reshape(-1, samples, x.shape[1]) for x in (value_BF, valid_BF))
    low_PF = np.where(valid_PGF, value_PGF, np.inf).min(axis=1)
    return ~(np.where(valid_PGF, value_PGF, -np.inf).max(axis=1) - low_PF > SAME_REWARD).any(axis=1)


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


def make_merge(experiment: Experiment, shapes: TrainBatch) -> Callable:
    """`merge(found, more, index_P) -> Scored` with the groups that `index_P` names; `shapes` are a batch's.

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

    def merge(found: Scored, more: Scored, index_P: np.ndarray) -> Scored:
        rows_B = (index_P[:, None] * G + np.arange(G)[None]).reshape(-1)

        def chosen(one, other):
            return jax.tree.map(lambda a, b: np.concatenate([np.asarray(a), np.asarray(b)])[rows_B], one, other)

        def listed(one, other, index):
            both = [*one, *other]
            return [both[place] for place in index]

        return found._replace(
            batch=compiled(*jax.device_put((found.batch, more.batch), sharding), index_P.astype(np.int32)),
            rewards=chosen(alike(found.rewards, more.rewards), alike(more.rewards, found.rewards)),
            prompts_P=listed(found.prompts_P, more.prompts_P, index_P),
            cursor=more.cursor,
            host_rollout=chosen(found.host_rollout, more.host_rollout),
            texts_B=listed(found.texts_B, more.texts_B, rows_B),
        )

    return merge


def alike(one: Combined, other: Combined) -> Combined:
    """`one` with those parts and translations only that `other` has, too: a reward that raised has none."""
    each = {
        name: replace(s, parts={part: x for part, x in s.parts.items() if part in other.each[name].parts})
        for name, s in one.each.items()
    }
    return one._replace(each=each, translation_B=None if other.translation_B is None else one.translation_B)
