"""Decoders of Hugging Face folders: from `config.json` to our spec and back, and the names of their tensors.

Each field of `config.json` is read, known to be irrelevant, or refused by name, so that no part of a forward pass is
ignored. Missing fields have the defaults of transformers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pbrl_jax.core.errors import CheckpointError, did_you_mean
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.weights.hf_families import FAMILIES, FUSED, MULTIMODAL, NOT_HERE, Family
from pbrl_jax.weights.hf_fields import KEPT, ConfigFields
from pbrl_jax.weights.hf_names import Stored
from pbrl_jax.weights.hf_rope import Rope, kept_rope, phi3_rope, read_rope, rope_fields

LOCAL, GLOBAL = "sliding_attention", "full_attention"

#: `max_position_embeddings` in the exported config of a policy that was not loaded from one: RoPE has no limit.
DEFAULT_CONTEXT = 32_768


def _text_config(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], str]:
    """(model_type, the decoder's fields, their name in messages)."""
    model_type = config.get("model_type")
    if model_type in MULTIMODAL:
        text = config.get("text_config")
        if not isinstance(text, Mapping):
            raise CheckpointError(f"config.json: model_type {model_type!r} without a text_config. Copy the file again.")
        inner = text.get("model_type", MULTIMODAL[model_type][0])
        if inner not in MULTIMODAL[model_type]:
            known = " or ".join(map(repr, MULTIMODAL[model_type]))
            raise CheckpointError(f"config.json, text_config: model_type is {inner!r}; expected {known}.")
        tied = {"tie_word_embeddings": config["tie_word_embeddings"]} if "tie_word_embeddings" in config else {}
        outer = (*KEPT, "quantization_config")  # of the whole model
        kept = {name: config[name] for name in outer if config.get(name) is not None}
        return inner, {**tied, **kept, **text}, "config.json, text_config"
    if model_type in NOT_HERE:
        raise CheckpointError(
            f"config.json: model_type is {model_type!r}, which needs {NOT_HERE[model_type]}. This is not supported."
        )
    if model_type not in FAMILIES:
        known = did_you_mean(str(model_type), (*FAMILIES, *MULTIMODAL))
        raise CheckpointError(f"config.json: model_type is {model_type!r}, which no decoder here has. {known}")
    return model_type, config, "config.json"


def _layer_letters(fields: ConfigFields, model_type: str, layers: int) -> tuple[str, int]:
    """(the letter of each layer as in DecoderSpec.layer_pattern, the window of local layers)."""
    local, window = _local_layers(fields, model_type, layers)
    rotated = [True] * layers
    if model_type == "cohere2":
        rotated = local
    if model_type == "smollm3":
        interval = fields.size("no_rope_layer_interval", 4)
        listed = fields.take("no_rope_layers", None)
        fields.take("max_window_layers", None)  # irrelevant, since use_sliding_window must be false
        rotated = [(layer + 1) % interval != 0 for layer in range(layers)] if listed is None else listed
        if not isinstance(rotated, list) or len(rotated) != layers or set(rotated) - {0, 1}:
            raise CheckpointError(f"{fields.where}: no_rope_layers is {listed!r}; expected {layers} times 0 or 1.")
    return "".join("l" if near else "g" if rope else "n" for near, rope in zip(local, rotated, strict=True)), window


def _local_layers(fields: ConfigFields, model_type: str, layers: int) -> tuple[list[bool], int]:
    """(whether each layer attends only to the last `window` tokens, the window)."""
    family = FAMILIES[model_type]
    windowed = family.patterns == () or any("l" in pattern for pattern in family.patterns)
    window = fields.take("sliding_window", None) if windowed else None
    local = [window is not None] * layers
    if model_type.startswith("qwen"):
        start = fields.size("max_window_layers", 28, least=0)
        if not fields.flag("use_sliding_window", False):
            window, local = None, [False] * layers
        elif model_type != "qwen3_moe":
            local = [layer >= start for layer in range(layers)]
    if family.period:
        every = fields.size("_sliding_window_pattern", fields.take("sliding_window_pattern", family.period))
        fields.taken |= {"layer_switch", "sliding_window_size"}  # the same information again
        local = [(layer + 1) % every != 0 for layer in range(layers)]
    listed = fields.take("layer_types", None)
    if listed is not None:
        if not isinstance(listed, list) or len(listed) != layers or set(listed) - {LOCAL, GLOBAL}:
            raise CheckpointError(
                f"{fields.where}: layer_types is {listed!r}; expected {layers} times {LOCAL!r} or {GLOBAL!r}."
            )
        listed = [kind == LOCAL for kind in listed]
        if "gl" not in family.patterns and not family.period and listed != local:
            raise CheckpointError(
                f"{fields.where}: layer_types contradict sliding_window={window!r} for {model_type}; "
                "supported are layers that are all alike. Remove the field that is wrong."
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


def _shortest_pattern(letters: str) -> str:
    """The shortest string whose repetition gives the letters of all layers."""
    for period in range(1, len(letters) + 1):
        if all(letter == letters[layer % period] for layer, letter in enumerate(letters)):
            return letters[:period]
    raise AssertionError(letters)


def _feed_forward(fields: ConfigFields, family: Family) -> dict[str, Any]:
    """Fields of the spec for the feed-forward layer, or for the experts of a family with experts."""
    if not family.experts:
        return {"ffn": fields.size("intermediate_size")}
    fields.take("intermediate_size", None)  # for layers without experts, which are refused
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


def _logits(fields: ConfigFields, family: Family) -> dict[str, Any]:
    """Fields of the spec for scale and soft caps of scores and logits."""
    caps = {"attention_softcap": "attn_logit_softcapping", "logit_softcap": "final_logit_softcapping"}
    values = {
        ours: fields.number(theirs)
        for ours, theirs in caps.items()
        if ours in family.free and fields.take(theirs, None) is not None
    }
    return values | ({"logit_scale": fields.number("logit_scale")} if "logit_scale" in family.free else {})


def decoder_spec(config: Mapping[str, Any]) -> DecoderSpec:
    """The spec of the decoder that a `config.json` describes.

    Raises:
      CheckpointError: an unknown `model_type`, a missing field, or a field with an unsupported value; the message names
        the field, its value and the supported values.
    """
    model_type, values, where = _text_config(config)
    family = FAMILIES[model_type]
    fields = ConfigFields(values, family.defaults, where)
    fields.refuse_quantised()
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
    letters, window = _layer_letters(fields, model_type, layers)
    rope, local_rope, rotary_dim = read_rope(fields, family.rope_by_layer, head_dim)
    scalar = fields.number("query_pre_attn_scalar") if "query_scalar" in family.free else head_dim
    spec = DecoderSpec(
        vocab_size=fields.size("vocab_size"),
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        **_feed_forward(fields, family),
        **{f"rope_{name}": value for name, value in rope._asdict().items()},
        rotary_dim=rotary_dim,
        norm_eps=fields.number("layer_norm_eps" if "layer_norm_eps" in family.defaults else "rms_norm_eps", 1e-6),
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        layer_pattern=_shortest_pattern(letters),
        window=window,
        local_rope_theta=local_rope.theta if "l" in letters and local_rope != rope else 0.0,
        query_scalar=None if scalar == head_dim else scalar,
        **_logits(fields, family),
        **family.switches,
    )
    if rotary_dim and "rotary_dim" not in family.free:
        raise CheckpointError(f"{where}: partial_rotary_factor is {rotary_dim / head_dim}; expected 1.0.")
    fields.finish()
    return spec


def family_of(spec: DecoderSpec) -> str:
    """The `model_type` with the forward pass of this spec. A Mistral without a window is exported as Llama.

    Raises:
      CheckpointError: no family has this combination of fields.
    """
    names = {name for family in FAMILIES.values() for name in family.switches}
    free = {name for family in FAMILIES.values() for name in family.free}
    plain = {field.name: field.default for field in dataclasses.fields(DecoderSpec)}
    switches = {name: getattr(spec, name) for name in sorted(names)}
    changed = {name for name in free if getattr(spec, name) != plain[name]}
    kinds = "".join(sorted(set(spec.layer_letters())))
    rope = Rope(*(getattr(spec, f"rope_{name}") for name in Rope._fields))
    # A separate RoPE of local layers is never scaled.
    by_layer = spec.local_rope_theta != 0 or "l" not in kinds or rope == Rope(rope.theta)
    for model_type, family in FAMILIES.items():
        fits = switches == {name: plain[name] for name in names} | family.switches
        fits = fits and family.experts == bool(spec.experts) and kinds in family.patterns
        if fits and changed <= set(family.free) and (by_layer or not family.rope_by_layer):
            return model_type
    raise CheckpointError(
        f"No model family of transformers has {switches}, experts={spec.experts}, "
        f"layer_pattern={spec.layer_pattern!r}, local_rope_theta={spec.local_rope_theta}, "
        f"query_scalar={spec.query_scalar}, {sorted(changed)} together. Known: {', '.join(FAMILIES)}. "
        "Start from one of the presets of pbrl_jax.models.specs.DECODERS."
    )


def kept_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `config.json` that no forward pass reads but an export copies (token ids, context length)."""
    model_type, values, where = _text_config(config)
    values = {**FAMILIES[model_type].defaults, **values}
    if values.get("max_position_embeddings") is not None:
        ConfigFields(values, {}, where).size("max_position_embeddings")
    return {name: values[name] for name in KEPT if name in values} | kept_rope(values)


def hf_config(spec: DecoderSpec, kept: Mapping[str, Any] | None = None, dtype: str = "float32") -> dict[str, Any]:
    """The `config.json` that transformers and vLLM load: `decoder_spec(hf_config(spec)) == spec`.

    Args:
      spec: of the policy; dtype, remat and attention kernel are operational and not written.
      kept: `kept_fields` of the config from which the policy was loaded, if any.
      dtype: type of the stored weights.

    Raises:
      CheckpointError: no family has this combination of fields.
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
        "layer_norm_eps" if spec.centered_norms else "rms_norm_eps": spec.norm_eps,
        "tie_word_embeddings": spec.tied_embeddings,
        **rope_fields(spec),
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
    if "query_scalar" in family.free:
        scalar = spec.head_dim if spec.query_scalar is None else spec.query_scalar
        config["query_pre_attn_scalar"] = int(scalar) if scalar == int(scalar) else scalar
        config["attn_logit_softcapping"] = spec.attention_softcap or None  # Gemma 3 has the field, but no cap
        config["final_logit_softcapping"] = spec.logit_softcap or None
    if model_type == "phi3":
        config |= phi3_rope(config)
    if model_type == "gemma3_text":
        config["rope_local_base_freq"] = spec.local_rope_theta or spec.rope_theta
    if model_type == "olmo3":  # transformers 5 reads another base for local layers from the old format
        full = {**(config["rope_scaling"] or {"rope_type": "default"}), "rope_theta": spec.rope_theta}
        local = {"rope_type": "default", "rope_theta": spec.local_rope_theta or spec.rope_theta}
        config["rope_parameters"] = {GLOBAL: full, LOCAL: local}
    if "logit_scale" in family.free:
        config["logit_scale"] = spec.logit_scale
    return config


def _window_fields(spec: DecoderSpec, model_type: str) -> dict[str, Any]:
    """The config fields that mark local layers in this family."""
    local, family = spec.local_layers(), FAMILIES[model_type]
    if model_type == "smollm3":
        return {"no_rope_layers": [int(letter != "n") for letter in spec.layer_letters()]}
    if not any("l" in pattern for pattern in family.patterns):
        return {}
    if model_type in ("mistral", "phi3"):
        return {"sliding_window": spec.window or None}
    if model_type == "qwen3_moe":
        return {"use_sliding_window": any(local), "sliding_window": spec.window or None}
    listed = {"layer_types": [LOCAL if is_local else GLOBAL for is_local in local]}
    if not model_type.startswith("qwen"):
        # Older versions of transformers read the period of global layers instead of layer_types.
        counted = spec.layer_pattern.strip("l") in ("g", "n") and spec.layer_pattern[-1] != "l"
        pattern = {"sliding_window_pattern": len(spec.layer_pattern)} if counted and family.period else {}
        return {**listed, **pattern, "sliding_window": spec.window or None}
    switch = {"use_sliding_window": any(local), "max_window_layers": (*local, True).index(True)}
    return {**listed, **switch, "sliding_window": spec.window or None}


def is_fused(model_type: str) -> bool:
    """Whether the family stores query, key and value as one tensor, and gate and up as another."""
    return model_type in FUSED


def decoder_names(spec: DecoderSpec, fused: bool = False) -> dict[str, Stored]:
    """Our parameter path (`layers/query/kernel`) -> tensors of a checkpoint, for every parameter of `spec`.

    Names are those of the `...ForCausalLM` classes (`model.embed_tokens.weight`, `lm_head.weight`). A tied output
    matrix is not included.
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
            names[f"layers/{ours}_norm/scale"] = of_layer(
                f"self_attn.{ours[0]}_norm.weight", (heads * C if spec.joint_qk_norm else C,)
            )
    names["layers/out/kernel"] = of_layer("self_attn.o_proj.weight", (spec.heads, C, D), True)._replace(inputs=2)
    names |= {f"layers/{ours}/scale": of_layer(f"{theirs}.weight", (D,)) for ours, theirs in _norm_names(spec).items()}
    if spec.experts:
        names["layers/mlp/router/kernel"] = of_layer("mlp.gate.weight", (D, spec.experts), True)
    for ours, shape in (("gate", (D, F)), ("up", (D, F)), ("down", (F, D)))[not spec.gated :]:
        theirs = f"mlp.experts.{{expert}}.{ours}_proj.weight" if spec.experts else f"mlp.{ours}_proj.weight"
        names[f"layers/mlp/{ours}/kernel"] = of_layer(theirs, shape, True, spec.experts)
    if not spec.gated:
        names |= {f"layers/mlp/alpha_{sign}": of_layer(f"mlp.act_fn.alpha_{sign}", (1,)) for sign in "pn"}
    if fused:
        _fuse(names, ("layers/query", "layers/key", "layers/value"), "self_attn.qkv_proj.weight")
        _fuse(names, ("layers/mlp/gate", "layers/mlp/up"), "mlp.gate_up_proj.weight")
    names["final_norm/scale"] = Stored("model.norm.weight", (D,))
    if not spec.tied_embeddings:
        names["lm_head"] = Stored("lm_head.weight", (D, spec.vocab_size), True)
    return names


def constant_tensors(spec: DecoderSpec) -> dict[str, float]:
    """Tensors that transformers stores with the same value in every model: xIELU's beta and eps."""
    values = {} if spec.gated else {"beta": 0.5, "eps": -1e-6}
    layers = range(spec.layers)
    return {f"model.layers.{i}.mlp.act_fn.{name}": value for i in layers for name, value in values.items()}


def _norm_names(spec: DecoderSpec) -> dict[str, str]:
    """Our norms of the residual stream -> their modules in transformers."""
    if spec.parallel:
        return {"attention_norm": "input_layernorm"}
    if not spec.gated:
        return {"attention_norm": "attention_layernorm", "mlp_norm": "feedforward_layernorm"}
    before = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if not spec.sandwich_norms:
        return before
    after = {"attention_out_norm": "post_attention_layernorm", "mlp_out_norm": "post_feedforward_layernorm"}
    return after | ({**before, "mlp_norm": "pre_feedforward_layernorm"} if spec.pre_norms else {})


def _fuse(names: dict[str, Stored], paths: tuple[str, ...], tensor: str) -> None:
    """Make the kernels at `paths` parts of one tensor, concatenated on its first axis."""
    sizes = [names[f"{path}/kernel"].file_shape()[0] for path in paths]
    for number, path in enumerate(paths):
        part = (sum(sizes[:number]), sum(sizes[: number + 1]), sum(sizes))
        template = f"model.layers.{{layer}}.{tensor}"
        names[f"{path}/kernel"] = names[f"{path}/kernel"]._replace(template=template, part=part)
