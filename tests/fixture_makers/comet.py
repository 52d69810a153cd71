"""Tiny COMET checkpoints as Lightning writes them, and their scores by a plain torch twin of unbabel-comet.

The twin follows the published code step by step (one sentence at a time, spans found by a loop), so that it shares
nothing with the vectorised forward pass that it is compared with.
"""

import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from fixture_makers.encoders import shaken, xlmr_tokenizer
from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaXLConfig, XLMRobertaXLModel

#: The last source alone is longer than a segment may be, and joint sequences are cut.
SRC = [
    "Jibu ni 12, kwa sababu 3 mara 4 ni 12.",
    "答案是 12。",
    "Ana tufaha 5, ananunua 7 zaidi. Jibu ni 12, kwa sababu 3 mara 4 ni 12. Die Antwort ist 12, weil 3 mal 4 12 ist.",
]
MT = ["The answer is 12.", "She has 5 apples", "She has 5 apples, buys 7 more and gives 3 of them to her friend."]
REF = ["The answer is 12, because 3 times 4 is 12.", "The answer is 12", "She has 5 apples and buys 7 more."]

WIDTH, POSITIONS = 16, 66
SIZES = {
    "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": POSITIONS, "layer_norm_eps": 1e-5,
}  # fmt: skip

#: Folder -> class_identifier, settings. The kinds differ in what they mix and how, so that each rule is seen at work.
CASES = {
    "comet_regression": (
        "regression_metric", {"layer_transformation": "sparsemax", "layer_norm": False, "pool": "avg", "layer": "mix"},
    ),
    "comet_referenceless": (
        "referenceless_regression_metric",
        {"layer_transformation": "softmax", "layer_norm": True, "pool": "avg", "layer": "mix"},
    ),
    "comet_unified": (
        "unified_metric",
        {
            "layer_transformation": "sparsemax_patch", "layer_norm": False, "sent_layer": "mix",
            "input_segments": ["mt", "src", "ref"], "word_level_training": False,
        },
    ),
    "comet_xcomet": (
        "xcomet_metric",
        {
            "layer_transformation": "sparsemax", "layer_norm": False, "sent_layer": "mix", "word_layer": 2,
            "error_labels": ["minor", "major", "critical"],
        },
    ),
}  # fmt: skip
#: What the kind really uses.
SOFTMAX = ("referenceless_regression_metric", "unified_metric", "xcomet_metric")
INPUTS = {"regression_metric": 6, "referenceless_regression_metric": 4}


class Comet(torch.nn.Module):
    """The parameters under the names that unbabel-comet gives them."""

    def __init__(self, kind: str, vocab: int):
        super().__init__()
        large = kind == "xcomet_metric"
        config_class, model_class = (
            (XLMRobertaXLConfig, XLMRobertaXLModel) if large else (XLMRobertaConfig, XLMRobertaModel)
        )
        self.config = config_class(vocab_size=vocab, type_vocab_size=1, **SIZES)
        self.encoder = torch.nn.ModuleDict({"model": model_class(self.config, add_pooling_layer=False)})
        mix = torch.nn.Module()
        mix.scalar_parameters = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(1)) for _ in range(4)])
        mix.gamma = torch.nn.Parameter(torch.ones(1))
        mix.register_buffer("dropout_mask", torch.zeros(4))
        mix.register_buffer("dropout_fill", torch.full((4,), -1e20))
        self.layerwise_attention = mix
        linear, tanh, drop = torch.nn.Linear, torch.nn.Tanh, torch.nn.Dropout
        width = WIDTH * INPUTS.get(kind, 1)
        ff = torch.nn.Sequential(linear(width, 10), tanh(), drop(0.1), linear(10, 6), tanh(), drop(0.1), linear(6, 1))
        self.estimator = torch.nn.ModuleDict({"ff": ff})
        if large:
            self.hidden2tag = linear(WIDTH, 4)


def sparsemax(z: torch.Tensor) -> torch.Tensor:
    """The projection on the simplex by bisection of its threshold."""
    low, high = z.max() - 1, z.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (z - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (z - low).clamp(min=0)


def mixed(model: Comet, ids: list[int], kind: str, layer_norm: bool) -> tuple[list, torch.Tensor]:
    """(hidden states, mixture) of one sentence without padding."""
    states = model.encoder["model"](torch.tensor([ids]), output_hidden_states=True).hidden_states
    weights = torch.cat(list(model.layerwise_attention.scalar_parameters))
    shares = torch.softmax(weights, 0) if kind in SOFTMAX else sparsemax(weights)
    pieces = [(h - h.mean()) / torch.sqrt(h.var(unbiased=False) + 1e-12) for h in states] if layer_norm else states
    total = sum(share * piece for share, piece in zip(shares, pieces, strict=True))
    return list(states), model.layerwise_attention.gamma * total


def mqm(tags: list[int]) -> float:
    """The score of the spans of one translation, found tag by tag."""
    points, severity = 0, None
    for tag in tags:
        if tag and severity is None:
            severity = tag
        elif not tag and severity is not None:
            points += {1: 1, 2: 5, 3: 10}[severity]
            severity = None
    return (25 - min(points, 25)) / 25


def joined(parts: list[list[int]]) -> list[int]:
    """<s> first </s></s> second </s>, and so on, at most as long as the positions allow."""
    text = parts[0][1:-1]
    for part in parts[1:]:
        text = [*text, 2, 2, *part[1:-1]]
    return [0, *text, 2][: POSITIONS - 2]


def score(model: Comet, kind: str, settings: dict, src: list[int], mt: list[int], ref: list[int] | None):
    """(score, MQM tags or None) of one translation from the ids of its segments."""

    def ff(features):
        return model.estimator["ff"](features)[0, 0]

    if kind in INPUTS:
        s, m, r = (
            None if ids is None else mixed(model, ids, kind, settings["layer_norm"])[1].mean(1)
            for ids in (src, mt, ref)
        )
        if kind == "regression_metric":
            return ff(torch.cat([m, r, m * r, (m - r).abs(), m * s, (m - s).abs()], 1)), None
        return ff(torch.cat([m, s, m * s, (m - s).abs()], 1)), None
    inputs = [[mt, src]] if ref is None else [[mt, src], [mt, ref], [mt, src, ref]]
    found = [mixed(model, joined(parts), kind, settings["layer_norm"]) for parts in inputs]
    scores = [ff(mixture[:, 0]) for _, mixture in found]
    if kind == "unified_metric":
        return sum(scores) / len(scores), None
    weights = [1.0] if ref is None else [0.1667, 0.3333, 0.5]
    probabilities = sum(
        weight * torch.softmax(model.hidden2tag(states[settings["word_layer"]][0, : len(mt)]), -1)
        for weight, (states, _) in zip(weights, found, strict=True)
    )
    tags = probabilities.argmax(-1).tolist()
    scores = [min(one.item(), 1.0) for one in scores]
    if ref is None:
        return torch.tensor(0.78 * scores[0] + 0.22 * mqm(tags)), tags
    return torch.tensor(0.12 * scores[0] + 0.33 * scores[1] + 0.33 * scores[2] + 0.22 * mqm(tags)), tags


def make_case(folder: Path, kind: str, settings: dict, seed: int):
    """Write one checkpoint, its settings, tokenizer and scores."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "checkpoints").mkdir(parents=True)
    tokenizer = xlmr_tokenizer()
    tokenizer.save_pretrained(folder)
    model = shaken(Comet(kind, len(tokenizer)), seed)

    def encoded(texts):
        return [tokenizer(text, truncation=True, max_length=POSITIONS - 4)["input_ids"] for text in texts]

    src, mt, ref = encoded(SRC), encoded(MT), encoded(REF)
    assert max(map(len, src)) == POSITIONS - 4 and len(joined([mt[2], src[2]])) == POSITIONS - 2
    with torch.no_grad():
        model.estimator["ff"][0].weight.mul_(3)
        model.estimator["ff"][6].bias.fill_(0.8)
        if kind == "xcomet_metric":
            # Tags that change along a sentence: what is common to all states is taken out.
            states = [mixed(model, ids, kind, False)[0][settings["word_layer"]][0] for ids in mt]
            model.hidden2tag.bias.copy_(-model.hidden2tag.weight @ torch.cat(states).mean(0))
    (folder / "config.json").write_text(model.config.to_json_string())
    hparams = {"class_identifier": kind, "encoder_model": "XLM-RoBERTa", "hidden_sizes": [10, 6], "activations": "Tanh"}
    hparams |= {"final_activation": None, "dropout": 0.1, "pretrained_model": "xlm-roberta-large", **settings}
    lines = [f"{name}: {'null' if value is None else value}" for name, value in hparams.items()]
    (folder / "hparams.yaml").write_text("\n".join(lines).replace("'", "") + "\n")
    checkpoint = {
        "epoch": 1, "global_step": 10, "pytorch-lightning_version": "2.0.0", "callbacks": {}, "lr_schedulers": [],
        "state_dict": model.state_dict(), "hparams_name": "kwargs", "hyper_parameters": Namespace(**hparams),
    }  # fmt: skip
    torch.save(checkpoint, folder / "checkpoints" / "model.ckpt")
    with torch.no_grad():
        with_ref = [score(model, kind, settings, *row) for row in zip(src, mt, ref, strict=True)]
        without = (
            []
            if kind == "regression_metric"
            else [score(model, kind, settings, s, m, None) for s, m in zip(src, mt, strict=True)]
        )
    np.savez_compressed(
        folder / "expected.npz",
        src=np.array(SRC), mt=np.array(MT), ref=np.array(REF),
        scores=np.array([float(one) for one, _ in with_ref]),
        scores_without=np.array([float(one) for one, _ in without]),
        tags=np.array([" ".join(map(str, tags or [])) for _, tags in with_ref]),
    )  # fmt: skip


def make(root: Path):
    """Write every folder below `root`."""
    for seed, (name, (kind, settings)) in enumerate(CASES.items(), 20):
        make_case(root / name, kind, settings, seed)
