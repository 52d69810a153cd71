"""The DPO step: two responses to a prompt behind one shared prefix, under the policy and under the start policy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pbrl_jax.algos.preference import preference_loss
from pbrl_jax.config.tree import DpoConfig, LoraConfig, OptimConfig
from pbrl_jax.core.records import TrainState
from pbrl_jax.models.logprobs import response_logprobs, unpacked_streams
from pbrl_jax.models.lora import NO_ADAPTERS
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.train.optimizer import make_optimizer, make_schedule, stage_optimizer
from pbrl_jax.train.sft import SftBatch, gradient_metrics, gradient_step, mean_gradient
from pbrl_jax.train.trained import forward_params


def dpo_optimizer_config(config: DpoConfig) -> OptimConfig:
    """AdamW with warm-up and cosine to zero over the stage's own length."""
    return stage_optimizer(config.steps, config.learning_rate, config.warmup_steps)


def response_sums(params, batch: SftBatch, *, spec: DecoderSpec, chunk: int):
    """Log-prob of each whole response, [P, 2]: chosen, rejected."""
    streams = unpacked_streams(batch.tokens_BR, batch.lengths_B, 2)
    logp_PSL, _ = response_logprobs(params, batch.prompts, streams, 1.0, spec=spec, chunk=chunk)
    return jnp.where(streams.used_PSL, logp_PSL, 0.0).sum(axis=-1)


def make_dpo_step(spec: DecoderSpec, config: DpoConfig, chunk: int, lora: LoraConfig = NO_ADAPTERS) -> Callable:
    """The compiled step `(state, batch, frozen) -> (state, metrics)`; the state is donated.

    `frozen` are the start policy's parameters: the reference, and the weights that adapters stand beside. Rows 2p and
    2p + 1 of the batch are the pair of prompt p, the chosen first.
    """
    optim = dpo_optimizer_config(config)
    optimizer, schedule = make_optimizer(optim), make_schedule(optim)

    def step(state: TrainState, batch: SftBatch, frozen):
        def sums(trained, pairs):
            logp_P2 = response_sums(forward_params(trained, frozen, lora), pairs, spec=spec, chunk=chunk)
            ref_P2 = jax.lax.stop_gradient(response_sums(frozen, pairs, spec=spec, chunk=chunk))
            loss_P, metrics = preference_loss(logp_P2, ref_P2, pairs.lengths_B.reshape(-1, 2), config=config)
            return loss_P.sum(), (jnp.int32(len(loss_P)), {name: value_P.sum() for name, value_P in metrics.items()})

        groups = len(batch.prompts.lengths_P)
        grads, metrics = mean_gradient(sums, state.params, batch, groups, config.microbatch_size)
        state = gradient_step(state, grads, optimizer)
        return state, metrics | gradient_metrics(state, grads, schedule)

    return jax.jit(step, donate_argnums=0)
