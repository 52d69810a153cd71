"""Rollout, reward and update as one compiled program, with no host in between.

For policies and encoders that share a tokenizer: the sampled tokens go straight into the encoder. What the host path
does on text happens here on tokens: the answer part begins at the last occurrence of the language's answer phrase,
and the language gate looks every token up in a table. Sampled tokens need not be the canonical tokenisation of their
text; the share of rows in which both paths differ is measured by `tests/train/test_fused.py`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pbrl_jax.algos import ALGORITHMS
from pbrl_jax.config.tree import Config, RewardConfig
from pbrl_jax.core.errors import ConfigError, lookup
from pbrl_jax.core.records import PromptBatch, Rollout, SamplingParams, Scores, TrainBatch, TrainState, pytree
from pbrl_jax.models.encoder import encode_segments, encodes_segments
from pbrl_jax.models.specs import DecoderSpec, TextEncoderSpec
from pbrl_jax.rewards.cosine import hybrid_scores, vector_scores
from pbrl_jax.rewards.shaping import TOKEN_TERMS
from pbrl_jax.rollout.generate import generate_samples
from pbrl_jax.rollout.weights import decoding_params
from pbrl_jax.train.adapters import whole
from pbrl_jax.train.update import update_step


@pytree
class PivotBatch:
    """The references of P prompts on the device, and the prompt's language as a row of the token tables."""

    whole_PE: Float[Array, "P E"]
    reasoning_PE: Float[Array, "P E"]
    answer_PE: Float[Array, "P E"]
    has_P: Bool[Array, "P"]
    language_P: Int[Array, "P"]


@pytree
class TokenTables:
    """Per language: tokens that may stand in a response [languages, V], and the answer phrase [languages, M]."""

    allowed_LV: Bool[Array, "languages V"]
    marker_LM: Int[Array, "languages M"]
    eos_ids: Int[Array, "eos"]


def check_fusable(config: Config, shared_tokenizer: bool, prefix: str = "") -> None:
    """Refuse a configuration whose reward cannot be computed from tokens on the device (ConfigError).

    `prefix` is that of the loaded encoder: its folder may have a default one that the configuration does not name.
    """
    problems = []
    if "cosine" not in config.reward.functions or set(config.reward.functions) - {"cosine", *TOKEN_TERMS}:
        known = ", ".join(TOKEN_TERMS)
        problems.append(f"reward.functions {config.reward.functions} (only cosine, with or without {known})")
    if not any(config.reward.reward_weights):
        problems.append("reward.reward_weights 0 (nothing would be trained on)")
    if config.reward.language_gate not in ("tokens", "off"):
        problems.append(f"reward.language_gate {config.reward.language_gate} (use tokens or off)")
    if config.reward.parts not in ("split", "whole"):
        problems.append(f"reward.parts {config.reward.parts} (use split or whole)")
    if config.reward.similarity == "calibrated":
        problems.append("reward.similarity calibrated")
    if not shared_tokenizer:
        problems.append("policy and encoder with different tokenizers")
    if prefix := config.encoder.prefix or prefix:
        whose = "" if config.encoder.prefix else " (the default prompt of the encoder's folder)"
        problems.append(f"encoder.prefix {prefix!r}{whose}")
    if config.encoder.max_length < config.rollout.max_completion_length:
        problems.append("encoder.max_length below rollout.max_completion_length")
    if config.algo.multi_objective_aggregation != "sum_then_normalize":
        problems.append("algo.multi_objective_aggregation other than sum_then_normalize")
    if lookup(ALGORITHMS, config.algo.name, "algorithm").critic:
        problems.append(f"algo.name {config.algo.name}")
    if config.algo.num_iterations != 1:
        problems.append("algo.num_iterations other than 1")
    if config.reward.final_weights:
        problems.append("reward.final_weights")
    if config.algo.max_sampling_rounds != 1:
        problems.append("algo.max_sampling_rounds other than 1")
    if problems:
        raise ConfigError("train.fused cannot be used with: " + "; ".join(problems) + ". Use --train.no-fused.")


def answer_start(tokens_BR, length_B, marker_BM) -> Int[Array, "B"]:
    """Index of the first token of the last answer phrase of each row; R where there is none."""
    B, R = tokens_BR.shape
    M = marker_BM.shape[1]
    padded = jnp.pad(tokens_BR, ((0, 0), (0, M)), constant_values=-2)
    windows_BRM = jnp.stack([padded[:, shift : shift + R] for shift in range(M)], axis=-1)
    wanted_B1M = marker_BM[:, None]
    match_BR = ((windows_BRM == wanted_B1M) | (wanted_B1M < 0)).all(axis=-1)
    inside_BR = jnp.arange(R)[None] + (marker_BM >= 0).sum(axis=1, keepdims=True) <= length_B[:, None]
    place_BR = jnp.where(match_BR & inside_BR, jnp.arange(R)[None], -1)
    last_B = place_BR.max(axis=1)
    return jnp.where(last_B < 0, R, last_B)


def response_parts(rollout: Rollout, tables: TokenTables, language_B, config: RewardConfig):
    """The parts of each response as encoder inputs, ((tokens [B, R], mask [B, R]), ...): whole, or split."""
    tokens_BR, R = rollout.tokens_BR, rollout.tokens_BR.shape[1]
    ended_BR = (tokens_BR[..., None] == tables.eos_ids[None, None]).any(axis=-1)
    slot_1R = jnp.arange(R)[None]
    text_BR = (slot_1R < rollout.lengths_B[:, None]) & ~ended_BR
    if config.parts == "whole":
        return ((tokens_BR, text_BR),)
    start_B1 = answer_start(tokens_BR, rollout.lengths_B, tables.marker_LM[language_B])[:, None]
    moved_BR = jnp.minimum(slot_1R + start_B1, R - 1)
    answer_BR = jnp.take_along_axis(tokens_BR, moved_BR, axis=1)
    answer_mask_BR = jnp.take_along_axis(text_BR, moved_BR, axis=1) & (slot_1R + start_B1 < R)
    return ((tokens_BR, text_BR & (slot_1R < start_B1)), (answer_BR, answer_mask_BR))


def _both_parts(encoder_params, tokens_BR, parts, spec):
    """(which parts are not empty [2 B], their vectors [2 B, E]): reasoning and answer stand in one row as they were
    sampled, so that both are encoded in R slots and not in R each."""
    reasoning_BR, answer_BR = (mask for _, mask in parts)
    lengths = [mask.sum(axis=1, keepdims=True) for mask in (reasoning_BR, answer_BR)]
    slot_1R = jnp.arange(tokens_BR.shape[1])[None]
    segment_BR = (slot_1R >= lengths[0]).astype(jnp.int32)
    vectors = encode_segments(encoder_params, tokens_BR, slot_1R < sum(lengths), segment_BR, 2, spec=spec)
    return jnp.concatenate(lengths)[:, 0] > 0, vectors


def token_scores(encoder_params, rollout: Rollout, pivots: PivotBatch, tables: TokenTables, *, spec: TextEncoderSpec,
                 config: RewardConfig) -> Scores:  # fmt: skip
    """The cosine reward, the terms of shaping.TOKEN_TERMS and the language gate, all from tokens; the twin of
    rewards.combine on text."""
    samples = rollout.tokens_BR.shape[0] // pivots.language_P.shape[0]
    rows = jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), pivots)
    parts = response_parts(rollout, tables, rows.language_P, config)
    references = (rows.whole_PE,) if config.parts == "whole" else (rows.reasoning_PE, rows.answer_PE)
    if config.parts == "split" and encodes_segments(spec):
        present, vectors = _both_parts(encoder_params, rollout.tokens_BR, parts, spec)
        value_B, named = vector_scores(vectors, present, references, config=config)
    else:
        value_B, named = hybrid_scores(encoder_params, parts, references, spec=spec, config=config)
    named["value"] = value_B
    values = {"cosine": value_B} | {
        name: TOKEN_TERMS[name](rollout.tokens_BR, rollout.lengths_B, config)
        for name in config.functions
        if name != "cosine"
    }
    named |= {f"value/{name}": value for name, value in values.items() if name != "cosine"}
    value_B = sum(weight * values[name] for name, weight in zip(config.functions, config.reward_weights, strict=True))
    sampled_BR = jnp.arange(rollout.tokens_BR.shape[1])[None] < rollout.lengths_B[:, None]
    right_B = (tables.allowed_LV[rows.language_P[:, None], rollout.tokens_BR] | ~sampled_BR).all(axis=1)
    named["right_language"] = right_B.astype(value_B.dtype)
    empty_B = ~functools.reduce(jnp.logical_or, [mask.any(axis=1) for _, mask in parts])
    if config.language_gate == "tokens":
        value_B = jnp.where(right_B, value_B, config.rejected_value)
    value_B = jnp.where(empty_B, 0.0, value_B)
    return Scores(value_B, rows.has_P & jnp.isfinite(value_B), named)


def fused_step(state: TrainState, ref_params, encoder_params, prompts: PromptBatch, pivots: PivotBatch,
               tables: TokenTables, sampling: SamplingParams, key, *, spec: DecoderSpec, encoder_spec: TextEncoderSpec,
               config: Config) -> tuple[TrainState, dict[str, Any], Rollout, Scores]:  # fmt: skip
    """One whole step as a traceable function: sample, score, update."""
    params = whole(state.params, ref_params, config.lora)
    rollout = generate_samples(
        decoding_params(params, spec) if config.rollout.weights == "whole" else params, prompts, key, sampling,
        spec=spec, samples=config.algo.num_generations, max_length=config.rollout.max_completion_length,
    )  # fmt: skip
    scores = token_scores(encoder_params, rollout, pivots, tables, spec=encoder_spec, config=config.reward)
    batch = TrainBatch(prompts, rollout, jnp.where(scores.valid_B, scores.value_B, 0.0), scores.valid_B)
    state, metrics = update_step(state, ref_params, batch, spec=spec, config=config)
    return state, metrics, rollout, scores


def make_fused_step(spec: DecoderSpec, encoder_spec: TextEncoderSpec, config: Config) -> Callable:
    """The compiled step `(state, ref_params, encoder_params, prompts, pivots, tables, sampling, key) ->
    (state, metrics, rollout, scores)`.

    The state is not donated: a step that fails must leave the caller a state to save.
    """
    return jax.jit(functools.partial(fused_step, spec=spec, encoder_spec=encoder_spec, config=config))
