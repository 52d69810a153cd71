"""The implicit cross-lingual reward: differences of log-likelihoods of language models, given the English question. It
needs no encoder and no translator.

Two forms, for the English question q, the English reference e and a response r in any language. `reference`: by how
much the response raises the reference's likelihood under the start policy, (log p(e | q, r) - log p(e | q)) / |e|
[our reading of a likelihood reward, cf. MAPO]. `response`: by how much likelier the response is under a
preference-tuned policy p' than under the start policy, (log p'(r | q) - log p(r | q)) / |r| [arXiv 2503.04647; the mean
per token is its length control].
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from pbrl_jax.config.fields import identity
from pbrl_jax.config.reward import RewardConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.records import Scores
from pbrl_jax.rewards.inputs import RewardInputs
from pbrl_jax.rollout.engine import Engine
from pbrl_jax.text.prompts import format_prompts
from pbrl_jax.weights.policies import Policy, load_policy


@dataclass(frozen=True)
class ImplicitConfig(RewardConfig):
    """Settings of `implicit`."""

    implicit_form: Literal["reference", "response"] = identity("reference")
    """Reward `implicit`, a gain in log-likelihood per token, given the English question: reference (of the reference
    under the start policy, with the response before it) or response (of the response under `implicit_policy`, over the
    start policy)."""  # ASSUMED
    implicit_policy: str = identity("", only_with=("implicit_form", "response"))
    """Reward `implicit` of form response: folder of the preference-tuned policy."""


def check_implicit(config: ImplicitConfig) -> None:
    """Raise ConfigError for a bound under which all values would be equal."""
    if config.rejected_value >= 0 and config.language_gate not in ("off", "penalty"):
        raise ConfigError(
            f"reward.rejected_value is {config.rejected_value:g}, below which no response in the right language is "
            "rewarded, but values of reward implicit, in nats per token, are mostly below 0: all of them would become "
            f"{config.rejected_value:g}. Give a value below those of honest responses, for example "
            "--reward.rejected-value -5."
        )


def make_implicit(config: ImplicitConfig, assets: Any) -> Callable[[RewardInputs], Scores]:
    """The reward `implicit`, in nats per token. An empty response is a valid 0. A row is invalid where question,
    response and reference are together beyond the policy's positions and, with form reference, without a reference.

    Raises:
      ConfigError: no start policy; form response without `implicit_policy`, or with one of another tokenizer.
    """
    if assets.policy is None:
        raise ConfigError("Reward implicit needs the run's policy; it cannot be audited without one.")
    if config.implicit_form == "reference":
        return _of_reference(assets.policy, _prompt_format(assets))
    if not config.implicit_policy:
        raise ConfigError("reward.implicit_form is response, but reward.implicit_policy is empty. Name its folder.")
    tuned = loaded_policy(config.implicit_policy)
    if tuned.tokenizer.fingerprint != assets.policy.tokenizer.fingerprint:
        raise ConfigError(
            f"reward.implicit_policy {config.implicit_policy!r} has another tokenizer than the policy. Use one that "
            "was trained from the same start policy."
        )
    return _of_response(tuned, assets.policy, _prompt_format(assets))


@functools.lru_cache(maxsize=1)
def loaded_policy(source: str) -> Policy:
    """load_policy, once per process and source."""
    return load_policy(source, param_dtype="stored")


def _prompt_format(assets: Any) -> Callable[[Sequence[str]], list[list[int]]]:
    """A function from English questions to prompts in the form of the run's prompts."""
    tokenizer, form = assets.policy.tokenizer, assets.form
    return lambda questions: format_prompts(questions, ["en"] * len(questions), tokenizer=tokenizer, **form)


def _of_reference(policy: Policy, format_questions: Callable[[Sequence[str]], list[list[int]]]):
    baselines: dict[tuple[str, str], float] = {}

    def score(inputs: RewardInputs) -> Scores:
        texts = {row: prompt.reference.text for row, prompt in enumerate(inputs.prompts) if prompt.reference}
        full = [row for row in texts if inputs.completions[row].strip()]
        questions = format_questions([inputs.prompts[row].question_en for row in full])
        responses = policy.tokenizer.encode_batch([inputs.completions[row].strip() + "\n" for row in full])
        references = policy.tokenizer.encode_batch([texts[row] for row in full])
        # The reference's likelihood without a response is computed once per problem, not once per sample.
        keys = [(inputs.prompts[row].question_en, texts[row]) for row in full]
        new = {key: place for place, key in enumerate(keys) if key not in baselines}
        alone = mean_logprobs(policy, [questions[p] for p in new.values()], [references[p] for p in new.values()])
        baselines.update(zip(new, alone.tolist(), strict=True))
        given = mean_logprobs(policy, [q + r for q, r in zip(questions, responses, strict=True)], references)
        value = np.zeros(len(inputs.completions), np.float32)
        value[full] = given - np.array([baselines[key] for key in keys], np.float32)
        return Scores(jnp.asarray(value), jnp.asarray(inputs.has_reference_B & np.isfinite(value)), {})

    return score


def _of_response(tuned: Policy, base: Policy, format_questions: Callable[[Sequence[str]], list[list[int]]]):
    def score(inputs: RewardInputs) -> Scores:
        full = [row for row, text in enumerate(inputs.completions) if text.strip()]
        questions = format_questions([inputs.prompts[row].question_en for row in full])
        responses = [inputs.tokens_BR[row, : inputs.lengths_B[row]].tolist() for row in full]
        value = np.zeros(len(inputs.completions), np.float32)
        value[full] = mean_logprobs(tuned, questions, responses) - mean_logprobs(base, questions, responses)
        return Scores(jnp.asarray(value), jnp.asarray(np.isfinite(value)), {})

    return score


def mean_logprobs(policy: Policy, contexts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> np.ndarray:
    """Mean log-prob per token of each text given its context, in nats, [N]; 0 for a text without tokens, NaN where both
    together are beyond the policy's positions."""
    pairs = zip(contexts, texts, strict=True)
    fits = [row for row, pair in enumerate(pairs) if not 0 < policy.positions < sum(map(len, pair))]
    likelihoods = Engine.of(policy).score([contexts[row] for row in fits], [texts[row] for row in fits])
    mean_N = np.full(len(texts), np.nan, np.float32)
    mean_N[fits] = [likelihood.logp / max(likelihood.tokens, 1) for likelihood in likelihoods]
    return mean_N
