"""Every shipped configuration goes to its first step, with random folders in the places of its models.

Lengths, batches and devices are small; what else a configuration says stays. Configurations that load the same kinds of
models for the same reward and algorithm share a run.
"""

import math

import pytest
import shipped_models
from source_tree import ROOT
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax import with_values
from pbrl_jax.core.paths import read_json_lines
from pbrl_jax.run import dpo, sft, train
from pbrl_jax.run.assemble import evaluation_prompts
from pbrl_jax.run.config_file import load_config

FILES = sorted(ROOT.glob("configs/*.py")) + sorted(ROOT.glob("configs/*/*.py"))
VERBS = {"dpo_mapo": dpo, "sft_samples": sft, "sft_translated": sft}
POLICIES = {"meta-llama/Llama-3.1-8B-Instruct": "llama", "meta-llama/Llama-3.2-1B-Instruct": "llama",
            "Qwen/Qwen3-32B": "qwen"}  # fmt: skip
ENCODERS = {"intfloat/multilingual-e5-large": "e5", "intfloat/multilingual-e5-base": "e5", "BAAI/bge-m3": "bge",
            "sentence-transformers/LaBSE": "labse"}  # fmt: skip
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


def small(config, world):
    """The configuration with its models' and files' places, small lengths, batches and one device."""
    policy = encoder = {"preset": "tiny"}
    if config.policy.source != "random":
        policy = {"source": str(world / POLICIES[config.policy.source])}
    if config.encoder.source != "random":
        encoder = {"source": str(world / ENCODERS[config.encoder.source])}
    reward = {"overlong_length": 8} if "overlong" in config.reward.functions else {}
    for name, folder in (("comet", "comet_regression"), ("translator", "m2m100")):
        reward |= {name: str(HF / folder)} if getattr(config.reward, name) else {}
    one_group = {"prompts_per_step": 4, "max_steps": 1, "microbatch_prompts": 0, "logprob_chunk": 64}
    files = {"path": str(world / "data" / config.data.path)} if config.data.path.endswith(".jsonl") else {}
    pivot = {"file": str(world / "data" / config.pivot.file)} if config.pivot.source == "file" else {}
    steps = {"steps": 1, "batch_size": 4, "warmup_steps": 0, "microbatch_size": 0}
    pivot |= {"max_completion_length": 8}
    return with_values(
        config, policy=policy, encoder=encoder, reward=reward, train=one_group, pivot=pivot,
        data=files | {"limit": 4, "english_share": 0.25}, algo={"num_generations": 2, "minibatch_prompts": 0},
        rollout={"max_completion_length": 8}, mesh={"data": 1, "fsdp": 1, "tensor": 1}, eval={"limit": 1},
        log={"compilation_cache": ""}, sft=steps | {"prompts": 4, "min_reward": -9.0}, dpo=steps | {"prompts": 4},
    )  # fmt: skip


def read_only(config, _policy, trained):
    """In the place of an evaluation: its problems are read, and nothing is answered."""
    assert evaluation_prompts(config, trained)


def kinds(name, config):
    """What a run shows: its verb, models, reward, algorithm and references."""
    policy, encoder = POLICIES.get(config.policy.source), ENCODERS.get(config.encoder.source)
    return (VERBS.get(name), policy, encoder, config.reward.functions, config.reward.comet, config.algo.name,
            config.pivot.source, config.data.source)  # fmt: skip


@pytest.fixture(scope="module")
def runs():
    return {}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_goes_to_its_first_step(file, world, runs, tmp_path, monkeypatch):
    config = load_config(str(file))
    monkeypatch.setenv("PBRL_DATA", str(world / "data"))
    key = kinds(file.stem, config)
    verb = VERBS.get(file.stem, train)
    if key not in runs:
        monkeypatch.setattr(train, "make_evaluate", read_only)
        verb.main(small(config, world), str(tmp_path))
        runs[key] = read_json_lines(tmp_path / "metrics.jsonl")
    row = runs[key][0]
    assert row["step"] == 1 and math.isfinite(row["loss"])
    assert verb is not train or row["reward"] is None or math.isfinite(row["reward"])
