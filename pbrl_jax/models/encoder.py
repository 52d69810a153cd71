"""Text encoders in Flax Linen: BERT, XLM-R and gte (post-norm), XLM-R-XL (pre-norm), and decoders that embed."""

import functools
from typing import TypeGuard

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pbrl_jax.core.records import pytree
from pbrl_jax.core.trees import flat_paths
from pbrl_jax.models.attention import Visibility, attend
from pbrl_jax.models.decoder import decoder_axes, hidden_states, init_decoder
from pbrl_jax.models.layers import Projection, along_last, apply, apply_rope, gelu, rope_tables
from pbrl_jax.models.layouts import Causal, Reach
from pbrl_jax.models.pooling import add_special_ids, apply_dense, init_dense, pool, unit_vectors
from pbrl_jax.models.precision import widened
from pbrl_jax.models.specs import DecoderEncoderSpec, DecoderSpec, EncoderSpec, TextEncoderSpec


@functools.cache
def encoder_axes(spec: TextEncoderSpec) -> tuple:
    """(parameter path, logical axes) in training: a decoder's are its own, other matrices are cut along the width. As
    part of a reward an encoder is replicated, and its batch divided over every mesh axis."""
    shapes = flat_paths(jax.eval_shape(lambda: init_encoder(jax.random.key(0), spec)))
    if isinstance(spec, DecoderEncoderSpec):
        others = [path for path in shapes if not path.startswith("decoder/")]
        return (*decoder_axes(spec.decoder), *((path, ("none",) * shapes[path].ndim) for path in others))

    def axes(path: str, shape: tuple[int, ...]) -> tuple[str, ...]:
        names = ["none"] * len(shape)
        first = int(path.startswith("layers/"))
        names[:first] = ["layers"] * first
        if len(shape) - first > 1 and spec.width in shape[first:]:
            names[first + shape[first:].index(spec.width)] = "width"
        return tuple(names)

    return tuple((path, axes(path, leaf.shape)) for path, leaf in shapes.items())


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias, in float32 or wider."""

    eps: float

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        wide = widened(x)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.eps)
        scale, bias = along_last(scale, x.ndim).astype(wide.dtype), along_last(bias, x.ndim).astype(wide.dtype)
        return (normed * scale + bias).astype(x.dtype)


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each with its residual; norms follow them, or precede them (`pre_norm`).

    Returns (state, state) with `keep_states`, else (state, None).
    """

    spec: EncoderSpec
    keep_states: bool = False

    @nn.compact
    def __call__(self, x, seen: Visibility, rope=None):
        spec = self.spec
        attention_norm = LayerNorm(spec.norm_eps, name="attention_norm")
        mlp_norm = LayerNorm(spec.norm_eps, name="mlp_norm")
        head = (spec.heads, spec.width // spec.heads)
        h = attention_norm(x) if spec.pre_norm else x
        query = Projection(head, use_bias=True, name="query")(h)
        key = Projection(head, use_bias=True, name="key")(h)
        value = Projection(head, use_bias=True, name="value")(h)
        if rope is not None:
            query, key = apply_rope(query, rope), apply_rope(key, rope)
        attended, _ = attend(spec.attention, query, key, value, seen)
        x = x + Projection((spec.width,), in_axes=2, use_bias=True, name="out")(attended)
        x = x if spec.pre_norm else attention_norm(x)
        h = mlp_norm(x) if spec.pre_norm else x
        up = Projection((spec.ffn,), use_bias=not spec.gated, name="up")(h)
        up = gelu(Projection((spec.ffn,), name="gate")(h)) * up if spec.gated else gelu(up)
        x = x + Projection((spec.width,), use_bias=True, name="down")(up)
        x = x if spec.pre_norm else mlp_norm(x)
        return x, x if self.keep_states else None


class TextEncoder(nn.Module):
    """Token ids to token states: (tokens [B, S], mask [B, S]) -> hidden [B, S, D].

    With `all_states` the result is [N + 1, B, S, D]: the embeddings, then every layer's states, the last of them
    through the final norm where there is one (transformers' hidden_states). With `segment_BS` a row holds several
    texts: tokens attend to their own segment only, and positions count from 0 in each.
    """

    spec: EncoderSpec

    @nn.compact
    def __call__(self, tokens_BS, mask_BS, all_states: bool = False, segment_BS=None):
        spec = self.spec
        init = nn.initializers.normal(0.02)
        word = self.param("word_embed", init, (spec.vocab_size, spec.width))
        kind = self.param("type_embed", init, (spec.type_vocab, spec.width))
        place_BS = self.positions(mask_BS) if segment_BS is None else segment_positions(segment_BS)
        x, rope = word[tokens_BS], None
        if spec.rope_theta:
            rope = rope_tables(place_BS, rotary(spec))
        else:
            x = x + self.param("position_embed", init, (spec.max_positions, spec.width))[place_BS]
        x = (x + along_last(kind[0], 3)).astype(spec.dtype)
        if not spec.pre_norm:
            x = LayerNorm(spec.norm_eps, name="embed_norm")(x)
        embedded = x
        # Recomputing all but the matrix products is faster than storing activations, as in the decoder.
        keep_products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        layer = nn.remat(EncoderLayer, policy=keep_products, prevent_cse=False)
        stack = nn.scan(
            layer, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast,
            length=spec.layers,
        )(spec, all_states, name="layers")  # fmt: skip
        x, states = stack(x, Visibility(mask_BS, query_segment_XQ=segment_BS, key_segment_XS=segment_BS), rope)
        if spec.pre_norm:
            x = LayerNorm(spec.norm_eps, name="final_norm")(x)
        if spec.projection:
            # Declared here, used by `encode` after pooling.
            Projection((spec.projection,), use_bias=True, name="projection")(x[:, :1])
        return jnp.concatenate([embedded[None], states[:-1], x[None]]) if all_states else x

    def positions(self, mask_BS):
        """BERT counts slots from 0; XLM-R counts real tokens from its offset and gives padding offset - 1."""
        B, S = mask_BS.shape
        offset = self.spec.position_offset
        if offset == 0:
            return jnp.broadcast_to(jnp.arange(S)[None], (B, S))
        real = mask_BS.astype(jnp.int32)
        return jnp.cumsum(real, axis=1) * real + (offset - 1)


def rotary(spec: EncoderSpec) -> DecoderSpec:
    """A decoder with the same RoPE."""
    return DecoderSpec(
        vocab_size=1, width=spec.width, layers=1, heads=spec.heads, kv_heads=spec.heads, ffn=1,
        head_dim=spec.width // spec.heads, rope_theta=spec.rope_theta, rope_factor=spec.rope_factor,
    )  # fmt: skip


@pytree
class Bidirectional:
    """A layout of a decoder's tokens in which each attends to all valid ones, or those less than a window away."""

    valid_XL: Bool[Array, "X L"]

    def attend(self, kernel, query, key, value, cache, layer, reach: Reach | None = None):
        seen = Visibility(self.valid_XL)
        if reach is not None:
            X, L = query.shape[:2]
            at = jnp.broadcast_to(jnp.arange(L)[None], (X, L))
            # Kernels take a window that ends at the query: moving the query to the window's end covers both sides.
            seen = Visibility(self.valid_XL, at + reach.limit - 1, at, window=2 * reach.limit - 1)
        return attend(kernel, query, key, value, seen)[0], cache


def init_encoder(key: jax.Array, spec: TextEncoderSpec):
    """Random float32 parameters; those of a decoder are below "decoder"."""
    if isinstance(spec, DecoderEncoderSpec):
        dense = init_dense(jax.random.fold_in(key, 1), spec.dense, spec.decoder.width)
        return {"decoder": init_decoder(key, spec.decoder), **dense}
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = TextEncoder(spec).init(key, tokens, jnp.ones((1, 2), bool))["params"]
    return {**params, **init_dense(jax.random.fold_in(key, 1), spec.dense, spec.projection or spec.width)}


def token_states(
    params, tokens_BS: Int[Array, "B S"], mask_BS: Bool[Array, "B S"], spec: TextEncoderSpec
) -> Float[Array, "B S D"]:
    """Last hidden states of right-padded texts, special tokens included; an encoder also takes left padding."""
    if isinstance(spec, DecoderEncoderSpec):
        positions = jnp.maximum(jnp.cumsum(mask_BS.astype(jnp.int32), axis=1) - 1, 0)
        layout = Bidirectional(mask_BS) if spec.bidirectional else Causal(mask_BS)
        return hidden_states(params["decoder"], spec.decoder, tokens_BS, positions, layout)[0]
    return apply(TextEncoder(spec), params, tokens_BS, mask_BS)


def encode(
    params, tokens_BS: Int[Array, "B S"], mask_BS: Bool[Array, "B S"], *, spec: TextEncoderSpec
) -> Float[Array, "B E"]:
    """Unit vectors of texts: special tokens, token states, pooling, the maps of the spec, L2 norm.

    Args:
      params: the encoder's.
      tokens_BS: ids of the texts alone. Right-padded where the spec has special tokens, which are added here.
      mask_BS: marks the real ones.
      spec: static.

    A row without any real token gives a meaningless vector; callers must score such rows separately.
    """
    tokens, mask = add_special_ids(tokens_BS, mask_BS, spec.begin_ids, spec.end_ids)
    return _vectors(params, spec, pool(spec.pooling, token_states(params, tokens, mask, spec), mask))


def _vectors(params, spec: TextEncoderSpec, pooled: Float[Array, "B D"]) -> Float[Array, "B E"]:
    if isinstance(spec, EncoderSpec) and spec.projection:
        pooled = apply(Projection((spec.projection,), use_bias=True), params["projection"], pooled)
    return unit_vectors(apply_dense(params, spec.dense, pooled))


def segment_positions(segment_BS: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """Each slot's position in its segment, from 0; the slots of a segment are contiguous."""
    slot_1S = jnp.arange(segment_BS.shape[1])[None]
    new_BS = jnp.pad(segment_BS[:, 1:] != segment_BS[:, :-1], ((0, 0), (1, 0)))
    return slot_1S - jax.lax.cummax(jnp.where(new_BS, slot_1S, 0), axis=1)


def encodes_segments(spec: TextEncoderSpec) -> TypeGuard[EncoderSpec]:
    """Whether `encode_segments` gives what `encode` gives of each segment as a text of its own."""
    own = isinstance(spec, EncoderSpec) and spec.pooling == "mean" and spec.position_offset == 0
    return own and not spec.begin_ids and not spec.end_ids


def encode_segments(
    params, tokens_BS: Int[Array, "B S"], mask_BS: Bool[Array, "B S"], segment_BS: Int[Array, "B S"], count: int, *,
    spec: EncoderSpec,
) -> Float[Array, "rows E"]:  # fmt: skip
    """Unit vectors of the `count` segments of each row, [count * B, E], segment by segment: `encode` of several texts
    at the price of one row, for a spec of which `encodes_segments` is true."""
    hidden_BSD = apply(TextEncoder(spec), params, tokens_BS, mask_BS, segment_BS=segment_BS)
    pooled = [pool(spec.pooling, hidden_BSD, mask_BS & (segment_BS == number)) for number in range(count)]
    return _vectors(params, spec, jnp.concatenate(pooled))
