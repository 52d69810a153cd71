"""Encoders of Hugging Face folders: from `config.json` to our spec, and the names of their tensors.

Each field of `config.json` is read, known to be irrelevant, or refused by name, as for decoders.
"""

from collections.abc import Mapping
from typing import Any

from pbrl_jax.core.errors import CheckpointError, did_you_mean
from pbrl_jax.models.specs import DecoderEncoderSpec, DenseSpec, EncoderSpec
from pbrl_jax.weights.hf_decoder import decoder_names
from pbrl_jax.weights.hf_fields import ConfigFields
from pbrl_jax.weights.hf_names import Stored, linear_names, norm_names

#: `model_type` -> whether its layers are pre-norm.
FAMILIES = {"bert": False, "xlm-roberta": False, "xlm-roberta-xl": True, "gte": False, "new": False}

#: Families with RoPE and a gated feed-forward: gte-multilingual (`new` where its own code names it), Arctic-embed 2 M.
ROTARY = ("gte", "new")

#: Sizes of our spec -> fields of config.json.
SIZES = {
    "vocab_size": "vocab_size", "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "ffn": "intermediate_size", "max_positions": "max_position_embeddings", "type_vocab": "type_vocab_size",
}  # fmt: skip
#: Fields that can change the forward pass -> the supported values.
SUPPORTED = {
    "hidden_act": ("gelu",), "cross_attention_hidden_size": (None,),
    **dict.fromkeys(("is_decoder", "is_encoder_decoder", "add_cross_attention"), (False, None)),
}  # fmt: skip
#: The same for families with learned positions and with RoPE; `logn_attention_...` scales scores by the length.
POSITIONS = {"position_embedding_type": ("absolute", None)}
ROTARY_SUPPORTED = {
    "position_embedding_type": ("rope", None), "layer_norm_type": ("layer_norm",), "pack_qkv": (True,),
    "logn_attention_scale": (False, None), "logn_attention_clip1": (False, None),
}  # fmt: skip
#: Defaults of transformers for missing fields.
DEFAULTS = {
    "bert": {"type_vocab_size": 2, "layer_norm_eps": 1e-12},
    "xlm-roberta": {"type_vocab_size": 2, "layer_norm_eps": 1e-12},
    "xlm-roberta-xl": {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "gte": {"type_vocab_size": 1, "layer_norm_eps": 1e-12, "rope_theta": 160_000.0},
    "new": {"type_vocab_size": 1, "layer_norm_eps": 1e-12},
}


def encoder_spec(config: Mapping[str, Any], **changes) -> EncoderSpec:
    """Our spec of an encoder's `config.json`.

    Args:
      config: the file's contents.
      **changes: fields of the spec that are not in the file (pooling, special tokens, ...).

    Raises:
      CheckpointError: an unknown architecture, or a field that is missing, unknown, or has an unsupported value.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise CheckpointError(f"config.json has model_type {family!r}. {did_you_mean(str(family), FAMILIES)}")
    fields = ConfigFields(config, DEFAULTS[family])
    fields.refuse_quantised()
    rotary = family in ROTARY
    for name, supported in (SUPPORTED | (ROTARY_SUPPORTED if rotary else POSITIONS)).items():
        fields.expect(name, *supported)
    fields.take("tie_word_embeddings", None)  # of a head that is not used
    offset = 0 if family == "bert" or rotary else fields.take("pad_token_id", 1) + 1
    sizes: dict[str, Any] = {ours: fields.size(theirs) for ours, theirs in SIZES.items()}
    spec = EncoderSpec(
        **sizes,
        position_offset=offset,
        norm_eps=fields.number("layer_norm_eps"),
        pre_norm=FAMILIES[family],
        gated=rotary,
        **(_rope(fields, sizes["width"] // sizes["heads"]) if rotary else {}),
        **changes,
    )
    fields.finish()
    if spec.width % spec.heads:
        raise CheckpointError(
            f"config.json: hidden_size={spec.width} does not divide by num_attention_heads={spec.heads}."
        )
    return spec


def _rope(fields: ConfigFields, dim: int) -> dict[str, Any]:
    """Base of RoPE and divisor of its frequencies. The type `ntk` (of Alibaba's code) with factor f multiplies the base
    by f and divides all frequencies by f^(2 / dim)."""
    values = {**(fields.take("rope_scaling", None) or {}), **(fields.take("rope_parameters", None) or {})}
    rope = ConfigFields(values, {}, f"{fields.where}, RoPE")
    theta = rope.number("rope_theta", fields.number("rope_theta", 10_000.0))
    kind = rope.take("rope_type", rope.take("type", "default"))
    factor = rope.number("factor", 1.0)
    if kind not in ("default", "linear", "ntk") or rope.take("mixed_b", None) is not None:
        raise CheckpointError(f"{rope.where}: {values!r}; supported are default, linear, and ntk without mixed_b.")
    rope.finish()
    if kind == "ntk" and factor > 1:
        theta, factor = theta * factor, factor ** (2 / dim)
    return {"rope_theta": theta, "rope_factor": 1.0 if kind == "default" else factor}


def encoder_names(spec: EncoderSpec) -> dict[str, Stored]:
    """Our parameter path -> tensor of a BERT, XLM-R or XLM-R-XL checkpoint (the encoder alone)."""
    width, head = spec.width, (spec.heads, spec.width // spec.heads)
    layer = "encoder.layer.{layer}."
    names = {
        "word_embed": Stored("embeddings.word_embeddings.weight", (spec.vocab_size, width)),
        "type_embed": Stored("embeddings.token_type_embeddings.weight", (spec.type_vocab, width)),
    }
    if spec.gated:
        return names | _gated_names(spec)
    names["position_embed"] = Stored("embeddings.position_embeddings.weight", (spec.max_positions, width))
    for part in ("query", "key", "value"):
        names |= linear_names(f"layers/{part}", f"{layer}attention.self.{part}", (width,), head, spec.layers)
    names |= linear_names("layers/out", f"{layer}attention.output.dense", head, (width,), spec.layers)
    names |= linear_names("layers/up", f"{layer}intermediate.dense", (width,), (spec.ffn,), spec.layers)
    names |= linear_names("layers/down", f"{layer}output.dense", (spec.ffn,), (width,), spec.layers)
    attention, mlp = ("attention.self_attn_layer_norm", "LayerNorm") if spec.pre_norm else (
        "attention.output.LayerNorm", "output.LayerNorm"
    )  # fmt: skip
    names |= norm_names("layers/attention_norm", layer + attention, width, spec.layers)
    names |= norm_names("layers/mlp_norm", layer + mlp, width, spec.layers)
    whole = ("final_norm", "encoder.LayerNorm") if spec.pre_norm else ("embed_norm", "embeddings.LayerNorm")
    return names | norm_names(*whole, width)


def _gated_names(spec: EncoderSpec) -> dict[str, Stored]:
    """Names of gte's layers and norms, whose query, key and value are one tensor, and up and gate another."""
    width, layers, head = spec.width, spec.layers, (spec.heads, spec.width // spec.heads)
    layer = "encoder.layer.{layer}."
    names: dict[str, Stored] = {}
    for number, part in enumerate(("query", "key", "value")):
        fused = linear_names(f"layers/{part}", f"{layer}attention.qkv_proj", (width,), head, layers)
        place = (number * width, (number + 1) * width, 3 * width)
        names |= {path: stored._replace(part=place) for path, stored in fused.items()}
    for number, part in enumerate(("up", "gate")):
        stored = Stored(f"{layer}mlp.up_gate_proj.weight", (width, spec.ffn), True, layers)
        names[f"layers/{part}/kernel"] = stored._replace(
            part=(number * spec.ffn, (number + 1) * spec.ffn, 2 * spec.ffn)
        )
    names |= linear_names("layers/out", f"{layer}attention.o_proj", head, (width,), layers)
    names |= linear_names("layers/down", f"{layer}mlp.down_proj", (spec.ffn,), (width,), layers)
    names |= norm_names("layers/attention_norm", f"{layer}attn_ln", width, layers)
    names |= norm_names("layers/mlp_norm", f"{layer}mlp_ln", width, layers)
    return names | norm_names("embed_norm", "embeddings.LayerNorm", width)


def dense_names(spec: DenseSpec, width: int) -> dict[str, Stored]:
    """`kernel` and `bias` of one Dense module, in the file of its folder."""
    names = linear_names("", "linear", (width,), (spec.width,), bias=spec.bias)
    return {path.removeprefix("/"): stored for path, stored in names.items()}


def transformer_names(spec: EncoderSpec | DecoderEncoderSpec) -> dict[str, Stored]:
    """Our parameter path -> tensor, for the transformer of either kind of encoder."""
    if isinstance(spec, DecoderEncoderSpec):
        return {f"decoder/{path}": stored for path, stored in decoder_names(spec.decoder).items()}
    return encoder_names(spec)
