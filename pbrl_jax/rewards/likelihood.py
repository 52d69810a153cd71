"""The likelihood reward: the likelihood of the English reference under a translation model that reads the response.

[MAPO, arXiv 2401.06838: NLLB reads the reasoning in the user's language and scores the English one.] The mean is over
the reference's tokens and the end of sequence, without padding and the language token, which is given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from pbrl_jax.config.fields import identity
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.records import Scores
from pbrl_jax.rewards.inputs import RewardInputs, reference_text, right_texts
from pbrl_jax.rewards.translation import TranslatorConfig, check_translator, loaded_translator
from pbrl_jax.translate.m2m100_translator import M2M100Translator
from pbrl_jax.translate.translator import Segment


@dataclass(frozen=True)
class LikelihoodConfig(TranslatorConfig):
    """Settings of `likelihood`."""

    likelihood_form: Literal["inverse_loss", "probability"] = identity("inverse_loss")
    """Reward `likelihood`, l the mean log-probability of the reference's tokens: inverse_loss (-1 / l, as in MAPO) or
    probability (exp(l), in [0, 1])."""


def check_likelihood(config: LikelihoodConfig) -> None:
    """Raise ConfigError for a translator that cannot be an M2M100 or NLLB model."""
    check_translator(config)
    if config.translator in ("policy", "endpoint"):
        raise _wrong_model(config)


def _wrong_model(config: LikelihoodConfig) -> ConfigError:
    return ConfigError(
        f"Reward likelihood needs an M2M100 or NLLB model, and reward.translator is {config.translator!r}. Use "
        "--reward.translator facebook/nllb-200-distilled-600M."
    )


def make_likelihood(config: LikelihoodConfig, assets: Any) -> Callable[[RewardInputs], Scores]:
    """The reward `likelihood` of the reasoning, or of the part that `config.parts` names (whole, answer); the max or
    the mean over several references, as set in `config.references`.

    An empty part and a response in the wrong language are a valid 0; a row without a reference is invalid. Texts longer
    than the model's maximum are cut (`likelihood_cut`).

    Raises:
      ConfigError: no M2M100 or NLLB model is named.
    """
    check_likelihood(config)
    model = loaded_translator(config.translator)
    if not isinstance(model, M2M100Translator):
        raise _wrong_model(config)
    part = "reasoning" if config.parts == "split" else config.parts

    def score(inputs: RewardInputs) -> Scores:
        texts = right_texts(inputs, part)[part]
        pairs = {
            row: [
                (Segment(texts[row], prompt.language, "en"), reference_text(reference, part) or reference.text)
                for reference in prompt.references
            ]
            for row, prompt in enumerate(inputs.prompts)
            if texts[row].strip() and prompt.references
        }
        index = {pair: i for i, pair in enumerate(dict.fromkeys(pair for column in pairs.values() for pair in column))}
        mean_N, cut_N = model.likelihoods(*zip(*index, strict=True)) if index else (np.zeros(0), np.zeros(0))
        scores_N = np.exp(mean_N) if config.likelihood_form == "probability" else -1 / np.minimum(mean_N, -1e-6)
        value_B, cut_B = np.zeros(len(texts), np.float32), np.zeros(len(texts), np.float32)
        for row, row_pairs in pairs.items():
            places = [index[pair] for pair in row_pairs]
            value_B[row] = scores_N[places].max() if config.references == "max" else scores_N[places].mean()
            cut_B[row] = cut_N[places].any()
        valid_B = inputs.has_reference_B & np.isfinite(value_B)
        return Scores(jnp.asarray(value_B), jnp.asarray(valid_B), {"likelihood_cut": jnp.asarray(cut_B)})

    return score
