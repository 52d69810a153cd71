"""The bidirectional encoder in Flax Linen: BERT and XLM-R (post-norm, learned positions, exact GELU)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pbrl_jax.models.attention import Visibility, attend
from pbrl_jax.models.layers import Projection, along_last
from pbrl_jax.models.pooling import pool, unit_vectors
from pbrl_jax.models.specs import EncoderSpec

#: Path pattern -> logical axes. The encoder is replicated: its batch lies over every mesh axis instead.
AXES = (
    (r"(word|position|type)_embed", ("none", "none")),
    (r"embed_norm/(scale|bias)", ("none",)),
    (r"layers/(query|key|value)/kernel", ("layers", "none", "none", "none")),
    (r"layers/(query|key|value)/bias", ("layers", "none", "none")),
    (r"layers/out/kernel", ("layers", "none", "none", "none")),
    (r"layers/(out|down)/bias", ("layers", "none")),
    (r"layers/(attention|mlp)_norm/(scale|bias)", ("layers", "none")),
    (r"layers/(up|down)/kernel", ("layers", "none", "none")),
    (r"layers/up/bias", ("layers", "none")),
)
PROJECTION_AXES = ((r"projection/kernel", ("none", "none")), (r"projection/bias", ("none",)))


def encoder_axes(spec: EncoderSpec) -> tuple:
    """The AXES lines that this spec's parameters need."""
    return AXES + (PROJECTION_AXES if spec.projection else ())


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias, in float32 or wider."""

    eps: float

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - wide.mean(axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.eps)
        scale, bias = along_last(scale, x.ndim).astype(wide.dtype), along_last(bias, x.ndim).astype(wide.dtype)
        return (normed * scale + bias).astype(x.dtype)


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each followed by its residual and norm."""

    spec: EncoderSpec

    @nn.compact
    def __call__(self, x, mask_BS):
        spec = self.spec
        head = (spec.heads, spec.width // spec.heads)
        query = Projection(head, use_bias=True, name="query")(x)
        key = Projection(head, use_bias=True, name="key")(x)
        value = Projection(head, use_bias=True, name="value")(x)
        attended, _ = attend("auto", query, key, value, Visibility(mask_BS))
        out = Projection((spec.width,), in_axes=2, use_bias=True, name="out")(attended)
        x = LayerNorm(spec.norm_eps, name="attention_norm")(x + out)
        up = nn.gelu(Projection((spec.ffn,), use_bias=True, name="up")(x), approximate=False)
        x = LayerNorm(spec.norm_eps, name="mlp_norm")(x + Projection((spec.width,), use_bias=True, name="down")(up))
        return x, None


class Encoder(nn.Module):
    """Token ids to token states: (tokens [B, S], mask [B, S]) -> hidden [B, S, D]."""

    spec: EncoderSpec

    @nn.compact
    def __call__(self, tokens_BS, mask_BS):
        spec = self.spec
        init = nn.initializers.normal(0.02)
        word = self.param("word_embed", init, (spec.vocab_size, spec.width))
        position = self.param("position_embed", init, (spec.max_positions, spec.width))
        kind = self.param("type_embed", init, (spec.type_vocab, spec.width))
        x = word[tokens_BS] + position[self.positions(mask_BS)] + along_last(kind[0], 3)
        x = LayerNorm(spec.norm_eps, name="embed_norm")(x.astype(spec.dtype))
        # Recomputing all but the products is faster than storing a stack of activations, as in the decoder.
        keep_products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        layer = nn.remat(EncoderLayer, policy=keep_products, prevent_cse=False)
        stack = nn.scan(
            layer, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast,
            length=spec.layers,
        )(spec, name="layers")  # fmt: skip
        x, _ = stack(x, mask_BS)
        if spec.projection:
            # Declared here, used by `encode` after pooling.
            Projection((spec.projection,), use_bias=True, name="projection")(x[:, :1])
        return x

    def positions(self, mask_BS):
        """BERT counts slots from 0; XLM-R counts real tokens from its offset and gives padding offset - 1."""
        B, S = mask_BS.shape
        offset = self.spec.position_offset
        if offset == 0:
            return jnp.broadcast_to(jnp.arange(S)[None], (B, S))
        real = mask_BS.astype(jnp.int32)
        return jnp.cumsum(real, axis=1) * real + (offset - 1)


def init_encoder(key: jax.Array, spec: EncoderSpec):
    """Random float32 parameters."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    return Encoder(spec).init(key, tokens, jnp.ones((1, 2), bool))["params"]


def encode(
    params, tokens_BS: Int[Array, "B S"], mask_BS: Bool[Array, "B S"], *, spec: EncoderSpec
) -> Float[Array, "B E"]:
    """Unit vectors of texts: token states, pooling, projection where the spec has one, L2 norm.

    A row without any real token gives a vector without meaning; callers score such rows apart.
    """
    hidden = Encoder(spec).apply({"params": params}, tokens_BS, mask_BS)
    pooled = pool(spec.pooling, hidden, mask_BS)
    if spec.projection:
        pooled = Projection((spec.projection,), use_bias=True).apply({"params": params["projection"]}, pooled)
    return unit_vectors(pooled)
