"""COMET on the answer, in the three wirings of a model that was made for (source, translation, reference).

Its scores are trained to lie near [0, 1] and are not clipped. COMET hardly sees a changed number and misbehaves on
empty texts and on the wrong language: use it behind the language gate, for answers that are text (docs/rewards.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from pbrl_jax.config.fields import identity
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.records import Scores
from pbrl_jax.rewards.inputs import RewardInputs, response_texts
from pbrl_jax.rewards.translation import (
    TranslatorConfig,
    against_references,
    check_comet_model,
    check_translator,
    loaded_comet,
    row_translator,
)


@dataclass(frozen=True)
class CometConfig(TranslatorConfig):
    """What `comet` reads."""

    comet_wiring: Literal["reference", "quality", "direct"] = identity("reference")
    """Reward `comet`, r the response and e the English reference: reference (src r, mt r translated, ref e), quality
    (src e, mt r; models without references), direct (src r, mt r, ref e)."""  # ASSUMED: not stated


def check_comet(config: CometConfig) -> None:
    """Refuse a wiring whose models are not named (ConfigError)."""
    if config.comet_wiring == "reference":
        check_translator(config)
    check_comet_model(config)


def make_comet(config: CometConfig, assets: Any) -> Callable[[RewardInputs], Scores]:
    """The reward `comet`: of the answer part, or of what `config.parts` names (whole, reasoning).

    With r the response's part and e the reference's [paper, reward families; the wirings are ours]: reference scores
    (src r, mt r in English, ref e), quality (src e, mt r), direct (src r, mt r, ref e). Of several models the mean
    counts [gemmax: XCOMET and CometKiwi]. An empty part, and a response
    in the wrong language, is a valid 0; a row without a reference is invalid. COMET reads sentences: `comet_cut` marks
    the responses that are longer than it reads (510 tokens with XLM-R).

    Raises:
      ConfigError: no COMET model or translator is named, or the model does not fit the wiring.
    """
    comets, wiring = [], config.comet_wiring
    for name in (config.comet, *config.comet_more):
        comets.append(comet := loaded_comet(name))
        if wiring == "quality" and comet.needs_reference:
            raise ConfigError(
                f"The COMET model {name!r} compares with a reference, which reward.comet_wiring quality does not give. "
                "Use a quality-estimation model such as Unbabel/wmt22-cometkiwi-da, or --reward.comet-wiring direct."
            )
    translate = row_translator(config, assets) if wiring == "reference" else None
    part = "answer" if config.parts == "split" else config.parts

    def similar(sources, hypotheses, references):
        given = (references, hypotheses) if wiring == "quality" else (sources, hypotheses, references)
        return np.mean([comet.score(*given) for comet in comets], axis=0)

    def score(inputs: RewardInputs) -> Scores:
        count = len(inputs.completions)
        right_B = np.ones(count, bool) if inputs.right_B is None else np.asarray(inputs.right_B, bool)
        sources = [t if right else "" for t, right in zip(response_texts(inputs, part)[part], right_B, strict=True)]
        valid_B = np.array([bool(prompt.references) for prompt in inputs.prompts], bool)
        hypotheses = sources
        if translate is not None:
            hypotheses, has_B = translate(inputs, part, sources)
            valid_B &= has_B
        value_B = against_references(inputs, part, sources, hypotheses, similar, config.references)
        cut_B = jnp.asarray(np.any([comet.cut(hypotheses) for comet in comets], axis=0), jnp.float32)
        return Scores(jnp.asarray(value_B), jnp.asarray(valid_B & np.isfinite(value_B)), {"comet_cut": cut_B})

    return score
