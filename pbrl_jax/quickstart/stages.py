"""The stages of the quickstart; their results and durations are saved in the work directory."""

import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from pbrl_jax.config.tree import Config, with_values
from pbrl_jax.core.paths import WorkDir, work_dir, write_atomic
from pbrl_jax.core.records import Prompt
from pbrl_jax.core.stopping import Interrupted, ends_early
from pbrl_jax.data.load import load_prompts
from pbrl_jax.eval.evaluate import Decoder, evaluate
from pbrl_jax.logs.progress import Progress
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.quickstart.settings import ENGLISH_PROBLEMS
from pbrl_jax.run.assemble import build_experiment, run_encoder, run_policy
from pbrl_jax.run.encoder import train_encoder
from pbrl_jax.run.sft import train_supervised
from pbrl_jax.train.experiment import Experiment
from pbrl_jax.train.loop import train, trained_policy
from pbrl_jax.weights.encoders import Encoder, load_encoder, save_encoder
from pbrl_jax.weights.policies import Policy, load_policy, save_policy


class Stages(NamedTuple):
    """The work directory, the config and the number of stages of this run."""

    work: WorkDir
    config: Config
    total: int


def cached(stages: Stages, name: str, make: Callable[[], Any]) -> Any:
    """The JSON result of `make()`, read from the work directory if it is saved there."""
    file = stages.work.root / "stages" / f"{name}.json"
    if file.exists():
        return json.loads(file.read_text())["result"]
    started = time.perf_counter()
    result = make()
    write_atomic(file, json.dumps({"result": result, "seconds": time.perf_counter() - started}))
    return result


def seconds(stages: Stages) -> dict[str, float]:
    """Stage -> seconds, in order, and `total`."""
    files = sorted((stages.work.root / "stages").glob("*.json"), key=lambda file: file.stat().mtime)
    table = {file.stem: round(json.loads(file.read_text())["seconds"], 1) for file in files}
    return table | {"total": round(sum(table.values()), 1)}


def start_policy(stages: Stages) -> Policy:
    """Stage 1: supervised fine-tuning on much English text and little text in other languages."""
    config, folder = stages.config, stages.work.root / "sft"

    def make():
        work = work_dir(folder)
        policy = run_policy(config, work, [])
        trained = train_supervised(config, work, policy, make_mesh(config.mesh), (1, stages.total))
        save_policy(trained, str(folder / "policy"))

    cached(stages, "sft", make)
    return load_policy(str(folder), make_mesh(config.mesh))


def reward_encoder(stages: Stages, policy: Policy) -> Encoder:
    """Stage 2: a multilingual encoder, trained on parallel responses to problems of a separate split."""
    config, folder = stages.config, stages.work.root / "encoder"

    def make():
        encoder = run_encoder(config, policy.tokenizer)
        trained = train_encoder(config, work_dir(folder), encoder, [], make_mesh(config.mesh), (2, stages.total))
        save_encoder(trained, str(folder / "encoder"))

    cached(stages, "encoder", make)
    return load_encoder(str(folder), config.encoder.max_length)


def held_out_prompts(config: Config) -> list[Prompt]:
    """Held-out prompts: eval.limit in each language, and more in English."""
    others = [code for code in config.data.languages if code != "en"]
    count = min(ENGLISH_PROBLEMS, 4 * config.eval.limit)
    seed = config.train.seed
    english = load_prompts(config.data, seed, split="test", languages=("en",), limit=count)
    return english + load_prompts(config.data, seed, split="test", languages=others, limit=config.eval.limit)


def accuracy(stages: Stages, name: str, number: int, policy: Policy, params) -> dict[str, dict[str, float]]:
    """An evaluation stage: the table per language of greedy decoding on the held-out problems."""
    config = stages.config

    def make():
        prompts = held_out_prompts(config)
        decoder = Decoder(
            policy.spec, policy.tokenizer, config.rollout.max_prompt_length, config.rollout.max_completion_length,
            config.eval.batch_size,
        )  # fmt: skip
        with Progress(name, len(prompts), unit="problem", part=(number, stages.total)) as progress:
            table, _ = evaluate(decoder, params, prompts, tick=progress.advance, should_stop=ends_early)
        return table

    return cached(stages, name, make)


def rl_config(stages: Stages) -> Config:
    """The config of reinforcement learning, with policy and encoder of the earlier stages."""
    root = stages.work.root
    return with_values(
        stages.config,
        policy={"source": str(root / "sft")},
        encoder={"source": str(root / "encoder")},
        pivot={"store": str(root / "pivots")},
    )


def unchanged(experiment: Experiment) -> Experiment:
    """The experiment itself."""
    return experiment


def reinforce(stages: Stages, name: str, number: int, config: Config, change=unchanged) -> Any:
    """Train with `config` in `W/<name>`; returns the trained parameters.

    Args:
      change: applied to the experiment, for a control.
    """
    work = work_dir(stages.work.root / name)

    def make():
        experiment = change(build_experiment(config, work, (number, stages.total)))
        position = train(experiment, part=(number, stages.total), quiet=True)
        if position is None:
            raise Interrupted
        save_policy(trained_policy(experiment, position), str(work.root / "policy"))

    cached(stages, name, make)
    return load_policy(str(work.root), make_mesh(config.mesh)).params
