"""What a reward costs: its host part and its device part per 1,000 responses of 400 tokens, and its share of a step.

    python benchmarks/reward_cost.py --json reward.json

Texts are the quickstart's own responses, strung together to 400 tokens of its vocabulary; the encoder is random, of
the quickstart's size or of `--preset`. The share is that of the quickstart's fused step (32 prompts, 8 samples, 24
tokens): its reward as a compiled program of its own, with and without the repetition term, against the whole step,
whose reward has it.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What a reward costs, on the host and on the device.")
    parser.add_argument("--responses", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is reported")
    parser.add_argument("--preset", default="quickstart", help="size of the random encoder")
    parser.add_argument("--tiny", action="store_true", help="a check that it runs: the smallest models")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds, for a CPU that is shared with others")
    parser.add_argument("--json", help="file for the results")
    return parser.parse_args(arguments)


def seconds(run: Callable[[], Any], flags: argparse.Namespace) -> float:
    """Median time of a call, after one that compiles."""
    import jax

    clock, times = time.process_time if flags.cpu_time else time.perf_counter, []
    for number in range(flags.rounds + 1):
        start = clock()
        jax.block_until_ready(run())
        if number:
            times.append(clock() - start)
    return statistics.median(times)


def experiment_of(flags: argparse.Namespace, folder: str):
    """The quickstart's main stage with random models."""
    from pbrl_jax import with_values
    from pbrl_jax.core.paths import work_dir
    from pbrl_jax.quickstart.settings import quickstart_config, tiny_quickstart_config
    from pbrl_jax.run.assemble import build_experiment

    config = tiny_quickstart_config() if flags.tiny else quickstart_config()
    config = with_values(config, pivot={"source": "dataset"}, data={"limit": 24 if flags.tiny else 200})
    return build_experiment(config, work_dir(folder))


def long_responses(experiment, flags: argparse.Namespace):
    """(prompts, texts, token rows) of responses in turns in every language but English."""
    from pbrl_jax.data.sources import quickstart

    config, tokenizer = experiment.config, experiment.policy.tokenizer
    codes = [code for code in config.data.languages if code != "en"]
    pool = quickstart.problems("test", 64, 0, config.data.path)
    prompts, texts, ids = [], [], []
    for row in range(flags.responses):
        code = codes[row % len(codes)]
        words, place = "", row
        while len(tokens := tokenizer.encode(words)) < flags.tokens:
            words, place = f"{words} {quickstart.response(pool[place % len(pool)], code)}".strip(), place + 1
        prompts.append(quickstart.prompt(pool[row % len(pool)], code))
        ids.append(tokens[: flags.tokens])
        texts.append(tokenizer.decode(ids[-1]))
    return prompts, texts, ids


def host_and_device(experiment, flags: argparse.Namespace) -> dict[str, float]:
    """Seconds per 1,000 responses of each part of the host path."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from pbrl_jax.models.encoder import init_encoder
    from pbrl_jax.models.specs import ENCODERS
    from pbrl_jax.rewards.answer import score_answers
    from pbrl_jax.rewards.inputs import PivotVectors, RewardInputs
    from pbrl_jax.rewards.language import identified_gate
    from pbrl_jax.rewards.shaping import repetition_penalty
    from pbrl_jax.text.answers import split_response
    from pbrl_jax.weights.encoders import Encoder

    prompts, texts, ids = long_responses(experiment, flags)
    tokenizer, length = experiment.policy.tokenizer, flags.tokens + 8
    spec = ENCODERS["tiny" if flags.tiny else flags.preset]
    spec = dataclasses.replace(spec, vocab_size=tokenizer.vocab_size, max_positions=length)
    encoder = Encoder(spec, init_encoder(jax.random.key(0), spec), tokenizer, "random", length, "")
    empty = PivotVectors(*(np.zeros((len(texts), 1), np.float32),) * 3, np.ones(len(texts), bool))
    tokens, lengths = np.array(ids), np.full(len(ids), flags.tokens)
    inputs = RewardInputs(prompts, texts, tokens, lengths, empty, 0)
    languages = experiment.config.data.languages
    parts = {
        "host: decode": lambda: [tokenizer.decode(row) for row in ids],
        "host: split": lambda: [split_response(t, p.language) for t, p in zip(texts, prompts, strict=True)],
        "host: identify": lambda: _unremembered(lambda: identified_gate(inputs, languages, 0.8)),
        "host: tokenise": lambda: encoder.tokenize(texts),
        "host: answers": lambda: score_answers(inputs).value_B,
        "host: repetition": lambda: repetition_penalty(tokens, lengths, 3, -1.0),
    }
    found = {name: seconds(run, flags) for name, run in parts.items()}
    ready, mask = (jnp.asarray(array) for array in encoder.tokenize(texts)[:2])
    found["device: encode"] = seconds(lambda: encoder.embed_ids(ready, mask), flags)
    return {name: value * 1000 / flags.responses for name, value in found.items()}


def _unremembered(run: Callable[[], Any]) -> Any:
    """Without what earlier rounds identified: a step's texts are new."""
    from pbrl_jax.text import answers, langid, words

    for cached in (langid._scores, words.word_lines, words.judged_lines, answers._find):
        cached.cache_clear()
    return run()


def share_of_a_step(experiment, flags: argparse.Namespace) -> dict[str, float]:
    """Seconds of the quickstart's whole fused step, of its reward alone, and of its embedding reward alone."""
    import jax

    from pbrl_jax import with_values
    from pbrl_jax.data.batches import next_batch, start_cursor
    from pbrl_jax.rewards.combine import make_token_reward
    from pbrl_jax.rewards.tokens import TokenInputs
    from pbrl_jax.rollout.sampling import step_key
    from pbrl_jax.train.experiment import device_pivots, device_prompts, token_tables
    from pbrl_jax.train.fused import make_fused_step
    from pbrl_jax.train.hosted import run_sampling
    from pbrl_jax.train.restart import new_position

    config, policy, encoder = experiment.config, experiment.policy, experiment.encoder
    chosen, _ = next_batch(experiment.sampler, start_cursor())
    prompts, pivots = device_prompts(experiment, chosen), device_pivots(experiment, chosen)
    tables, state = token_tables(experiment), new_position(experiment).state
    step = make_fused_step(policy.spec, encoder.spec, config)
    arguments = (
        state,
        policy.params,
        encoder.params,
        prompts,
        pivots,
        tables,
        run_sampling(experiment),
        step_key(0, 0),
    )
    _, _, rollout, _ = step(*arguments)
    found = {"whole step": seconds(lambda: step(*arguments), flags)}
    rows = jax.tree.map(lambda x: x.repeat(config.algo.num_generations, axis=0), pivots)
    inputs = TokenInputs(rollout.tokens_BR, rollout.lengths_B, rows, tables, encoder.params)
    embedding = with_values(config, reward={"functions": ("cosine",), "reward_weights": (1.0,)}).reward
    for name, reward in {"reward": config.reward, "embedding reward": embedding}.items():
        score = jax.jit(make_token_reward(reward, encoder.spec))
        found[name] = seconds(lambda score=score: score(inputs), flags)
        found[f"share of the {name}"] = found[name] / found["whole step"]
    return found


def run(flags: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Both tables."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        experiment = experiment_of(flags, folder)
        with jax.set_mesh(experiment.mesh):
            title = f"seconds per 1000 responses of {flags.tokens} tokens"
            return {title: host_and_device(experiment, flags), "one step": share_of_a_step(experiment, flags)}


def main() -> None:
    flags = parse()
    found = run(flags)
    for title, rows in found.items():
        print(f"\n| {title} | |\n|---|---|")
        for name, value in rows.items():
            print(f"| {name} | {value:.4f} |")
    if flags.json:
        with open(flags.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
