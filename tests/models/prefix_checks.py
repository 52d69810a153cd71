"""A shared prompt with its responses, and the same texts as plain rows: for tests that compare the two."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from tiny_policy import full_rows, tiny_prompts, tiny_rollout

from pbrl_jax.models.decoder import causal_logits
from pbrl_jax.models.logprobs import response_logprobs, unpacked_streams
from pbrl_jax.models.packing import Bucket, pack_streams, unpack
from pbrl_jax.models.specs import TINY_FAMILIES

G, R, T, BUCKET = 3, 8, 7, Bucket(2, 8)
#: A prompt that is longer than the window of 4 and one that is shorter, each with a padded end.
PROMPT_LENGTHS, LENGTHS = (6, 3), (1, 8, 4, 2, 3, 1)


def wide_spec(family: str, **changes):
    return dataclasses.replace(TINY_FAMILIES[family], dtype="float64", **changes)


def batch(spec):
    prompts, rollout = tiny_prompts(spec, PROMPT_LENGTHS, T), tiny_rollout(spec, LENGTHS, R)
    return prompts, rollout, jnp.arange(R)[None] < rollout.lengths_B[:, None]


def value_and_gradient(params, logp_of, mask):
    """Log-probs of all response tokens, and the gradient of a random combination of them."""
    weights = jnp.asarray(np.random.default_rng(5).normal(size=mask.shape))

    def total(params):
        logp = jnp.where(mask, logp_of(params), 0)
        return (weights * logp).sum(), logp

    gradient, logp = jax.jit(jax.grad(total, has_aux=True))(params)
    return logp, gradient


def plain_logp(spec, prompts, rollout):
    """Log-probs by one causal forward over [prompt, response] rows."""
    tokens, seen, starts = full_rows(prompts, rollout)
    before = np.minimum(starts[:, None] - 1 + np.arange(R)[None], T + R - 1)

    def logp_of(params):
        logits = causal_logits(params, spec, tokens, seen)[np.arange(len(starts))[:, None], before]
        return jnp.take_along_axis(jax.nn.log_softmax(logits), rollout.tokens_BR[..., None], axis=-1)[..., 0]

    return logp_of


def shared_logp(spec, prompts, rollout, mask, packed):
    """The same through a shared prompt, the responses side by side or packed into one stream."""
    pack = functools.partial(pack_streams, bucket=BUCKET) if packed else unpacked_streams

    def logp_of(params):
        streams = pack(rollout.tokens_BR, rollout.lengths_B, G)
        logp, _ = response_logprobs(params, prompts, streams, 1.0, spec=spec, chunk=1000, packed=G * packed)
        return unpack(logp, rollout.lengths_B, G, R) if packed else logp.reshape(mask.shape)

    return logp_of
