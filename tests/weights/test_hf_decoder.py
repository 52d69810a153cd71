"""`config.json` of decoders: what is read, in which spellings, what is refused, and what is written back."""

import copy
import dataclasses
import json

import jax
import pytest
from tiny_hf import FIXTURES
from tiny_policy import tiny_spec
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pbrl_jax.core.errors import CheckpointError
from pbrl_jax.core.trees import match_rules, path_name
from pbrl_jax.models.decoder import decoder_axes, init_decoder
from pbrl_jax.models.specs import DECODERS, TINY_FAMILIES, Llama3Scaling, tiny_decoder
from pbrl_jax.weights.folders import abstract_tree
from pbrl_jax.weights.hf_decoder import decoder_names, decoder_spec, family_of, hf_config, kept_fields
from pbrl_jax.weights.hf_rope import positions_of

GEMMA = TINY_FAMILIES["tiny_gemma3"]

#: Families without a preset, from what transformers wrote.
FURTHER = {
    name: decoder_spec(json.loads((FIXTURES / name / "config.json").read_text()))
    for name in ("smollm3", "olmo2", "olmo3", "ministral", "apertus", "cohere", "cohere2", "gemma2")
}

#: Specs beyond the presets: windows on the upper layers, another count to the global layer, plain RoPE everywhere.
VARIANTS = {
    "qwen3_upper_window": tiny_decoder(layers=5, layer_pattern="gglll", window=3),
    "qwen2_window": tiny_decoder(qk_norm=False, qkv_bias=True, layer_pattern="l", window=3),
    "moe_window": dataclasses.replace(TINY_FAMILIES["tiny_qwen3_moe"], layer_pattern="l", window=3),
    "moe_unnormalised": dataclasses.replace(TINY_FAMILIES["tiny_qwen3_moe"], normalized_experts=False),
    "gemma_sixth": dataclasses.replace(GEMMA, layers=8, layer_pattern="lllllg", query_scalar=None),
    "gemma_one_rope": dataclasses.replace(GEMMA, local_rope_theta=0.0, rope_factor=1.0),
    "gemma_global": dataclasses.replace(GEMMA, layer_pattern="g", window=0, local_rope_theta=0.0),
    "llama_linear": tiny_decoder(qk_norm=False, rope_factor=4.0),
    "llama_divisors": tiny_decoder(qk_norm=False, rope_divisors=(1.0, 2.0, 3.0, 4.0), rope_magnitude=1.25),
    "phi3": tiny_decoder(qk_norm=False, rotary_dim=6),
    **FURTHER,
}
SPECS = {**DECODERS, **VARIANTS}


@pytest.mark.parametrize("name", SPECS)
def test_round_trip(name):
    """Our spec -> config.json -> our spec, as JSON and as transformers understands and rewrites it."""
    spec = SPECS[name]
    config = json.loads(json.dumps(hf_config(spec)))
    assert decoder_spec(config) == spec
    theirs = CONFIG_MAPPING[config["model_type"]](**copy.deepcopy(config))
    assert decoder_spec(json.loads(theirs.to_json_string(use_diff=False))) == spec
    assert theirs.architectures == config["architectures"] and str(theirs.dtype).endswith("float32")


def test_families():
    expected = {"tiny": "qwen3", "quickstart": "qwen3", "llama31_8b": "llama", "tiny_gemma3": "gemma3_text"}
    assert {name: family_of(DECODERS[name]) for name in expected} == expected
    assert {name: family_of(spec) for name, spec in TINY_FAMILIES.items() if name != "tiny_gemma3"} == {
        f"tiny_{name}": name for name in ("llama", "qwen2", "qwen3", "qwen3_moe", "mistral")
    }


def test_further_families():
    assert {name: family_of(spec) for name, spec in FURTHER.items()} == {name: name for name in FURTHER}


@pytest.mark.parametrize("name", SPECS)
def test_names_are_those_of_our_tree(name):
    spec = SPECS[name]
    shapes = abstract_tree(init_decoder, spec)
    ours = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    names = decoder_names(spec)
    assert {path: stored.full_shape() for path, stored in names.items()} == ours
    tensors = [tensor for stored in names.values() for tensor in stored.names()]
    assert len(tensors) == len(set(tensors))
    axes = match_rules(shapes, decoder_axes(spec))
    assert all(jax.tree.leaves(jax.tree.map(lambda leaf, letters: leaf.ndim == len(letters), shapes, axes)))


LLAMA = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
SCALING = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
#: The hub's file of Gemma 3 4B names little: the rest is what transformers puts in.
GEMMA_4B = {
    "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255_999,
    "eoi_token_index": 256_000, "eos_token_id": [1, 106], "image_token_index": 262_144, "initializer_range": 0.02,
    "mm_tokens_per_image": 256, "torch_dtype": "bfloat16", "vision_config": {"hidden_size": 1152},
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10_240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    },
}  # fmt: skip


#: Name -> (fields of the released config.json that matter here, fields of the spec).
RELEASED = {
    "SmolLM3-3B": (
        {"model_type": "smollm3", "hidden_size": 2048, "intermediate_size": 11_008, "num_hidden_layers": 36,
         "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 128_256, "rope_theta": 5e6,
         "rope_scaling": None, "no_rope_layers": [1, 1, 1, 0] * 9, "no_rope_layer_interval": 4, "max_window_layers": 28,
         "use_sliding_window": False, "sliding_window": None, "layer_types": ["full_attention"] * 36,
         "attention_bias": False, "mlp_bias": False, "pretraining_tp": 2, "rms_norm_eps": 1e-6, "hidden_act": "silu"},
        {"layer_pattern": "gggn", "tied_embeddings": True, "rope_theta": 5e6},
    ),
    "Olmo-3-7B": (
        {"model_type": "olmo3", "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 100_278, "rope_theta": 500_000,
         "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192,
                          "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0},
         "max_position_embeddings": 65_536, "sliding_window": 4096, "attention_bias": False, "rms_norm_eps": 1e-6,
         "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8, "tie_word_embeddings": False},
        {"layer_pattern": "lllg", "window": 4096, "local_rope_theta": 5e5, "rope_magnitude": 1.2079441541679836},
    ),
    "Phi-4-mini": (
        {"model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
         "num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 200_064, "rope_theta": 10_000.0,
         "partial_rotary_factor": 0.75, "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096,
         "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
         "sliding_window": 262_144, "tie_word_embeddings": True, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
         "attention_bias": False, "full_attn_mod": 1, "lm_head_bias": False, "mlp_bias": False,
         "interpolate_factor": 1, "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}},
        {"rotary_dim": 96, "rope_magnitude": 1.1902380714238083, "tied_embeddings": True},
    ),
    "aya-expanse-8b": (
        {"model_type": "cohere", "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 256_000, "rope_theta": 10_000,
         "layer_norm_eps": 1e-5, "logit_scale": 0.125, "use_qk_norm": False, "attention_bias": False},
        {"logit_scale": 0.125, "parallel": True, "tied_embeddings": True, "norm_eps": 1e-5, "layer_pattern": "g"},
    ),
    "c4ai-command-r7b": (
        {"model_type": "cohere2", "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 256_000, "rope_theta": 50_000,
         "layer_norm_eps": 1e-5, "logit_scale": 0.25, "use_qk_norm": False, "head_dim": 128, "layer_switch": 4,
         "order_of_interleaved_layers": "local_attn_first", "position_embedding_type": "rope_gptj", "rotary_pct": 1.0,
         "sliding_window": 4096, "use_embedding_sharing": True, "use_gated_activation": True, "rope_scaling": None,
         "use_parallel_block": True, "use_parallel_embedding": True, "cache_implementation": "hybrid"},
        {"layer_pattern": "llln", "window": 4096, "logit_scale": 0.25},
    ),
    "Apertus-8B": (
        {"model_type": "apertus", "hidden_size": 4096, "intermediate_size": 21_504, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 131_072, "rope_theta": 12_000_000,
         "hidden_act": "xielu", "mlp_bias": False, "post_norm": False, "qk_norm": True, "rms_norm_eps": 1e-5,
         "rope_scaling": {"rope_type": "llama3", **SCALING}, "attention_bias": False, "tie_word_embeddings": False},
        {"activation": "xielu", "rope_scaling": Llama3Scaling(), "qk_norm": True},
    ),
    "Ministral-3-8B": (
        {"model_type": "mistral3", "text_config": {
            "model_type": "ministral3", "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 34,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131_072,
            "sliding_window": None, "max_position_embeddings": 262_144, "rms_norm_eps": 1e-5, "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16_384,
                "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1}}},
        {"layer_pattern": "g", "rope_magnitude": 1.0},
    ),
    "gemma-2-9b": (
        {"model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14_336, "num_hidden_layers": 42,
         "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256_000,
         "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256,
         "sliding_window": 4096, "sliding_window_size": 4096, "hidden_act": "gelu_pytorch_tanh",
         "hidden_activation": "gelu_pytorch_tanh", "cache_implementation": "hybrid", "rope_theta": 10_000.0},
        {"layer_pattern": "lg", "attention_softcap": 50.0, "logit_softcap": 30.0},
    ),
    "EuroLLM-9B": (
        {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 42,
         "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_000, "rope_theta": 10_000.0,
         "rope_scaling": None, "attention_bias": False, "mlp_bias": False, "head_dim": 128, "pretraining_tp": 1},
        {"kv_heads": 8},
    ),
    "Sailor2-8B": (
        {"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 32,
         "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 151_936, "rope_theta": 1e6,
         "max_window_layers": 28, "sliding_window": None, "use_mrope": False, "use_sliding_window": False},
        {"qkv_bias": True, "layer_pattern": "g"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_released_configs(name):
    config, expected = RELEASED[name]
    spec = decoder_spec({"max_position_embeddings": 4096, **config})
    assert {field: getattr(spec, field) for field in expected} == pytest.approx(expected)
    assert decoder_spec(hf_config(spec, kept_fields(config))) == spec


def test_longrope_is_written_as_transformers_4_takes_it_for_phi3():
    """Its Phi3Config refuses more or fewer than three fields, and another name than `type`."""
    old, _ = RELEASED["Phi-4-mini"]
    scaling = {**old["rope_scaling"], "rope_type": "longrope", "rope_theta": 10_000.0}
    scaling["original_max_position_embeddings"] = old["original_max_position_embeddings"]
    left_out = ("rope_scaling", "original_max_position_embeddings", "rope_theta")
    new = {**{name: old[name] for name in old if name not in left_out}, "rope_parameters": scaling}
    for config in (old, new):
        spec, kept = decoder_spec(config), kept_fields(config)
        written = hf_config(spec, kept)
        assert written["rope_scaling"] == {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
        assert written["original_max_position_embeddings"] == 4096 and decoder_spec(written) == spec
        assert positions_of(kept_fields(written), 1) == positions_of(kept, 1) == 4096


def test_positions_that_a_scaling_gives():
    """YaRN counts the factor in or not; within its original length LongRoPE, and Ministral's scaled attention, are what
    is computed here."""
    assert positions_of(kept_fields(RELEASED["Olmo-3-7B"][0]), 1) == 65_536
    assert positions_of(kept_fields(RELEASED["Phi-4-mini"][0]), 1) == 4096
    assert positions_of(kept_fields(RELEASED["Ministral-3-8B"][0]), 1) == 16_384
    qwen = {**LLAMA, "max_position_embeddings": 32_768, "rope_scaling": {"type": "yarn", "factor": 4.0}}
    assert positions_of(kept_fields(qwen), 1) == 131_072
    assert positions_of({"max_position_embeddings": 100}, 8.0) == 800


def test_spellings_of_llama3_scaling():
    """Old (`rope_scaling`, `type` or `rope_type`) and new (`rope_parameters`) say the same."""
    old = {"rope_theta": 500_000, "rope_scaling": {"rope_type": "llama3", **SCALING}}
    older = {"rope_theta": 500_000, "rope_scaling": {"type": "llama3", **SCALING}}
    new = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500_000.0, **SCALING}}
    both = {**old, **new}
    specs = [decoder_spec({**LLAMA, **rope}) for rope in (old, older, new, both)]
    assert (specs[0].rope_theta, specs[0].rope_scaling) == (500_000.0, Llama3Scaling())
    assert all(spec == specs[0] for spec in specs)
    assert (specs[0].head_dim, specs[0].norm_eps, specs[0].tied_embeddings) == (4, 1e-5, False)


def test_gemma_4b_as_the_hub_has_it():
    spec = decoder_spec(GEMMA_4B)
    assert (spec.vocab_size, spec.heads, spec.kv_heads, spec.head_dim) == (262_208, 8, 4, 256)
    assert (spec.rope_theta, spec.rope_factor, spec.local_rope_theta) == (1e6, 8.0, 1e4)
    assert (spec.layer_pattern, spec.window, spec.query_scalar) == ("lllllg", 1024, None)
    assert spec.tied_embeddings and sum(spec.local_layers()) == 29
    kept = kept_fields(GEMMA_4B)
    assert kept["eos_token_id"] == [1, 106] and kept["max_position_embeddings"] == 131_072
    # transformers fills the same gaps, and writes the new spelling with every field.
    theirs = CONFIG_MAPPING["gemma3_text"](**copy.deepcopy(GEMMA_4B["text_config"]))
    assert decoder_spec(theirs.to_dict()) == spec


@pytest.mark.parametrize(
    "window, pattern", [({"sliding_window": None}, "g"), ({"sliding_window": 4096}, "l"), ({}, "l")]
)
def test_mistral_windows(window, pattern):
    """Its first version has one, its later ones say null, and left out it is 4096."""
    spec = decoder_spec({**LLAMA, "model_type": "mistral", **window})
    assert (spec.layer_pattern, spec.window) == (pattern, 4096 if pattern == "l" else 0)


def test_qwen_windows():
    """`sliding_window` counts only with `use_sliding_window`, from layer `max_window_layers` on."""
    base = {**LLAMA, "model_type": "qwen2", "sliding_window": 8, "max_window_layers": 1}
    assert decoder_spec({**base, "use_sliding_window": False}).layer_pattern == "g"
    assert decoder_spec({**base, "use_sliding_window": True}).layer_pattern == "gl"
    listed = {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}
    assert decoder_spec({**base, **listed}).layer_pattern == "lg"


@pytest.mark.parametrize("family", ["olmo2", "olmo3", "qwen2", "qwen3", "qwen3_moe"])
def test_missing_fields_have_the_defaults_of_transformers(family):
    sizes = {name: LLAMA[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    config = {**sizes, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    config |= {"use_sliding_window": True, "max_window_layers": 0} if family.startswith("qwen") else {}
    theirs = json.loads(CONFIG_MAPPING[family](**config).to_json_string(use_diff=False))
    assert decoder_spec({**config, "model_type": family}) == decoder_spec(theirs)


def test_what_is_kept():
    config = {**LLAMA, "eos_token_id": [7, 8], "max_position_embeddings": 131_072, "torch_dtype": "bfloat16"}
    kept = kept_fields(config)
    assert kept == {"eos_token_id": [7, 8], "max_position_embeddings": 131_072}
    written = hf_config(decoder_spec(config), kept, dtype="bfloat16")
    assert written["eos_token_id"] == [7, 8] and written["max_position_embeddings"] == 131_072
    assert written["torch_dtype"] == "bfloat16"


GEMMA_TEXT = {**GEMMA_4B["text_config"]}
MOE = {**LLAMA, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2}
#: Changed config -> what the message says.
REFUSED = {
    "unknown_type": ({**LLAMA, "model_type": "lama"}, "model_type is 'lama'.*Known: .*qwen3_moe.*'llama'"),
    "no_type": ({}, "model_type is None"),
    "missing": ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, "no 'hidden_size'"),
    "text": ({**LLAMA, "hidden_size": "16"}, "hidden_size is '16'"),
    "activation": ({**LLAMA, "hidden_act": "gelu"}, "hidden_act is 'gelu'.*'silu'"),
    "attention_bias": ({**LLAMA, "attention_bias": True}, "attention_bias is True.*False"),
    "mlp_bias": ({**LLAMA, "mlp_bias": True}, "mlp_bias is True"),
    "yarn": ({**LLAMA, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "no 'original_max_position_embeddings'"),
    "proportional": (
        {**LLAMA, "rope_parameters": {"rope_type": "proportional"}}, "'proportional'; supported are default, lin"
    ),
    "short_factor": (
        {**LLAMA, "max_position_embeddings": 8, "rope_scaling": {"type": "longrope", "short_factor": [1.0]}},
        r"short_factor is \[1.0\]; expected 2 positive",
    ),
    "rope_field": ({**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 4.0, "x": 1}}, "x=1 is not a field"),
    "rope_gap": ({**LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "no 'low_freq_factor'"),
    "rope_partial": ({**LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "rope_twice": (
        {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_theta": 5.0}},
        "rope_parameters .* differ",
    ),
    "rope_shape": ({**LLAMA, "rope_scaling": "llama3"}, "rope_scaling is 'llama3'; expected an object"),
    "heads": ({**LLAMA, "num_key_value_heads": 3}, "4 attention heads over 3 key/value heads"),
    "quantized": ({**LLAMA, "quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
    "quantized_whole": ({**GEMMA_4B, "quantization_config": {"bits": 8}}, "text_config: quantization_config is {'bits"),
    "compressed": ({**LLAMA, "compression_config": {"format": "int"}}, "compression_config is .*weights are quant"),
    "unheard": ({**LLAMA, "logit_scale": 0.5}, "not understood: logit_scale=0.5"),
    "window": ({**LLAMA, "sliding_window": 8}, "not understood: sliding_window=8"),
    "local_base": ({**LLAMA, "rope_local_base_freq": 8.0}, "not understood: rope_local_base_freq"),
    "mistral_types": (
        {**LLAMA, "model_type": "mistral", "layer_types": ["sliding_attention", "full_attention"]},
        "supported are layers that are all alike",
    ),
    "types": ({**GEMMA_TEXT, "layer_types": ["chunked_attention"] * 34}, "layer_types is .*'full_attention'"),
    "types_short": ({**GEMMA_TEXT, "layer_types": ["full_attention"]}, "expected 34 times"),
    "no_window": ({**GEMMA_TEXT, "sliding_window": None}, "sliding_window is None"),
    "softcap": ({**GEMMA_TEXT, "final_logit_softcapping": -3.0}, "final_logit_softcapping is -3.0"),
    "scores": ({**GEMMA_TEXT, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
    "cohere_norm": ({**LLAMA, "model_type": "cohere", "use_qk_norm": True}, "use_qk_norm is True"),
    "nope": ({**LLAMA, "model_type": "smollm3", "no_rope_layers": [1]}, "expected 2 times 0 or 1"),
    "gpt_oss": ({**LLAMA, "model_type": "gpt_oss"}, "attention sinks.*swiglu_limit"),
    "qwen3_5": ({**LLAMA, "model_type": "qwen3_5"}, "linear attention .layer_types"),
    "gemma4": ({**LLAMA, "model_type": "gemma4"}, "global_head_dim"),
    "both_ways": ({**GEMMA_TEXT, "use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    "gemma_act": ({**GEMMA_TEXT, "hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
    "local_scaled": (
        {
            **GEMMA_TEXT, "rope_scaling": None,
            "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2, "rope_theta": 5.0}},
        },
        "sliding_attention: .*'default'",
    ),
    "no_text": ({"model_type": "gemma3"}, "without a text_config"),
    "other_text": ({**GEMMA_4B, "text_config": {"model_type": "llama"}}, "model_type is 'llama'"),
    "sparse_step": ({**MOE, "decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
    "dense_layers": ({**MOE, "mlp_only_layers": [0]}, r"mlp_only_layers is \[0\]"),
    "too_many": ({**MOE, "num_experts_per_tok": 8}, "num_experts_per_tok=8 of num_experts=4"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    config, message = REFUSED[name]
    with pytest.raises(CheckpointError, match=message):
        decoder_spec(config)


#: Fields of configs on the hub that change nothing in these families: SmolLM2, DeepSeek-R1-Distill-Qwen, older
#: versions of transformers.
WITHOUT_EFFECT = {
    "rope_interleaved": False, "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}}, "use_mrope": False,
    "_flash_attn_2_enabled": True, "top_k": 50, "max_length": 20, "logit_scale": None, "num_nextn_predict_layers": 0,
    "vision_token_id": 7, "length_penalty": 1.0,
}  # fmt: skip


def test_fields_that_cannot_change_the_result_are_no_obstacle(caplog):
    """A switch that is off, private fields, ids, hints for exports; of others that no part of a forward pass has in its
    name a line is logged, once."""
    assert decoder_spec({**LLAMA, **WITHOUT_EFFECT}) == decoder_spec(LLAMA) and not caplog.records
    for _ in range(2):
        assert decoder_spec({**LLAMA, "is_llama_config": True, "my_note": "x"}) == decoder_spec(LLAMA)
    assert [record.getMessage() for record in caplog.records] == ["config.json: is_llama_config, my_note are not read."]
    for name, value in (("use_mrope", True), ("rope_interleaved", True), ("num_nextn_predict_layers", 1)):
        with pytest.raises(CheckpointError, match=f"not understood: {name}={value}"):
            decoder_spec({**LLAMA, name: value})


def test_the_refused_are_one_change_away():
    for config in (LLAMA, GEMMA_TEXT, GEMMA_4B, MOE):
        decoder_spec(config)


UNKNOWN_MIXES = (
    {"qkv_bias": True}, {"norm_offset": True}, {"query_scalar": 3.0},
    {"qkv_bias": True, "layer_pattern": "gn"}, {"parallel": True},
)  # fmt: skip


@pytest.mark.parametrize("changes", UNKNOWN_MIXES)
def test_a_combination_that_nobody_has_cannot_be_exported(changes):
    with pytest.raises(CheckpointError, match="No model family.*Known: llama"):
        hf_config(tiny_spec(**changes))
