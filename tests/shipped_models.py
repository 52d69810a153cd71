"""The models and data that the shipped configurations name, as random folders: the released models' config.json with
small sizes, tokenizers of their kinds with small vocabularies, and a few problems in the files of the data sets."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tiny_policy import tiny_params

from pbrl_jax.text.prompts import instruction, system_instruction
from pbrl_jax.text.tokenizers import load_tokenizer
from pbrl_jax.weights.hf_decoder import decoder_spec
from pbrl_jax.weights.hf_export import export_policy
from pbrl_jax.weights.policies import Policy
from pbrl_jax.weights.torch_file import state_dict

FIXTURES = Path(__file__).parent / "fixtures" / "hf"
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0,
    "eos_token_id": [1, 2, 3], "hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 131072,
    "mlp_bias": False, "model_type": "llama", "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.42.3",
    "use_cache": True,
}  # fmt: skip
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0,
    "eos_token_id": 2, "head_dim": 4, "hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 40960,
    "max_window_layers": 64, "model_type": "qwen3", "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
}  # fmt: skip
LLAMA_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|start_header_id|>",
                "<|end_header_id|>"]  # fmt: skip
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.role == 'system' %}Today: {{ strftime_now('%d %b %Y') }}\n\n{% endif %}{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
XLMR = {
    "output_past": True, "position_embedding_type": "absolute", "torch_dtype": "float32",
    "transformers_version": "4.29.0.dev0", "use_cache": True,
}  # fmt: skip
#: Encoder -> (folder of the same kind among the fixtures, positions, changes of config.json, longest text).
ENCODERS = {
    "e5": ("bge_m3", 514, XLMR, 512),
    "bge": ("bge_m3", 8194, XLMR, 8192),
    "labse": ("labse", 512, {"directionality": "bidi", "pooler_type": "first_token_transform"}, 256),
}
LANGUAGES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
PROBLEMS = 12


def write_policy(folder: Path, config: dict, tokens: list[str], template: str, tokenizer_class: str) -> Path:
    """A decoder with the released model's config.json and a byte-level BPE of its special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    words = [text for code in LANGUAGES for text in (instruction(code), system_instruction(code, "chat_boxed"))]
    core.train_from_iterator(words, trainers.BpeTrainer(
        vocab_size=1500, special_tokens=tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ))  # fmt: skip
    folder.mkdir()
    core.save(str(folder / "tokenizer.json"))
    ends = {"bos_token": tokens[0], "eos_token": tokens[3]} if tokens is LLAMA_TOKENS else {"eos_token": tokens[2]}
    settings = {"tokenizer_class": tokenizer_class, "chat_template": template, "model_max_length": 131072, **ends}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    real = config | SMALL | {"vocab_size": core.get_vocab_size()}
    spec = decoder_spec(real)
    export_policy(Policy(spec, tiny_params(spec), load_tokenizer(str(folder)), "random"), str(folder))
    (folder / "config.json").write_text(json.dumps(real))
    return folder


def write_encoder(folder: Path, name: str) -> Path:
    """An encoder of the fixture's kind with as many positions as the released one has."""
    source, positions, changes, longest = ENCODERS[name]
    shutil.copytree(FIXTURES / source, folder)
    config = json.loads((folder / "config.json").read_text())
    torch_file = folder / "pytorch_model.bin"
    tensors = state_dict(torch_file) if torch_file.exists() else load_file(folder / "model.safetensors")
    (place,) = (key for key in tensors if key.endswith("position_embeddings.weight"))
    tensors = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    tensors[place] = np.resize(tensors[place], (positions, tensors[place].shape[1]))
    torch_file.unlink(missing_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config |= {"max_position_embeddings": positions, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest, "do_lower_case": False}))
    return folder


def write_data(root: Path) -> None:
    """PBRL_DATA: the problems of mgsm8k, GSM8K and MGSM; and the files that configurations read beside it."""
    for name in ("gsm8k", "mgsm8k_questions", "mgsm"):
        (root / name).mkdir(parents=True)
    english = [f"Lina has {n + 2} boxes of {n + 3} pens. How many pens?" for n in range(PROBLEMS)]
    golds = [(n + 2) * (n + 3) for n in range(PROBLEMS)]
    pairs = list(zip(english, golds, strict=True))
    solved = [{"question": q, "answer": f"The product is {gold}.\n#### {gold}"} for q, gold in pairs]
    (root / "gsm8k" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in solved))
    rows = [{"id": n, "answer": str(gold), "en": q} | {code: f"{code} {q}" for code in LANGUAGES if code != "en"}
            for n, (q, gold) in enumerate(pairs)]  # fmt: skip
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (root / "mgsm8k_questions" / "train_questions.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for code in LANGUAGES:
        test = "".join(f"{code} test {n}: 1 + {n}?\t{n + 1}\n" for n in range(3))
        (root / "mgsm" / f"mgsm_{code}.tsv").write_text(test)
    expert = [{"question": q, "response": f"The product is {gold}. The answer is {gold}."} for q, gold in pairs]
    (root / "expert_responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in expert))
    own = [{"question": f"{code} {q}", "question_en": q, "language": code, "answer": str(gold)}
           for code in ("sw", "th", "bn") for q, gold in pairs]  # fmt: skip
    (root / "my_prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
