"""Another draw of the oracles that need models: other weights and inputs under the same names.

  python tests/make_oracles.py SEED OUT [FROM]
  PBRL_ORACLES=OUT python -m pytest tests/test_oracles.py tests/models tests/train/test_update_oracles.py

needs torch, transformers, TRL, verl, OpenRLHF, sentence-transformers and unbabel-comet, which the package and its tests
do not. Drawn anew are the cases hf.*, step.*, st.*, comet.* and *.value_loss.*; the other objectives of peers (trl.*,
verl.*, openrlhf.*) are copied from FROM (default: tests/fixtures/oracles).
"""

import json
import sys
import warnings
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import transformers

STORED = Path(__file__).resolve().parent / "fixtures" / "oracles"
DECODERS, ENCODERS, TRANSLATOR = ("llama", "qwen2", "qwen3", "qwen3_tied"), ("bert", "xlmr"), "hf.m2m100_nllb"
CLASSES = {
    "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
    "qwen3_tied": "Qwen3ForCausalLM", "bert": "BertModel", "xlmr": "XLMRobertaModel",
    "m2m100_nllb": "M2M100ForConditionalGeneration",
}  # fmt: skip
POOLINGS = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
FORCED = 77
Arrays = dict[str, np.ndarray]


def like(stored: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random numbers of the shape and size of a stored weight: scales of norms near 1, biases near 0."""
    noise = rng.standard_normal(stored.shape)
    if stored.ndim == 1:
        return (1 + 0.1 * noise if stored.mean() > 0.5 else 0.05 * noise).astype(stored.dtype)
    return (stored.std() * noise).astype(stored.dtype)


def masks(rows: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Right-padded masks of rows of different lengths, one of them full."""
    lengths = [width, *rng.choice(np.arange(2, width), rows - 1, replace=False)]
    return (np.arange(width)[None] < np.array(lengths)[:, None]).astype(np.int64)


def left(rows: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The same rows, padded on the left."""
    return np.stack([np.roll(row, width - keep.sum()) for row, keep, width in zip(
        rows, mask, [mask.shape[1]] * len(mask), strict=True)])  # fmt: skip


def ids_of(mask: np.ndarray, vocab: int, pad: int, rng: np.random.Generator) -> np.ndarray:
    return np.where(mask > 0, rng.integers(3, vocab, mask.shape), pad)


def model_of(case: dict, stored: Arrays, rng: np.random.Generator, out: Arrays) -> torch.nn.Module:
    """The model of a case with new weights, which `out` gets too."""
    name = case["case"]
    kind = getattr(transformers, CLASSES[name.removeprefix("hf.")])
    config = kind.config_class.from_dict(case["config"])
    config._attn_implementation = "eager"
    model = kind(config).eval()
    prefix, drawn = f"{name}/in/weight:", {}
    for key in (key for key in stored if key.startswith(prefix)):
        # Copies of one matrix (a shared embedding) stay copies.
        same = next((other for other in drawn if np.array_equal(stored[other], stored[key])), None)
        drawn[key] = drawn[same] if same else like(stored[key], rng)
    loaded = model.load_state_dict({k.removeprefix(prefix): torch.tensor(v) for k, v in drawn.items()}, strict=False)
    assert not loaded.unexpected_keys, loaded
    assert {key for key in loaded.missing_keys if not key.startswith("lm_head")} == set(), loaded
    model.tie_weights()
    out |= drawn
    return model


def causal(model, ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(positions, logits)"""
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    given = [torch.tensor(x) for x in (ids, mask, positions)]
    return positions, model(given[0], attention_mask=given[1], position_ids=given[2]).logits.numpy()


def redraw_decoder(case: dict, stored: Arrays, rng: np.random.Generator) -> tuple[Arrays, torch.nn.Module]:
    name, out = case["case"], {}
    model = model_of(case, stored, rng, out)
    mask = masks(*stored[f"{name}/in/input_ids_right"].shape, rng)
    ids = ids_of(mask, case["config"]["vocab_size"], 0, rng)
    for side, rows, kept in (("right", ids, mask), ("left", left(ids, mask), left(mask, mask))):
        positions, logits = causal(model, rows, kept)
        given = {"input_ids": rows, "attention_mask": kept, "position_ids": positions}
        out |= {f"{name}/in/{key}_{side}": value for key, value in given.items()}
        out[f"{name}/out/logits_{side}"] = logits
    rows, kept = (torch.tensor(out[f"{name}/in/{key}_left"]) for key in ("input_ids", "attention_mask"))
    greedy = model.generate(rows, attention_mask=kept, max_new_tokens=10, do_sample=False, pad_token_id=0)
    out[f"{name}/out/greedy_left_10"] = np.pad(greedy.numpy(), [(0, 0), (0, rows.shape[1] + 10 - greedy.shape[1])])
    wide = causal(model.double(), ids, mask)[1]
    noise = np.abs(out[f"{name}/out/logits_right"] - wide)[mask > 0].max()
    out[f"{name}/out/noise_floor_f32_vs_f64"] = np.float64(noise)
    return out, model.float()


def redraw_encoder(case: dict, stored: Arrays, rng: np.random.Generator) -> Arrays:
    name, out = case["case"], {}
    model = model_of(case, stored, rng, out)
    mask = masks(*stored[f"{name}/in/input_ids"].shape, rng)
    ids = ids_of(mask, case["config"]["vocab_size"], case["config"]["pad_token_id"], rng)
    given = [torch.tensor(x) for x in (ids, mask)]
    found = model(given[0], attention_mask=given[1], output_hidden_states=True)
    out |= {f"{name}/in/input_ids": ids, f"{name}/in/attention_mask": mask}
    out[f"{name}/out/last_hidden_state"] = found.last_hidden_state.numpy()
    out[f"{name}/out/hidden_states"] = np.stack([state.numpy() for state in found.hidden_states])
    out[f"{name}/out/pooler_output"] = found.pooler_output.numpy()
    wide = model.double()(given[0], attention_mask=given[1]).last_hidden_state.numpy()
    noise = np.abs(wide - out[f"{name}/out/last_hidden_state"])[mask > 0].max()
    return out | {f"{name}/out/noise_floor_f32_vs_f64": np.float64(noise)}


def redraw_translator(case: dict, stored: Arrays, rng: np.random.Generator) -> Arrays:
    name = case["case"]
    out = {key: value for key, value in stored.items() if key.startswith(name) and "/weight:" not in key}
    model = model_of(case, stored, rng, out)
    vocab, (rows, length) = case["config"]["vocab_size"], stored[f"{name}/in/decoder_input_ids"].shape
    mask = masks(*stored[f"{name}/in/input_ids"].shape, rng)
    ids = ids_of(mask, vocab, 1, rng)
    target = np.concatenate([np.full((rows, 1), 2), rng.integers(3, vocab, (rows, length - 1))], axis=1)
    given = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    found = model(**given, decoder_input_ids=torch.tensor(target))
    out |= {f"{name}/in/input_ids": ids, f"{name}/in/attention_mask": mask, f"{name}/in/decoder_input_ids": target}
    out[f"{name}/out/logits"] = found.logits.numpy()
    out[f"{name}/out/encoder_last_hidden_state"] = found.encoder_last_hidden_state.numpy()
    for key, beams in ((f"greedy_forced_bos_{FORCED}", 1), (f"beam4_forced_bos_{FORCED}", 4)):
        size = stored[f"{name}/out/{key}"].shape[1]
        tokens = model.generate(**given, forced_bos_token_id=FORCED, num_beams=beams, do_sample=False, max_length=size,
                                early_stopping=False)  # fmt: skip
        out[f"{name}/out/{key}"] = np.pad(tokens.numpy(), [(0, 0), (0, size - tokens.shape[1])], constant_values=1)
    if f"{name}/out/noise_floor_f32_vs_f64" in stored:
        wide = model.double()(**given, decoder_input_ids=torch.tensor(target)).logits.numpy()
        noise = np.abs(wide - out[f"{name}/out/logits"]).max()
        out[f"{name}/out/noise_floor_f32_vs_f64"] = np.float64(noise)
    return out


def step_inputs(stored: Arrays, model, rng: np.random.Generator, temperature: float) -> Arrays:
    """A batch of two groups of four responses; the old policy is the model, the reference stands near it."""
    name = "step.qwen3_grpo/in/"
    prompt_mask = left(*[masks(2, stored[f"{name}prompt_ids"].shape[1], rng)] * 2).repeat(4, axis=0)
    vocab = model.config.vocab_size
    prompts = ids_of(prompt_mask[::4], vocab, 0, rng).repeat(4, axis=0)
    mask = masks(*stored[f"{name}completion_ids"].shape, rng)
    found = {
        "prompt_ids": prompts, "prompt_mask": prompt_mask, "completion_ids": ids_of(mask, vocab, 0, rng),
        "completion_mask": mask,
    }  # fmt: skip
    found |= {key: value.astype(stored[f"{name}{key}"].dtype) for key, value in found.items()}
    logp = logps_of(model, *(torch.tensor(x) for x in found.values()), temperature)[0].detach().numpy()
    advantages = rng.standard_normal(len(mask)).astype(np.float32)
    return found | {
        "old_logps": logp, "ref_logps": logp + 0.15 * rng.standard_normal(logp.shape).astype(np.float32),
        "advantages": advantages,
    }  # fmt: skip


def logps_of(model, prompts, prompt_mask, completions, mask, temperature):
    """(log-probs, entropies) of the completions' tokens by the plain definition."""
    seen = torch.cat([prompt_mask, mask], 1)
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    logits = model(torch.cat([prompts, completions], 1), attention_mask=seen, position_ids=positions).logits
    logp = torch.log_softmax(logits[:, prompts.shape[1] - 1 : -1] / temperature, -1)
    return logp.gather(-1, completions[..., None])[..., 0], -(logp.exp() * logp).sum(-1)


def trainer_stub(config: dict, temperature: float) -> SimpleNamespace:
    """What TRL's loss reads of its trainer."""
    metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    accelerator = SimpleNamespace(
        num_processes=1, gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x
    )

    def per_token(model, input_ids, attention_mask, keep, **_ignored):
        cut = input_ids.shape[1] - keep
        return *logps_of(model, input_ids[:, :cut], attention_mask[:, :cut], input_ids[:, cut:],
                         attention_mask[:, cut:], temperature), None  # fmt: skip

    return SimpleNamespace(
        _metrics=metrics, accelerator=accelerator, _get_per_token_logps_and_entropies=per_token,
        args=SimpleNamespace(use_bias_correction_kl=config["use_bias_correction_kl"], delta=None,
                             steps_per_generation=1),
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        vllm_importance_sampling_correction=False, importance_sampling_level="token", _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1, beta=config["beta"], loss_type=config["loss_type"],
        epsilon_low=config["epsilon"], epsilon_high=config["epsilon_high"],
        max_completion_length=config["max_completion_length"],
    )  # fmt: skip


def redraw_steps(case: dict, weights: Arrays, inputs: Arrays, model) -> Arrays:
    """Three updates by TRL's loss and torch's AdamW."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    name, config = case["case"], case["config"]
    out = {f"{name}/in/{key}": value for key, value in inputs.items()}
    out |= {f"{name}/in/{key}": value for key, value in weights.items()}
    model.load_state_dict({k.removeprefix("weight:"): torch.tensor(v) for k, v in weights.items()})
    stub, given = trainer_stub(config, config["temperature"]), {k: torch.tensor(v) for k, v in inputs.items()}
    given |= {"old_per_token_logps": given.pop("old_logps"), "ref_per_token_logps": given.pop("ref_logps")}
    given["num_items_in_batch"] = given["completion_mask"].sum()
    adam = torch.optim.AdamW(model.parameters(), lr=config["lr"], betas=tuple(config["betas"]), eps=config["eps"],
                             weight_decay=config["weight_decay"])  # fmt: skip
    losses, norms = [], []
    for _ in range(config["steps"]):
        adam.zero_grad()
        loss = GRPOTrainer._compute_loss(stub, model, given)
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), config["max_grad_norm"])))
        adam.step()
        losses.append(loss.item())
    found = stub._metrics["train"] | {"loss": losses, "grad_norm": norms}
    for key in ("loss", "grad_norm", "kl", "entropy", "clip_ratio/region_mean"):
        out[f"{name}/out/{key}"] = np.array(found[key], np.float64)
    out[f"{name}/out/logps0"] = inputs["old_logps"]
    out |= {f"{name}/out/final:{key}": value.detach().numpy().copy() for key, value in model.state_dict().items()}
    return out


def redraw_models(cases: dict[str, dict], stored: Arrays, rng: np.random.Generator) -> Arrays:
    """hf_oracles.npz."""
    out: Arrays = {}
    with torch.no_grad():
        for kind in DECODERS:
            found, model = redraw_decoder(cases[f"hf.{kind}"], stored, rng)
            out |= found
            if kind == "qwen3":
                trained = model
        for kind in ENCODERS:
            out |= redraw_encoder(cases[f"hf.{kind}"], stored, rng)
        out |= redraw_translator(cases[TRANSLATOR], stored, rng)
    prefix = "hf.qwen3/in/"
    weights = {key.removeprefix(prefix): value for key, value in out.items() if key.startswith(f"{prefix}weight:")}
    steps = [case for name, case in cases.items() if name.startswith("step.")]
    inputs = step_inputs(stored, trained, rng, steps[0]["config"]["temperature"])
    for case in steps:
        out |= redraw_steps(case, weights, inputs, trained)
    return out


def redraw_pooling(stored: Arrays, rng: np.random.Generator) -> Arrays:
    from sentence_transformers import util
    from sentence_transformers.models import Pooling

    states = rng.standard_normal(stored["st.pooling/in/token_embeddings"].shape)
    right = masks(*states.shape[:2], rng)
    out = {"st.pooling/in/token_embeddings": states, "st.pooling/in/attention_mask_right": right,
           "st.pooling/in/attention_mask_left": left(right, right)}  # fmt: skip
    for side in ("right", "left"):
        mask = torch.tensor(out[f"st.pooling/in/attention_mask_{side}"])
        for mode in POOLINGS:
            features = {"token_embeddings": torch.tensor(states), "attention_mask": mask}
            found = Pooling(states.shape[-1], pooling_mode=mode)(features)["sentence_embedding"]
            out[f"st.pooling/out/{mode}/{side}_pad"] = found.numpy()
            if mode == "mean":
                unit = torch.nn.functional.normalize(found, p=2, dim=1)
                out[f"st.pooling/out/mean_normalized/{side}_pad"] = unit.numpy()
    a, b = (torch.tensor(rng.standard_normal(stored[f"st.cos_sim/in/{key}"].shape)) for key in "ab")
    out |= {"st.cos_sim/in/a": a.numpy(), "st.cos_sim/in/b": b.numpy()}
    out["st.cos_sim/out/cos_sim"] = util.cos_sim(a, b).numpy()
    out["st.cos_sim/out/pairwise"] = util.pairwise_cos_sim(a[: len(b)], b).numpy()
    return out


def redraw_comet(cases: dict[str, dict], stored: Arrays, rng: np.random.Generator) -> Arrays:
    from comet.models.pooling_utils import average_pooling
    from comet.models.regression.regression_metric import RegressionMetric
    from comet.modules.feedforward import FeedForward
    from comet.modules.layerwise_attention import LayerwiseAttention

    out: Arrays = {}
    for name, case in cases.items():
        if not name.startswith("comet.layer_mix"):
            continue
        config, layers = case["config"], rng.standard_normal(stored[f"{name}/in/layers"].shape)
        mask = masks(*layers.shape[1:3], rng)
        ids, weights = ids_of(mask, 60, config["pad_id"], rng), rng.normal(0, 0.5, len(layers))
        mixer = LayerwiseAttention(len(layers), layer_norm=config["layer_norm"], dropout=None,
                                   layer_transformation=config["layer_transformation"]).double().eval()  # fmt: skip
        with torch.no_grad():
            mixer.gamma.fill_(config["gamma"])
            for own, weight in zip(mixer.scalar_parameters, weights, strict=True):
                own.fill_(weight)
        mixed = mixer([torch.tensor(layer) for layer in layers], torch.tensor(mask))
        pooled = average_pooling(torch.tensor(ids), mixed, torch.tensor(mask), config["pad_id"], -1)
        given = {"layers": layers, "mask": mask, "ids": ids, "layer_weights": weights}
        out |= {f"{name}/in/{key}": value for key, value in given.items()}
        out |= {f"{name}/out/mixed": mixed.detach().numpy(), f"{name}/out/sentemb": pooled.detach().numpy()}
    name = "comet.regression_head"
    vectors = {key: rng.standard_normal(stored[f"{name}/in/{key}"].shape) for key in ("src", "mt", "ref")}
    head = FeedForward(6 * vectors["mt"].shape[1], hidden_sizes=cases[name]["config"]["hidden_sizes"]).double().eval()
    weights = {key: like(stored[f"{name}/in/ff.{key}"], rng) for key in head.state_dict()}
    head.load_state_dict({key: torch.tensor(value) for key, value in weights.items()})
    score = RegressionMetric.estimate(SimpleNamespace(estimator=head), *map(torch.tensor, vectors.values())).score
    out |= {f"{name}/in/{key}": value for key, value in vectors.items()}
    out |= {f"{name}/in/ff.{key}": value for key, value in weights.items()}
    return out | {f"{name}/out/score": score.detach().numpy()}


def redraw_values(cases: dict[str, dict], stored: Arrays, rng: np.random.Generator) -> Arrays:
    """Critics' losses of values and returns with a spread of 30, which show errors that are relative."""
    from openrlhf.models.loss import ValueLoss
    from verl.trainer.ppo.core_algos import compute_value_loss

    out = {f"shared/{key}": stored[f"shared/{key}"] + rng.normal(0, 30, stored[f"shared/{key}"].shape)
           for key in ("vpreds", "returns")}  # fmt: skip
    old, mask = (torch.tensor(stored[f"shared/{key}"]) for key in ("values", "mask"))
    for name, case in cases.items():
        if ".value_loss." not in name:
            continue
        predicted, target = torch.tensor(out["shared/vpreds"], requires_grad=True), torch.tensor(out["shared/returns"])
        if name.startswith("verl."):
            loss, share = compute_value_loss(predicted, target, old, mask, **case["config"])
            out[f"{name}/out/clipfrac"] = share.detach().double().numpy()
        else:
            loss = ValueLoss(case["config"]["clip_eps"])(predicted, old, target, mask)
            loss = loss[0] if isinstance(loss, tuple) else loss
        loss.backward()
        out |= {f"{name}/out/loss": loss.detach().numpy(), f"{name}/out/grad_vpreds": predicted.grad.numpy()}
    return out


def check_names(found: Arrays, stored: Arrays) -> None:
    """The same names, shapes and types as before."""
    described = [{key: (value.shape, value.dtype) for key, value in arrays.items()} for arrays in (found, stored)]
    wrong = sorted(key for key in described[0].keys() | described[1].keys()
                   if described[0].get(key) != described[1].get(key))  # fmt: skip
    assert not wrong, [(key, *(side.get(key) for side in described)) for key in wrong[:8]]


def main(seed: int, out: Path, source: Path) -> None:
    """Write hf_oracles.npz, rl_oracles.npz and rl_oracles.json of another draw."""
    warnings.simplefilter("ignore")
    text = (source / "rl_oracles.json").read_text()
    cases = {case["case"]: case for case in json.loads(text)["cases"]}
    models, rest = (dict(np.load(source / name)) for name in ("hf_oracles.npz", "rl_oracles.npz"))
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    found = redraw_models(cases, models, rng)
    check_names(found, models)
    parts = rest | redraw_pooling(rest, rng) | redraw_comet(cases, rest, rng) | redraw_values(cases, rest, rng)
    check_names(parts, rest)
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "hf_oracles.npz", **found)
    np.savez(out / "rl_oracles.npz", **parts)
    (out / "rl_oracles.json").write_text(text)
    drawn = sum(name.split(".")[0] in ("hf", "step", "st", "comet") or ".value_loss." in name for name in cases)
    print(f"{out}: {drawn} cases drawn anew with seed {seed}, {len(cases) - drawn} copied from {source}.")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        raise SystemExit(__doc__)
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else STORED)
