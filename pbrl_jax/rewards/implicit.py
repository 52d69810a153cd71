"""The implicit cross-lingual reward: what a language model's own likelihoods, behind the English question, say of a
response. No encoder, no translator.

Two forms. `reference`: by how much the response makes the English reference likelier to the start policy,
(log p(e | q, r) - log p(e | q)) / |e| [our reading of a likelihood reward, cf. MAPO]. `response`: by how much a policy
with a taste finds the response likelier than the start policy does, (log p'(r | q) - log p(r | q)) / |r|, with the
English question q before a response r in any language [arXiv 2503.04647, per token, which is its length control].
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
    """What `implicit` reads."""

    implicit_form: Literal["reference", "response"] = identity("reference")
    """Reward `implicit`, log-likelihoods per token behind the English question: reference (by how much the response
    makes the reference likelier, to the start policy) or response (by how much `implicit_policy` finds the response
    likelier than the start policy does)."""  # ASSUMED
    implicit_policy: str = identity("", only_with=("implicit_form", "response"))
    """Reward `implicit` of form response: folder of the policy whose preference in English is asked for."""


def make_implicit(config: ImplicitConfig, assets: Any) -> Callable[[RewardInputs], Scores]:
    """The reward `implicit`, in nats per token. Rows without a reference (form reference) are invalid; an empty
    response is a valid 0.

    Raises:
      ConfigError: no policy here, or form response without `implicit_policy`, or one with another tokenizer.
    """
    if assets.policy is None:
        raise ConfigError("Reward implicit needs the run's policy; it cannot be audited without one.")
    if config.implicit_form == "reference":
        return _of_reference(assets.policy, _asking(assets))
    if not config.implicit_policy:
        raise ConfigError("reward.implicit_form is response, but reward.implicit_policy is empty. Name its folder.")
    judge = loaded(config.implicit_policy)
    if judge.tokenizer.fingerprint != assets.policy.tokenizer.fingerprint:
        raise ConfigError(
            f"reward.implicit_policy {config.implicit_policy!r} has another tokenizer than the policy. Use one that "
            "was trained from the same start policy."
        )
    return _of_response(judge, assets.policy, _asking(assets))


@functools.lru_cache(maxsize=1)
def loaded(source: str) -> Policy:
    """load_policy, once per process and source."""
    return load_policy(source, param_dtype="stored")


def _asking(assets: Any) -> Callable[[Sequence[str]], list[list[int]]]:
    """English questions -> prompts of the start policy, in the form that the run puts them."""
    tokenizer, form = assets.policy.tokenizer, assets.form
    return lambda questions: (
        format_prompts(questions, ["en"] * len(questions), tokenizer=tokenizer, **form) if questions else []
    )


def _of_reference(policy: Policy, asked: Callable[[Sequence[str]], list[list[int]]]):
    known: dict[tuple[str, str], float] = {}

    def score(inputs: RewardInputs) -> Scores:
        texts = {row: prompt.reference.text for row, prompt in enumerate(inputs.prompts) if prompt.reference}
        full = [row for row in texts if inputs.completions[row].strip()]
        questions = asked([inputs.prompts[row].question_en for row in full])
        responses = _encoded(policy, [inputs.completions[row].strip() + "\n" for row in full])
        references = _encoded(policy, [texts[row] for row in full])
        # What the reference costs without any response: once per problem, whatever the group's size.
        keys = [(inputs.prompts[row].question_en, texts[row]) for row in full]
        new = {key: place for place, key in enumerate(keys) if key not in known}
        alone = mean_logprobs(policy, [questions[p] for p in new.values()], [references[p] for p in new.values()])
        known.update(zip(new, alone.tolist(), strict=True))
        behind = mean_logprobs(policy, [q + r for q, r in zip(questions, responses, strict=True)], references)
        value = np.zeros(len(inputs.completions), np.float32)
        value[full] = behind - np.array([known[key] for key in keys], np.float32)
        valid = np.zeros(len(value), bool)
        valid[list(texts)] = True
        return Scores(jnp.asarray(value), jnp.asarray(valid & np.isfinite(value)), {})

    return score


def _of_response(judge: Policy, base: Policy, asked: Callable[[Sequence[str]], list[list[int]]]):
    def score(inputs: RewardInputs) -> Scores:
        full = [row for row, text in enumerate(inputs.completions) if text.strip()]
        questions = asked([inputs.prompts[row].question_en for row in full])
        responses = [inputs.tokens_BR[row, : inputs.lengths_B[row]].tolist() for row in full]
        value = np.zeros(len(inputs.completions), np.float32)
        value[full] = mean_logprobs(judge, questions, responses) - mean_logprobs(base, questions, responses)
        return Scores(jnp.asarray(value), jnp.asarray(np.isfinite(value)), {})

    return score


def _encoded(policy: Policy, texts: list[str]) -> list[list[int]]:
    return policy.tokenizer.encode_batch(texts) if texts else []


def mean_logprobs(policy: Policy, contexts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> np.ndarray:
    """Mean log-prob per token of each text behind its context, in nats, [N]; 0 for a text without tokens."""
    found = Engine.of(policy).score(contexts, texts)
    return np.array([likelihood.logp / max(likelihood.tokens, 1) for likelihood in found], np.float32)
