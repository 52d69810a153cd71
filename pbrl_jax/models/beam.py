"""Greedy and beam search over any model that continues sequences by one token, each as one compiled loop.

The rules are those of transformers' `generate` (greedy; `num_beams`, `length_penalty`, `early_stopping`), so that a
released translation model gives the same sentences here. The first token is given, not chosen.

A model is a function `step(state, tokens_X, slot) -> (logits_XV, state)`: X rows each write a token at `slot` and get
the logits of the next; `slot` counts from 1 here, as slot 0 holds the model's own start token.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pbrl_jax.core.records import pytree

#: Score of a sequence that must not be chosen.
IMPOSSIBLE = -1e9


def greedy_search(step: Callable, state: Any, first_B: Int[Array, "B"], max_length: int, eos_ids: tuple[int, ...],
                  pad_id: int) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Take the most likely next token until every row has ended.

    Args:
      first_B: the first token of each row.
      max_length: most tokens, the first and the end of sequence included.

    Returns:
      (tokens [B, max_length], lengths [B], truncated [B]).
    """
    B = len(first_B)
    tokens_BR = jnp.full((B, max_length), pad_id, jnp.int32).at[:, 0].set(first_B)

    def body(carry):
        slot, tokens_BR, done_B, state = carry
        last_B = jax.lax.dynamic_index_in_dim(tokens_BR, slot - 1, axis=1, keepdims=False)
        logits_BV, state = step(state, last_B, slot)
        token_B = jnp.where(done_B, pad_id, logits_BV.argmax(axis=-1)).astype(jnp.int32)
        tokens_BR = jax.lax.dynamic_update_slice(tokens_BR, token_B[:, None], (0, slot))
        return slot + 1, tokens_BR, done_B | one_of(token_B, eos_ids), state

    start = jnp.int32(1), tokens_BR, one_of(first_B, eos_ids), state
    _, tokens_BR, done_B, _ = jax.lax.while_loop(lambda c: (c[0] < max_length) & ~c[2].all(), body, start)
    return tokens_BR, lengths_of(tokens_BR, eos_ids), ~done_B


@pytree
class Beams:
    """The state of the search: K running sequences and the K best finished ones of each row.

    `running_BK` are sums of log-probs; `score_BK` are those of finished sequences over length ** length_penalty;
    `open_B` says that a running sequence may still beat the finished ones; `stuck_B` that every candidate of the last
    round ended.
    """

    slot: Int[Array, ""]
    tokens_BKR: Int[Array, "B K R"]
    running_BK: Float[Array, "B K"]
    found_BKR: Int[Array, "B K R"]
    score_BK: Float[Array, "B K"]
    finished_BK: Bool[Array, "B K"]
    open_B: Bool[Array, "B"]
    stuck_B: Bool[Array, "B"]
    state: Any


class Rules(NamedTuple):
    """Settings of the search.

    `early_stopping`: a row ends as soon as it has K finished sequences; otherwise only when its best running sequence
    is already worse than all of them.
    """

    max_length: int
    eos_ids: tuple[int, ...]
    length_penalty: float = 1.0
    early_stopping: bool = False


def beam_search(
    step: Callable, take_rows: Callable, state: Any, first_B: Int[Array, "B"], rules: Rules, pad_id: int, num_beams: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best of `num_beams` sequences by mean log-prob per token (to the power of the length penalty).

    Args:
      step: the model, for X = B * num_beams rows.
      take_rows: (state, rows_X) -> the state with its rows replaced by those at rows_X.
      first_B: the first token of each row; lengths count it.

    Returns:
      As `greedy_search`.
    """
    B, K = len(first_B), num_beams

    def body(beams: Beams) -> Beams:
        last_X = jax.lax.dynamic_index_in_dim(beams.tokens_BKR, beams.slot - 1, axis=2, keepdims=False).reshape(B * K)
        logits_XV, state = step(beams.state, last_X, beams.slot)
        beams, beam_BK = extended(beams, jax.nn.log_softmax(logits_XV, axis=-1).reshape(B, K, -1), rules)
        rows_X = (beam_BK + K * jnp.arange(B)[:, None]).reshape(B * K)
        return dataclasses.replace(beams, state=take_rows(state, rows_X))

    def goes_on(beams: Beams):
        waiting = ~(beams.finished_BK.all() & rules.early_stopping)
        return (beams.slot < rules.max_length) & beams.open_B.any() & waiting & ~beams.stuck_B.all()

    tokens_BKR = jnp.full((B, K, rules.max_length), pad_id, jnp.int32).at[:, :, 0].set(first_B[:, None])
    worst_BK, yes_B = jnp.full((B, K), IMPOSSIBLE, jnp.float32), jnp.ones(B, bool)
    # All beams start equal: only the first may continue, or every beam would hold the same sequence.
    start = Beams(jnp.int32(1), tokens_BKR, worst_BK.at[:, 0].set(0.0), tokens_BKR, worst_BK, jnp.zeros((B, K), bool),
                  yes_B, ~yes_B, state)  # fmt: skip
    tokens_BR = jax.lax.while_loop(goes_on, body, start).found_BKR[:, 0]
    return tokens_BR, lengths_of(tokens_BR, rules.eos_ids), ~one_of(tokens_BR, rules.eos_ids).any(axis=1)


def extended(beams: Beams, logp_BKV: jax.Array, rules: Rules) -> tuple[Beams, jax.Array]:
    """One step: the beams with one more token, and for each [B, K] the beam that it continues; `state` is unchanged.

    Enough candidates are kept that K of them go on even if the best K all end.
    """
    B, K, V = logp_BKV.shape
    kept = max(2, 1 + len(rules.eos_ids)) * K
    score_BKV = logp_BKV + beams.running_BK[:, :, None]
    candidate_BM, index_BM = jax.lax.top_k(score_BKV.reshape(B, K * V), kept)
    token_BM = (index_BM % V).astype(jnp.int32)
    tokens_BMR = take_beams(beams.tokens_BKR, index_BM // V)
    tokens_BMR = jax.lax.dynamic_update_slice(tokens_BMR, token_BM[:, :, None], (0, 0, beams.slot))
    ended_BM = one_of(token_BM, rules.eos_ids) | (beams.slot + 1 >= rules.max_length)
    running_BK, next_BK = jax.lax.top_k(jnp.where(ended_BM, candidate_BM + IMPOSSIBLE, candidate_BM), K)
    found_BKR, score_BK, finished_BK = keep_best(beams, tokens_BMR, candidate_BM, ended_BM, rules)
    bound_B = running_BK[:, 0] / (beams.slot + 1.0) ** rules.length_penalty
    worst_BK = jnp.where(finished_BK, score_BK.min(axis=1, keepdims=True), IMPOSSIBLE)
    following = Beams(
        slot=beams.slot + 1,
        tokens_BKR=take_beams(tokens_BMR, next_BK),
        running_BK=running_BK,
        found_BKR=found_BKR,
        score_BK=score_BK,
        finished_BK=finished_BK,
        open_B=beams.open_B & (bound_B[:, None] > worst_BK).any(axis=1),
        stuck_B=ended_BM.all(axis=1),
        state=beams.state,
    )
    return following, jnp.take_along_axis(index_BM // V, next_BK, axis=1)


def keep_best(beams: Beams, tokens_BMR, candidate_BM, ended_BM, rules: Rules) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best K of the finished sequences and of those that have just ended among the first K candidates."""
    K = beams.score_BK.shape[1]
    ended_BM = ended_BM & (jnp.arange(ended_BM.shape[1]) < K)[None]
    closed_B = (beams.finished_BK.all(axis=1) & rules.early_stopping) | ~beams.open_B
    score_BM = candidate_BM / (beams.slot + 1.0) ** rules.length_penalty
    score_BM = score_BM + IMPOSSIBLE * closed_B[:, None] + IMPOSSIBLE * ~ended_BM
    score_BK, best_BK = jax.lax.top_k(jnp.concatenate([beams.score_BK, score_BM], axis=1), K)
    found_BKR = take_beams(jnp.concatenate([beams.found_BKR, tokens_BMR], axis=1), best_BK)
    finished = jnp.concatenate([beams.finished_BK, ended_BM], axis=1)
    return found_BKR, score_BK, jnp.take_along_axis(finished, best_BK, axis=1)


def take_beams(x_BMR: jax.Array, beam_BK: jax.Array) -> jax.Array:
    """Sequences [B, K, R] at positions beam_BK of axis 1."""
    return jnp.take_along_axis(x_BMR, beam_BK[:, :, None], axis=1)


def one_of(token: jax.Array, ids: tuple[int, ...]) -> jax.Array:
    """Where a token is one of `ids`."""
    return (token[..., None] == jnp.asarray(ids, token.dtype).reshape((1,) * token.ndim + (-1,))).any(axis=-1)


def lengths_of(tokens_BR: Int[Array, "B R"], eos_ids: tuple[int, ...]) -> Int[Array, "B"]:
    """Number of tokens up to and including the first end of sequence; all where there is none."""
    ended = one_of(tokens_BR, eos_ids)
    return jnp.where(ended.any(axis=1), ended.argmax(axis=1) + 1, tokens_BR.shape[1]).astype(jnp.int32)
