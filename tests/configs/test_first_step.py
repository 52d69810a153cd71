"""Every shipped configuration up to its first step, with random folders in the places of its models.

All that a run needs is loaded and made: data, policy, encoder, references and their vectors, evaluation problems,
reward, and the functions of a step. Lengths, batches and devices are small; what else a configuration says stays.
Configurations with the same kinds of models, reward and algorithm share it; the paper's run takes its first step.
"""

import math

import pytest
import shipped_models
from source_tree import ROOT
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax import with_values
from pbrl_jax.core.paths import read_json_lines, work_dir
from pbrl_jax.run import assemble, train
from pbrl_jax.run.assemble import build_experiment, evaluation_prompts
from pbrl_jax.run.config_file import load_config
from pbrl_jax.train.hosted import hosted_functions

FILES = sorted(ROOT.glob("configs/*.py")) + sorted(ROOT.glob("configs/*/*.py"))
TRAINED = "llama31_8b_pbrlsvr"
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
    steps = {"prompts_per_step": 4, "max_steps": 1, "microbatch_prompts": 0, "microbatch_samples": 0}
    files = {"path": str(world / "data" / config.data.path)} if config.data.path.endswith(".jsonl") else {}
    pivot = {"file": str(world / "data" / config.pivot.file)} if config.pivot.source == "file" else {}
    return with_values(
        config, policy=policy, encoder=encoder, reward=reward, train=steps, eval={"limit": 1},
        data=files | {"limit": 4, "english_share": 0.25},
        pivot=pivot | {"max_completion_length": 4, "keep_wrong": True}, rollout={"max_completion_length": 8},
        algo={"num_generations": 2, "minibatch_prompts": 0}, mesh={"data": 1, "fsdp": 1, "tensor": 1},
        log={"compilation_cache": ""},
    )  # fmt: skip


def expert(_decoder, _params, questions, *_, **__):
    """In the place of a random policy, which has no answers."""
    return ["It is 20. The answer is 20."] * len(questions)


def kinds(config):
    """What tells the starts of two configurations apart."""
    models = POLICIES.get(config.policy.source), ENCODERS.get(config.encoder.source), config.reward.comet
    return models, config.reward.functions, config.algo.name, config.pivot.source, config.data.source


@pytest.fixture(scope="module")
def started():
    return set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_reaches_its_first_step(file, world, started, tmp_path, monkeypatch):
    config = load_config(str(file))
    if kinds(config) in started:
        return
    monkeypatch.setenv("PBRL_DATA", str(world / "data"))
    monkeypatch.setattr(assemble, "answer_texts", expert)
    tiny = small(config, world)
    if file.stem == TRAINED:
        monkeypatch.setattr(train, "make_evaluate", lambda *_: None)
        train.main(tiny, str(tmp_path))
        row = read_json_lines(tmp_path / "metrics.jsonl")[0]
        assert row["step"] == 1 and math.isfinite(row["loss"]) and math.isfinite(row["reward"])
    else:
        experiment = build_experiment(tiny, work_dir(tmp_path))
        assert len(experiment.sampler.target) >= 4 and hosted_functions(experiment).reward is not None
    if config.eval.source:
        assert evaluation_prompts(tiny)
    started.add(kinds(config))
