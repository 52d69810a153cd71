"""Encoders of Hugging Face folders: `config.json` to our spec, and the names of their tensors.

Each field of `config.json` is read, known to be irrelevant, or refused by name, as for decoders.
"""

import re
from collections.abc import Mapping
from typing import Any

from pbrl_jax.core.errors import CheckpointError, did_you_mean
from pbrl_jax.models.specs import DecoderEncoderSpec, DenseSpec, EncoderSpec
from pbrl_jax.weights.hf_decoder import decoder_names
from pbrl_jax.weights.hf_fields import ConfigFields
from pbrl_jax.weights.hf_names import Stored, linear_names, norm_names

#: `model_type` -> whether its layers are pre-norm. Positions of BERT start at 0, those of the others after the padding
#: id.
FAMILIES = {"bert": False, "xlm-roberta": False, "xlm-roberta-xl": True}

#: Sizes of our spec -> fields of config.json.
SIZES = {
    "vocab_size": "vocab_size", "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
    "ffn": "intermediate_size", "max_positions": "max_position_embeddings", "type_vocab": "type_vocab_size",
}  # fmt: skip
#: Fields that can change the forward pass -> the supported values.
SUPPORTED = {
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False, None),
    "quantization_config": (None,),
}
#: Fields of training, of heads that are not used, and of bookkeeping.
HARMLESS = re.compile(
    r"_.*|.*dropout.*|initializer_factor|gradient_checkpointing|output_past|return_dict_in_generate"
    r"|tie_(word_embeddings|encoder_decoder)|pooler_.*|directionality|num_labels|tf_legacy_loss|name"
)
#: Defaults of transformers for missing fields.
DEFAULTS = {
    "bert": {"type_vocab_size": 2, "layer_norm_eps": 1e-12},
    "xlm-roberta": {"type_vocab_size": 2, "layer_norm_eps": 1e-12},
    "xlm-roberta-xl": {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
}


def encoder_spec(config: Mapping[str, Any], **changes) -> EncoderSpec:
    """Our spec of an encoder's `config.json`.

    Args:
      config: the file's contents.
      **changes: fields of the spec that are not in it (pooling, special tokens, ...).

    Raises:
      CheckpointError: another architecture (the known ones are listed), or a field that is missing, unknown, or has an
        unsupported value.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise CheckpointError(f"config.json has model_type {family!r}. {did_you_mean(str(family), FAMILIES)}")
    fields = ConfigFields(config, DEFAULTS[family])
    for name, supported in SUPPORTED.items():
        fields.expect(name, *supported)
    for name in filter(HARMLESS.fullmatch, config):
        fields.take(name)
    offset = 0 if family == "bert" else fields.take("pad_token_id", 1) + 1
    sizes: dict[str, Any] = {ours: fields.size(theirs) for ours, theirs in SIZES.items()}
    spec = EncoderSpec(
        **sizes,
        position_offset=offset,
        norm_eps=fields.number("layer_norm_eps"),
        pre_norm=FAMILIES[family],
        **changes,
    )
    fields.finish()
    if spec.width % spec.heads:
        raise CheckpointError(
            f"config.json: hidden_size={spec.width} does not divide by num_attention_heads={spec.heads}."
        )
    return spec


def encoder_names(spec: EncoderSpec) -> dict[str, Stored]:
    """Our parameter path -> tensor of a BERT, XLM-R or XLM-R-XL checkpoint (the encoder alone)."""
    width, head = spec.width, (spec.heads, spec.width // spec.heads)
    layer = "encoder.layer.{layer}."
    names = {
        "word_embed": Stored("embeddings.word_embeddings.weight", (spec.vocab_size, width)),
        "position_embed": Stored("embeddings.position_embeddings.weight", (spec.max_positions, width)),
        "type_embed": Stored("embeddings.token_type_embeddings.weight", (spec.type_vocab, width)),
    }

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


def dense_names(spec: DenseSpec, width: int) -> dict[str, Stored]:
    """`kernel` and `bias` of one Dense module, in the file of its folder."""
    names = linear_names("", "linear", (width,), (spec.width,), bias=spec.bias)
    return {path.removeprefix("/"): stored for path, stored in names.items()}


def transformer_names(spec: EncoderSpec | DecoderEncoderSpec) -> dict[str, Stored]:
    """Our parameter path -> tensor, for the transformer of either kind of encoder."""
    if isinstance(spec, DecoderEncoderSpec):
        return {f"decoder/{path}": stored for path, stored in decoder_names(spec.decoder).items()}
    return encoder_names(spec)
