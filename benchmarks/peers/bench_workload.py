"""One workload for every library: the same random Qwen3, the same prompts, the same reward.

The model is written as an ordinary Hugging Face folder (config.json, model.safetensors, tokenizer.json), which
every library loads by its own public loader. How long the responses become is built into the weights: no library
is patched, no logits processor runs, so nobody pays for it. README.md next door states the mechanism in full.
"""

import json
import math
import random
from pathlib import Path

import numpy as np

PAD, BOS, EOS, UNKNOWN = range(4)
SPECIAL_WORDS = ["<pad>", "<bos>", "<eos>", "<unk>"]
FIRST_WORD = len(SPECIAL_WORDS)

WEIGHT_STD = 0.02
ROPE_THETA = 1_000_000.0  # Tunix 0.1.7 knows no other value
NORM_EPS = 1e-6
LEARNING_RATE = 1e-6  # tiny: all steps shall meet the same response lengths

STOP_CHANNEL = 0
STOP_CHANNEL_SIZE_PER_WIDTH = 1 / 32  # far larger than all other channels together, whatever the width
FORBIDDEN_LOGIT = -200.0  # exp(-200) is 0 in float32, not a slow denormal number


def stop_logit(vocab: int, mean_response: int) -> float:
    """Logit that makes EOS come with probability 1/mean_response when every other word has logit 0."""
    if mean_response == 0:
        return FORBIDDEN_LOGIT
    other_words = vocab - FIRST_WORD
    return math.log(other_words / (mean_response - 1))


def random_qwen3(flags) -> dict[str, np.ndarray]:
    """Float32 weights under their Hugging Face names; one residual channel is kept for the stopping rule."""
    rng = np.random.default_rng(flags.seed)

    def normal(*shape):
        return (rng.standard_normal(shape) * WEIGHT_STD).astype(np.float32)

    def ones_but_stop_channel():
        scale = np.ones(flags.d, np.float32)
        scale[STOP_CHANNEL] = 0.0  # layers do not read the channel ...
        return scale

    def writes_to_residual(inputs):
        matrix = normal(flags.d, inputs)
        matrix[STOP_CHANNEL] = 0.0  # ... and do not write it
        return matrix

    q_width, kv_width = flags.heads * flags.head_dim, flags.kv_heads * flags.head_dim
    weights = {"model.embed_tokens.weight": _embedding(flags, normal)}
    for layer in range(flags.layers):
        prefix = f"model.layers.{layer}."
        weights |= {
            prefix + "input_layernorm.weight": ones_but_stop_channel(),
            prefix + "self_attn.q_proj.weight": normal(q_width, flags.d),
            prefix + "self_attn.k_proj.weight": normal(kv_width, flags.d),
            prefix + "self_attn.v_proj.weight": normal(kv_width, flags.d),
            prefix + "self_attn.o_proj.weight": writes_to_residual(q_width),
            prefix + "self_attn.q_norm.weight": np.ones(flags.head_dim, np.float32),
            prefix + "self_attn.k_norm.weight": np.ones(flags.head_dim, np.float32),
            prefix + "post_attention_layernorm.weight": ones_but_stop_channel(),
            prefix + "mlp.gate_proj.weight": normal(flags.ffn, flags.d),
            prefix + "mlp.up_proj.weight": normal(flags.ffn, flags.d),
            prefix + "mlp.down_proj.weight": writes_to_residual(flags.ffn),
        }
    weights["model.norm.weight"] = np.ones(flags.d, np.float32)
    return weights


def _embedding(flags, normal) -> np.ndarray:
    """Tied embedding. After the final norm the stop channel holds almost exactly sqrt(d), so a word whose entry in
    that channel is larger by x than everybody else's has a logit larger by x * sqrt(d)."""
    embedding = normal(flags.vocab, flags.d)
    embedding[:, STOP_CHANNEL] = STOP_CHANNEL_SIZE_PER_WIDTH * flags.d
    per_logit = 1.0 / math.sqrt(flags.d)
    for special in (PAD, BOS, UNKNOWN):
        embedding[special, STOP_CHANNEL] += FORBIDDEN_LOGIT * per_logit
    embedding[EOS, STOP_CHANNEL] += stop_logit(flags.vocab, flags.mean_response) * per_logit
    return embedding


def qwen3_config(flags) -> dict:
    """The Hugging Face config.json of the model."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "torch_dtype": "float32",
        "dtype": "float32",
        "vocab_size": flags.vocab,
        "hidden_size": flags.d,
        "intermediate_size": flags.ffn,
        "num_hidden_layers": flags.layers,
        "num_attention_heads": flags.heads,
        "num_key_value_heads": flags.kv_heads,
        "head_dim": flags.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_THETA,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "max_position_embeddings": flags.prompt_len + flags.response_len + 8,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }


def words(vocab: int) -> list[str]:
    """Word i stands for token i: plain numbers, after the four special ones."""
    return SPECIAL_WORDS + [str(i) for i in range(FIRST_WORD, vocab)]


def tokenizer_json(vocab: int) -> dict:
    """A word-level tokenizer (split at blanks) in the format of the `tokenizers` library."""
    specials = [
        {
            "id": i,
            "content": word,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, word in enumerate(SPECIAL_WORDS)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": specials,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: i for i, word in enumerate(words(vocab))},
            "unk_token": SPECIAL_WORDS[UNKNOWN],
        },
    }


def write_model_folder(flags, folder: str | Path) -> Path:
    """Write the model and its tokenizer; returns the folder."""
    from safetensors.numpy import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(random_qwen3(flags), folder / "model.safetensors", metadata={"format": "pt"})
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL_WORDS, strict=True))
    files = {
        "config.json": qwen3_config(flags),
        "generation_config.json": {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "do_sample": True},
        "tokenizer.json": tokenizer_json(flags.vocab),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left", **names},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def prompt_ids(flags) -> list[list[list[int]]]:
    """Token ids of every prompt, [step][prompt][token]; each begins with BOS and then has random words."""
    rng = random.Random(flags.seed)

    def one_prompt():
        length = rng.randint(flags.prompt_len // 4, flags.prompt_len) if flags.ragged_prompts else flags.prompt_len
        return [BOS] + [rng.randrange(FIRST_WORD, flags.vocab) for _ in range(length - 1)]

    return [[one_prompt() for _ in range(flags.prompts)] for _ in range(flags.steps)]


def even_share(ids: list[int]) -> float:
    """The reward: the share of even token ids. Cheap, never constant within a group, and needs no text."""
    return sum(i % 2 == 0 for i in ids) / max(1, len(ids))
