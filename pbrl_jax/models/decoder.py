"""The decoder-only policy in Flax Linen: scanned layers, explicit cache in and out.

`Decoder.apply` is a pure function of a dict of arrays. It returns hidden states; logits are made by `logits_of`, by
whoever needs them, at the positions they need: nothing here ever makes [B, T, V].
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pbrl_jax.core.errors import lookup
from pbrl_jax.core.sharding import constrain
from pbrl_jax.models.layers import GatedMLP, Projection, RMSNorm, apply_rope, rope_tables
from pbrl_jax.models.layouts import Causal, KVCache
from pbrl_jax.models.specs import DecoderSpec

#: Path pattern -> logical axes of a parameter. Leading axis of everything under `layers` is the scanned one.
AXES = (
    (r"embed", ("vocab", "width")),
    (r"layers/attention_norm/scale", ("layers", "none")),
    (r"layers/query/kernel", ("layers", "width", "heads", "none")),
    (r"layers/(key|value)/kernel", ("layers", "width", "kv_heads", "none")),
    (r"layers/out/kernel", ("layers", "heads", "none", "width")),
    (r"layers/mlp_norm/scale", ("layers", "none")),
    (r"layers/mlp/(gate|up)/kernel", ("layers", "width", "ffn")),
    (r"layers/mlp/down/kernel", ("layers", "ffn", "width")),
    (r"final_norm/scale", ("none",)),
)
QK_NORM_AXES = ((r"layers/(query|key)_norm/scale", ("layers", "none")),)
QKV_BIAS_AXES = (
    (r"layers/query/bias", ("layers", "heads", "none")),
    (r"layers/(key|value)/bias", ("layers", "kv_heads", "none")),
)
UNTIED_AXES = ((r"lm_head", ("width", "vocab")),)

#: Models of at most so many layers are decoded without a scan.
UNSTACKED_LAYERS = 8

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def decoder_axes(spec: DecoderSpec) -> tuple:
    """The AXES lines that this spec's parameters need."""
    lines = AXES
    lines += QK_NORM_AXES if spec.qk_norm else ()
    lines += QKV_BIAS_AXES if spec.qkv_bias else ()
    lines += () if spec.tied_embeddings else UNTIED_AXES
    return lines


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward. The carry is (hidden, cache): a cache passed as a scanned input would be
    copied whole at every token."""

    spec: DecoderSpec

    @nn.compact
    def __call__(self, carry, layer, rope, layout):
        x, cache = carry
        spec = self.spec
        h = RMSNorm(spec.norm_eps, name="attention_norm")(x)
        query = Projection((spec.heads, spec.head_dim), use_bias=spec.qkv_bias, name="query")(h)
        key = Projection((spec.kv_heads, spec.head_dim), use_bias=spec.qkv_bias, name="key")(h)
        value = Projection((spec.kv_heads, spec.head_dim), use_bias=spec.qkv_bias, name="value")(h)
        if spec.qk_norm:
            query = RMSNorm(spec.norm_eps, name="query_norm")(query)
            key = RMSNorm(spec.norm_eps, name="key_norm")(key)
        query, key = apply_rope(query, rope), apply_rope(key, rope)
        attended, cache = layout.attend(spec.attention, query, key, value, cache, layer)
        x = x + Projection((spec.width,), in_axes=2, name="out")(attended)
        x = x + GatedMLP(spec.ffn, name="mlp")(RMSNorm(spec.norm_eps, name="mlp_norm")(x))
        return (constrain(x, "batch", "none", "none"), cache), None


class Decoder(nn.Module):
    """Token ids to final hidden states.

    Call: (tokens [X, L], positions [X, L], layout, cache or None) -> (hidden [X, L, D], cache).
    """

    spec: DecoderSpec

    @nn.compact
    def __call__(self, tokens_XL, positions_XL, layout, cache: KVCache | None = None):
        spec = self.spec
        embed = self.param("embed", nn.initializers.normal(0.02), (spec.vocab_size, spec.width))
        x = constrain(embed.astype(spec.dtype)[tokens_XL], "batch", "none", "none")
        layer_class = DecoderLayer
        policy = lookup(REMAT_POLICIES, spec.remat, "remat policy")
        if policy is not None:
            layer_class = nn.remat(DecoderLayer, policy=policy, prevent_cse=False)
        stack = nn.scan(
            layer_class,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=spec.layers,
        )(spec, name="layers")
        rope = rope_tables(positions_XL, spec)
        (x, cache), _ = stack((x, cache), jnp.arange(spec.layers), rope, layout)
        if not spec.tied_embeddings:
            self.param("lm_head", nn.initializers.normal(spec.width**-0.5), (spec.width, spec.vocab_size))
        return RMSNorm(spec.norm_eps, name="final_norm")(x), cache


def init_decoder(key: jax.Array, spec: DecoderSpec):
    """Random float32 parameters: {"embed", "layers": {...}, "final_norm", ("lm_head")}."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    valid = jnp.ones((1, 2), bool)
    return Decoder(spec).init(key, tokens, tokens, Causal(valid))["params"]


def hidden_states(params, spec: DecoderSpec, tokens_XL, positions_XL, layout, cache: KVCache | None = None):
    """Final hidden states [X, L, D] and the cache; `params` as they are trained, or from `unstack_layers`."""
    if not isinstance(params["layers"], tuple):
        return Decoder(spec).apply({"params": params}, tokens_XL, positions_XL, layout, cache)
    carry = params["embed"].astype(spec.dtype)[tokens_XL], cache
    rope = rope_tables(positions_XL, spec)
    for index, layer_params in enumerate(params["layers"]):
        carry, _ = DecoderLayer(spec).apply({"params": layer_params}, carry, index, rope, layout)
    hidden, cache = carry
    return RMSNorm(spec.norm_eps).apply({"params": params["final_norm"]}, hidden), cache


def unstack_layers(params, spec: DecoderSpec):
    """Parameters with one tree per layer, for decoding with few layers.

    A scan copies a layer's weights out of their stack at every token, which for a small batch costs as much as the
    products themselves. With many layers the program would grow with depth: they stay stacked.
    """
    if spec.layers > UNSTACKED_LAYERS:
        return params
    layers = tuple(jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(spec.layers))
    return {**params, "layers": layers}


def logits_of(params, spec: DecoderSpec, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
    """Next-token logits of hidden states, in float32 or wider."""
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    if spec.tied_embeddings:
        return jnp.einsum("...d,vd->...v", hidden, params["embed"].astype(hidden.dtype), preferred_element_type=wide)
    return jnp.einsum("...d,dv->...v", hidden, params["lm_head"].astype(hidden.dtype), preferred_element_type=wide)


def causal_logits(params, spec: DecoderSpec, tokens_BT: Int[Array, "B T"], mask_BT) -> Float[Array, "B T V"]:
    """Logits at every position of a right-padded batch: for looking at a model, never for training."""
    positions = jnp.maximum(jnp.cumsum(mask_BT.astype(jnp.int32), axis=1) - 1, 0)
    hidden, _ = hidden_states(params, spec, tokens_BT, positions, Causal(mask_BT.astype(bool)))
    return logits_of(params, spec, hidden)
