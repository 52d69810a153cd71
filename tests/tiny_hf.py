"""A tiny Hugging Face policy with a tokenizer and a chat template, made without torch."""

import functools
import json
import tempfile
from pathlib import Path

from tiny_policy import tiny_params, tiny_spec

from pbrl_jax.text.tokenizers import HuggingFaceTokenizer, load_tokenizer
from pbrl_jax.weights.policies import Policy

FIXTURES = Path(__file__).parent / "fixtures" / "hf"
DECODERS = (
    "llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "gemma3", "yarn", "dynamic", "smollm3", "olmo2", "olmo3", "phi3",
    "ministral", "ministral3", "apertus", "cohere", "cohere2", "gemma2",
)  # fmt: skip
SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<pad>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: As released models have it: sampling settings, and two ids that end a response.
GENERATION = {"do_sample": True, "eos_token_id": [3, 1], "temperature": 0.6, "top_p": 0.95}


@functools.cache
def hf_tokenizer(template: str | None = TEMPLATE, more: int = 0) -> HuggingFaceTokenizer:
    """Every byte, five special tokens, and `more` pieces beyond them: 261 + more ids."""
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.add_tokens([f"<extra_{number}>" for number in range(more)])
    fast.chat_template = template
    with tempfile.TemporaryDirectory() as folder:
        fast.save_pretrained(folder)
        (Path(folder) / "generation_config.json").write_text(json.dumps(GENERATION))
        return load_tokenizer(folder)


@functools.cache
def hf_policy(vocab_size: int = 272, more: int = 0) -> Policy:
    """Qwen3's form, with an embedding that is padded beyond the tokenizer's 261 ids, as Qwen's is."""
    spec = tiny_spec(vocab_size=vocab_size)
    return Policy(spec, tiny_params(spec), hf_tokenizer(more=more), "tiny")
