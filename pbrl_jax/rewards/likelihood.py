"""The likelihood reward: how likely is the English reference to a translation model as a translation of the response?

[MAPO, arXiv 2401.06838: NLLB reads the reasoning in the user's language and scores the English one.] The mean is over
the reference's own tokens and the end of sequence: padding does not count, nor the language's token, which is given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from pbrl_jax.config.fields import identity
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.records import Scores
from pbrl_jax.rewards.inputs import RewardInputs, reference_text, response_texts
from pbrl_jax.rewards.translation import TranslatorConfig, check_translator, loaded_translator
from pbrl_jax.translate.m2m100_translator import M2M100Translator
from pbrl_jax.translate.translator import Segment


@dataclass(frozen=True)
class LikelihoodConfig(TranslatorConfig):
    """What `likelihood` reads."""

    likelihood_form: Literal["inverse_loss", "probability"] = identity("inverse_loss")
    """Reward `likelihood`, l the mean log-probability of the reference's tokens: inverse_loss (-1 / l, as in MAPO) or
    probability (exp(l), in [0, 1])."""


def check_likelihood(config: LikelihoodConfig) -> None:
    """Refuse what cannot be an M2M100 or NLLB model (ConfigError)."""
    check_translator(config)
    if config.translator in ("policy", "endpoint"):
        raise _other_model(config)


def _other_model(config: LikelihoodConfig) -> ConfigError:
    return ConfigError(
        f"Reward likelihood asks an M2M100 or NLLB model, and reward.translator is {config.translator!r}. Use "
        "--reward.translator facebook/nllb-200-distilled-600M."
    )


def make_likelihood(config: LikelihoodConfig, assets: Any) -> Callable[[RewardInputs], Scores]:
    """The reward `likelihood`: of the reasoning, or of what `config.parts` names (whole, answer); the max or the mean
    over several references, as `config.references` says.

    An empty part, and a response in the wrong language, is a valid 0; a row without a reference is invalid. What is
    longer than the model reads is cut (`likelihood_cut`).

    Raises:
      ConfigError: no M2M100 or NLLB model is named.
    """
    check_likelihood(config)
    model = loaded_translator(config.translator)
    if not isinstance(model, M2M100Translator):
        raise _other_model(config)
    part = "reasoning" if config.parts == "split" else config.parts

    def score(inputs: RewardInputs) -> Scores:
        count = len(inputs.completions)
        right_B = np.ones(count, bool) if inputs.right_B is None else np.asarray(inputs.right_B, bool)
        texts = response_texts(inputs, part)[part]
        pairs = [
            (row, Segment(texts[row], prompt.language, "en"), reference_text(reference, part) or reference.text)
            for row, prompt in enumerate(inputs.prompts)
            if texts[row].strip() and right_B[row]
            for reference in prompt.references
        ]
        distinct = {asked: place for place, asked in enumerate(dict.fromkeys(pair[1:] for pair in pairs))}
        mean_N, cut_N = model.likelihoods(*zip(*distinct, strict=True)) if distinct else (np.zeros(0), np.zeros(0))
        scores_N = np.exp(mean_N) if config.likelihood_form == "probability" else -1 / np.minimum(mean_N, -1e-6)
        value_B, cut_B = np.zeros(count, np.float32), np.zeros(count, np.float32)
        for row in dict.fromkeys(row for row, *_ in pairs):
            own = [distinct[pair[1:]] for pair in pairs if pair[0] == row]
            value_B[row] = scores_N[own].max() if config.references == "max" else scores_N[own].mean()
            cut_B[row] = cut_N[own].any()
        valid_B = np.array([bool(prompt.references) for prompt in inputs.prompts], bool) & np.isfinite(value_B)
        return Scores(jnp.asarray(value_B), jnp.asarray(valid_B), {"likelihood_cut": jnp.asarray(cut_B)})

    return score
