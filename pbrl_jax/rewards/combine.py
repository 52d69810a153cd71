"""The reward of a run: several reward functions, their weights and the language gate."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pbrl_jax.config.checks import check_section
from pbrl_jax.config.fields import identity, settings_of
from pbrl_jax.config.tree import Config, RewardConfig
from pbrl_jax.core.errors import ConfigError, PbrlError, RewardError, did_you_mean
from pbrl_jax.core.records import AnyArray, Prompt, Scores
from pbrl_jax.models.specs import TextEncoderSpec
from pbrl_jax.rewards.alignment import make_alignment
from pbrl_jax.rewards.answer import score_answers
from pbrl_jax.rewards.attempt import call_twice
from pbrl_jax.rewards.comet import CometConfig, check_comet, make_comet
from pbrl_jax.rewards.cosine import CosineConfig, make_cosine, make_token_cosine
from pbrl_jax.rewards.implicit import ImplicitConfig, check_implicit, make_implicit
from pbrl_jax.rewards.inputs import RewardInputs, first_equal
from pbrl_jax.rewards.intermediate import make_intermediate
from pbrl_jax.rewards.judge import EndpointJudgeConfig, JudgeConfig, make_judge
from pbrl_jax.rewards.language import IDENTIFIED_GATES, Verdict, apply_gate, make_gate
from pbrl_jax.rewards.likelihood import LikelihoodConfig, check_likelihood, make_likelihood
from pbrl_jax.rewards.shaping import (
    OverlongConfig,
    RepetitionConfig,
    check_overlong,
    make_overlong,
    make_repetition,
    make_token_repetition,
)
from pbrl_jax.rewards.similarity import PartsConfig, SimilarityConfig, combine_parts
from pbrl_jax.rewards.tokens import TokenInputs, token_verdict
from pbrl_jax.rewards.translation import (
    TranslationConfig,
    TranslatorConfig,
    check_translation,
    make_translation,
)
from pbrl_jax.rewards.user import make_user_reward
from pbrl_jax.rollout.endpoint import Endpoint
from pbrl_jax.text.alike import Related, related_languages
from pbrl_jax.text.prompts import form_of
from pbrl_jax.weights.encoders import Encoder
from pbrl_jax.weights.policies import Policy


class RewardAssets(NamedTuple):
    """Models and settings that rewards may need beyond their inputs."""

    encoder: Encoder
    languages: Sequence[str]
    token_table: Mapping[str, np.ndarray] | None
    policy: Policy | None = None
    """The start policy; rewards never change it."""
    form: Mapping[str, Any] = {}
    """The form of its prompts: style, thinking and wording (see text.prompts.form_of)."""
    endpoint: Endpoint | None = None
    folder: str = ""
    """Folder for caches of results; "" caches in memory only."""
    pairs: Sequence[tuple[str, str]] = ()
    """Pairs of languages that the gate treats as one (see pbrl_jax.text.alike)."""


def run_assets(
    config: Config, encoder: Encoder, token_table: Mapping[str, np.ndarray] | None, policy: Policy | None, folder: str
) -> RewardAssets:
    """The assets of a run or an audit with these settings; arguments as the fields of RewardAssets."""
    return RewardAssets(
        encoder,
        config.data.languages,
        token_table,
        policy,
        form=form_of(config.data),
        endpoint=Endpoint(config.endpoint) if config.endpoint.url else None,
        folder=folder,
    )


def gated_as_one(config: RewardConfig, prompts: Sequence[Prompt]) -> Related:
    """The languages of these prompts that the gate cannot tell apart; none if the gate does not identify languages."""
    questions = prompts if config.language_gate in IDENTIFIED_GATES else ()
    return related_languages(((p.language, p.question) for p in questions), config.gate_share)


@dataclasses.dataclass(frozen=True)
class HybridConfig(PartsConfig):
    """Settings of `hybrid`; its two functions have their own."""

    hybrid_answer: str = identity("answer")
    """Reward `hybrid`: the reward of the answer part."""
    hybrid_reasoning: str = identity("alignment")
    """Reward `hybrid`: the reward of the reasoning part."""


class Reward(NamedTuple):
    """One entry of the table of rewards.

    `of_text(config, assets)` makes the function that scores decoded responses on the host; `of_tokens(config,
    encoder_spec)` makes its traceable twin for the fused step, if the reward can be computed from tokens. `settings` is
    the class of its settings; `check(config)` raises ConfigError for settings that do not fit together.
    """

    of_text: Callable[[Any, RewardAssets], Callable[[RewardInputs], Scores]]
    settings: type[RewardConfig] = RewardConfig
    check: Callable[[Any], None] | None = None
    of_tokens: Callable[[Any, TextEncoderSpec], Callable[[TokenInputs], Scores]] | None = None
    signed: bool = True
    """Whether values below 0 are meaningful, as of penalties and likelihoods; a cosine below 0 is not."""
    rounds: bool = False
    """Whether a model computes it, which rounds otherwise in other rows of a batch: equal responses to a prompt get the
    score of the first of them, or their group would seem to have a spread."""
    references: bool = True
    """Whether it compares with English references."""


#: Name -> reward. To add a reward, add a line.
REWARDS: dict[str, Reward] = {
    "cosine": Reward(
        lambda config, assets: make_cosine(config, assets.encoder, assets.languages),
        CosineConfig,
        of_tokens=make_token_cosine,
        signed=False,
        rounds=True,
    ),
    "answer": Reward(lambda config, assets: score_answers, signed=False, references=False),
    "translation": Reward(make_translation, TranslationConfig, check_translation, signed=False, rounds=True),
    "comet": Reward(make_comet, CometConfig, check_comet, signed=False, rounds=True),
    "implicit": Reward(make_implicit, ImplicitConfig, check_implicit, rounds=True),
    "judge": Reward(make_judge, JudgeConfig, signed=False),
    "intermediate": Reward(make_intermediate, EndpointJudgeConfig, signed=False),
    "likelihood": Reward(make_likelihood, LikelihoodConfig, check_likelihood, signed=False, rounds=True),
    "alignment": Reward(
        lambda config, assets: make_alignment(config, assets.encoder, assets.languages),
        SimilarityConfig,
        signed=False,
        rounds=True,
    ),
    "repetition": Reward(make_repetition, RepetitionConfig, of_tokens=make_token_repetition, references=False),
    "overlong": Reward(make_overlong, OverlongConfig, check_overlong, make_overlong, references=False),
    "hybrid": Reward(lambda config, assets: make_hybrid(config, assets), HybridConfig),
}


class Combined(NamedTuple):
    """The reward of a batch: the total, the scores of each function, which rows passed the language gate, and the
    English translations of the responses (strings [B]; None if no reward translates)."""

    total: Scores
    each: dict[str, Scores]
    right_language_B: AnyArray
    translation_B: np.ndarray | None = None

    @property
    def value_B(self):
        """The total's values, [B]."""
        return self.total.value_B

    @property
    def valid_B(self):
        """Rows that have a score, [B]."""
        return self.total.valid_B


def combine(
    config: RewardConfig, each: dict[str, Scores], verdict: Verdict, empty_B, step: int, group: int = 1
) -> Combined:
    """The weighted and gated sum of the functions' scores; traceable.

    A function that does not apply to a row is left out of the row's sum. A row is valid if at least one function with
    a weight scored it and none failed. See `gated` for empty responses and those in the wrong language.

    Args:
      group: number of consecutive rows that are compared with each other. Sums over different functions are not
        comparable, so only rows to which the same functions apply as to most of their group stay valid
        (`alike_in_group`).
    """
    value_B, valid_B = jnp.zeros(empty_B.shape), jnp.ones(empty_B.shape, bool)
    scored, weights = [], dict(zip(each, weights_at(config, step), strict=True))
    for weight, scores in zip(weights.values(), each.values(), strict=True):
        if weight:
            value_B = value_B + weight * jnp.where(scores.valid_B, scores.value_B, 0.0)
            valid_B = valid_B & ~scores.failed_B
            scored.append(scores.valid_B)
    valid_B = alike_in_group(jnp.stack(scored, axis=1), valid_B, group) if scored else jnp.zeros_like(valid_B)
    signed = any(is_signed(name, weight) for name, weight in weights.items())
    return Combined(Scores(gated(config, value_B, verdict, empty_B, step, signed), valid_B, {}), each, verdict.right_B)


def gated(config: RewardConfig, value_B, verdict: Verdict, empty_B, step: int, signed: bool):
    """Values after the language gate; traceable.

    No response in the right language gets less than an empty one or one in another language: the floor of its value is
    `rejected_value`, or 0 if that is higher and no function is `signed`. The gates `off` and `penalty` have no floor.
    An empty response gets the lower of 0 and the floor.
    """
    floor = config.rejected_value if signed else max(config.rejected_value, 0.0)
    if config.language_gate in ("off", "penalty"):
        floor = 0.0
    else:
        value_B = above_floor(value_B, floor)
    return jnp.where(empty_B, min(floor, 0.0), apply_gate(config, value_B, verdict, step))


def above_floor(value_B, floor: float):
    """Values with a lower bound: a `floor` of 0 or more clips. With a negative floor, values below half of it are
    squeezed monotonically into the range between the floor and half of it."""
    room = max(-floor, 0.0) / 2
    below_B = jnp.maximum(floor + room - value_B, 0.0)
    return jnp.where(below_B > 0, floor + room * room / jnp.maximum(room + below_B, 1e-9), value_B)


def is_signed(name: str, weight: float) -> bool:
    """Whether a function with this weight can give meaningful negative values; a user's function is assumed to."""
    return weight < 0 or (weight > 0 and (name not in REWARDS or REWARDS[name].signed))


def reads_references(config: RewardConfig) -> bool:
    """Whether a reward of this configuration compares with English references. Your own functions get None where a row
    has none."""
    return any(name in REWARDS and REWARDS[name].references for name in config.functions)


def alike_in_group(scored_BF, valid_B, group: int):
    """`valid_B`, restricted to rows that were scored by the most frequent set of functions of their group (of equally
    frequent sets, the first). Rows that no function scored are not valid. `scored_BF`: which of F functions scored a
    row."""
    scored_PGF = scored_BF.reshape(-1, group, scored_BF.shape[1])
    valid_PG = valid_B.reshape(-1, group) & scored_PGF.any(axis=2)
    same_PGG = (scored_PGF[:, :, None] == scored_PGF[:, None]).all(axis=-1) & valid_PG[:, None]
    most_P1 = jnp.where(valid_PG, same_PGG.sum(axis=-1), -1).argmax(axis=1)[:, None]
    same_PG = jnp.take_along_axis(same_PGG, most_P1[..., None], axis=1)[:, 0]
    return (same_PG & valid_PG).reshape(-1)


def make_reward(config: RewardConfig, assets: RewardAssets, group: int = 1) -> Callable[[RewardInputs], Combined]:
    """The combined reward of decoded responses; `group`: see `combine`.

    Raises:
      ConfigError: an unknown function, or weights that do not match the functions.
    """
    check_reward(config)
    functions = {name: make_function(name, config, assets) for name in config.functions}
    gate = make_gate(config, assets.languages, assets.token_table, assets.pairs)

    def score(inputs: RewardInputs) -> Combined:
        verdict = gate(inputs)
        translations: dict[str, list[str]] = {}
        inputs = inputs._replace(right_B=verdict.right_B, translations=translations)
        each = {name: function(inputs) for name, function in functions.items()}
        empty_B = jnp.asarray([not text.strip() for text in inputs.completions])
        combined = combine(config, each, verdict, empty_B, inputs.step, group)
        return combined._replace(translation_B=_whole_translations(translations))

    return score


def make_token_reward(config: RewardConfig, spec: TextEncoderSpec) -> Callable[[TokenInputs], Combined]:
    """The combined reward of sampled tokens, on the device; traceable. Every function must have `of_tokens`."""
    functions = {name: make(config, spec) for name in config.functions if (make := REWARDS[name].of_tokens)}

    def score(inputs: TokenInputs) -> Combined:
        each = {name: function(inputs) for name, function in functions.items()}
        return combine(config, each, token_verdict(inputs), ~inputs.text_BR.any(axis=1), 0)

    return score


def _whole_translations(parts: Mapping[str, Sequence[str]]) -> np.ndarray | None:
    """The translation of each response: of the whole, or of its reasoning and answer joined."""
    if not parts:
        return None
    names = ("whole",) if "whole" in parts else ("reasoning", "answer")
    columns = [parts[name] for name in names if name in parts]
    return np.array([" ".join(row).strip() for row in zip(*columns, strict=True)], object)


def weights_at(config: RewardConfig, step: int) -> tuple[float, ...]:
    """The functions' weights at a step: reward_weights, or with a curriculum their interpolation to final_weights."""
    if not config.final_weights:
        return config.reward_weights
    share = min(max((step - config.curriculum_start) / config.curriculum_steps, 0.0), 1.0)
    if config.curriculum_shape == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    pairs = zip(config.reward_weights, config.final_weights, strict=True)
    return tuple((1 - share) * first + share * last for first, last in pairs)


def make_function(name: str, config: RewardConfig, assets: RewardAssets) -> Callable[[RewardInputs], Scores]:
    """One reward by its name or import path. Every result is checked. A call that raises is repeated once; if that
    raises too, its rows are invalid, and the guard stops a run in which that continues.

    Raises:
      RewardError: (when called) the number of scores is not the number of rows.
    """
    function = make_user_reward(name, config.timeout) if ":" in name else REWARDS[name].of_text(config, assets)

    def score(inputs: RewardInputs) -> Scores:
        count = len(inputs.completions)
        # Errors in the user's input and a full device memory would occur again in a second call.
        scores = call_twice(name, lambda: function(inputs), count, (PbrlError, jax.errors.JaxRuntimeError))
        if scores is None:
            return Scores(jnp.zeros(count), jnp.zeros(count, bool), {}, jnp.ones(count, bool))
        if scores.value_B.shape != (count,) or scores.valid_B.shape != (count,):
            raise RewardError(
                f"Reward {name} returned scores of shapes {scores.value_B.shape} and {scores.valid_B.shape} for {count}"
                " completions. A reward returns one value and one validity per completion."
            )
        if name in REWARDS and REWARDS[name].rounds:
            rows = first_equal(inputs)
            scores = jax.tree.map(lambda column: column[rows], scores)
        finite = jnp.isfinite(scores.value_B)
        applies_B = jnp.ones(count, bool) if scores.applies_B is None else scores.applies_B
        return Scores(jnp.where(finite, scores.value_B, 0.0), scores.valid_B & finite, scores.parts, applies_B)

    return score


def make_hybrid(config: HybridConfig, assets: RewardAssets) -> Callable[[RewardInputs], Scores]:
    """The reward `hybrid`: two rewards, of the answer and of the reasoning, combined by similarity.combine_parts. With
    `config.parts` split each function sees only its part. A row is valid where both parts are valid; the reward does
    not apply where one of them does not."""
    split = config.parts == "split"
    answer_config, reasoning_config = (
        dataclasses.replace(config, parts=part) if split else config for part in ("answer", "reasoning")
    )
    answer = make_function(config.hybrid_answer, answer_config, assets)
    reasoning = make_function(config.hybrid_reasoning, reasoning_config, assets)

    def score(inputs: RewardInputs) -> Scores:
        a, r = answer(inputs), reasoning(inputs)
        value = combine_parts(r.value_B, a.value_B, config)
        valid_B, parts = a.valid_B & r.valid_B, {"answer": a.value_B, "reasoning": r.value_B}
        return Scores(value, valid_B, parts, valid_B | a.failed_B | r.failed_B)

    return score


def reward_names(config: RewardConfig) -> tuple[str, ...]:
    """All functions that are computed, including the two of `hybrid`."""
    if "hybrid" not in config.functions:
        return config.functions
    hybrid = settings_of(config, HybridConfig)
    return (*config.functions, hybrid.hybrid_answer, hybrid.hybrid_reasoning)


def policy_users(config: RewardConfig) -> list[str]:
    """Which of "implicit" (the reward) and "translator" (of a reward) use the start policy."""
    translates = settings_of(config, TranslatorConfig).translator == "policy"
    return ["implicit"] * ("implicit" in reward_names(config)) + ["translator"] * translates


def check_reward(config: RewardConfig) -> None:
    """Raise ConfigError for unknown names, and for weights and settings that cannot work."""
    check_section("reward", config)
    names = reward_names(config)
    if "hybrid" in names[len(config.functions) :]:
        raise ConfigError("reward.hybrid_answer and reward.hybrid_reasoning may not be hybrid itself.")
    for name in names:
        if ":" not in name and name not in REWARDS:
            raise ConfigError(
                f"Unknown reward {name!r}. {did_you_mean(name, REWARDS)} Name a function of your own as "
                "package.module:function."
            )
    for reward in (REWARDS[name] for name in names if name in REWARDS):
        if reward.check is not None:
            reward.check(config)
    if len(config.functions) != len(config.reward_weights) or not config.functions:
        raise ConfigError(
            f"reward.functions has {len(config.functions)} entries and reward.reward_weights "
            f"{len(config.reward_weights)}. Give one weight per function."
        )
    if len(set(config.functions)) != len(config.functions):
        raise ConfigError(f"reward.functions {config.functions} names a function twice. Give each one once.")
    if config.final_weights and len(config.final_weights) != len(config.functions):
        raise ConfigError(
            f"reward.final_weights has {len(config.final_weights)} entries and reward.functions "
            f"{len(config.functions)}. Give one per function, or none."
        )
