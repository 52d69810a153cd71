"""From logits to a token: temperature, top-k, top-p, and one uniform number per row.

Settings are arrays, so that other values compile nothing. A row's randomness derives from (seed, step, prompt id,
sample id, token index) alone: rollouts do not depend on how rows are laid out in batches or over hosts.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.records import SamplingParams

#: Ids that can end a response; the array of them has this length, so that another set compiles nothing.
MAX_EOS_IDS = 8

#: Logit of a token that truncation has removed.
REMOVED = -1e30


def sampling_params(temperature: float, top_p: float, top_k: int, eos_ids: tuple[int, ...]) -> SamplingParams:
    """Settings as arrays. `eos_ids`: every id that ends a response, at most MAX_EOS_IDS (else ConfigError)."""
    if len(eos_ids) > MAX_EOS_IDS:
        raise ConfigError(
            f"{len(eos_ids)} end-of-sequence ids {tuple(eos_ids)}; expected at most {MAX_EOS_IDS}. "
            "Leave out those that the policy never samples."
        )
    padded = np.full(MAX_EOS_IDS, -1, np.int32)
    padded[: len(eos_ids)] = eos_ids
    return SamplingParams(jnp.float32(temperature), jnp.float32(top_p), jnp.int32(top_k), jnp.asarray(padded))


def step_key(seed: int, step) -> jax.Array:
    """The key of one rollout."""
    return jax.random.fold_in(jax.random.key(seed), step)


def row_keys(key: jax.Array, row_ids_P: Int[Array, "P"], samples: int) -> jax.Array:
    """One key per row b = p * samples + g, from the prompt's stable id and the sample's number."""

    def of_prompt(row_id):
        prompt_key = jax.random.fold_in(key, row_id)
        return jax.vmap(lambda g: jax.random.fold_in(prompt_key, g))(jnp.arange(samples))

    return jax.vmap(of_prompt)(row_ids_P).reshape(-1)


def smallest_kept(logits_BV: Float[Array, "B V"], params: SamplingParams) -> Float[Array, "B 1"]:
    """The smallest logit that top-k and top-p keep: k best first, then the smallest set that reaches mass top_p.

    The best token is always kept, whatever top_p is.
    """
    V = logits_BV.shape[-1]
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    rank_1V = jnp.arange(V)[None]
    kept_k = jnp.where(params.top_k > 0, jnp.minimum(params.top_k, V), V)
    probs_BV = jax.nn.softmax(jnp.where(rank_1V < kept_k, sorted_BV, REMOVED), axis=-1)
    mass_before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
    kept_BV = (rank_1V < kept_k) & ((mass_before_BV < params.top_p) | (rank_1V == 0))
    return jnp.where(kept_BV, sorted_BV, jnp.inf).min(axis=-1, keepdims=True)


def block_size(vocab: int) -> int:
    """The power of two nearest the square root of V: the two-level search then looks at about 2 sqrt(V) sums."""
    return 1 << max(0, round(np.log2(vocab) / 2))


def inverse_cdf(weights_BV: Float[Array, "B V"], uniform_B: Float[Array, "B"]) -> Int[Array, "B"]:
    """Index i with probability weights_i / sum, from one uniform number in [0, 1) per row.

    The search is in two levels (blocks, then inside the block), so that no long running sum is made and a token needs
    one random number, not V of them. An index of weight zero is never returned.
    """
    B, V = weights_BV.shape
    block = block_size(V)
    padded = jnp.pad(weights_BV, ((0, 0), (0, -V % block))).reshape(B, -1, block)
    block_sums = padded.sum(axis=-1)
    block_ends = jnp.cumsum(block_sums, axis=-1)
    target_B1 = uniform_B[:, None] * block_ends[:, -1:]
    chosen_B = first_past(block_sums, block_ends, target_B1)
    start_B1 = jnp.where(chosen_B[:, None] > 0, jnp.take_along_axis(block_ends, chosen_B[:, None] - 1, axis=1), 0.0)
    inside = jnp.take_along_axis(padded, chosen_B[:, None, None], axis=1)[:, 0]
    offset_B = first_past(inside, jnp.cumsum(inside, axis=-1), target_B1 - start_B1)
    return (chosen_B * block + offset_B).astype(jnp.int32)


def first_past(weights_BN: Float[Array, "B N"], ends_BN: Float[Array, "B N"], target_B1) -> Int[Array, "B"]:
    """First index with weight whose running sum passes the target; the last one with weight where none does.

    Long running sums are made in pieces and may move by a rounding error even over weights of zero.
    """
    index_1N = jnp.arange(weights_BN.shape[1])[None]
    has_weight = weights_BN > 0
    first_B = jnp.where(has_weight & (ends_BN > target_B1), index_1N, weights_BN.shape[1]).min(axis=-1)
    return jnp.minimum(first_B, jnp.where(has_weight, index_1N, 0).max(axis=-1))


def sample(
    logits_BV: Float[Array, "B V"], keys_B: jax.Array, token_index, params: SamplingParams
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """Sampled tokens and their log-probs under softmax(logits / temperature), untruncated.

    Args:
      logits_BV: float32 or wider.
      keys_B: one key per row (see row_keys).
      token_index: position in the response, from which the row's uniform number derives; one for all rows, or [B].
      params: temperature 0 is greedy (log-probs are then those of temperature 1).
    """
    greedy = params.temperature <= 0
    tempered_BV = logits_BV / jnp.where(greedy, 1.0, params.temperature).astype(logits_BV.dtype)
    truncated = (params.top_p < 1) | (params.top_k > 0)
    # Only a threshold per row comes out of the branch: the sort is not paid for, and no copy made, when it is off.
    smallest_B1 = jax.lax.cond(
        truncated,
        lambda x: smallest_kept(x, params),
        lambda x: jnp.full_like(x[:, :1], -jnp.inf),
        tempered_BV,
    )
    top_B1 = tempered_BV.max(axis=-1, keepdims=True)
    weights_BV = jnp.exp(tempered_BV - top_B1)
    index_B = jnp.broadcast_to(token_index, keys_B.shape)
    uniform_B = jax.vmap(lambda key, index: jax.random.uniform(jax.random.fold_in(key, index)))(keys_B, index_B)
    # Greedy is the first of the best. An argmax beside the draw would read all logits once more.
    uniform_B = jnp.where(greedy, 0.0, uniform_B).astype(logits_BV.dtype)
    kept_BV = tempered_BV >= jnp.where(greedy, top_B1, smallest_B1)
    token_B = inverse_cdf(jnp.where(kept_BV, weights_BV, 0.0), uniform_B)
    chosen_B = jnp.take_along_axis(tempered_BV, token_B[:, None], axis=-1)[:, 0]
    return token_B, chosen_B - top_B1[:, 0] - jnp.log(weights_BV.sum(axis=-1))


def is_eos(token_B: Int[Array, "B"], params: SamplingParams) -> jax.Array:
    """Which tokens end a response."""
    return (token_B[:, None] == params.eos_ids[None, :]).any(axis=-1)
