"""Accuracy per language by greedy decoding."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pbrl_jax.core.errors import DataError
from pbrl_jax.core.records import Prompt, Question
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.rollout.engine import Engine, Sampling
from pbrl_jax.text.alike import related_languages
from pbrl_jax.text.answers import extract_answer, same_answer
from pbrl_jax.text.langid import Alternatives, is_right_language
from pbrl_jax.text.prompts import format_prompts
from pbrl_jax.text.tokenizers import Tokenizer
from pbrl_jax.text.wording import OURS, Wording


class Response(NamedTuple):
    """One graded response."""

    prompt: Prompt
    completion: str
    extracted: str | None
    correct: bool
    right_language: bool


class Decoder(NamedTuple):
    """Settings of decoding: the policy's spec and tokenizer, lengths, rows decoded at a time, prompt style, and the
    sharding of weights (`rollout.weights`)."""

    spec: DecoderSpec
    tokenizer: Tokenizer
    max_prompt_length: int
    max_completion_length: int
    batch_size: int
    style: str = "plain"
    thinking: bool | None = None
    wording: Wording = OURS
    weights: str = "auto"


def answer_texts(decoder: Decoder, params, questions: Sequence[Question], languages: Sequence[str],
                 temperature: float = 0.0, seed: int = 0, **calls: Any) -> list[str]:  # fmt: skip
    """One response to each question, in order.

    Args:
      temperature: 0: greedy.
      calls: `tick` and `should_stop` of Engine.answer.

    Raises:
      DataError: a question is longer than the decoder's prompts.
    """
    if not questions:
        return []
    ids = format_prompts(
        list(questions), list(languages), decoder.tokenizer, decoder.style, decoder.thinking, decoder.wording
    )
    limit = decoder.max_prompt_length
    if long := [place for place, tokens in enumerate(ids) if len(tokens) > limit]:
        raise DataError(
            f"{len(long)} of {len(ids)} questions are too long: the first has {len(ids[long[0]])} tokens, expected 1 to"
            f" {limit}: {str(questions[long[0]])[:60]!r}. Raise rollout.max_prompt_length, or take the rows out."
        )
    engine = Engine(
        decoder.spec, params, decoder.tokenizer, decoder.batch_size, max_prompt_length=decoder.max_prompt_length,
        weights=decoder.weights,
    )  # fmt: skip
    answers = engine.answer(ids, Sampling(decoder.max_completion_length, temperature, seed=seed), **calls)
    return [answer.text for answer in answers]


def grade(prompt: Prompt, completion: str, languages: Alternatives) -> Response:
    """Grade a response: compare the extracted answer with the gold answer, and identify the language."""
    extracted = extract_answer(completion, prompt.language)
    right = is_right_language(completion, prompt.language, languages)
    return Response(prompt, completion, extracted, same_answer(extracted, prompt.answer), right is not False)


def summarise(responses: Sequence[Response]) -> dict[str, dict[str, float]]:
    """Language -> {accuracy, n, extraction_failures, right_language}: fractions, and n problems."""
    table = {}
    for language in dict.fromkeys(response.prompt.language for response in responses):
        rows = [response for response in responses if response.prompt.language == language]
        table[language] = {
            "accuracy": float(np.mean([row.correct for row in rows])),
            "n": len(rows),
            "extraction_failures": float(np.mean([row.extracted is None for row in rows])),
            "right_language": float(np.mean([row.right_language for row in rows])),
        }
    return table


def evaluate(decoder: Decoder, params, prompts: Sequence[Prompt], **calls: Any) -> tuple[dict, list[Response]]:
    """(table per language, graded responses) of greedy decoding; `calls` as in answer_texts.

    English is always among the languages that a response may be identified as.
    """
    related = related_languages((prompt.language, prompt.question) for prompt in prompts)
    languages: Alternatives = (*dict.fromkeys([*(prompt.language for prompt in prompts), "en"]), *related.pairs)
    texts = answer_texts(decoder, params, [p.asked for p in prompts], [p.language for p in prompts], **calls)
    responses = [grade(prompt, text, languages) for prompt, text in zip(prompts, texts, strict=True)]
    return summarise(responses), responses


def mean_non_english(table: dict[str, dict[str, float]]) -> float | None:
    """Mean accuracy over all languages except English; None without any."""
    values = [row["accuracy"] for language, row in table.items() if language != "en"]
    return float(np.mean(values)) if values else None


def eval_metrics(table: dict[str, dict[str, float]]) -> dict[str, float]:
    """The table as metrics: eval/accuracy/<lang>, eval/right_language/<lang>, eval/problems/<lang> (their number),
    eval/mean_non_english, and eval/gap_to_english if English is in the table."""
    metrics = {}
    for language, row in table.items():
        metrics[f"eval/accuracy/{language}"] = row["accuracy"]
        metrics[f"eval/right_language/{language}"] = row["right_language"]
        metrics[f"eval/problems/{language}"] = row["n"]
    mean = mean_non_english(table)
    if mean is None:
        return metrics
    gap = {"eval/gap_to_english": table["en"]["accuracy"] - mean} if "en" in table else {}
    return metrics | {"eval/mean_non_english": mean} | gap
