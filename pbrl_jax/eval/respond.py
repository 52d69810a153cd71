"""A policy's responses to problems, and its log-probabilities of choices.

Batches that were written before are not run again, so that a stopped evaluation continues and gives the same responses.
"""

import itertools
import zlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from pbrl_jax.core.errors import DataError
from pbrl_jax.core.stopping import check_stop, ends_early
from pbrl_jax.eval.benchmarks.common import Problem
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.rollout.engine import Continuations, Engine, Sampling
from pbrl_jax.text.prompts import STYLES as PROMPT_STYLES
from pbrl_jax.text.prompts import format_prompts, resolve_style, with_one_bos
from pbrl_jax.text.tokenizers import Tokenizer
from pbrl_jax.text.wording import OURS, Wording

STYLES = {"benchmark": "the benchmark's own text, as in published evaluations", **PROMPT_STYLES}
Write = Callable[[list[dict[str, Any]]], None]
"""Writes the rows of a finished batch."""


class Settings(NamedTuple):
    """How a policy answers. `style` is one of STYLES: the benchmark's own prompt, or a style of the policy's training;
    `thinking` is the switch of chat templates that have one; rows are spread over the devices of `mesh`."""

    style: str = "benchmark"
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    max_completion_length: int = 512
    batch_size: int = 32
    mesh: Any = None
    thinking: bool | None = None
    wording: Wording = OURS


class Answering(NamedTuple):
    """A policy and the settings of its answers."""

    spec: DecoderSpec
    params: Any
    tokenizer: Tokenizer
    settings: Settings
    positions: int = 0

    @property
    def engine(self) -> Engine:
        """The engine that answers and scores."""
        batch_size, mesh = self.settings.batch_size, self.settings.mesh
        return Engine(self.spec, self.params, self.tokenizer, batch_size, mesh, positions=self.positions)


def encode_prompts(
    problems: Sequence[Problem], tokenizer: Tokenizer, style: str, thinking: bool | None = None,
    wording: Wording = OURS,
) -> list[list[int]]:  # fmt: skip
    """Ids of each problem's prompt, with one beginning-of-sequence token if the tokenizer has one.

    Style `benchmark` is the benchmark's text. Other styles format the bare question with `pbrl_jax.text.prompts`, in
    the answer's language. If problems consist of more than a question (options, a request for a box), the benchmark's
    text is kept, as the user turn of a chat style. `wording` is applied to either.
    """
    if any(problem.turns for problem in problems):
        style = "chat_question" if style == "benchmark" else style
        questions = [problem.turns or problem.question for problem in problems]
        return format_prompts(
            questions, [problem.answer_language for problem in problems], tokenizer, style, thinking, wording
        )
    plain = style == "benchmark" or any(problem.kind != "number" for problem in problems)
    chat = style != "benchmark" and resolve_style(style, tokenizer).startswith("chat")
    if not plain or any(wording):
        texts = [problem.prompt if plain else problem.question for problem in problems]
        languages = [problem.answer_language for problem in problems]
        style = "plain" if style == "benchmark" else style
        return format_prompts(texts, languages, tokenizer, style, thinking, wording)
    if chat:
        encoded = [tokenizer.encode_chat([{"role": "user", "content": p.prompt}], thinking) for p in problems]
    else:
        encoded = tokenizer.encode_batch([problem.prompt for problem in problems])
    return [with_one_bos(ids, tokenizer.bos_id) for ids in encoded]


def problem_id(key: str) -> int:
    """A stable 31-bit number of a problem, from which its sampling keys are derived."""
    return zlib.crc32(key.encode()) & 0x7FFFFFFF


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first stop string."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def generate_responses(answering: Answering, problems: Sequence[Problem], done: Collection[tuple[str, int]],
                       write: Write, tick: Callable[[int], Any]) -> None:  # fmt: skip
    """Sample each problem `settings.samples` times and write the rows batch by batch.

    A row has key, language, sample, completion (cut at the first stop string), tokens (sampled, the end of sequence
    included) and truncated (the limit was reached).

    Args:
      done: (key, sample) of rows that an earlier run wrote.
      write: called with the new rows of each batch.
      tick: called with the number of problems of each finished batch.
    """
    settings = answering.settings
    encoded = encode_prompts(problems, answering.tokenizer, settings.style, settings.thinking, settings.wording)
    sampling = Sampling(
        settings.max_completion_length, settings.temperature, settings.top_p, samples=settings.samples,
        seed=settings.seed,
    )  # fmt: skip
    ids, samples = [problem_id(problem.key) for problem in problems], range(settings.samples)
    wanted = {row for row, p in enumerate(problems) if any((p.key, sample) not in done for sample in samples)}
    for rows, answers in answering.engine.answer_batches(encoded, sampling, ids, wanted, ends_early):
        new_rows = []
        for (row, sample), answer in zip(itertools.product(rows, samples), answers, strict=True):
            problem, text = problems[row], cut_at_stop(answer.text, problems[row].stops)
            if (problem.key, sample) not in done:
                new_rows.append({
                    "key": problem.key, "language": problem.language, "sample": sample, "completion": text,
                    "tokens": len(answer.tokens), "truncated": answer.truncated and text == answer.text,
                })  # fmt: skip
        write(new_rows)
        tick(len(wanted.intersection(rows)))
        check_stop()


# Choices by log-probability.


def continuations(problem: Problem, tokenizer: Tokenizer) -> Continuations:
    """Ids of context and choices, encoded together and divided after the context's tokens, as the harness does.

    Raises:
      DataError: a context without tokens.
    """
    text = problem.prompt
    encoded = tokenizer.encode_batch([text.rstrip(), *(text + choice for choice in problem.choices)])
    context, *joined = (with_one_bos(ids, tokenizer.bos_id) for ids in encoded)
    size = len(context)
    shared = 0
    while shared < size and all(len(ids) > shared + 1 and ids[shared] == joined[0][shared] for ids in joined):
        shared += 1
    if not shared:
        raise DataError(f"Problem {problem.key} has no token that its choices share. Its prompt is {text[:60]!r}.")
    # Even if a choice merges with the end of the context, its last token is scored.
    return Continuations(
        joined[0][:shared], [ids[shared:] for ids in joined], [min(size, len(ids) - 1) - shared for ids in joined]
    )


def score_choices(answering: Answering, problems: Sequence[Problem], done: Collection[tuple[str, int]],
                  write: Write, tick: Callable[[int], Any]) -> None:  # fmt: skip
    """Write the log-probability of every choice of every problem, batch by batch; arguments as generate_responses.

    A row has key, language, sample (0), logprobs (one sum per choice, natural logarithm) and tokens (scored tokens of
    each choice).
    """
    encoded = [continuations(problem, answering.tokenizer) for problem in problems]
    wanted = {row for row, problem in enumerate(problems) if (problem.key, 0) not in done}
    for rows, scores in answering.engine.score_batches(encoded, wanted):
        write([
            {
                "key": problems[row].key, "language": problems[row].language, "sample": 0,
                "logprobs": [round(choice.logp, 6) for choice in choices],
                "tokens": [choice.tokens for choice in choices],
            }
            for row, choices in zip(rows, scores, strict=True)
            if row in wanted
        ])  # fmt: skip
        tick(len(wanted.intersection(rows)))
        check_stop()
