"""M2M100 and NLLB-200 in Flax Linen: a many-to-many translation model, encoder and decoder, pre-norm.

Fan et al. 2020 (arXiv 2010.11125); NLLB team 2022 (arXiv 2207.04672). Layers are scanned; the decoder's cache is passed
in and out; keys and values of the source are computed once per sentence and shared by all beams.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pbrl_jax.core.records import pytree
from pbrl_jax.models.attention import Visibility, attend
from pbrl_jax.models.beam import Rules, beam_search, greedy_search
from pbrl_jax.models.encoder import LayerNorm
from pbrl_jax.models.layers import Projection, along_last
from pbrl_jax.models.layouts import Causal
from pbrl_jax.models.precision import wide_type

#: torch's default, which no model of this architecture changes.
NORM_EPS = 1e-5

#: Path pattern -> logical axes of a parameter.
AXES = (
    (r"embed", ("vocab", "width")),
    (r"(attention|cross|mlp)_norm/(scale|bias)", ("layers", "none")),
    (r"(query|key|value|cross_query)/kernel", ("layers", "width", "heads", "none")),
    (r"(query|key|value|cross_query)/bias", ("layers", "heads", "none")),
    (r"(out|cross_out)/kernel", ("layers", "heads", "none", "width")),
    (r"(out|cross_out|down)/bias", ("layers", "none")),
    (r"up/kernel", ("layers", "width", "ffn")),
    (r"up/bias", ("layers", "ffn")),
    (r"down/kernel", ("layers", "ffn", "width")),
    (r"(encoder|decoder)_norm/(scale|bias)", ("none",)),
)


@dataclass(frozen=True)
class M2M100Spec:
    """Sizes of an encoder-decoder of this family."""

    vocab_size: int
    width: int
    encoder_layers: int
    decoder_layers: int
    encoder_heads: int
    decoder_heads: int
    encoder_ffn: int
    decoder_ffn: int
    #: Factor of token embeddings: sqrt(width), or 1.
    embed_scale: float
    #: Longest source, in tokens, that the model was trained for.
    max_positions: int = 1024
    pad_id: int = 1
    #: First token of every target; the target language's follows.
    start_id: int = 2
    eos_ids: tuple[int, ...] = (2,)
    #: Of beam search, as in models.beam.Rules.
    length_penalty: float = 1.0
    early_stopping: bool = False
    dtype: str = "float32"


#: New models by name; the vocabulary size is that of their tokenizer.
TRANSLATORS = {
    name: M2M100Spec(
        vocab_size=0, width=width, encoder_layers=layers, decoder_layers=layers, encoder_heads=heads,
        decoder_heads=heads, encoder_ffn=4 * width, decoder_ffn=4 * width, embed_scale=width**0.5, max_positions=512,
    )
    for name, width, layers, heads in (("tiny", 32, 1, 4), ("small", 128, 2, 4), ("base", 512, 6, 8))
}  # fmt: skip


class Translated(NamedTuple):
    """The translation of each source, without the decoder's start token.

    `tokens_BR[:, 0]` is the target language's token; `lengths_B` counts it and the end of sequence; `truncated_B` marks
    rows that reached the limit without an end of sequence. Past its length a row holds `pad_id`.
    """

    tokens_BR: Int[Array, "B R"]
    lengths_B: Int[Array, "B"]
    truncated_B: Bool[Array, "B"]


def sinusoids(position_XL: Int[Array, "X L"], width: int) -> Float[Array, "X L D"]:
    """[sin(p f), cos(p f)] with f_k = 10000^(-k / (width/2 - 1)): halves, not interleaved (tensor2tensor's form)."""
    half = width // 2
    step = np.float32(-math.log(10_000) / (half - 1))
    frequency = np.exp(np.arange(half, dtype=np.float32) * step)
    angle = position_XL[..., None].astype(jnp.float32) * along_last(jnp.asarray(frequency), 3)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


@pytree
class StackedCache:
    """Keys and values of all layers, [N, rows, K, positions, C], for the scan over this decoder's few small layers."""

    key: Float[Array, "N X K S C"]
    value: Float[Array, "N X K S C"]

    def layer(self, index) -> tuple[jax.Array, jax.Array]:
        """One layer's keys and values, [rows, positions, K, C]."""
        key, value = (jax.lax.dynamic_index_in_dim(part, index, keepdims=False) for part in (self.key, self.value))
        return jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)

    def write(self, index, position, key_XSKC, value_XSKC) -> "StackedCache":
        """The cache with new entries at (layer, every row, position...)."""

        def put(part, new):
            new = jnp.swapaxes(new, 1, 2)[None].astype(part.dtype)
            return jax.lax.dynamic_update_slice(part, new, (index, 0, 0, position, 0))

        return StackedCache(put(self.key, key_XSKC), put(self.value, value_XSKC))


class SourceLayer(nn.Module):
    """Pre-norm attention over the source and a ReLU feed-forward."""

    spec: M2M100Spec

    @nn.compact
    def __call__(self, x, mask_BS):
        spec = self.spec
        head = (spec.encoder_heads, spec.width // spec.encoder_heads)
        h = LayerNorm(NORM_EPS, name="attention_norm")(x)
        query, key, value = (Projection(head, use_bias=True, name=name)(h) for name in ("query", "key", "value"))
        attended, _ = attend("auto", query, key, value, Visibility(mask_BS))
        x = x + Projection((spec.width,), in_axes=2, use_bias=True, name="out")(attended)
        return feed_forward(x, spec.encoder_ffn), None


class TargetLayer(nn.Module):
    """Causal attention, attention over the source, feed-forward. The carry is (hidden, cache), as in the decoder."""

    spec: M2M100Spec

    @nn.compact
    def __call__(self, carry, layer, layout, source):
        x, cache = carry
        spec = self.spec
        head = (spec.decoder_heads, spec.width // spec.decoder_heads)
        h = LayerNorm(NORM_EPS, name="attention_norm")(x)
        query, key, value = (Projection(head, use_bias=True, name=name)(h) for name in ("query", "key", "value"))
        attended, cache = layout.attend("auto", query, key, value, cache, layer)
        x = x + Projection((spec.width,), in_axes=2, use_bias=True, name="out")(attended)
        h = LayerNorm(NORM_EPS, name="cross_norm")(x)
        attended = source.attend(Projection(head, use_bias=True, name="cross_query")(h), layer)
        x = x + Projection((spec.width,), in_axes=2, use_bias=True, name="cross_out")(attended)
        return (feed_forward(x, spec.decoder_ffn), cache), None


def feed_forward(x: jax.Array, ffn: int) -> jax.Array:
    """x + down(relu(up(norm(x)))), as submodules of the calling module."""
    h = LayerNorm(NORM_EPS, name="mlp_norm")(x)
    up = nn.relu(Projection((ffn,), use_bias=True, name="up")(h))
    return x + Projection((x.shape[-1],), use_bias=True, name="down")(up)


class SourceKeys(nn.Module):
    """One decoder layer's keys and values of the encoded source, [B, S, H, C] each."""

    spec: M2M100Spec

    @nn.compact
    def __call__(self, carry, hidden_BSD):
        head = (self.spec.decoder_heads, self.spec.width // self.spec.decoder_heads)
        key, value = (Projection(head, use_bias=True, name=name)(hidden_BSD) for name in ("key", "value"))
        return carry, (jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2))


@pytree
class SourceState:
    """The encoded source for the decoder: keys and values of every layer."""

    cache: StackedCache
    valid_BS: Bool[Array, "B S"]

    def attend(self, query_XLHC: jax.Array, layer) -> jax.Array:
        """X = B * beams rows of queries; the beams of a source share its keys."""
        B = self.valid_BS.shape[0]
        X, L, H, C = query_XLHC.shape
        key, value = self.cache.layer(layer)
        out, _ = attend("auto", query_XLHC.reshape(B, X // B * L, H, C), key, value, Visibility(self.valid_BS))
        return out.reshape(X, L, H, C)


@pytree
class OwnStep:
    """One new token for each row, against the row's earlier tokens; it is written at `slot`."""

    slot: Int[Array, ""]

    def attend(self, kernel, query, key, value, cache, layer):
        cache = cache.write(layer, self.slot, key, value)
        keys, values = cache.layer(layer)
        X, S = keys.shape[:2]
        written = jnp.broadcast_to((jnp.arange(S) <= self.slot)[None], (X, S))
        out, _ = attend(kernel, query, keys, values, Visibility(written))
        return out, cache


class M2M100(nn.Module):
    """`encode` the source, compute its `source_keys`, `decode` the target; called, it does all three on given targets
    (teacher forcing). `logits_of` gives logits."""

    spec: M2M100Spec

    def setup(self):
        spec = self.spec
        self.embed = self.param("embed", nn.initializers.normal(0.02), (spec.vocab_size, spec.width))
        scan = functools.partial(nn.scan, variable_axes={"params": 0}, split_rngs={"params": True})
        self.encoder = scan(SourceLayer, in_axes=nn.broadcast, length=spec.encoder_layers)(spec)
        self.cross = scan(SourceKeys, in_axes=nn.broadcast, length=spec.decoder_layers)(spec)
        self.decoder = scan(TargetLayer, in_axes=(0, nn.broadcast, nn.broadcast), length=spec.decoder_layers)(spec)
        self.encoder_norm, self.decoder_norm = LayerNorm(NORM_EPS), LayerNorm(NORM_EPS)

    def __call__(self, tokens_BS, mask_BS, inputs_BR, lengths_B):
        """Final states of target positions [B, R, D]; `inputs_BR` begin with the start token."""
        source = self.source_keys(self.encode(tokens_BS, mask_BS), mask_BS)
        position_BR = jnp.broadcast_to(jnp.arange(inputs_BR.shape[1])[None], inputs_BR.shape)
        hidden_BRD, _ = self.decode(inputs_BR, position_BR, Causal(position_BR < lengths_B[:, None]), source)
        return hidden_BRD

    def embedded(self, tokens_XL, position_XL, valid_XL):
        """Scaled embeddings plus positions; the position vector of padding is zero."""
        tokens = self.embed[tokens_XL] * self.spec.embed_scale
        where = sinusoids(position_XL, self.spec.width) * valid_XL[..., None]
        return (tokens + where).astype(self.spec.dtype)

    def encode(self, tokens_BS, mask_BS):
        """Final states of the source, [B, S, D]."""
        # The first real token has position pad_id + 1.
        position = jnp.cumsum(mask_BS.astype(jnp.int32), axis=1) + self.spec.pad_id
        x, _ = self.encoder(self.embedded(tokens_BS, position, mask_BS), mask_BS)
        return self.encoder_norm(x)

    def source_keys(self, hidden_BSD, mask_BS) -> SourceState:
        """The source's keys and values of all decoder layers."""
        _, (key, value) = self.cross(None, hidden_BSD)
        return SourceState(StackedCache(key, value), mask_BS)

    def decode(self, tokens_XL, position_XL, layout, source: SourceState, cache: StackedCache | None = None):
        """Final states of the target [X, L, D] and the cache; positions count from 0 at the start token."""
        x = self.embedded(tokens_XL, position_XL + self.spec.pad_id + 1, tokens_XL != self.spec.pad_id)
        (x, cache), _ = self.decoder((x, cache), jnp.arange(self.spec.decoder_layers), layout, source)
        return self.decoder_norm(x), cache


def logits_of(params, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
    """Next-token logits, float32 or wider: the embedding is the output matrix too."""
    matrix = params["embed"].astype(hidden.dtype)
    return jnp.einsum("...d,vd->...v", hidden, matrix, preferred_element_type=wide_type(hidden.dtype))


def init_m2m100(key: jax.Array, spec: M2M100Spec):
    """New parameters, float32."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    return M2M100(spec).init(key, tokens, jnp.ones((1, 2), bool), tokens, jnp.array([2]))["params"]


def token_logprobs(
    spec: M2M100Spec, params, tokens_BS: Int[Array, "B S"], mask_BS: Bool[Array, "B S"], targets_BR: Int[Array, "B R"],
    lengths_B: Int[Array, "B"], smoothing: float = 0.0,
) -> tuple[Float[Array, "B R"], Bool[Array, "B R"]]:  # fmt: skip
    """(log-prob of each token of given translations in nats, which of them count): the first, the language's token, is
    given, and what lies past a row's length is padding.

    Args:
      tokens_BS, mask_BS: sources as in `translate_tokens`.
      targets_BR: [its language, tokens, end of sequence] of each, padded on the right.
      lengths_B: with the language and the end of sequence, so at least 2.
      smoothing: weight of the mean log-prob over the vocabulary (label smoothing, Szegedy et al. 2016,
        arXiv 1512.00567).
    """
    B, R = targets_BR.shape
    inputs_BR = jnp.concatenate([jnp.full((B, 1), spec.start_id), targets_BR[:, :-1]], axis=1)
    hidden_BRD: Any = M2M100(spec).apply({"params": params}, tokens_BS, mask_BS, inputs_BR, lengths_B)

    @jax.checkpoint  # the gradient keeps no logits either
    def logprob(position):  # one position at a time: all logits of a vocabulary of 256,000 do not fit
        hidden_BD, target_B = position
        logp_BV = jax.nn.log_softmax(logits_of(params, hidden_BD))
        logp_B = jnp.take_along_axis(logp_BV, target_B[:, None], axis=1)[:, 0]
        return (1 - smoothing) * logp_B + smoothing * logp_BV.mean(axis=1) if smoothing else logp_B

    logp_RB = jax.lax.map(logprob, (jnp.swapaxes(hidden_BRD, 0, 1), targets_BR.T))
    place_1R = jnp.arange(R)[None]
    return logp_RB.T, (place_1R > 0) & (place_1R < lengths_B[:, None])


def target_logprobs(spec: M2M100Spec, params, tokens_BS, mask_BS, targets_BR, lengths_B) -> Float[Array, "B"]:
    """Mean log-prob per token, [B], of given translations; arguments as of `token_logprobs`."""
    logp_BR, counted_BR = token_logprobs(spec, params, tokens_BS, mask_BS, targets_BR, lengths_B)
    return jnp.where(counted_BR, logp_BR, 0.0).sum(axis=1) / counted_BR.sum(axis=1)


def translate_tokens(
    params, spec: M2M100Spec, tokens_BS: Int[Array, "B S"], mask_BS: Bool[Array, "B S"],
    forced_bos_B: Int[Array, "B"], max_length: int, num_beams: int = 1,
) -> Translated:  # fmt: skip
    """Translations by greedy decoding (one beam) or beam search, equal to those of transformers' `generate`.

    Args:
      tokens_BS, mask_BS: sources, padded on either side; a source is [its language, tokens, end of sequence].
      forced_bos_B: the target language's token, the first of the output.
      max_length: limit of output tokens, the first and the end of sequence included (transformers' `max_length` - 1).
      num_beams: static; beam search has the spec's length penalty and early stopping.
    """
    model, variables = M2M100(spec), {"params": params}
    source = model.apply(variables, model.apply(variables, tokens_BS, mask_BS, method="encode"), mask_BS,
                         method="source_keys")  # fmt: skip
    X = len(forced_bos_B) * num_beams
    shape = (spec.decoder_layers, X, spec.decoder_heads, max_length + 1, spec.width // spec.decoder_heads)
    cache = StackedCache(jnp.zeros(shape, spec.dtype), jnp.zeros(shape, spec.dtype))

    def step(cache, tokens_X, slot):
        position = jnp.full((X, 1), slot, jnp.int32)
        hidden, cache = model.apply(
            variables, tokens_X[:, None], position, OwnStep(jnp.asarray(slot)), source, cache, method="decode"
        )
        return logits_of(params, hidden[:, 0]), cache

    def take_rows(cache, rows_X):
        return jax.tree.map(lambda part: part[:, rows_X], cache)

    _, cache = step(cache, jnp.full(X, spec.start_id, jnp.int32), 0)
    if num_beams == 1:
        found = greedy_search(step, cache, forced_bos_B, max_length, spec.eos_ids, spec.pad_id)
    else:
        rules = Rules(max_length, spec.eos_ids, spec.length_penalty, spec.early_stopping)
        found = beam_search(step, take_rows, cache, forced_bos_B, rules, spec.pad_id, num_beams)
    return Translated(*found)
