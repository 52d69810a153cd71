"""Contrastive training of an encoder on parallel text.

InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) in both directions, with the other rows of the batch as negatives
and, for the texts, copies with a changed number: a similarity that does not see numbers cannot judge reasoning.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pbrl_jax.config.tree import ContrastiveConfig, OptimConfig
from pbrl_jax.core.records import TrainState, pytree
from pbrl_jax.models.encoder import encode
from pbrl_jax.models.specs import TextEncoderSpec
from pbrl_jax.train.optimizer import make_optimizer
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
    return OptimConfig(
        learning_rate=config.learning_rate,
        schedule="cosine",
        warmup_steps=min(20, config.steps // 2),
        schedule_steps=config.steps,
        weight_decay=0.01,
    )


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


def make_contrastive_step(spec: TextEncoderSpec, config: ContrastiveConfig) -> Callable:
    """The compiled step `(state, batch) -> (state, metrics)`; the state is donated."""
    optimizer = make_optimizer(contrastive_optimizer_config(config))

    def loss(params, batch: ContrastiveBatch):
        tokens = jnp.concatenate([batch.source_BS, batch.target_BS, batch.negative_MS])
        mask = jnp.concatenate([batch.source_mask_BS, batch.target_mask_BS, batch.negative_mask_MS])
        vectors = encode(params, tokens, mask, spec=spec)
        B = batch.source_BS.shape[0]
        counts = batch.negative_mask_MS.any(axis=1)
        return info_nce(vectors[:B], vectors[B : 2 * B], vectors[2 * B :], config.temperature, counts)

    def step(state: TrainState, batch: ContrastiveBatch):
        (value, right), grads = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
        state = gradient_step(state, grads, optimizer)
        return state, {"loss": value, "retrieval": right} | gradient_metrics(state, grads)

    return jax.jit(step, donate_argnums=0)
