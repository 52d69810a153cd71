"""Decoders of Hugging Face folders: `config.json` to our spec and back, and the names of their tensors.

Each field of `config.json` is read, known to be irrelevant, or refused by name, so that no part of a forward pass is
ignored. A missing field has the default of transformers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from pbrl_jax.core.errors import CheckpointError, did_you_mean
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.weights.hf_fields import KEPT, ConfigFields, Rope, read_rope, rope_fields
from pbrl_jax.weights.hf_names import Stored

LOCAL, GLOBAL = "sliding_attention", "full_attention"

#: `max_position_embeddings` in the exported config of a policy that was not loaded from one: RoPE has no limit.
DEFAULT_CONTEXT = 32_768

GEMMA_SWITCHES = {
    "qk_norm": True, "activation": "gelu_tanh", "sandwich_norms": True, "norm_offset": True, "scaled_embeddings": True,
}  # fmt: skip


class Family(NamedTuple):
    """One `model_type`: its switches, the values that its config must have, and its defaults."""

    architecture: str
    #: Fields of DecoderSpec in which the family differs from Llama.
    switches: dict[str, Any] = {}
    #: Config fields and the values of them that are supported; the first is written at export.
    required: dict[str, tuple] = {"hidden_act": ("silu",)}
    #: Defaults of transformers for missing fields.
    defaults: dict[str, Any] = {}
    experts: bool = False


QWEN3_REQUIRED = {"hidden_act": ("silu",), "attention_bias": (False, None)}

FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM",
        required={"hidden_act": ("silu",), "attention_bias": (False, None), "mlp_bias": (False, None)},
    ),
    "mistral": Family("MistralForCausalLM", defaults={"num_key_value_heads": 8, "sliding_window": 4096}),
    "qwen2": Family("Qwen2ForCausalLM", {"qkv_bias": True}, defaults={"num_key_value_heads": 32}),
    "qwen3": Family(
        "Qwen3ForCausalLM", {"qk_norm": True}, QWEN3_REQUIRED, {"num_key_value_heads": 32, "head_dim": 128}
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM", {"qk_norm": True},
        {**QWEN3_REQUIRED, "decoder_sparse_step": (1,), "mlp_only_layers": ([], None)},
        {"num_key_value_heads": 4, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": False},
        experts=True,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM", GEMMA_SWITCHES,
        {
            "hidden_activation": ("gelu_pytorch_tanh",), "attention_bias": (False, None),
            "final_logit_softcapping": (None,), "attn_logit_softcapping": (None,),
            "use_bidirectional_attention": (False, None),
        },
        {
            "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256,
            "sliding_window": 4096, "tie_word_embeddings": True, "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
        },
    ),
}  # fmt: skip

#: Multimodal `model_type` -> that of the decoder in its `text_config`; only the text model is read.
MULTIMODAL = {"gemma3": "gemma3_text"}


def _text_config(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], str]:
    """(model_type, the decoder's fields, their name in messages)."""
    model_type = config.get("model_type")
    if model_type in MULTIMODAL:
        text = config.get("text_config")
        if not isinstance(text, Mapping):
            raise CheckpointError(f"config.json: model_type {model_type!r} without a text_config. Copy the file again.")
        if text.get("model_type", MULTIMODAL[model_type]) != MULTIMODAL[model_type]:
            raise CheckpointError(
                f"config.json, text_config: model_type is {text['model_type']!r}; expected {MULTIMODAL[model_type]!r}."
            )
        tied = {"tie_word_embeddings": config["tie_word_embeddings"]} if "tie_word_embeddings" in config else {}
        kept = {name: config[name] for name in KEPT if config.get(name) is not None}
        return MULTIMODAL[model_type], {**tied, **kept, **text}, "config.json, text_config"
    if model_type not in FAMILIES:
        known = did_you_mean(str(model_type), (*FAMILIES, *MULTIMODAL))
        raise CheckpointError(f"config.json: model_type is {model_type!r}, which no decoder here has. {known}")
    return model_type, config, "config.json"


def _local_layers(fields: ConfigFields, model_type: str, layers: int) -> tuple[list[bool], int]:
    """(whether each layer attends to the last `window` tokens only, the window)."""
    window = None if model_type == "llama" else fields.take("sliding_window", None)
    local = [window is not None] * layers
    if model_type.startswith("qwen"):
        start = fields.size("max_window_layers", 28, least=0)
        if not fields.flag("use_sliding_window", False):
            window, local = None, [False] * layers
        elif model_type != "qwen3_moe":
            local = [layer >= start for layer in range(layers)]
    if model_type == "gemma3_text":
        every = fields.size("_sliding_window_pattern", fields.take("sliding_window_pattern", 6))
        local = [(layer + 1) % every != 0 for layer in range(layers)]
    listed = fields.take("layer_types", None)
    if listed is not None:
        if not isinstance(listed, list) or len(listed) != layers or set(listed) - {LOCAL, GLOBAL}:
            raise CheckpointError(
                f"{fields.where}: layer_types is {listed!r}; expected {layers} times {LOCAL!r} or {GLOBAL!r}."
            )
        listed = [kind == LOCAL for kind in listed]
        if model_type not in ("qwen2", "qwen3", "gemma3_text") and listed != local:
            raise CheckpointError(
                f"{fields.where}: layer_types differ from what sliding_window={window!r} means for {model_type}; "
                "supported are layers that are all alike. Remove the one that is wrong."
            )
        local = listed
    if not any(local):
        return local, 0
    if not isinstance(window, int) or window < 1:
        raise CheckpointError(
            f"{fields.where}: sliding_window is {window!r}, but some layers are {LOCAL!r}; expected a positive integer "
            "(and use_sliding_window, where the family has it)."
        )
    return local, window


def _shortest_pattern(local: list[bool]) -> str:
    """The shortest string of l and g whose repetition gives the kind of every layer."""
    letters = "".join("l" if one else "g" for one in local)
    for period in range(1, len(letters) + 1):
        if all(letter == letters[layer % period] for layer, letter in enumerate(letters)):
            return letters[:period]
    raise AssertionError(letters)


def _feed_forward(fields: ConfigFields, family: Family) -> dict[str, Any]:
    """Fields of the spec for the feed-forward, or for the experts where the family has them."""
    if not family.experts:
        return {"ffn": fields.size("intermediate_size")}
    fields.take("intermediate_size", None)  # used only by layers without experts, which are refused
    experts = fields.size("num_experts", fields.take("num_local_experts", 128))
    chosen = fields.size("num_experts_per_tok")
    if chosen > experts:
        raise CheckpointError(f"{fields.where}: num_experts_per_tok={chosen} of num_experts={experts}: at most all.")
    return {
        "ffn": fields.size("moe_intermediate_size"),
        "experts": experts,
        "experts_per_token": chosen,
        "normalized_experts": fields.flag("norm_topk_prob"),
    }


def decoder_spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The spec of the decoder that a `config.json` describes.

    Raises:
      CheckpointError: an unknown `model_type`, a missing field, or one that changes the forward pass in a way that is
        not supported; the message names the field, its value and the supported values.
    """
    model_type, values, where = _text_config(config)
    family = FAMILIES[model_type]
    fields = ConfigFields(values, family.defaults, where)
    fields.expect("quantization_config", None)
    for name, supported in family.required.items():
        fields.expect(name, *supported)
    width, layers, heads = map(fields.size, ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    kv_heads = heads if fields.take("num_key_value_heads", None) is None else fields.size("num_key_value_heads")
    head_dim = width // heads if fields.take("head_dim", None) is None else fields.size("head_dim")
    if heads % kv_heads or head_dim % 2:
        raise CheckpointError(
            f"{where}: {heads} attention heads over {kv_heads} key/value heads of {head_dim} channels; expected a "
            "multiple of num_key_value_heads and an even head_dim."
        )
    local, window = _local_layers(fields, model_type, layers)
    rope, local_rope = read_rope(fields, by_layer=model_type == "gemma3_text")
    scalar = fields.number("query_pre_attn_scalar") if model_type == "gemma3_text" else head_dim
    spec = DecoderSpec(
        vocab_size=fields.size("vocab_size"),
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        **_feed_forward(fields, family),
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        rope_factor=rope.factor,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        layer_pattern=_shortest_pattern(local),
        window=window,
        local_rope_theta=local_rope.theta if any(local) and local_rope != rope else 0.0,
        query_scalar=None if scalar == head_dim else scalar,
        **family.switches,
    )
    fields.finish()
    return spec


def family_of(spec: DecoderSpec) -> str:
    """The `model_type` with the forward pass of this spec.

    A Mistral without a window computes what a Llama computes, and is exported as Llama.

    Raises:
      CheckpointError: no family has this combination.
    """
    names = {name for family in FAMILIES.values() for name in family.switches}
    plain = {field.name: field.default for field in dataclasses.fields(DecoderSpec) if field.name in names}
    switches = {name: getattr(spec, name) for name in sorted(names)}
    kinds = set(spec.local_layers())
    special = spec.local_rope_theta != 0 or spec.query_scalar is not None
    rope = Rope(spec.rope_theta, spec.rope_factor, spec.rope_scaling)
    # Gemma's local layers are never scaled.
    gemma_rope = spec.local_rope_theta != 0 or True not in kinds or rope == Rope(rope.theta)
    for model_type, family in FAMILIES.items():
        uniform = {"llama": {False}, "mistral": {True}}.get(model_type)
        fits = switches == {**plain, **family.switches} and family.experts == bool(spec.experts)
        fits = fits and (uniform is None or kinds == uniform) and (len(kinds) == 1 or model_type != "qwen3_moe")
        if fits and (gemma_rope if model_type == "gemma3_text" else not special):
            return model_type
    raise CheckpointError(
        f"No model family of transformers has {switches}, experts={spec.experts}, "
        f"layer_pattern={spec.layer_pattern!r}, local_rope_theta={spec.local_rope_theta}, "
        f"query_scalar={spec.query_scalar} together. Known: {', '.join(FAMILIES)}. "
        "Start from one of the presets of pbrl_jax.models.specs.DECODERS."
    )


def kept_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `config.json` that an export repeats although no forward pass reads them (token ids, context)."""
    _, values, where = _text_config(config)
    if values.get("max_position_embeddings") is not None:
        ConfigFields(values, {}, where).size("max_position_embeddings")
    return {name: values[name] for name in KEPT if name in values}


def hf_config(spec: DecoderSpec, kept: Mapping[str, Any] | None = None, dtype: str = "float32") -> dict[str, Any]:
    """The `config.json` that transformers and vLLM load: `decoder_spec(hf_config(spec)) == spec`.

    Args:
      spec: the policy's; dtype, remat and attention kernel are settings of this machine and are not written.
      kept: `kept_fields` of the config that the policy was loaded from; None if it was not loaded from one.
      dtype: type of the stored weights.

    Raises:
      CheckpointError: no family has this combination of switches.
    """
    model_type = family_of(spec)
    family = FAMILIES[model_type]
    config = {
        "architectures": [family.architecture],
        "model_type": model_type,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.width,
        "intermediate_size": spec.ffn,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "rms_norm_eps": spec.norm_eps,
        "tie_word_embeddings": spec.tied_embeddings,
        **rope_fields(Rope(spec.rope_theta, spec.rope_factor, spec.rope_scaling)),
        **{name: supported[0] for name, supported in family.required.items()},
        **_window_fields(spec, model_type),
        "torch_dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": None,
        "max_position_embeddings": DEFAULT_CONTEXT,
        **(kept or {}),
    }
    if family.experts:
        config |= {
            "num_experts": spec.experts,
            "num_experts_per_tok": spec.experts_per_token,
            "moe_intermediate_size": spec.ffn,
            "norm_topk_prob": spec.normalized_experts,
        }
    if model_type == "gemma3_text":
        scalar = spec.head_dim if spec.query_scalar is None else spec.query_scalar
        config["query_pre_attn_scalar"] = int(scalar) if scalar == int(scalar) else scalar
        config["rope_local_base_freq"] = spec.local_rope_theta or spec.rope_theta
    return config


def _window_fields(spec: DecoderSpec, model_type: str) -> dict[str, Any]:
    """The config fields by which the family marks local layers."""
    local = spec.local_layers()
    if model_type == "llama":
        return {}
    if model_type == "mistral":
        return {"sliding_window": spec.window}
    if model_type == "qwen3_moe":
        return {"use_sliding_window": any(local), "sliding_window": spec.window or None}
    listed = {"layer_types": [LOCAL if one else GLOBAL for one in local]}
    if model_type == "gemma3_text":
        # Older versions of transformers read no layer_types but the period of global layers.
        counted = spec.layer_pattern.strip("l") == "g" and spec.layer_pattern[-1] == "g"
        pattern = {"sliding_window_pattern": len(spec.layer_pattern)} if counted else {}
        return {**listed, **pattern, "sliding_window": spec.window or None}
    switch = {"use_sliding_window": any(local), "max_window_layers": (*local, True).index(True)}
    return {**listed, **switch, "sliding_window": spec.window or None}


def decoder_names(spec: DecoderSpec) -> dict[str, Stored]:
    """Our parameter path (`layers/query/kernel`) -> tensors of a checkpoint, for every parameter of `spec`.

    Names are those of the `...ForCausalLM` classes (`model.embed_tokens.weight`, `lm_head.weight`); a tied output
    matrix is not among them.
    """
    D, C, F = spec.width, spec.head_dim, spec.ffn

    def of_layer(name: str, shape: tuple[int, ...], transpose: bool = False, experts: int = 0) -> Stored:
        return Stored(f"model.layers.{{layer}}.{name}", shape, transpose, spec.layers, experts)

    names = {"embed": Stored("model.embed_tokens.weight", (spec.vocab_size, D))}
    for ours, heads in (("query", spec.heads), ("key", spec.kv_heads), ("value", spec.kv_heads)):
        theirs = f"self_attn.{ours[0]}_proj"
        names[f"layers/{ours}/kernel"] = of_layer(f"{theirs}.weight", (D, heads, C), True)
        if spec.qkv_bias:
            names[f"layers/{ours}/bias"] = of_layer(f"{theirs}.bias", (heads, C))
        if spec.qk_norm and ours != "value":
            names[f"layers/{ours}_norm/scale"] = of_layer(f"self_attn.{ours[0]}_norm.weight", (C,))
    names["layers/out/kernel"] = of_layer("self_attn.o_proj.weight", (spec.heads, C, D), True)._replace(inputs=2)
    norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if spec.sandwich_norms:
        norms |= {
            "attention_out_norm": "post_attention_layernorm",
            "mlp_norm": "pre_feedforward_layernorm",
            "mlp_out_norm": "post_feedforward_layernorm",
        }
    names |= {f"layers/{ours}/scale": of_layer(f"{theirs}.weight", (D,)) for ours, theirs in norms.items()}
    if spec.experts:
        names["layers/mlp/router/kernel"] = of_layer("mlp.gate.weight", (D, spec.experts), True)
    for ours, shape in (("gate", (D, F)), ("up", (D, F)), ("down", (F, D))):
        theirs = f"mlp.experts.{{expert}}.{ours}_proj.weight" if spec.experts else f"mlp.{ours}_proj.weight"
        names[f"layers/mlp/{ours}/kernel"] = of_layer(theirs, shape, True, spec.experts)
    names["final_norm/scale"] = Stored("model.norm.weight", (D,))
    if not spec.tied_embeddings:
        names["lm_head"] = Stored("lm_head.weight", (D, spec.vocab_size), True)
    return names
