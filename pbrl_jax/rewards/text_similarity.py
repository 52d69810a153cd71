"""Similarity of two English texts by character or word overlap, in [0, 1]: 1 for equal texts, 0 without overlap."""

import functools
import re
from collections.abc import Callable, Sequence

import numpy as np

from pbrl_jax.core.errors import ConfigError, installed

_WORD = re.compile(r"\w+")


def chrf(hypothesis: str, reference: str) -> float:
    """sacrebleu's chrF2 (character 6-grams; recall counts twice as much as precision)."""
    from sacrebleu import sentence_chrf

    return sentence_chrf(hypothesis, [reference]).score / 100


def bleu(hypothesis: str, reference: str) -> float:
    """sacrebleu's sentence BLEU: 4-grams, exponential smoothing, effective order for short texts."""
    from sacrebleu import sentence_bleu

    return sentence_bleu(hypothesis, [reference], use_effective_order=True).score / 100


def rouge_l_scores(hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """tensorflow-text's ROUGE-L, the F1 of the longest common subsequence of lower-case words, [N]."""
    tf, metrics = _tensorflow()
    words = [[_WORD.findall(text.lower()) for text in texts] for texts in (hypotheses, references)]
    ragged = [tf.ragged.constant(rows, dtype=tf.string, ragged_rank=1) for rows in words]
    scores = metrics.rouge_l(*ragged, alpha=0.5).f_measure.numpy()
    return np.nan_to_num(np.asarray(scores, np.float32))


def check_similarity(name: str) -> None:
    """Raise ConfigError if a measure needs a package that is not installed."""
    if name == "rouge_l" and not installed("tensorflow_text"):
        raise ConfigError(
            "reward.translation_similarity rouge_l needs tensorflow-text, which has no wheels for this platform or is "
            "not installed. Use chrf or bleu."
        )


@functools.cache
def _tensorflow():
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    import tensorflow_text

    return tf, tensorflow_text.metrics


def _of_pairs(measure: Callable[[str, str], float]) -> Callable[[Sequence[str], Sequence[str]], np.ndarray]:
    """The measure of N pairs, [N]."""
    return lambda hypotheses, references: np.array(list(map(measure, hypotheses, references)), np.float32)


#: Name -> function from N hypotheses and N references to scores [N]. To add a measure, add a line.
TEXT_SIMILARITIES = {"chrf": _of_pairs(chrf), "bleu": _of_pairs(bleu), "rouge_l": rouge_l_scores}
