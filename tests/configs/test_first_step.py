"""Every shipped configuration takes its first step, with random folders in the places of its models.

All that a run needs is loaded and made: data, policy, encoder, references and their vectors, evaluation problems and
reward; then a step is taken: rollout, reward, update. Lengths, batches and devices are small, and numbers that choose
no path through a program are the same for all; what else a configuration says stays. Where a configuration is for `pbrl
sft` or `pbrl dpo`, that verb takes its first step. Programs of configurations that differ in nothing that a program
reads are compiled once.
"""

import importlib
import math
import re

import jax
import pytest
import shipped_models
from shared_programs import programs_made_once
from source_tree import ROOT
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax import with_values
from pbrl_jax.core.paths import read_json_lines, work_dir
from pbrl_jax.run import assemble, train
from pbrl_jax.run.assemble import build_experiment, evaluation_prompts
from pbrl_jax.run.config_file import load_config
from pbrl_jax.train import hosted
from pbrl_jax.train.loop import make_run
from pbrl_jax.train.metrics import read_record
from pbrl_jax.train.restart import restore
from pbrl_jax.train.start import kept_start

FILES = [file for file in sorted(ROOT.glob("configs/*.py")) if not file.stem.startswith("reward_")]
FILES += sorted(ROOT.glob("configs/*/*.py"))
"""All but those that tests/configs/test_reward_configs.py takes two steps of."""
WHOLE = "llama31_8b_pbrlsvr"
"""The configuration whose step is that of the whole command, with its log and its checkpoint."""
POLICIES = {"meta-llama/Llama-3.1-8B-Instruct": "llama", "meta-llama/Llama-3.2-1B-Instruct": "llama",
            "HuggingFaceTB/SmolLM2-135M-Instruct": "llama", "Qwen/Qwen3-32B": "qwen"}  # fmt: skip
OTHER_POLICY = {"qwen3_32b_8xh100": "llama"}
"""Its step with adapters is that of llama31_8b_h200; the folder of Qwen3 is loaded by the other two that name it."""
ENCODERS = {"intfloat/multilingual-e5-large": "e5", "intfloat/multilingual-e5-base": "e5", "BAAI/bge-m3": "bge",
            "sentence-transformers/LaBSE": "labse", "sentence-transformers/all-MiniLM-L6-v2": "labse"}  # fmt: skip
HF = ROOT / "tests" / "fixtures" / "hf"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The folders of all models by kind, and PBRL_DATA."""
    root = tmp_path_factory.mktemp("world")
    made = shipped_models
    made.write_policy(root / "llama", made.LLAMA, made.LLAMA_TOKENS, made.LLAMA_TEMPLATE, "PreTrainedTokenizerFast")
    made.write_policy(root / "qwen", made.QWEN3, made.QWEN_TOKENS, made.QWEN_TEMPLATE, "Qwen2Tokenizer")
    for name in made.ENCODERS:
        made.write_encoder(root / name, name)
    made.write_data(root / "data")
    return root


def small(config, world, length=8, other=""):
    """The configuration with its models' and files' places, small lengths, batches and one device."""
    stage = {"steps": 1, "batch_size": 2, "microbatch_size": 0, "warmup_steps": 0, "prompts": 4}
    sft = stage | {"min_reward": -9.0} | ({"translator": str(HF / "m2m100")} if config.sft.translator else {})
    policy = encoder = {"preset": "tiny"}
    if config.policy.source != "random":
        policy = {"source": str(world / (other or POLICIES[config.policy.source]))}
    if config.encoder.source != "random":
        encoder = {"source": str(world / ENCODERS[config.encoder.source])}
    reward = {"overlong_length": 8} if "overlong" in config.reward.functions else {}
    for name, folder in (("comet", "comet_regression"), ("translator", "m2m100")):
        reward |= {name: str(HF / folder)} if getattr(config.reward, name) else {}
    steps = {"prompts_per_step": 4, "max_steps": 1, "microbatch_prompts": 0, "microbatch_samples": 0}
    files = {"path": str(world / "data" / config.data.path)} if config.data.path.endswith(".jsonl") else {}
    sampled = {"max_completion_length": length, "slots": min(config.rollout.slots, 4), "temperature": 0.9}
    pivot = {"file": str(world / "data" / config.pivot.file)} if config.pivot.source == "file" else {}
    return with_values(
        config, policy=policy, encoder=encoder, reward=reward, train=steps | {"logprob_chunk": 64}, eval={"limit": 1},
        data=files | {"limit": 4, "english_share": 0.25}, optim={"learning_rate": 1e-5, "warmup_steps": 5},
        pivot=pivot | {"max_completion_length": 4, "keep_wrong": True},
        sft=sft, dpo=stage | {"min_margin": 0.0},
        rollout=sampled, mesh={"data": 1, "fsdp": 1, "tensor": 1}, log={"compilation_cache": ""},
        algo={"num_generations": 2, "minibatch_prompts": 0, "beta": 0.01 if config.algo.beta else 0.0},
    )  # fmt: skip


def expert(_decoder, _params, questions, *_, **__):
    """In the place of a random policy, which has no answers."""
    return ["It is 20. The answer is 20."] * len(questions)


@pytest.fixture(scope="module", autouse=True)
def programs():
    with programs_made_once({}) as made:
        yield made


def verb_of(file) -> str:
    """The verb that a configuration is for: that of its own words for the paper's comparisons, else train."""
    named = re.findall(r"pbrl (train|sft|dpo) configs/", file.read_text("utf-8"))
    return named[0] if file.parent.name == "paper" else "train"


def first_step(config, folder) -> dict:
    """The metrics of a run's first step."""
    experiment = build_experiment(config, work_dir(folder))
    assert len(experiment.sampler.target) >= 4
    with jax.set_mesh(experiment.mesh):
        position = restore(experiment)
        run = make_run(experiment, kept_start(experiment))
        position, record = run.take(run, position)
    assert position.step == 1
    return read_record(record, experiment.policy.tokenizer)[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_takes_its_first_step(file, world, tmp_path, monkeypatch):
    config = load_config(str(file))
    monkeypatch.setenv("PBRL_DATA", str(world / "data"))
    monkeypatch.setattr(assemble, "answer_texts", expert)
    verb = verb_of(file)
    tiny = small(config, world, 8 if verb == "train" else 64, OTHER_POLICY.get(file.stem, ""))
    if verb == "dpo":  # a random policy writes in no language: with the gate all its responses are worth the same
        tiny = with_values(tiny, reward={"language_gate": "off"})
    if verb == "sft":  # nor has it responses that fit when they are written as text
        monkeypatch.setattr(hosted, "completions", lambda rows, _: expert(None, None, rows.lengths_B))
    if config.sft.translator:
        tiny = with_values(tiny, data={"languages": ("en", "de", "sw", "zh")})  # those of the small translator
    if config.eval.source:
        assert evaluation_prompts(tiny)
    if file.stem == WHOLE:
        monkeypatch.setattr(train, "make_evaluate", lambda *_: None)
        train.main(tiny, str(tmp_path))
        row = read_json_lines(tmp_path / "metrics.jsonl")[0]
    elif verb in ("sft", "dpo"):
        importlib.import_module(f"pbrl_jax.run.{verb}").main(tiny, str(tmp_path))
        row = read_json_lines(tmp_path / "metrics.jsonl")[0]
    else:
        row = first_step(tiny, tmp_path)
    assert math.isfinite(row["loss"]) and (verb in ("sft", "dpo") or math.isfinite(row["reward"]))
