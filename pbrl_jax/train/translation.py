"""Supervised training of a translation model on parallel text: cross-entropy of the target's tokens."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pbrl_jax.config.supervised import TranslatorTrainingConfig
from pbrl_jax.config.tree import OptimConfig
from pbrl_jax.core.records import TrainState, pytree
from pbrl_jax.models.m2m100 import M2M100Spec, token_logprobs
from pbrl_jax.train.optimizer import make_optimizer, make_schedule, stage_optimizer
from pbrl_jax.train.sft import gradient_metrics, gradient_step, mean_gradient


@pytree
class TranslationBatch:
    """B pairs: sources [language, tokens, end] and targets [language, tokens, end], padded on the right."""

    source_BS: Int[Array, "B S"]
    source_lengths_B: Int[Array, "B"]
    target_BR: Int[Array, "B R"]
    target_lengths_B: Int[Array, "B"]


def translator_optimizer_config(config: TranslatorTrainingConfig) -> OptimConfig:
    """AdamW with warm-up and cosine to zero over the stage's own length."""
    return stage_optimizer(config.steps, config.learning_rate, config.warmup_steps, weight_decay=0.01)


def translation_sums(params, batch: TranslationBatch, *, spec: M2M100Spec, smoothing: float):
    """(smoothed negative log-prob of all target tokens, (their number, no further sums))."""
    mask_BS = jnp.arange(batch.source_BS.shape[1])[None] < batch.source_lengths_B[:, None]
    logp_BR, counted_BR = token_logprobs(
        spec, params, batch.source_BS, mask_BS, batch.target_BR, batch.target_lengths_B, smoothing
    )
    return -jnp.where(counted_BR, logp_BR, 0.0).sum(), (counted_BR.sum(), {})


def make_translation_step(spec: M2M100Spec, config: TranslatorTrainingConfig) -> Callable:
    """The compiled step `(state, batch) -> (state, metrics)`; the state is donated."""
    optim = translator_optimizer_config(config)
    optimizer, schedule = make_optimizer(optim), make_schedule(optim)

    def step(state: TrainState, batch: TranslationBatch):
        def sums(params, rows):
            return translation_sums(params, rows, spec=spec, smoothing=config.label_smoothing)

        grads, metrics = mean_gradient(sums, state.params, batch, len(batch.target_BR), config.microbatch_size)
        state = gradient_step(state, grads, optimizer)
        return state, metrics | gradient_metrics(state, grads, schedule)

    return jax.jit(step, donate_argnums=0)
