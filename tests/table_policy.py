"""A policy that is a table of one logit per token and position, so that a program of the update compiles in a blink."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from tiny_policy import tiny_batch, tiny_config, tiny_spec

from pbrl_jax.train import update

SPEC = tiny_spec()
P, G, R = 4, 3, 6
LENGTHS = (6, 1, 4, 2, 2, 3, 5, 6, 1, 3, 3, 3)
CONFIG = tiny_config(G, R, algo={"beta": 0.1})


def table_outputs(params, value_head, batch, context, entropy):
    """Log-probs, entropies and no values of a policy that is a table of logits [V, R]."""
    logits_BR = params["table"][batch.rollout.tokens_BR, jnp.arange(R)[None]]
    return -jnp.logaddexp(0.0, -logits_BR) - 1.0, jnp.square(logits_BR) + 1.0 if entropy else None, None


def keep_gradient(state, grads, *_):
    """In the place of the optimizer."""
    return dataclasses.replace(state, params=grads), {update.STATE_FINITE: jnp.bool_(True)}


def table(seed: int):
    return {"table": jnp.asarray(np.random.default_rng(seed).normal(size=(SPEC.vocab_size, R)))}


def batch_of():
    """Rows of different lengths and sampler log-probs near the policy's; an invalid row, and a group without signal."""
    batch = tiny_batch(SPEC, (5, 2, 4, 3), 5, LENGTHS, R)
    logp, *_ = table_outputs(table(0), None, batch, None, False)
    noise = 0.2 * np.random.default_rng(5).normal(size=logp.shape)
    used = jnp.arange(R)[None] < batch.rollout.lengths_B[:, None]
    rollout = dataclasses.replace(batch.rollout, logp_BR=jnp.where(used, logp + noise, 1e3))
    batch = dataclasses.replace(batch, old_logp_BR=rollout.logp_BR)
    reward = jnp.asarray(batch.reward_B, jnp.float64).at[9:].set(0.5)
    return dataclasses.replace(batch, rollout=rollout, reward_B=reward, valid_B=batch.valid_B.at[1].set(False))
