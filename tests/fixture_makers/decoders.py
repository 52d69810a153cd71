"""Tiny random decoders of every family as transformers saves them, with what it computes from them.

A folder holds `config.json`, `model.safetensors` and `expected.npz`: token ids and masks of three rows, padded on the
left and on the right, the logits at every position, and the greedy continuation of the left-padded rows. Weights are
drawn from PBRL_FIXTURE_SEED (default 0).
"""

import os
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

LENGTHS, WIDTH, NEW_TOKENS, VOCAB = (12, 5, 9), 12, 8, 96

SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}

YARN = {
    "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 32, "beta_fast": 4.0,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.0, 1.5, 2.5], "long_factor": [2.0, 4.0, 8.0],
    "partial_rotary_factor": 0.75, "original_max_position_embeddings": 64,
}  # fmt: skip
OLMO3_ROPE = {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}
LOCAL_THEN_GLOBAL = ["sliding_attention", "full_attention", "sliding_attention"]
#: Of the further families: three layers, a smaller vocabulary of the same ids.
SMALL = {"num_hidden_layers": 3, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4}

#: Folder -> (model_type, config). Every switch of the family is on, and windows are shorter than the rows.
CASES = {
    "llama": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": False, "rms_norm_eps": 1e-5}),
    "qwen2": ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "qwen3": ("qwen3", {"head_dim": 12, "tie_word_embeddings": True}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            "head_dim": 8, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
            "norm_topk_prob": True,
        },
    ),
    "mistral": ("mistral", {"sliding_window": 4, "head_dim": 8}),
    "gemma3": (
        "gemma3_text",
        {
            "num_hidden_layers": 4, "intermediate_size": 24, "head_dim": 8, "query_pre_attn_scalar": 12,
            "sliding_window": 4, "rope_parameters": GEMMA_ROPE,
            "layer_types": ["sliding_attention" if layer % 3 < 2 else "full_attention" for layer in range(4)],
        },
    ),
    "yarn": ("qwen3", {**SMALL, "head_dim": 8, "rope_parameters": YARN}),
    "dynamic": (
        "llama",
        {**SMALL, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0},
         "max_position_embeddings": 32},
    ),
    "smollm3": ("smollm3", {**SMALL, "no_rope_layers": [1, 0, 1], "tie_word_embeddings": True}),
    "olmo2": ("olmo2", {**SMALL, "tie_word_embeddings": False}),
    "olmo3": (
        "olmo3",
        {**SMALL, "layer_types": LOCAL_THEN_GLOBAL, "sliding_window": 4, "rope_parameters": OLMO3_ROPE},
    ),
    "phi3": (
        "phi3",
        {**SMALL, "hidden_size": 32, "rope_parameters": LONGROPE, "max_position_embeddings": 256,
         "original_max_position_embeddings": 64},
    ),
    "ministral": ("ministral", {**SMALL, "head_dim": 8, "layer_types": LOCAL_THEN_GLOBAL, "sliding_window": 4}),
    "ministral3": (
        "ministral3",
        {**SMALL, "head_dim": 8, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5,
                                                     "llama_4_scaling_beta": 0.1}},
    ),
    "apertus": ("apertus", {**SMALL, "rope_parameters": LLAMA3}),
    "cohere": ("cohere", {**SMALL, "logit_scale": 0.25, "tie_word_embeddings": True}),
    "cohere2": (
        "cohere2",
        {**SMALL, "logit_scale": 0.5, "layer_types": LOCAL_THEN_GLOBAL, "sliding_window": 4,
         "tie_word_embeddings": True},
    ),
    "gemma2": (
        "gemma2",
        {**SMALL, "head_dim": 8, "query_pre_attn_scalar": 6, "sliding_window": 4, "layer_types": LOCAL_THEN_GLOBAL,
         "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "tie_word_embeddings": True},
    ),
}  # fmt: skip


def randomise(model, gemma: bool) -> None:
    """Weights of a size that makes every term matter; norm scales and biases too are not what they start as."""
    generator = torch.Generator().manual_seed(int(os.environ.get("PBRL_FIXTURE_SEED", "0")))
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if "norm" in name:
            noise = 0.2 * noise + (0 if gemma else 1)
        elif name.endswith("bias") or "embed" in name:
            noise = 0.3 * noise
        elif "alpha" in name:
            noise = 0.5 * noise
        else:
            noise = noise * value.shape[-1] ** -0.5
        value.data.copy_(noise)


def rows(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of the three rows; padding holds a real token's id, which nothing may look at."""
    generator = torch.Generator().manual_seed(1)
    ids, mask = torch.full((len(LENGTHS), WIDTH), 7), torch.zeros((len(LENGTHS), WIDTH), dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        place = slice(WIDTH - length, WIDTH) if side == "left" else slice(0, length)
        ids[row, place] = torch.randint(1, VOCAB, (length,), generator=generator)
        mask[row, place] = 1
    return ids, mask


def make_case(folder: Path, model_type: str, settings: dict) -> None:
    """One folder."""
    config = CONFIG_MAPPING[model_type](**{**SIZES, **settings})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    randomise(model, model_type.startswith("gemma"))
    model.generation_config = GenerationConfig()
    expected = {}
    with torch.no_grad():
        for side in ("left", "right"):
            ids, mask = rows(side)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
            expected |= {f"input_ids_{side}": ids, f"attention_mask_{side}": mask, f"logits_{side}": logits}
        ids, mask = rows("left")
        written = model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    expected["greedy"] = written[:, WIDTH:]
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    arrays = {name: value.numpy() for name, value in expected.items()}
    arrays = {name: x.astype(np.int32) if x.dtype == np.int64 else x for name, x in arrays.items()}
    np.savez_compressed(folder / "expected.npz", **arrays)


def make(out: Path) -> None:
    """Write every folder below `out` that is not there."""
    for name, (model_type, settings) in CASES.items():
        if not (out / name).exists():
            make_case(out / name, model_type, settings)
