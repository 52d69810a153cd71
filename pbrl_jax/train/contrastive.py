"""Contrastive training of an encoder on parallel text.

InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) in both directions, with the other rows of the batch as negatives
and, for the texts, copies with a changed number: a similarity that does not see numbers cannot judge reasoning.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pbrl_jax.config.tree import ContrastiveConfig, OptimConfig
from pbrl_jax.core.records import TrainState, pytree
from pbrl_jax.core.trees import map_microbatches, sum_microbatches
from pbrl_jax.mesh.sharding import row_shards
from pbrl_jax.models.encoder import encode
from pbrl_jax.models.specs import TextEncoderSpec
from pbrl_jax.train.optimizer import make_optimizer, make_schedule, stage_optimizer
from pbrl_jax.train.sft import gradient_metrics, gradient_step


@pytree
class ContrastiveBatch:
    """B parallel texts and M negatives of the targets; row b of both sides says the same thing.

    A negative without a single real token is none: it only fills the array up.
    """

    source_BS: Int[Array, "B S"]
    source_mask_BS: Bool[Array, "B S"]
    target_BS: Int[Array, "B S"]
    target_mask_BS: Bool[Array, "B S"]
    negative_MS: Int[Array, "M S"]
    negative_mask_MS: Bool[Array, "M S"]


def contrastive_optimizer_config(config: ContrastiveConfig) -> OptimConfig:
    """AdamW with warm-up and cosine to zero over the stage's own length."""
    return stage_optimizer(config.steps, config.learning_rate, 20, weight_decay=0.01)


def info_nce(
    source_BE: Float[Array, "B E"],
    target_BE: Float[Array, "B E"],
    negative_ME: Float[Array, "M E"],
    temperature: float,
    counts_M: Bool[Array, " M"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(loss, share of sources whose nearest candidate is their own target), of unit vectors.

    Source to target against all targets and those negatives that count, target to source against all sources; the
    mean of both.
    """
    B = source_BE.shape[0]
    hard_BM = jnp.where(counts_M[None], source_BE @ negative_ME.T, -jnp.inf)
    forward = jnp.concatenate([source_BE @ target_BE.T, hard_BM], axis=1) / temperature
    backward = target_BE @ source_BE.T / temperature
    own = jnp.arange(B)

    def cross_entropy(scores):
        return (jax.nn.logsumexp(scores, axis=1) - scores[own, own]).mean()

    right = (jnp.argmax(forward, axis=1) == own).mean()
    return (cross_entropy(forward) + cross_entropy(backward)) / 2, right


def side_by_side(batch: ContrastiveBatch, groups: int) -> tuple[jax.Array, jax.Array]:
    """(tokens, mask) of all texts, [2B + M, S], in `groups` groups that each hold as many sources, targets and
    negatives: so the devices that share the batch, and microbatches, each encode the rows that they have."""

    def join(*columns):
        apart = [x.reshape(groups, -1, x.shape[1]) for x in columns]
        return jnp.concatenate(apart, axis=1).reshape(-1, columns[0].shape[1])

    return (
        join(batch.source_BS, batch.target_BS, batch.negative_MS),
        join(batch.source_mask_BS, batch.target_mask_BS, batch.negative_mask_MS),
    )


def apart(vectors: jax.Array, B: int, groups: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sources [B, E], targets [B, E] and negatives [M, E] of vectors that lie as `side_by_side` lays their texts."""
    vectors, each = vectors.reshape(groups, -1, vectors.shape[-1]), B // groups
    columns = vectors[:, :each], vectors[:, each : 2 * each], vectors[:, 2 * each :]
    source, target, negative = (x.reshape(-1, x.shape[-1]) for x in columns)
    return source, target, negative


def contrastive_gradient(params, batch: ContrastiveBatch, *, spec: TextEncoderSpec, config: ContrastiveConfig):
    """((loss, share of sources that find their own target), gradient) of the whole batch.

    In microbatches (Gao et al. 2021, arXiv 2101.06983): all texts are encoded without a gradient, the loss of their
    vectors gives the gradient of each vector, and every microbatch is encoded again to pull its vectors' back.
    """
    B, shards = batch.source_BS.shape[0], row_shards()
    groups = shards * (B // (config.microbatch_size or B))
    rows, counts = side_by_side(batch, groups), batch.negative_mask_MS.any(axis=1)

    def embed(params, rows):
        return encode(params, *rows, spec=spec)

    def loss(vectors):
        source_BE, target_BE, negative_ME = apart(vectors, B, groups)
        return info_nce(source_BE, target_BE, negative_ME, config.temperature, counts)

    if groups == shards:
        return jax.value_and_grad(lambda params: loss(embed(params, rows)), has_aux=True)(params)
    vectors = map_microbatches(functools.partial(embed, params), rows, groups, shards)
    found, pulls = jax.value_and_grad(loss, has_aux=True)(vectors)

    def pulled(piece):
        rows, pulls = piece
        return jax.vjp(lambda params: embed(params, rows), params)[1](pulls)[0]

    return found, sum_microbatches(pulled, (rows, pulls), groups, shards)


def make_contrastive_step(spec: TextEncoderSpec, config: ContrastiveConfig) -> Callable:
    """The compiled step `(state, batch) -> (state, metrics)`; the state is donated."""
    optim = contrastive_optimizer_config(config)
    optimizer, schedule = make_optimizer(optim), make_schedule(optim)

    def step(state: TrainState, batch: ContrastiveBatch):
        (value, right), grads = contrastive_gradient(state.params, batch, spec=spec, config=config)
        state = gradient_step(state, grads, optimizer)
        return state, {"loss": value, "retrieval": right} | gradient_metrics(state, grads, schedule)

    return jax.jit(step, donate_argnums=0)
