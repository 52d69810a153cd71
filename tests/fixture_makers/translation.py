"""A tiny random NLLB as transformers saves it, with what it computes; and torch files of every shape a reader meets."""

import argparse
import collections
import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GenerationConfig, M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

CODES = ["eng_Latn", "deu_Latn", "swh_Latn", "zho_Hans"]
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
TEXT = [
    "Tom has 12 apples and buys 30 more.",
    "The answer is 42, because 6 times 7 is 42.",
    "Die Antwort lautet 3,5 und nicht 4.",
    "Jibu ni 18 kwa sababu 3 mara 6 ni 18.",
    "How many does she have? She has 5 left!",
    "Wie viele hat sie? Sie hat noch 5!",
    "答案是 42。因为 6 乘 7 是 42。",
    "XA XB XC XD XE XF XG XH",
]
SENTENCES = [
    ("Tom has 12 apples.", "eng_Latn", "swh_Latn"),
    ("Die Antwort lautet 3,5 und nicht 4.", "deu_Latn", "eng_Latn"),
    ("She has 5 left!", "eng_Latn", "zho_Hans"),
    ("Jibu ni 18.", "swh_Latn", "eng_Latn"),
]
MAX_LENGTH, SEED = 16, 11


def tiny_tokenizer() -> NllbTokenizer:
    """Byte-pair encoding of the text above, in the order of ids that NLLB has."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=180, special_tokens=SPECIALS, show_progress=False))
    model = json.loads(core.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return NllbTokenizer(vocab=model["vocab"], merges=merges, additional_special_tokens=CODES)


def random_model(vocab_size: int) -> M2M100ForConditionalGeneration:
    """Weights far enough from zero that beams differ and some sentences end."""
    config = M2M100Config(
        vocab_size=vocab_size, d_model=24, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4,
        decoder_attention_heads=3, encoder_ffn_dim=40, decoder_ffn_dim=28, max_position_embeddings=64,
        decoder_start_token_id=2,
    )  # fmt: skip
    torch.manual_seed(SEED)
    model = M2M100ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.35 if parameter.ndim == 2 else 0.1
            centre = 1.0 if name.endswith("layer_norm.weight") else 0.0
            parameter.copy_(centre + scale * torch.randn_like(parameter))
        # The output matrix is the embedding: without random signs in between, every token calls for itself again.
        model.model.decoder.layer_norm.weight.normal_()
        model.model.shared.weight[2] *= 3
    return model


def make_m2m100(out: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = random_model(len(tokenizer))
    model.generation_config = GenerationConfig(
        decoder_start_token_id=2, eos_token_id=2, pad_token_id=1, max_length=MAX_LENGTH
    )
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    torch.save(model.state_dict(), out / "pytorch_model.bin")
    rows = []
    for text, source, target in SENTENCES:
        tokenizer.src_lang = source
        batch = tokenizer(text, return_tensors="pt")
        row = {"text": text, "source": source, "target": target, "input_ids": batch["input_ids"][0].tolist()}
        row["target_id"] = tokenizer.convert_tokens_to_ids(target)
        for name, beams in (("greedy", 1), ("beam4", 4)):
            ids = model.generate(**batch, forced_bos_token_id=row["target_id"], num_beams=beams, do_sample=False)[0]
            row[name] = {"ids": ids.tolist(), "text": tokenizer.decode(ids, skip_special_tokens=True)}
        rows.append(row)
    (out / "expected.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def tensors() -> dict[str, torch.Tensor]:
    """One of every kind; several share a storage."""
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    return {
        "base": base,
        "transposed": base.t(),
        "strided": base[2:5, 1::3],
        "flipped_axes": torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(torch.full((2, 3), 0.25)),
        "bfloat16": base[:2].bfloat16(),
        "float16": base[:2].half(),
        "float64": base[:2].double(),
        "float8": base[:2].to(torch.float8_e4m3fn),
        "int64": torch.arange(-3, 4),
        "int32": torch.arange(5, dtype=torch.int32),
        "uint8": torch.arange(5, dtype=torch.uint8),
        "uint16": torch.tensor([1, 65535], dtype=torch.uint16),
        "bool": torch.tensor([True, False, True]),
    }


class Callback:
    """Stands for a class that only the author of a checkpoint has."""

    def __init__(self):
        self.secret = [1, 2]


def make_torch(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    found = tensors()
    np.savez(out / "expected.npz", **{name: tensor.detach().double().numpy() for name, tensor in found.items()})
    layer = torch.nn.Linear(3, 2)
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "state_dict": collections.OrderedDict(found),
        "hyper_parameters": argparse.Namespace(learning_rate=1e-3, sizes=[3072, 1024], pool="avg", dtype=torch.float32),
        "callbacks": {"early": Callback(), "languages": {"sw"}, "raw": b"\x00\xff", "shape": torch.Size([2, 3])},
        "optimizer_states": [optimizer.state_dict()],
        "counts": collections.defaultdict(list, {"a": [1]}),
    }
    torch.save(checkpoint, out / "lightning.ckpt")
    torch.save(layer.state_dict(), out / "module.bin")
    torch.save(layer.state_dict(), out / "legacy.bin", _use_new_zipfile_serialization=False)


def make(out: Path) -> None:
    """`OUT/m2m100`, and beside OUT the folder `torch`."""
    make_m2m100(out / "m2m100")
    make_torch(out.parent / "torch")
