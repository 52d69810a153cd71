"""Inputs of rewards on the host, the vectors of references, and the parts of texts that rewards score."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pbrl_jax.core.records import AnyArray, Prompt, Reference
from pbrl_jax.text.answers import split_response, without_think_tags
from pbrl_jax.text.normalise import fold_letters


class PivotVectors(NamedTuple):
    """Unit vectors of the references of B rows, [B, E] each: the whole text and its two parts.

    `has_B` is false for a row without a reference; its vectors are zeros and its score is invalid. With up to K
    references per row the vectors are [B, K, E] and `has_B` is [B, K].
    """

    whole_BE: np.ndarray
    reasoning_BE: np.ndarray
    answer_BE: np.ndarray
    has_B: np.ndarray

    def rows(self, index: np.ndarray) -> "PivotVectors":
        """The vectors of the rows of `index`."""
        return PivotVectors(*(field[index] for field in self))


class RewardInputs(NamedTuple):
    """B rows on the host: the prompt of each row, its completion as text and as tokens, and its pivot's vectors.

    `right_B` marks rows that passed the language gate; None: no gate was applied, and all rows count as right.
    Rewards that translate add their translations to `translations` (part -> B texts, "" where nothing was translated)
    for the samples; None: they are not needed.
    """

    prompts: Sequence[Prompt]
    completions: Sequence[str]
    tokens_BR: np.ndarray
    lengths_B: np.ndarray
    pivots: PivotVectors
    step: int
    right_B: AnyArray | None = None
    translations: dict[str, list[str]] | None = None

    @property
    def has_reference_B(self) -> np.ndarray:
        """Rows with a reference, [B]."""
        return np.array([prompt.reference is not None for prompt in self.prompts], bool)


def first_equal(inputs: RewardInputs) -> np.ndarray:
    """Of each row the first one with its prompt, text and tokens, [B]."""
    first: dict[tuple[int, str, bytes], int] = {}
    tokens = (ids[: int(n)].tobytes() for ids, n in zip(inputs.tokens_BR, inputs.lengths_B, strict=True))
    keys = zip(map(id, inputs.prompts), inputs.completions, tokens, strict=True)
    return np.array([first.setdefault(key, row) for row, key in enumerate(keys)], int)


def part_names(parts: str) -> tuple[str, ...]:
    """The parts of a setting of `reward.parts`."""
    return ("reasoning", "answer") if parts == "split" else (parts,)


def response_texts(inputs: RewardInputs, parts: str) -> dict[str, list[str]]:
    """Part -> its text in each of the B responses, "" where it is absent; letters are folded as for the gate. Tags of a
    thought are left out, as in references."""
    if parts == "whole":
        return {"whole": [without_think_tags(fold_letters(text)).strip() for text in inputs.completions]}
    rows = zip(inputs.completions, inputs.prompts, strict=True)
    split = [split_response(fold_letters(text), prompt.language) for text, prompt in rows]
    columns = {"reasoning": [reasoning for reasoning, _ in split], "answer": [answer for _, answer in split]}
    return {name: columns[name] for name in part_names(parts)}


def right_texts(inputs: RewardInputs, parts: str) -> dict[str, list[str]]:
    """response_texts, with "" for responses that did not pass the language gate."""
    texts = response_texts(inputs, parts)
    if inputs.right_B is None:
        return texts
    right = np.asarray(inputs.right_B, bool)
    return {name: [t if r else "" for t, r in zip(column, right, strict=True)] for name, column in texts.items()}


def reference_text(reference: Reference, part: str) -> str:
    """One part of a reference, or its whole text."""
    return reference.text if part == "whole" else getattr(reference, part)


def part_vectors(pivots: PivotVectors, parts: str) -> tuple[np.ndarray, ...]:
    """The references' vectors of each part."""
    columns = {"whole": pivots.whole_BE, "reasoning": pivots.reasoning_BE, "answer": pivots.answer_BE}
    return tuple(columns[name] for name in part_names(parts))
