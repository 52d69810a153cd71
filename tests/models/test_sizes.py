"""Shapes of released models, from the values of their published `config.json`: no weights are made."""

import functools

import jax
import pytest

from pbrl_jax.core.trees import count_parameters
from pbrl_jax.models.decoder import init_decoder
from pbrl_jax.models.specs import DECODERS
from pbrl_jax.weights.hf_decoder import decoder_spec

LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA = {
    "model_type": "llama", "vocab_size": 128_256, "num_key_value_heads": 8, "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0, "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "use_cache": True,
    "max_position_embeddings": 131_072, "bos_token_id": 128_000, "attention_dropout": 0.0, "initializer_range": 0.02,
    "eos_token_id": [128_001, 128_008, 128_009], "torch_dtype": "bfloat16", "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
QWEN3 = {
    "model_type": "qwen3", "vocab_size": 151_936, "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu",
    "rms_norm_eps": 1e-6, "rope_theta": 1_000_000, "rope_scaling": None, "attention_bias": False, "use_cache": True,
    "use_sliding_window": False, "sliding_window": None, "max_position_embeddings": 40_960, "bos_token_id": 151_643,
    "eos_token_id": 151_645, "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "attention_dropout": 0.0,
}  # fmt: skip


def sizes(width, ffn, layers, heads, tied) -> dict:
    return {
        "hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "tie_word_embeddings": tied,
    }  # fmt: skip


#: Preset -> (published config, published number of parameters; a tied matrix counts once).
RELEASED = {
    "llama31_8b": (
        {
            **LLAMA, **sizes(4096, 14_336, 32, 32, False),
            "rope_scaling": {**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 8192},
        },
        8_030_261_248,
    ),
    "llama32_1b": (
        {
            **LLAMA, **sizes(2048, 8192, 16, 32, True), "head_dim": 64,
            "rope_scaling": {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192},
        },
        1_235_814_400,
    ),
    "qwen3_0_6b": ({**QWEN3, **sizes(1024, 3072, 28, 16, True), "max_window_layers": 28}, 596_049_920),
    "qwen3_4b": ({**QWEN3, **sizes(2560, 9728, 36, 32, True), "max_window_layers": 36}, 4_022_468_096),
    "qwen3_8b": ({**QWEN3, **sizes(4096, 12_288, 36, 32, False), "max_window_layers": 36}, 8_190_735_360),
    "qwen3_32b": ({**QWEN3, **sizes(5120, 25_600, 64, 64, False), "max_window_layers": 64}, 32_762_123_264),
}  # fmt: skip


def counted_by_hand(config: dict) -> int:
    """Sum of the tensors that a checkpoint lists, from the config alone."""
    D, F, H = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    K, C = config["num_key_value_heads"], config.get("head_dim") or D // H
    query_and_out, key_and_value, feed_forward, norms = 2 * D * H * C, 2 * D * K * C, 3 * D * F, 2 * D
    head_norms = 2 * C if config["model_type"] == "qwen3" else 0
    layer = query_and_out + key_and_value + feed_forward + norms + head_norms
    matrices = 1 if config["tie_word_embeddings"] else 2
    return matrices * config["vocab_size"] * D + config["num_hidden_layers"] * layer + D


@pytest.mark.parametrize("name", RELEASED)
def test_released_model_has_its_published_size(name):
    config, published = RELEASED[name]
    spec = decoder_spec(config)
    shapes = jax.eval_shape(functools.partial(init_decoder, spec=spec), jax.random.key(0))
    assert count_parameters(shapes) == counted_by_hand(config) == published
    assert spec == DECODERS[name]
