"""Log-probs of responses from hidden states at response positions only, in chunks.

The prompt's part of the forward pass is computed once for all its samples. Logits exist for one chunk of positions at a
time, and the backward pass recomputes them: no [B, T, V] array is made for the policy or the reference.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pbrl_jax.core.records import PromptBatch, pytree
from pbrl_jax.mesh.sharding import constrain, row_parts, row_shards, vocab_shards
from pbrl_jax.models.decoder import hidden_states, logits_of, output_matrix
from pbrl_jax.models.layouts import SharedPrefix
from pbrl_jax.models.precision import states_at, widened
from pbrl_jax.models.specs import DecoderSpec


def init_value_head(width: int) -> dict[str, Float[Array, "..."]]:
    """A linear value head that gives 0 everywhere, which is the mean of whitened returns."""
    return {"kernel": jnp.zeros((width,), jnp.float32), "bias": jnp.zeros((), jnp.float32)}


def state_values(head, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows"]:
    """The value of each state from its (normalised) hidden state, in float32 or wider."""
    return widened(hidden) @ head["kernel"] + head["bias"]


@pytree
class ResponseStreams:
    """The responses of P prompts, in S streams of L slots per prompt (see models.packing).

    `row_PSL` is each slot's row within its prompt's group, `offset_PSL` its index in the response, and `used_PSL` marks
    slots that hold a token. Unpacked, S is the group size and slot l of stream g is token l of row g.
    """

    tokens_PSL: Int[Array, "P S L"]
    row_PSL: Int[Array, "P S L"]
    offset_PSL: Int[Array, "P S L"]
    used_PSL: Bool[Array, "P S L"]


def unpacked_streams(tokens_BR: Int[Array, "B R"], lengths_B: Int[Array, "B"], samples: int) -> ResponseStreams:
    """One stream per row."""
    B, R = tokens_BR.shape
    shape = (B // samples, samples, R)
    offset = jnp.broadcast_to(jnp.arange(R)[None, None], shape)
    return ResponseStreams(
        tokens_PSL=tokens_BR.reshape(shape),
        row_PSL=jnp.broadcast_to(jnp.arange(samples)[None, :, None], shape),
        offset_PSL=offset,
        used_PSL=offset < lengths_B.reshape(-1, samples)[..., None],
    )


def predicting_hidden(params, spec: DecoderSpec, prompts: PromptBatch, streams: ResponseStreams, packed: int):
    """Hidden states that predict each response slot, [P, S * L, D].

    The first token of a response is predicted by the prompt's last token, the others by the slot before them.
    """
    P, S, L = streams.tokens_PSL.shape
    T = prompts.tokens_PT.shape[1]
    prompt_position = jnp.broadcast_to(jnp.arange(T)[None], (P, T))
    valid_PT = prompt_position < prompts.lengths_P[:, None]
    response_position = prompts.lengths_P[:, None] + streams.offset_PSL.reshape(P, S * L)
    tokens = jnp.concatenate([prompts.tokens_PT, streams.tokens_PSL.reshape(P, S * L)], axis=1)
    positions = jnp.concatenate([prompt_position, response_position], axis=1)
    layout = SharedPrefix(valid_PT, streams.row_PSL if packed else None, S, packed)
    hidden, _ = hidden_states(params, spec, tokens, positions, layout)
    last_PD = states_at(hidden, prompts.lengths_P - 1)
    own = hidden[:, T:].reshape(P, S, L, -1)
    before = jnp.pad(own[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
    first = (streams.offset_PSL == 0)[..., None]
    # Wide, since the gradient of the prompt's state is a sum over all slots.
    chosen = jnp.where(first, widened(last_PD)[:, None, None], widened(before))
    return chosen.astype(hidden.dtype).reshape(P, S * L, -1)


#: Positions of a chunk on each device where none are asked for: 8 n V D operations against 12 V D bytes for the output
#: matrix and its gradient are 680 operations a byte, more than the ratio of speed to bandwidth in plan.chips.
CHUNK_POSITIONS = 1024
#: Float32 logits of a chunk on each device, at most, in bytes: fewer positions where the vocabulary is large.
CHUNK_BYTES = 2**29


def chunk_positions(chunk: int, vocab_size: int, row_shards: int = 1, vocab_shards: int = 1) -> int:
    """Positions, over all rows and devices, whose logits exist at a time: `chunk`, where it is not 0.

    Else CHUNK_POSITIONS on each of the `row_shards` devices that hold different rows, or as many as have CHUNK_BYTES of
    logits there where each device has one of `vocab_shards` parts of the vocabulary.
    """
    fitting = CHUNK_BYTES // (4 * -(-vocab_size // vocab_shards))
    return chunk or max(1, min(CHUNK_POSITIONS, fitting)) * row_shards


def chunked_logprobs(params, spec: DecoderSpec, hidden_PMD: Float[Array, "P M D"], tokens_PM: Int[Array, "P M"],
                     temperature, chunk: int, entropy: bool = False, entropy_gradient: bool = False):  # fmt: skip
    """Log-prob of each token under softmax(logits / temperature), and the entropy when asked.

    Args:
      hidden_PMD: states that predict the tokens.
      chunk: positions, over all P rows, whose logits exist at a time; 0: see `chunk_positions`.
      entropy: also return the entropy of each distribution.
      entropy_gradient: let the gradient flow through the entropy, at the cost of one more softmax.

    Returns:
      (logp [P, M], entropy [P, M] or None), in float32 or wider.
    """
    P, M, D = hidden_PMD.shape
    shards = row_shards() if P % row_shards() == 0 else 1
    chunk = -(-chunk // row_parts())  # it is that of all rows, and P those of a part
    size = min(M, max(1, chunk_positions(chunk, spec.vocab_size, shards, vocab_shards()) // P))
    count = -(-M // size)
    padding = count * size - M

    def chunks(x):
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        rows = (P,) if shards == 1 else (shards, P // shards)
        x = jnp.moveaxis(x.reshape(*rows, count, size, *x.shape[2:]), len(rows), 0)
        return x if shards == 1 else constrain(x, "none", "batch", *["none"] * (x.ndim - 2))

    head = output_matrix(params, spec, hidden_PMD.dtype, shards)

    def one(head, hidden, tokens):
        logits = logits_of(head.params(spec), spec, hidden) / temperature
        lse = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
        spread = None
        if entropy:
            spread = lse - (jnp.exp(logits - lse[..., None]) * logits).sum(axis=-1)
            spread = spread if entropy_gradient else jax.lax.stop_gradient(spread)
        return chosen - lse, spread

    several = jax.checkpoint(one if shards == 1 else jax.vmap(one))
    _, (logp, spread) = jax.lax.scan(
        lambda carry, xs: (carry, several(head, *xs)), None, (chunks(hidden_PMD), chunks(tokens_PM))
    )

    def join(x):
        return jnp.moveaxis(x, 0, -2).reshape(P, count * size)[:, :M]

    return join(logp), None if spread is None else join(spread)


class OutputOptions(NamedTuple):
    """What is computed of responses, and how. `chunk`: positions, over all prompts, whose logits exist at a time (0:
    chosen by `chunk_positions`); `packed`: responses that a stream holds at most (0: one each); `entropy_gradient`: the
    gradient flows through the entropies, at the cost of one more softmax."""

    spec: DecoderSpec
    chunk: int
    temperature: float = 1.0
    packed: int = 0
    entropy: bool = False
    entropy_gradient: bool = False


def response_logprobs(params, prompts: PromptBatch, streams: ResponseStreams, temperature, *, spec: DecoderSpec,
                      chunk: int, packed: int = 0, entropy: bool = False):  # fmt: skip
    """Log-probs (and entropies) of all response slots, [P, S, L]; unused slots hold finite numbers of no meaning."""
    options = OutputOptions(spec, chunk, temperature, packed, entropy)
    return response_outputs(params, None, prompts, streams, options)[:2]


def response_outputs(params, value_head, prompts: PromptBatch, streams: ResponseStreams, options: OutputOptions):
    """Log-probs, entropies and values of all response slots, [P, S, L] each; None where entropies are not asked for,
    or there is no value head. Unused slots hold finite numbers of no meaning.
    """
    P, S, L = streams.tokens_PSL.shape
    hidden = predicting_hidden(params, options.spec, prompts, streams, options.packed)
    logp, spread = chunked_logprobs(
        params, options.spec, hidden, streams.tokens_PSL.reshape(P, S * L), options.temperature, options.chunk,
        options.entropy, options.entropy_gradient,
    )  # fmt: skip
    value = None if value_head is None else state_values(value_head, hidden).reshape(P, S, L)
    return logp.reshape(P, S, L), None if spread is None else spread.reshape(P, S, L), value
