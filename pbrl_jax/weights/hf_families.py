"""The decoder families of Hugging Face folders: `model_type` -> fields of our spec."""

from typing import Any, NamedTuple


class Family(NamedTuple):
    """One `model_type`: its switches, required values of config fields, and defaults."""

    architecture: str
    #: Fields of DecoderSpec in which the family differs from Llama.
    switches: dict[str, Any] = {}
    #: Config field -> supported values, of which an export writes the first.
    required: dict[str, tuple] = {"hidden_act": ("silu",)}
    #: Defaults of transformers for missing fields.
    defaults: dict[str, Any] = {}
    experts: bool = False
    #: Sets of letters in DecoderSpec.layer_pattern that models of the family may have.
    patterns: tuple[str, ...] = ("g",)
    #: Fields of DecoderSpec that are set by configs of this family, but not by Llama's.
    free: tuple[str, ...] = ()
    #: Without a list of layers, one layer in so many is global and the others are local.
    period: int = 0
    #: Local layers have a separate RoPE, which is not scaled.
    rope_by_layer: bool = False


NO_BIAS = {"attention_bias": (False, None)}
SILU = {"hidden_act": ("silu",), **NO_BIAS}
GEMMA2_SWITCHES = {
    "activation": "gelu_tanh", "sandwich_norms": True, "norm_offset": True, "scaled_embeddings": True,
}  # fmt: skip
GEMMA_REQUIRED = {
    "hidden_activation": ("gelu_pytorch_tanh",), **NO_BIAS, "use_bidirectional_attention": (False, None),
}  # fmt: skip
GEMMA_SIZES = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096,
    "tie_word_embeddings": True,
}  # fmt: skip
OLMO_SWITCHES = {"qk_norm": True, "joint_qk_norm": True, "sandwich_norms": True, "pre_norms": False}
COHERE_SWITCHES = {"parallel": True, "centered_norms": True, "interleaved_rope": True}
COHERE_REQUIRED = {
    **SILU, "use_qk_norm": (False, None), "use_gated_activation": (True,), "use_parallel_block": (True,),
    "use_embedding_sharing": (True,), "use_parallel_embedding": (True, False),
    "position_embedding_type": ("rope_gptj",), "rotary_pct": (1.0, 1),
}  # fmt: skip
COHERE_DEFAULTS = {"tie_word_embeddings": True, "logit_scale": 0.0625, "layer_norm_eps": 1e-5}

FAMILIES = {
    "llama": Family("LlamaForCausalLM", required={**SILU, "mlp_bias": (False, None)}),
    "mistral": Family(
        "MistralForCausalLM", defaults={"num_key_value_heads": 8, "sliding_window": 4096}, patterns=("l",)
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM", {"qkv_bias": True}, defaults={"num_key_value_heads": 32, "sliding_window": 4096},
        patterns=("g", "l", "gl"),
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM", {"qk_norm": True}, SILU,
        {"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096}, patterns=("g", "l", "gl"),
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM", {"qk_norm": True},
        {**SILU, "decoder_sparse_step": (1,), "mlp_only_layers": ([], None)},
        {"num_key_value_heads": 4, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": False,
         "sliding_window": 4096},
        experts=True, patterns=("g", "l"),
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM", {"qk_norm": True, **GEMMA2_SWITCHES},
        {**GEMMA_REQUIRED, "attn_logit_softcapping": (None,)},
        {**GEMMA_SIZES, "vocab_size": 262_208, "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0,
         "max_position_embeddings": 131_072},
        patterns=("g", "l", "gl"), period=6, rope_by_layer=True,
        free=("local_rope_theta", "query_scalar", "logit_softcap"),
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM", GEMMA2_SWITCHES, {**GEMMA_REQUIRED, "hidden_act": ("gelu_pytorch_tanh",)},
        {**GEMMA_SIZES, "vocab_size": 256_000, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
        patterns=("g", "l", "gl"), period=2, free=("query_scalar", "attention_softcap", "logit_softcap"),
    ),
    "ministral": Family(
        "MinistralForCausalLM", defaults={"num_key_value_heads": 8, "sliding_window": 4096}, patterns=("gl",)
    ),
    "ministral3": Family(
        "Ministral3ForCausalLM", patterns=(),
        defaults={"num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5},
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM", required={**SILU, "mlp_bias": (False, None), "use_sliding_window": (False, None)},
        defaults={"num_key_value_heads": 4, "rope_theta": 2_000_000.0, "tie_word_embeddings": True},
        patterns=("n", "gn"),
    ),
    "olmo2": Family("Olmo2ForCausalLM", OLMO_SWITCHES, SILU, {"rms_norm_eps": 1e-5}),
    "olmo3": Family(
        "Olmo3ForCausalLM", OLMO_SWITCHES, SILU,
        {"rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "sliding_window": 4096},
        patterns=("l", "gl"), period=4, rope_by_layer=True, free=("local_rope_theta",),
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        required={**SILU, "mlp_bias": (False, None), "lm_head_bias": (False, None), "full_attn_mod": (1,),
                  "interpolate_factor": (1,)},
        defaults={"rms_norm_eps": 1e-5}, patterns=("g", "l"), free=("rotary_dim",),
    ),
    "apertus": Family(
        "ApertusForCausalLM", {"qk_norm": True, "activation": "xielu"},
        {"hidden_act": ("xielu",), **NO_BIAS, "mlp_bias": (False, None), "qk_norm": (True,), "post_norm": (False,)},
        {"rms_norm_eps": 1e-5, "rope_theta": 12_000_000.0},
    ),
    "cohere": Family(
        "CohereForCausalLM", COHERE_SWITCHES, COHERE_REQUIRED, {**COHERE_DEFAULTS, "rope_theta": 500_000.0},
        free=("logit_scale",),
    ),
    "cohere2": Family(
        "Cohere2ForCausalLM", COHERE_SWITCHES,
        {**COHERE_REQUIRED, "order_of_interleaved_layers": ("local_attn_first",)},
        {**COHERE_DEFAULTS, "sliding_window": 4096}, patterns=("l", "n", "ln"), period=4, free=("logit_scale",),
    ),
}  # fmt: skip

#: Families that store query, key and value as one tensor, and gate and up as another.
FUSED = ("phi3",)

#: Multimodal `model_type` -> supported types of the decoder in its `text_config`, the first of which is the default.
#: Only the text model is read.
MULTIMODAL = {"gemma3": ("gemma3_text",), "mistral3": ("mistral", "ministral3")}

#: `model_type` of well-known models that are not supported -> the missing feature (and its config field).
NOT_HERE = {
    "gpt_oss": "attention sinks (layer_types) and biased, clamped experts (swiglu_limit)",
    **dict.fromkeys(("qwen3_5", "qwen3_5_text", "qwen3_next"), "linear attention (layer_types: linear_attention)"),
    **dict.fromkeys(("gemma3n", "gemma3n_text"), "embeddings per layer (hidden_size_per_layer_input)"),
    **dict.fromkeys(("gemma4", "gemma4_text"), "a wider head in global layers (global_head_dim)"),
    "mixtral": "experts under other names (num_local_experts)",
    "deepseek_v3": "latent attention (kv_lora_rank)",
}
