"""M2M100 and NLLB folders of Hugging Face: from `config.json` to our spec, and the names of their tensors."""

from collections.abc import Mapping
from typing import Any

from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.models.m2m100 import M2M100Spec
from pbrl_jax.weights.hf_fields import ConfigFields
from pbrl_jax.weights.hf_names import Stored, linear_names, norm_names

#: `model_type` of M2M100 and of the dense models of NLLB-200.
MODEL_TYPE = "m2m_100"

#: Sizes of our spec -> fields of config.json.
SIZES = {
    "vocab_size": "vocab_size", "width": "d_model", "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers", "encoder_heads": "encoder_attention_heads",
    "decoder_heads": "decoder_attention_heads", "encoder_ffn": "encoder_ffn_dim", "decoder_ffn": "decoder_ffn_dim",
    "max_positions": "max_position_embeddings",
}  # fmt: skip

#: Defaults of transformers for missing fields.
DEFAULTS = {
    "vocab_size": 128112, "d_model": 1024, "encoder_layers": 12, "decoder_layers": 12, "encoder_attention_heads": 16,
    "decoder_attention_heads": 16, "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096, "max_position_embeddings": 1024,
    "scale_embedding": True, "pad_token_id": 1, "decoder_start_token_id": 2, "eos_token_id": 2,
}  # fmt: skip

#: Regular expression of tensors that are not read: copies of the shared embedding, and positions, which are computed.
IGNORED = r"^(encoder|decoder)\.(embed_tokens\.weight|embed_positions\.weights?)$"


def m2m100_spec(config: Mapping[str, Any], dtype: str = "float32") -> M2M100Spec:
    """The spec that a `config.json` describes.

    Raises:
      CheckpointError: another kind of model, an unknown field, or inconsistent sizes.
    """
    if config.get("model_type") != MODEL_TYPE:
        raise CheckpointError(f"config.json: model_type is {config.get('model_type')!r}, expected {MODEL_TYPE!r}.")
    fields = ConfigFields(config, DEFAULTS)
    fields.refuse_quantised()
    width = fields.size("d_model", least=4)
    eos = fields.take("eos_token_id")
    sizes: dict[str, Any] = {ours: fields.size(theirs) for ours, theirs in SIZES.items()}
    spec = M2M100Spec(
        **sizes,
        embed_scale=width**0.5 if fields.flag("scale_embedding") else 1.0,
        pad_id=fields.size("pad_token_id", least=0),
        start_id=fields.size("decoder_start_token_id", least=0),
        eos_ids=tuple(eos) if isinstance(eos, list) else (eos,),
        dtype=dtype,
    )
    fields.expect("activation_function", "relu")
    fields.expect("tie_word_embeddings", True)
    fields.expect("normalize_before", True)
    fields.expect("is_encoder_decoder", True)
    fields.expect("num_hidden_layers", spec.encoder_layers)
    fields.finish()
    for heads in (spec.encoder_heads, spec.decoder_heads):
        if width % heads or width % 2:
            raise CheckpointError(f"config.json: d_model={width} does not divide into {heads} heads (and in two).")
    return spec


def m2m100_names(spec: M2M100Spec) -> dict[str, Stored]:
    """Our parameter path -> tensors of the checkpoint."""
    names = {"embed": Stored("model.shared.weight", (spec.vocab_size, spec.width))}
    for side, layers, heads, ffn in (
        ("encoder", spec.encoder_layers, spec.encoder_heads, spec.encoder_ffn),
        ("decoder", spec.decoder_layers, spec.decoder_heads, spec.decoder_ffn),
    ):
        names |= _attention(side, "self_attn", layers, spec.width, heads) | _feed_forward(side, layers, spec.width, ffn)
    cross = _attention("decoder", "encoder_attn", spec.decoder_layers, spec.width, spec.decoder_heads)
    for path, stored in cross.items():
        # Keys and values of the source are computed once per sentence, by a separate module.
        part = path.removeprefix("decoder/")
        of_source = part.startswith(("key/", "value/"))
        names["cross/" + part if of_source else "decoder/cross_" + part.removeprefix("attention_")] = stored
    for side in ("encoder", "decoder"):
        names |= norm_names(f"{side}_norm", f"model.{side}.layer_norm", spec.width)
    return names


def _attention(path: str, block: str, layers: int, width: int, heads: int) -> dict[str, Stored]:
    prefix, head = f"model.{path}.layers.{{layer}}.{block}", (heads, width // heads)
    names = norm_names(f"{path}/attention_norm", f"{prefix}_layer_norm", width, layers)
    for part in ("query", "key", "value"):
        names |= linear_names(f"{path}/{part}", f"{prefix}.{part[0]}_proj", (width,), head, layers)
    return names | linear_names(f"{path}/out", f"{prefix}.out_proj", head, (width,), layers)


def _feed_forward(path: str, layers: int, width: int, ffn: int) -> dict[str, Stored]:
    prefix = f"model.{path}.layers.{{layer}}"
    up = linear_names(f"{path}/up", f"{prefix}.fc1", (width,), (ffn,), layers)
    down = linear_names(f"{path}/down", f"{prefix}.fc2", (ffn,), (width,), layers)
    return norm_names(f"{path}/mlp_norm", f"{prefix}.final_layer_norm", width, layers) | up | down
