"""The decoder-only policy in Flax Linen: scanned layers, explicit cache in and out.

`Decoder.apply` is a pure function of a dict of arrays. It returns hidden states; callers compute logits with
`logits_of` at the positions they need, so that no [B, T, V] array is made in training.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pbrl_jax.core.errors import lookup
from pbrl_jax.mesh.sharding import constrain, sequence_axis, tensor_parallel_axes
from pbrl_jax.models.attention import Kernel
from pbrl_jax.models.fused_attention import FUSED
from pbrl_jax.models.layers import GatedMLP, Projection, RMSNorm, XieluMLP, apply, apply_rope, rope_tables
from pbrl_jax.models.layouts import Causal, Reach
from pbrl_jax.models.moe import RoutedMLP
from pbrl_jax.models.precision import gradient_to, wide_type
from pbrl_jax.models.slots import SlotCache
from pbrl_jax.models.specs import DecoderSpec

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def decoder_axes(spec: DecoderSpec) -> tuple:
    """(path pattern, logical axes) of the parameters of this spec; the first axis below `layers` is the scanned one."""
    experts = ("none",) if spec.experts else ()
    lines = {
        "embed": ("vocab", "width"),
        "layers/query/kernel": ("layers", "width", "heads", "none"),
        "layers/(key|value)/kernel": ("layers", "width", "kv_heads", "none"),
        "layers/out/kernel": ("layers", "heads", "none", "width"),
        f"layers/mlp/{'(gate|up)' if spec.gated else 'up'}/kernel": ("layers", *experts, "width", "ffn"),
        "layers/mlp/down/kernel": ("layers", *experts, "ffn", "width"),
        "final_norm/scale": ("none",),
    }
    if spec.experts:
        lines["layers/mlp/router/kernel"] = ("layers", "width", "none")
    if not spec.gated:
        lines["layers/mlp/alpha_(p|n)"] = ("layers", "none")
    if spec.pre_norms:
        lines[f"layers/{'attention' if spec.parallel else '(attention|mlp)'}_norm/scale"] = ("layers", "none")
    if spec.sandwich_norms:
        lines["layers/(attention|mlp)_out_norm/scale"] = ("layers", "none")
    if spec.qk_norm:
        lines["layers/(query|key)_norm/scale"] = ("layers", "none")
    if spec.qkv_bias:
        lines["layers/query/bias"] = ("layers", "heads", "none")
        lines["layers/(key|value)/bias"] = ("layers", "kv_heads", "none")
    if not spec.tied_embeddings:
        lines["lm_head"] = ("width", "vocab")
    return tuple(lines.items())


class LayerRole(NamedTuple):
    """What differs between layers: the layer's number, whether it is local (None: the same for all layers), and whether
    its positions are rotated (None: in all layers)."""

    layer: int | Int[Array, "..."]
    local: bool | Array | None
    rotated: bool | Array | None


class LayerInputs(NamedTuple):
    """Inputs shared by all layers: positions and rotary tables, and those of local layers where they differ."""

    positions_XL: Int[Array, "X L"]
    rope: tuple[Array, Array]
    local_rope: tuple[Array, Array] | None

    def rope_of(self, role: LayerRole) -> tuple[Array, Array]:
        """The tables of a layer, whose role may be traced; without rotation, those of an angle of 0."""
        (cos, sin), local = self.rope, role.local
        if self.local_rope is not None and local is not None:
            cos, sin = [jnp.where(local, *both) for both in zip(self.local_rope, self.rope, strict=True)]
        if role.rotated is None:
            return cos, sin
        return jnp.where(role.rotated, cos, 1.0), jnp.where(role.rotated, sin, 0.0)

    def at(self, positions_XL: Int[Array, "X L"]) -> "LayerInputs":
        """The inputs at these positions, of inputs at positions [0, 1, ...]."""
        rope, local_rope = jax.tree.map(lambda table: table[0][positions_XL], (self.rope, self.local_rope))
        return LayerInputs(positions_XL, rope, local_rope)


def layer_inputs(positions_XL, spec: DecoderSpec) -> LayerInputs:
    """The inputs of all layers; rotary tables are computed once."""
    local = spec.local_layers()
    rope = rope_tables(positions_XL, spec, local=all(local))
    two = spec.local_rope_theta != 0 and len(set(local)) == 2
    return LayerInputs(positions_XL, rope, rope_tables(positions_XL, spec, local=True) if two else None)


def layer_roles(spec: DecoderSpec) -> LayerRole:
    """The roles of all layers, stacked for a scan."""
    local = spec.local_layers()
    return LayerRole(
        jnp.arange(spec.layers),
        None if len(set(local)) == 1 else jnp.asarray(np.array(local)),
        jnp.asarray(rotated_layers(spec)) if "n" in spec.layer_pattern else None,
    )


def rotated_layers(spec: DecoderSpec) -> np.ndarray:
    """Whether each layer rotates its queries and keys."""
    return np.array([letter != "n" for letter in spec.layer_letters()])


def reach_of(spec: DecoderSpec, local, positions_XL) -> Reach | None:
    """The window of a layer; None for one that is known to be global."""
    local = spec.local_layers()[0] if local is None else local
    return None if local is False else Reach(spec.window, local, positions_XL)


def norm_of(spec: DecoderSpec, name: str | None = None) -> RMSNorm:
    """A norm of the residual stream, or of query and key heads."""
    return RMSNorm(spec.norm_eps, spec.norm_offset, spec.centered_norms, name=name)


def with_all_rows(spec: DecoderSpec, h: jax.Array, *axes: str) -> jax.Array:
    """Activations of all rows along fsdp, where products are tensor-parallel over it; else as they are.

    Args:
      axes: logical axes behind the rows; the last that is named is sharded as the parameters are.
    """
    if not spec.gathered_rows:
        return h
    axes = axes or ("none",) * (h.ndim - 1)
    sizes = [size for size, name in zip(h.shape[1:], axes, strict=True) if name != "none"]
    return constrain(h, "gathered", *axes, table=tensor_parallel_axes(sizes[0] if sizes else 1))


class DecoderLayer(nn.Module):
    """Attention and feed-forward. The carry is (hidden, cache); a scan over layers has no cache."""

    spec: DecoderSpec

    @nn.compact
    def __call__(self, carry, role: LayerRole, inputs: LayerInputs, layout):
        x, cache = carry
        spec = self.spec

        def norm(name: str):
            return norm_of(spec, name=name)

        def qk_norm(name: str, x):
            flat = x.reshape(*x.shape[:-2], -1) if spec.joint_qk_norm else x
            return norm(name)(flat).reshape(x.shape)

        training = cache is None

        def gather(h, heads: str = "none"):
            """In training, replicate positions for products that are sharded over heads or ffn: otherwise the compiler
            keeps queries sharded by position and gathers them for every chunk."""
            if training or spec.gathered_rows:
                return constrain(h, "batch", "none", heads, *["none"] * (h.ndim - 3))
            return h

        h = with_all_rows(spec, gather(norm("attention_norm")(x) if spec.pre_norms else x))
        query = Projection((spec.heads, spec.head_dim), use_bias=spec.qkv_bias, name="query")(h)
        key = Projection((spec.kv_heads, spec.head_dim), use_bias=spec.qkv_bias, name="key")(h)
        value = Projection((spec.kv_heads, spec.head_dim), use_bias=spec.qkv_bias, name="value")(h)
        query, key, value = (with_all_rows(spec, x, "none", "heads", "none") for x in (query, key, value))
        if spec.qk_norm:
            query, key = qk_norm("query_norm", query), qk_norm("key_norm", key)
        query, key, value = gather(query, "heads"), gather(key, "kv_heads"), gather(value, "kv_heads")
        rope = inputs.rope_of(role)
        # Kernels divide scores by the root of head_dim.
        scale = 1.0 if spec.query_scalar is None else (spec.head_dim / spec.query_scalar) ** 0.5
        query = apply_rope(query, rope, scale, spec.interleaved_rope)
        key = apply_rope(key, rope, interleaved=spec.interleaved_rope)
        reach = reach_of(spec, role.local, inputs.positions_XL)
        kernel = Kernel(spec.attention, spec.attention_softcap) if spec.attention_softcap else spec.attention
        attended, cache = layout.attend(kernel, query, key, value, cache, role.layer, reach)
        attended = with_all_rows(spec, attended, "none", "heads", "none")
        attended = gather(Projection((spec.width,), in_axes=2, name="out")(attended))
        x = x + (norm("attention_out_norm")(attended) if spec.sandwich_norms else attended)
        if not spec.parallel:
            h = with_all_rows(spec, gather(norm("mlp_norm")(x) if spec.pre_norms else x))
        fed = gather(self.feed_forward()(h))
        x = x + (norm("mlp_out_norm")(fed) if spec.sandwich_norms else fed)
        return (constrain(x, "batch", sequence_axis(x.shape[1]), "none"), cache), None

    def feed_forward(self) -> nn.Module:
        """A feed-forward, or a mixture of experts."""
        spec = self.spec
        if not spec.gated:
            return XieluMLP(spec.ffn, name="mlp")
        if not spec.experts:
            return GatedMLP(spec.ffn, spec.activation, name="mlp")
        return RoutedMLP(
            spec.ffn, spec.experts, spec.experts_per_token, spec.normalized_experts, spec.activation, name="mlp"
        )


def embed_tokens(embed, spec: DecoderSpec, tokens_XL) -> Float[Array, "X L D"]:
    """Embeddings in the compute type; Gemma's scale is rounded to it too.

    Cast after the lookup: the gradient of the lookup adds the terms of each token in the type of the table.
    """
    x = embed[tokens_XL].astype(spec.dtype)
    return x * jnp.asarray(spec.width**0.5, x.dtype) if spec.scaled_embeddings else x


class Decoder(nn.Module):
    """Token ids to final hidden states.

    Call: (tokens [X, L], positions [X, L], layout) -> hidden [X, L, D].
    """

    spec: DecoderSpec

    @nn.compact
    def __call__(self, tokens_XL, positions_XL, layout):
        spec = self.spec
        embed = self.param("embed", nn.initializers.normal(0.02), (spec.vocab_size, spec.width))
        x = constrain(embed_tokens(embed, spec, tokens_XL), "batch", "none", "none")
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
        (x, _), _ = stack((x, None), layer_roles(spec), layer_inputs(positions_XL, spec), layout)
        # Sharded by position, slices of it lost a part of their gradient under jax 0.10.
        x = constrain(x, "batch", "none", "none")
        if not spec.tied_embeddings:
            self.param("lm_head", nn.initializers.normal(spec.width**-0.5), (spec.width, spec.vocab_size))
        return norm_of(spec, name="final_norm")(x)


def init_decoder(key: jax.Array, spec: DecoderSpec):
    """Random float32 parameters: {"embed", "layers": {...}, "final_norm", ("lm_head")}."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    valid = jnp.ones((1, 2), bool)
    return Decoder(spec).init(key, tokens, tokens, Causal(valid))["params"]


def hidden_states(
    params, spec: DecoderSpec, tokens_XL, positions_XL, layout, cache: SlotCache | None = None,
    tables: LayerInputs | None = None,
):  # fmt: skip
    """Final hidden states [X, L, D] and the cache; `params` as they are trained, or from `unstack_layers`.

    In a loop over tokens, `tables` are `layer_inputs` of positions [0, 1, ...], made before it: a compiler may make
    sines and cosines in every layer, which on a CPU takes longer than its attention.

    With a cache the layers run one after another, without a scan: a scan would copy each layer's part out of the stack.
    """
    if cache is None and not isinstance(params["layers"], tuple):
        return apply(Decoder(spec), params, tokens_XL, positions_XL, layout), None
    carry = embed_tokens(params["embed"], spec, tokens_XL), cache
    inputs = layer_inputs(positions_XL, spec) if tables is None else tables.at(positions_XL)
    local, rotated = spec.local_layers(), rotated_layers(spec)
    for index, layer_params in enumerate(unstack_layers(params)["layers"]):
        role = LayerRole(index, local[index], None if rotated[index] else False)
        carry, _ = apply(DecoderLayer(spec), layer_params, carry, role, inputs, layout)
    hidden, cache = carry
    return apply(norm_of(spec), params["final_norm"], hidden), cache


def unstack_layers(params):
    """Parameters with one tree per layer, for decoding: a scan copies each layer's weights out of the stack at every
    token, which for a small batch costs as much as the matrix products."""
    layers = params["layers"]
    if isinstance(layers, tuple):
        return params
    count = len(jax.tree.leaves(layers)[0])
    return {**params, "layers": tuple(jax.tree.map(lambda x, i=i: x[i], layers) for i in range(count))}


class OutputMatrix(NamedTuple):
    """The output matrix for a loop over positions: in the compute type, made once, and as it is trained. The latter is
    not read and is in no memory; it takes the gradient (see `precision.gradient_to`)."""

    cast: jax.Array
    trained: jax.Array

    def params(self, spec: DecoderSpec) -> dict[str, jax.Array]:
        """The parameters that `logits_of` reads; called inside the loop."""
        return {output_name(spec): gradient_to(self.cast, self.trained)}


def output_name(spec: DecoderSpec) -> str:
    """Name of the output matrix among the parameters."""
    return "embed" if spec.tied_embeddings else "lm_head"


def output_matrix(params, spec: DecoderSpec, dtype, copies: int = 1) -> OutputMatrix:
    """The output matrix for a loop that computes in `dtype`.

    With `copies`, it is repeated along a new leading axis, sharded over the devices that hold different rows: each
    device has a copy (sharded over `tensor` alone) and accumulates its own gradient, and the gradients are summed over
    the mesh once, where the copies were made, and not at every use.
    """
    trained, axes = params[output_name(spec)], ("vocab", "none") if spec.tied_embeddings else ("none", "vocab")

    def copied(matrix):
        if copies == 1:
            return matrix
        return constrain(jnp.broadcast_to(matrix[None], (copies, *matrix.shape)), "batch", *axes)

    return OutputMatrix(copied(jax.lax.stop_gradient(trained).astype(dtype)), copied(trained))


def logits_of(params, spec: DecoderSpec, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
    """Next-token logits of hidden states, in float32 or wider; scaled and soft-capped where the spec says so."""
    product = "...d,vd->...v" if spec.tied_embeddings else "...d,dv->...v"
    matrix = params[output_name(spec)].astype(hidden.dtype)
    logits = jnp.einsum(product, with_all_rows(spec, hidden), matrix, preferred_element_type=wide_type(hidden.dtype))
    if spec.gathered_rows:
        between = ["none"] * (hidden.ndim - 2)
        logits = constrain(with_all_rows(spec, logits, *between, "vocab"), "batch", *between, "vocab")
    if spec.logit_scale != 1.0:
        logits = logits * spec.logit_scale
    return spec.logit_softcap * jnp.tanh(logits / spec.logit_softcap) if spec.logit_softcap else logits


def causal_logits(params, spec: DecoderSpec, tokens_BT: Int[Array, "B T"], mask_BT) -> Float[Array, "B T V"]:
    """Logits at every position of a batch, padded on either side: for inspecting a model, not for training."""
    positions = jnp.maximum(jnp.cumsum(mask_BT.astype(jnp.int32), axis=1) - 1, 0)
    if spec.attention == "auto" or spec.attention in FUSED:  # fused kernels need right padding
        spec = dataclasses.replace(spec, attention="portable")
    hidden, _ = hidden_states(params, spec, tokens_BT, positions, Causal(mask_BT.astype(bool)))
    return logits_of(params, spec, hidden)
