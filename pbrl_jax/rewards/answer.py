"""The verifiable reward: 1 where the extracted answer equals the gold answer, else 0."""

import jax.numpy as jnp
import numpy as np

from pbrl_jax.core.records import Scores
from pbrl_jax.rewards.inputs import RewardInputs
from pbrl_jax.text.answers import extract_answer, same_answer


def score_answers(inputs: RewardInputs) -> Scores:
    """Rows whose prompt has no gold answer are invalid; a response without an answer is a valid 0."""
    value = [
        float(same_answer(extract_answer(text, prompt.language), prompt.answer))
        for text, prompt in zip(inputs.completions, inputs.prompts, strict=True)
    ]
    valid = np.array([prompt.answer is not None for prompt in inputs.prompts], bool)
    return Scores(jnp.asarray(value, jnp.float32), jnp.asarray(valid), {})
