"""Tiny random encoders as their own libraries write them, and the vectors that these libraries make of texts.

Needs torch, transformers and sentence-transformers; the tests that read the result need none of them.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    GteConfig,
    GteModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaXLConfig,
    XLMRobertaXLModel,
)

#: The last one is longer than every encoder here reads at a time.
TEXTS = [
    "The answer is 12.",
    "Jibu ni 12, kwa sababu 3 mara 4 ni 12.",
    "答案是 12。",
    "ఆమె దగ్గర 5 ఆపిల్స్ ఉన్నాయి.",
    "She has 5 apples",
    "She has 5 apples, buys 7 more and gives 3 of them to her friend, so 5 + 7 - 3 = 9 apples are left in the basket.",
]
CORPUS = TEXTS * 4 + ["Ana tufaha 5, ananunua 7 zaidi.", "คำตอบคือ 12", "Die Antwort ist 12, weil 3 mal 4 12 ist."]
BATCH = 3


def trained(tokenizer: Tokenizer, trainer) -> Tokenizer:
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def around(tokenizer: Tokenizer, template: str):
    """Give the tokenizer a template of special tokens."""
    names = [part for part in template.split() if part != "$A"]
    ids = [(name, tokenizer.token_to_id(name)) for name in dict.fromkeys(names)]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)


def bert_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trained(tokenizer, trainers.WordPieceTrainer(vocab_size=160, special_tokens=special, show_progress=False))
    around(tokenizer, "[CLS] $A [SEP]")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def xlmr_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=160, special_tokens=special, unk_token="<unk>", show_progress=False)
    around(trained(tokenizer, trainer), "<s> $A </s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        cls_token="<s>", sep_token="</s>",
    )  # fmt: skip


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that appends <|endoftext|>, which is its padding too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    around(trained(tokenizer, trainer), "$A <|endoftext|>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|endoftext|>", padding_side="left"
    )


def shaken(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights so large that every term shows, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator) * 0.3
            weight.copy_(noise + (1.0 if weight.ndim == 1 and name.endswith("weight") else 0.0))
    return model.eval()


def save_plain(folder: Path, model, tokenizer, limit: int, torch_file: bool = False):
    """A Hugging Face folder of a model without a head."""
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer.model_max_length = limit
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    if torch_file:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")


def save_chain(folder: Path, model, tokenizer, limit: int, chain: list, prompts: dict | None = None):
    """A folder of sentence-transformers: the transformer, then the modules of `chain`."""
    plain = folder.with_name(folder.name + "_plain")
    save_plain(plain, model, tokenizer, limit)
    shutil.rmtree(folder, ignore_errors=True)
    transformer = st.Transformer(str(plain))
    SentenceTransformer(modules=[transformer, *chain], prompts=prompts, device="cpu").save(str(folder))
    shutil.rmtree(plain)
    (folder / "README.md").unlink(missing_ok=True)


def old_dialect(folder: Path, limit: int):
    """Rewrite a folder as sentence-transformers of 2020 wrote it; the Dense weights go into torch's format."""
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        module["type"] = f"sentence_transformers.models.{kind}"
        path = folder / module["path"]
        if kind == "Pooling":
            flags = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
            old = {f"pooling_mode_{flag}": flag == "cls_token" for flag in flags}
            (path / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **old}))
        if kind == "Dense":
            config = json.loads((path / "config.json").read_text())
            kept = ("in_features", "out_features", "bias", "activation_function")
            (path / "config.json").write_text(json.dumps({name: config[name] for name in kept}))
            from safetensors.torch import load_file

            torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
            (path / "model.safetensors").unlink()
    (folder / "modules.json").write_text(json.dumps(modules, indent=1))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": limit, "do_lower_case": False}))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer.pop("model_max_length", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=1))


def save_expected(folder: Path, **arrays):
    np.savez_compressed(folder / "expected.npz", texts=np.array(TEXTS), **arrays)


def vectors_of(folder: Path, texts=TEXTS, **kwargs) -> np.ndarray:
    """What sentence-transformers makes of a folder, in batches with padding; unit length or not, as the chain says."""
    model = SentenceTransformer(str(folder), device="cpu")
    return model.encode(list(texts), batch_size=BATCH, show_progress_bar=False, **kwargs)


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}


def make_labse(root: Path):
    """BERT, CLS, Dense with tanh, Normalize; old dialect."""
    folder, tokenizer = root / "labse", bert_tokenizer()
    config = BertConfig(vocab_size=len(tokenizer) + 3, max_position_embeddings=40, **SIZES)
    dense = shaken(st.Dense(16, 12, activation_function=torch.nn.Tanh()), 2)
    chain = [st.Pooling(16, pooling_mode="cls"), dense, st.Normalize()]
    save_chain(folder, shaken(BertModel(config), 1), tokenizer, 24, chain)
    old_dialect(folder, 24)
    save_expected(folder, vectors=vectors_of(folder))


def make_bge_m3(root: Path):
    """XLM-R, CLS, Normalize; new dialect, a default prompt, weights in torch's format."""
    folder, tokenizer = root / "bge_m3", xlmr_tokenizer()
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer) + 2, max_position_embeddings=34, type_vocab_size=1, layer_norm_eps=1e-5, **SIZES
    )
    model = shaken(XLMRobertaModel(config), 3)
    prompts = {"query": "query: ", "passage": "passage: "}
    save_chain(folder, model, tokenizer, 32, [st.Pooling(16, pooling_mode="cls"), st.Normalize()], prompts)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    save_expected(folder, vectors=vectors_of(folder), query=vectors_of(folder, prompt_name="query"))


def make_xlmr_xl(root: Path):
    """XLM-R-XL without a chain: hidden states of every layer, right padded."""
    folder, tokenizer = root / "xlmr_xl", xlmr_tokenizer()
    config = XLMRobertaXLConfig(vocab_size=len(tokenizer), max_position_embeddings=34, **SIZES)
    model = shaken(XLMRobertaXLModel(config), 4)
    save_plain(folder, model, tokenizer, 32)
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        states = model(inputs["input_ids"], inputs["attention_mask"], output_hidden_states=True).hidden_states
    mask = inputs["attention_mask"].numpy()
    last = states[-1].numpy()
    mean = (last * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    save_expected(
        folder, tokens=inputs["input_ids"].numpy(), mask=mask, states=torch.stack(states).numpy(),
        vectors=mean / np.linalg.norm(mean, axis=1, keepdims=True),
    )  # fmt: skip


def make_qwen3_embedding(root: Path):
    """Qwen3, the state of <|endoftext|> at the end, Normalize; prompts, none of them the default."""
    folder, tokenizer = root / "qwen3_embedding", qwen_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer), num_key_value_heads=2, head_dim=8, max_position_embeddings=64, rope_theta=1e6,
        **SIZES,
    )  # fmt: skip
    prompts = {"query": "Instruct: Find similar text\nQuery:", "document": ""}
    chain = [st.Pooling(16, pooling_mode="lasttoken"), st.Normalize()]
    save_chain(folder, shaken(Qwen3Model(config), 5), tokenizer, 64, chain, prompts)
    save_expected(folder, vectors=vectors_of(folder), query=vectors_of(folder, prompt_name="query"))


def make_embedding_gemma(root: Path):
    """Gemma 3 in both directions with local layers, mean, two Dense without bias, Normalize."""
    folder, tokenizer = root / "embedding_gemma", qwen_tokenizer()
    around(tokenizer.backend_tokenizer, "<|endoftext|> $A <|endoftext|>")
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, head_dim=8, max_position_embeddings=64, sliding_window=9,
        layer_types=["sliding_attention", "full_attention"], use_bidirectional_attention=True, query_pre_attn_scalar=8,
        **SIZES,
    )  # fmt: skip
    maps = [st.Dense(*sizes, bias=False, activation_function=torch.nn.Identity()) for sizes in ((16, 20), (20, 16))]
    chain = [st.Pooling(16, pooling_mode="mean"), *(shaken(one, 7 + i) for i, one in enumerate(maps)), st.Normalize()]
    save_chain(folder, shaken(Gemma3TextModel(config), 6), tokenizer, 64, chain)
    save_expected(folder, vectors=vectors_of(folder))


def make_gte(root: Path):
    """gte (also named `new`): RoPE with a linear scaling, a gated feed-forward, CLS, Normalize."""
    folder, tokenizer = root / "gte", xlmr_tokenizer()
    rope = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}
    config = GteConfig(vocab_size=len(tokenizer), max_position_embeddings=34, rope_parameters=rope, **SIZES)
    chain = [st.Pooling(16, pooling_mode="cls"), st.Normalize()]
    save_chain(folder, shaken(GteModel(config), 9), tokenizer, 32, chain)
    save_expected(folder, vectors=vectors_of(folder))


MAKERS = (make_gte, make_labse, make_bge_m3, make_xlmr_xl, make_qwen3_embedding, make_embedding_gemma)


def make(root: Path):
    """Write every folder below `root` that is not there."""
    root.mkdir(parents=True, exist_ok=True)
    for maker in MAKERS:
        if not (root / maker.__name__.removeprefix("make_")).exists():
            maker(root)
