"""COMET on the answer, in three assignments of texts to the model's inputs (source, translation, reference).

The scores are trained to be about in [0, 1] and are not clipped. COMET is insensitive to a changed number and
unreliable on empty texts and on the wrong language: use it with the language gate, for answers in words
(docs/rewards.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from pbrl_jax.config.fields import identity
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.records import Scores
from pbrl_jax.rewards.inputs import RewardInputs, right_texts
from pbrl_jax.rewards.translation import (
    TranslatorConfig,
    against_references,
    check_comet_model,
    check_comparison,
    check_translator,
    loaded_comet,
    row_translator,
)


@dataclass(frozen=True)
class CometConfig(TranslatorConfig):
    """Settings of `comet`."""

    comet_wiring: Literal["reference", "quality", "direct"] = identity("reference")
    """Reward `comet`, r the response and e the English reference: reference (src r, mt r translated, ref e), quality
    (src e, mt r; models without references), direct (src r, mt r, ref e)."""  # ASSUMED: not stated


def check_comet(config: CometConfig) -> None:
    """Raise ConfigError where a model that the wiring needs is not named."""
    if config.comet_wiring == "reference":
        check_translator(config)
    check_comet_model(config)


def make_comet(config: CometConfig, assets: Any) -> Callable[[RewardInputs], Scores]:
    """The reward `comet` of the answer part, or of the part that `config.parts` names (whole, reasoning).

    With r the response's part and e the reference's [paper, reward families; the wirings are ours]: reference scores
    (src r, mt r in English, ref e), quality (src e, mt r), direct (src r, mt r, ref e); the mean over several models
    [gemmax: XCOMET and CometKiwi]. An empty part and a response in the wrong language are a valid 0; a row without a
    reference is invalid. `comet_cut` marks responses that are longer than the model's maximum (510 tokens with XLM-R).

    Raises:
      ConfigError: no COMET model or translator is named, or the model does not fit the wiring.
    """
    check_comet(config)
    names, wiring = (config.comet, *config.comet_more), config.comet_wiring
    comets = [loaded_comet(name) for name in names]
    for name, comet in zip(names, comets, strict=True):
        if wiring == "quality" and comet.needs_reference:
            raise ConfigError(
                f"The COMET model {name!r} compares with a reference, which reward.comet_wiring quality does not give. "
                "Use a quality-estimation model such as Unbabel/wmt22-cometkiwi-da, or --reward.comet-wiring direct."
            )
    if wiring != "quality":
        check_comparison(config, comets, f"reward.comet_wiring {wiring}")
    translate = row_translator(config, assets) if wiring == "reference" else None
    part = "answer" if config.parts == "split" else config.parts

    def similar(sources, hypotheses, references):
        texts = (references, hypotheses) if wiring == "quality" else (sources, hypotheses, references)
        return np.mean([comet.score(*texts) for comet in comets], axis=0)

    def score(inputs: RewardInputs) -> Scores:
        hypotheses = sources = right_texts(inputs, part)[part]
        valid_B = inputs.has_reference_B
        if translate is not None:
            hypotheses, has_B = translate(inputs, part, sources)
            valid_B &= has_B
        value_B = against_references(inputs, part, sources, hypotheses, similar, config.references)
        cut_B = jnp.asarray(np.any([comet.cut(hypotheses) for comet in comets], axis=0), jnp.float32)
        return Scores(jnp.asarray(value_B), jnp.asarray(valid_B & np.isfinite(value_B)), {"comet_cut": cut_B})

    return score
