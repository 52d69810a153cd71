"""The translation reward: the response is translated into English and compared with the English reference.

R = sim(MT(response), reference) [paper, reward families]. Only responses that passed the language gate are translated;
otherwise an English response would be its own translation. Translations are cached by a hash of their text.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from pbrl_jax.config.fields import identity
from pbrl_jax.config.reward import RewardConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.records import Scores
from pbrl_jax.rewards.cosine import compiled_vector_scores
from pbrl_jax.rewards.inputs import RewardInputs, part_vectors, reference_text, right_texts
from pbrl_jax.rewards.similarity import PartsConfig, SimilarityConfig, combine_parts, load_baselines
from pbrl_jax.rewards.text_similarity import TEXT_SIMILARITIES, check_similarity
from pbrl_jax.translate.cache import CachedTranslator
from pbrl_jax.translate.load import PromptedTranslator, load_translator
from pbrl_jax.translate.translator import EndpointTranslator, Translator
from pbrl_jax.weights.comets import Comet, load_comet

TranslateRows = Callable[[RewardInputs, str, Sequence[str]], tuple[list[str], np.ndarray]]


@dataclass(frozen=True)
class TranslatorConfig(RewardConfig):
    """The models of `translation`, `comet` and `likelihood`."""

    translator: str = identity("")
    """The translator of responses into English: a folder or hub id of an M2M100 or NLLB model or of a policy, `policy`
    (the start policy, with an instruction to translate), or `endpoint`. For the rewards `translation`, and `comet` with
    wiring reference; `likelihood` needs an M2M100 or NLLB model."""
    comet: str = identity("")
    """Folder or hub id of a COMET model, for example Unbabel/wmt22-comet-da."""
    comet_more: tuple[str, ...] = identity((), only_with=("comet",))
    """Further COMET models; a score is the mean over all, for example of Unbabel/XCOMET-XL and
    Unbabel/wmt23-cometkiwi-da-xl. A model that was trained without references receives none."""


@dataclass(frozen=True)
class TranslationConfig(TranslatorConfig, SimilarityConfig, PartsConfig):
    """Settings of `translation`."""

    translation_similarity: str = identity("embedding", names=("embedding", *TEXT_SIMILARITIES, "comet"))
    """Reward `translation`: the similarity of translation and reference."""  # ASSUMED: not stated


def check_translator(config: TranslatorConfig) -> None:
    """Raise ConfigError for a missing translator."""
    if not config.translator:
        raise ConfigError(
            "The reward translates, but reward.translator is empty. Name a model, for example --reward.translator "
            "facebook/nllb-200-distilled-600M (or a policy's folder, `policy`, or `endpoint`)."
        )


def check_comet_model(config: TranslatorConfig) -> None:
    """Raise ConfigError for a missing COMET model."""
    if not config.comet:
        raise ConfigError("reward.comet is empty. Name a model, for example --reward.comet Unbabel/wmt22-comet-da.")


def check_comparison(config: TranslatorConfig, comets: Sequence[Any], setting: str) -> None:
    """Raise ConfigError where no model compares with the references that `setting` gives them: the reward would then
    measure the translation alone."""
    if not any(comet.needs_reference or comet.takes_reference for comet in comets):
        named = " and ".join(map(repr, (config.comet, *config.comet_more)))
        raise ConfigError(
            f"{setting} compares with English references, which the COMET model {named} does not read: it estimates "
            "quality. Use --reward.comet Unbabel/wmt22-comet-da, with this model in reward.comet_more, or reward comet "
            "with --reward.comet-wiring quality."
        )


def check_translation(config: TranslationConfig) -> None:
    """Raise ConfigError for missing models."""
    check_translator(config)
    if config.translation_similarity == "comet":
        check_comet_model(config)


def make_translator(config: TranslatorConfig, assets: Any) -> CachedTranslator:
    """The translator of `config.translator`, with the cache of the work directory.

    Raises:
      ConfigError: none is named, or the run lacks the endpoint or policy that it needs.
    """
    check_translator(config)
    translator: Translator
    if config.translator == "endpoint":
        if assets.endpoint is None:
            raise ConfigError("reward.translator is endpoint, but endpoint.url is empty. Use --endpoint.url.")
        translator = EndpointTranslator(assets.endpoint)
    elif config.translator == "policy":
        if assets.policy is None:
            raise ConfigError("reward.translator is policy, but there is no policy here. Name a model's folder.")
        translator = PromptedTranslator(assets.policy, max_completion_length=256)
    else:
        translator = loaded_translator(config.translator)
    return CachedTranslator(translator, f"{assets.folder}/translations.jsonl" if assets.folder else "")


@functools.lru_cache(maxsize=2)
def loaded_translator(source: str) -> Translator:
    """load_translator, once per process and source."""
    return load_translator(source)


@functools.lru_cache(maxsize=4)
def loaded_comet(source: str) -> Comet:
    """load_comet, once per process and source."""
    return load_comet(source)


def row_translator(config: TranslatorConfig, assets: Any) -> TranslateRows:
    """A function (inputs, part, its text in each row) -> (English texts, which rows have a translation)."""
    translator = make_translator(config, assets)

    def translate(inputs: RewardInputs, part: str, texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
        translations = translator.translate(texts, [prompt.language for prompt in inputs.prompts], "en")
        english = [text or "" for text in translations]
        if inputs.translations is not None:
            inputs.translations[part] = english
        return english, np.array([text is not None for text in translations], bool)

    return translate


def make_translation(config: TranslationConfig, assets: Any) -> Callable[[RewardInputs], Scores]:
    """The reward `translation`. An empty part and a response in the wrong language are a valid 0; a row without a
    reference, or without a translation from the endpoint, is invalid.

    Raises:
      ConfigError: a model is not named or not available.
    """
    check_translation(config)
    translate = row_translator(config, assets)
    embeds = config.translation_similarity == "embedding"
    compare = _compare_vectors(config, assets) if embeds else _compare_texts(config)

    def score(inputs: RewardInputs) -> Scores:
        sources = right_texts(inputs, config.parts)
        english, valid_B = {}, inputs.has_reference_B
        for part, texts in sources.items():
            english[part], has_B = translate(inputs, part, texts)
            valid_B &= has_B
        value_B, parts = compare(inputs, sources, english)
        return Scores(value_B, jnp.asarray(valid_B) & jnp.isfinite(value_B), parts)

    return score


def _compare_vectors(config: TranslationConfig, assets: Any):
    """Cosine of the translation's vector with the reference's, on the scale of `config.similarity`."""
    encoder = assets.encoder
    program, baselines = compiled_vector_scores(config), load_baselines(config, assets.languages, encoder.key)

    def compare(inputs: RewardInputs, sources, english):
        texts = [text for column in english.values() for text in column]
        present = np.array([bool(text.strip()) for text in texts], bool)
        vectors = encoder.embed(texts) * present[:, None]
        has = jnp.asarray(inputs.pivots.has_B)
        options: dict[str, Any] = {"has_BK": has} if has.ndim == 2 else {}
        if baselines is not None:
            options["baseline_B"] = jnp.full(len(inputs.prompts), baselines["en"], jnp.float32)
        pivots = tuple(jnp.asarray(pivot) for pivot in part_vectors(inputs.pivots, config.parts))
        return program(jnp.asarray(vectors), jnp.asarray(present), pivots, **options)

    return compare


def _compare_texts(config: TranslationConfig):
    """Overlap of words or characters, or COMET; the max or the mean over several references."""
    if config.translation_similarity == "comet":
        comets = [loaded_comet(source) for source in (config.comet, *config.comet_more)]
        check_comparison(config, comets, "reward.translation_similarity comet")

        def similar(sources, hypotheses, references):
            return np.mean([comet.score(sources, hypotheses, references) for comet in comets], axis=0)
    else:
        check_similarity(config.translation_similarity)
        measure = TEXT_SIMILARITIES[config.translation_similarity]

        def similar(sources, hypotheses, references):
            return measure(hypotheses, references)

    def compare(inputs: RewardInputs, sources, english):
        parts = {
            part: jnp.asarray(against_references(inputs, part, sources[part], hypotheses, similar, config.references))
            for part, hypotheses in english.items()
        }
        if config.parts == "split":
            return combine_parts(parts["reasoning"], parts["answer"], config), parts
        return parts[config.parts], parts

    return compare


def against_references(
    inputs: RewardInputs, part: str, sources: Sequence[str], hypotheses: Sequence[str], similar: Callable, how: str
) -> np.ndarray:
    """The max or mean (`how`) over the references of each row of `similar(sources, hypotheses, references) -> [n]`,
    [B]; 0 for an empty hypothesis and a row without a reference that has this part."""
    pairs = [
        (row, text)
        for row, prompt in enumerate(inputs.prompts)
        if hypotheses[row].strip()
        for reference in prompt.references
        if (text := reference_text(reference, part)).strip()
    ]
    value_B = np.zeros(len(hypotheses), np.float32)
    if not pairs:
        return value_B
    rows = np.array([row for row, _ in pairs])
    scores = similar([sources[row] for row in rows], [hypotheses[row] for row in rows], [text for _, text in pairs])
    for row in np.unique(rows):
        of_row = np.asarray(scores)[rows == row]
        value_B[row] = of_row.max() if how == "max" else of_row.mean()
    return value_B
