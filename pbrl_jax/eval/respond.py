"""A policy's responses to problems, and its log-probabilities of choices, in batches of few compiled shapes.

The batches depend only on the problems and the batch size. A batch that was written before is not run again, so a
stopped evaluation goes on where it was and ends with the same responses.
"""

import functools
import zlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pbrl_jax.core.batching import fill
from pbrl_jax.core.errors import DataError
from pbrl_jax.core.records import PromptBatch
from pbrl_jax.data.batches import pad_prompts
from pbrl_jax.eval.benchmarks.common import Problem
from pbrl_jax.mesh.sharding import batch_sharding
from pbrl_jax.models.logprobs import response_logprobs, unpacked_streams
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.rollout.decode import completions
from pbrl_jax.rollout.generate import compiled_sampler
from pbrl_jax.rollout.sampling import sampling_params, step_key
from pbrl_jax.text.prompts import STYLES as PROMPT_STYLES
from pbrl_jax.text.prompts import format_prompts, resolve_style, with_one_bos
from pbrl_jax.text.tokenizers import Tokenizer
from pbrl_jax.weights.encoders import LENGTH_BUCKETS, length_bucket

STYLES = {"benchmark": "the benchmark's own text, as published evaluations put it", **PROMPT_STYLES}
LOGPROB_CHUNK = 256
"""Positions, over all rows, whose logits exist at a time."""
Write = Callable[[list[dict[str, Any]]], None]
"""Takes the rows of a finished batch."""


class Settings(NamedTuple):
    """How a policy answers. `style` is one of STYLES: the benchmark's own prompt, or one the policy was trained with;
    `thinking` is the switch of chat templates that have one; `mesh` spreads the rows of a batch over devices."""

    style: str = "benchmark"
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_completion_length: int = 512
    batch_size: int = 32
    mesh: Any = None
    thinking: bool | None = None


class Answering(NamedTuple):
    """A policy's parts and the settings."""

    spec: DecoderSpec
    params: Any
    tokenizer: Tokenizer
    settings: Settings


def encode_prompts(
    problems: Sequence[Problem], tokenizer: Tokenizer, style: str, thinking: bool | None = None
) -> list[list[int]]:
    """Ids of each problem's prompt, with one beginning-of-sequence token where the tokenizer has one.

    `benchmark` is the benchmark's text. The other styles put the bare question as `pbrl_jax.text.prompts` does, in the
    answer's language; a problem that is more than its question (options, a request for a box) keeps the benchmark's
    text, as the user's turn where the style is a chat.
    """
    plain = style == "benchmark" or any(problem.kind != "number" for problem in problems)
    chat = style != "benchmark" and resolve_style(style, tokenizer).startswith("chat")
    if plain and not chat:
        encoded = tokenizer.encode_batch([problem.prompt for problem in problems])
        return [with_one_bos(ids, tokenizer.bos_id) for ids in encoded]
    if plain:
        encoded = [tokenizer.encode_chat([{"role": "user", "content": p.prompt}], thinking) for p in problems]
        return [with_one_bos(ids, tokenizer.bos_id) for ids in encoded]
    languages = [problem.answer_language for problem in problems]
    return format_prompts([problem.question for problem in problems], languages, tokenizer, style, thinking)


def plan(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Row numbers in batches, shortest first; no batch holds rows of two length buckets.

    So the rows of a batch need the same padded length, and a long prompt pads no short ones.
    """
    buckets: dict[int, list[int]] = {}
    for row in sorted(range(len(lengths)), key=lambda row: (lengths[row], row)):
        buckets.setdefault(length_bucket(lengths[row], rounded(max(lengths))), []).append(row)
    return [rows[start : start + size] for rows in buckets.values() for start in range(0, len(rows), size)]


def rounded(longest: int) -> int:
    """The padded length of the longest prompt."""
    return next((size for size in LENGTH_BUCKETS if longest <= size), -(-longest // 1024) * 1024)


def problem_id(key: str) -> int:
    """A stable 31-bit number of a problem, from which its sampling keys derive."""
    return zlib.crc32(key.encode()) & 0x7FFFFFFF


def placed(tree: Any, mesh: Any) -> Any:
    """Arrays on the device, rows spread over the mesh where there is one."""
    return jax.tree.map(jnp.asarray, tree) if mesh is None else jax.device_put(tree, batch_sharding(mesh))


def batch_rows(settings: Settings) -> int:
    """Rows of a batch: the batch size, up to the next multiple of the devices that hold rows."""
    shards = 1 if settings.mesh is None else settings.mesh.shape["data"] * settings.mesh.shape["fsdp"]
    return -(-settings.batch_size // shards) * shards


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of the stop strings."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def generate_responses(answering: Answering, problems: Sequence[Problem], done: Collection[tuple[str, int]],
                       write: Write, tick: Callable[[int], Any]) -> None:  # fmt: skip
    """Sample each problem `settings.samples` times and write the rows batch by batch.

    A row has key, language, sample, completion (cut at the first stop string), tokens (sampled, the end of sequence
    included) and truncated (the limit was reached).

    Args:
      done: (key, sample) of rows that an earlier run has written.
      write: takes the new rows of a batch.
      tick: told the number of problems that a batch has finished.
    """
    spec, params, tokenizer, settings = answering
    encoded = encode_prompts(problems, tokenizer, settings.style, settings.thinking)
    run = compiled_sampler(spec, settings.max_completion_length, settings.samples)
    sampling = sampling_params(settings.temperature, settings.top_p, 0, tokenizer.eos_ids)
    size = batch_rows(settings)
    for rows in plan([len(ids) for ids in encoded], size):
        wanted = [(row, sample) for row in rows for sample in range(settings.samples)]
        missing = {pair for pair in wanted if (problems[pair[0]].key, pair[1]) not in done}
        if missing:
            filled = fill(rows, size)
            length = length_bucket(max(len(encoded[row]) for row in rows), rounded(max(map(len, encoded))))
            numbers = [problem_id(problems[row].key) for row in filled]
            batch = pad_prompts([encoded[row] for row in filled], length, numbers, tokenizer.pad_id)
            rollout = run(params, placed(batch, settings.mesh), step_key(settings.seed, 0), sampling)
            texts, lengths = completions(rollout, tokenizer), np.asarray(rollout.lengths_B)
            truncated = np.asarray(rollout.truncated_B)
            found = []
            for index, (row, sample) in enumerate(wanted):
                problem = problems[row]
                text = cut_at_stop(texts[index], problem.stops)
                found.append((row, sample, {
                    "key": problem.key, "language": problem.language, "sample": sample, "completion": text,
                    "tokens": int(lengths[index]), "truncated": bool(truncated[index]) and text == texts[index],
                }))  # fmt: skip
            write([values for row, sample, values in found if (row, sample) in missing])
            tick(len({row for row, _ in missing}))


# Choices by log-probability.


class Continuations(NamedTuple):
    """The choices of a problem as tokens behind what all of them share.

    `prompt` is the shared beginning; of `tokens[c]` the first `skip[c]` still belong to the context: a tokenizer may
    merge its end with a choice.
    """

    prompt: list[int]
    tokens: list[list[int]]
    skip: list[int]


def continuations(problem: Problem, tokenizer: Tokenizer) -> Continuations:
    """Context and choice are encoded together and divided after the context's own tokens, as the harness does.

    Raises:
      DataError: a context without tokens.
    """
    text = problem.prompt
    head = text.rstrip()
    whole = tokenizer.encode_batch([head, *(text + choice for choice in problem.choices)])
    context, joined = with_one_bos(whole[0], tokenizer.bos_id), [with_one_bos(x, tokenizer.bos_id) for x in whole[1:]]
    size = len(context)
    shared = 0
    while shared < size and all(len(ids) > shared + 1 and ids[shared] == joined[0][shared] for ids in joined):
        shared += 1
    if not shared:
        raise DataError(f"Problem {problem.key} has no token that its choices share. Its prompt is {text[:60]!r}.")
    # A choice that merges with the whole context's end keeps its last token to be scored.
    return Continuations(
        joined[0][:shared], [ids[shared:] for ids in joined], [min(size, len(ids) - 1) - shared for ids in joined]
    )


def continuation_logprobs(params, prompts: PromptBatch, tokens_BL, lengths_B, skip_B, *, spec: DecoderSpec,
                          samples: int):  # fmt: skip
    """Summed log-probability of the scored tokens of each row, [B]; row b continues prompt b // samples.

    Args:
      tokens_BL: continuations, right-padded.
      lengths_B: tokens of each.
      skip_B: leading tokens of each that are context.
    """
    streams = unpacked_streams(tokens_BL, lengths_B, samples)
    logp_PSL, _ = response_logprobs(params, prompts, streams, 1.0, spec=spec, chunk=LOGPROB_CHUNK)
    logp_BL = logp_PSL.reshape(tokens_BL.shape)
    position_1L = jnp.arange(tokens_BL.shape[1])[None]
    scored_BL = (position_1L >= skip_B[:, None]) & (position_1L < lengths_B[:, None])
    return jnp.where(scored_BL, logp_BL, 0.0).sum(axis=1)


@functools.cache
def compiled_scorer(spec: DecoderSpec, samples: int):
    """continuation_logprobs of a number of choices, compiled."""
    return jax.jit(functools.partial(continuation_logprobs, spec=spec, samples=samples))


def score_choices(answering: Answering, problems: Sequence[Problem], done: Collection[tuple[str, int]],
                  write: Write, tick: Callable[[int], Any]) -> None:  # fmt: skip
    """The log-probability of every choice of every problem, written batch by batch; arguments as generate_responses.

    A row has key, language, sample (0), logprobs (one sum for each choice, natural logarithm) and tokens (scored
    tokens of each choice).
    """
    spec, params, tokenizer, settings = answering
    encoded = [continuations(problem, tokenizer) for problem in problems]
    samples = max(len(problem.choices) for problem in problems)
    run, size = compiled_scorer(spec, samples), batch_rows(settings)
    longest = max(len(ids) for entry in encoded for ids in entry.tokens)
    for rows in plan([len(entry.prompt) for entry in encoded], size):
        missing = {row for row in rows if (problems[row].key, 0) not in done}
        if missing:
            entries = [encoded[row] for row in fill(rows, size)]
            length = length_bucket(max(len(e.prompt) for e in entries), rounded(max(len(e.prompt) for e in encoded)))
            batch = pad_prompts([e.prompt for e in entries], length, range(size), tokenizer.pad_id)
            # Problems with fewer choices repeat their first one.
            picks = [(e, choice if choice < len(e.tokens) else 0) for e in entries for choice in range(samples)]
            width = length_bucket(max(len(e.tokens[c]) for e, c in picks), rounded(longest))
            arrays = (
                pad_prompts([e.tokens[c] for e, c in picks], width, range(len(picks))).tokens_PT,
                np.array([len(e.tokens[c]) for e, c in picks], np.int32),
                np.array([e.skip[c] for e, c in picks], np.int32),
            )
            sums = np.asarray(run(params, *placed((batch, *arrays), settings.mesh))).reshape(size, samples)
            write([
                {
                    "key": problems[row].key, "language": problems[row].language, "sample": 0,
                    "logprobs": [round(float(value), 6) for value in sums[place, : len(problems[row].choices)]],
                    "tokens": [len(t) - s for t, s in zip(encoded[row].tokens, encoded[row].skip, strict=True)],
                }
                for place, row in enumerate(rows)
                if row in missing
            ])  # fmt: skip
            tick(len(missing))
