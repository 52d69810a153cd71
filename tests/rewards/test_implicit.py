"""Likelihood rewards against log-softmax of the policy's own logits, one row at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from text_helpers import format_prompt
from tiny_policy import quick_compiles, tiny_params  # noqa: F401
from tiny_world import LANGUAGES, encoder, policy, problem_prompts, reward_inputs

from pbrl_jax import Config, RewardConfig, with_values
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.paths import work_dir
from pbrl_jax.rewards import implicit
from pbrl_jax.rewards.combine import RewardAssets, check_reward, make_reward
from pbrl_jax.text.prompts import format_prompts
from pbrl_jax.train.experiment import Experiment
from pbrl_jax.train.hosted import reward_assets
from pbrl_jax.weights.policies import Policy

SWAHILI = problem_prompts(1, ("sw",))[0]
TEXTS = ["Ali anaanza na chupa 10. Jibu ni 20.", "", "10"]
WIDTH = 160


@pytest.fixture(scope="module")
def mean_logp():
    """(params, context ids, text ids) -> mean log-prob of the text's tokens, by the whole logits."""
    run = jax.jit(policy().logits)

    def one(params, context, text):
        ids = [*context, *text]
        tokens = jnp.zeros((1, WIDTH), jnp.int32).at[0, : len(ids)].set(jnp.asarray(ids))
        logp = jax.nn.log_softmax(run(params, tokens, jnp.arange(WIDTH)[None] < len(ids))[0])
        places = range(len(context) - 1, len(ids) - 1)
        return np.mean([float(logp[place, ids[place + 1]]) for place in places])

    return one


def scores(config, prompts, texts=TEXTS):
    assets = RewardAssets(encoder(), LANGUAGES, None, policy())
    return make_reward(config, assets)(reward_inputs(prompts, texts, encoder())).total


def question() -> list[int]:
    return format_prompt(SWAHILI.question_en, "en", policy().tokenizer)


def test_what_a_response_does_for_the_reference(mean_logp):
    """A row without a reference is invalid, an empty response a valid 0."""
    prompts = [SWAHILI, SWAHILI, SWAHILI, SWAHILI._replace(reference=None)]
    config = RewardConfig(functions=("implicit",), language_gate="off")
    found = scores(config, prompts, [*TEXTS, "10"])
    encode = policy().tokenizer.encode
    reference = encode(SWAHILI.reference.text)
    alone = mean_logp(policy().params, question(), reference)
    behind = [mean_logp(policy().params, question() + encode(text + "\n"), reference) for text in (TEXTS[0], TEXTS[2])]
    np.testing.assert_allclose(found.value_B[:3], [behind[0] - alone, 0, behind[1] - alone], atol=1e-5)
    assert found.valid_B.tolist() == [True, True, True, False]
    assert abs(behind[0] - alone) > 1e-3


def test_what_another_policy_thinks_of_a_response(mean_logp, monkeypatch):
    other = Policy(policy().spec, tiny_params(policy().spec, seed=5), policy().tokenizer, "other")
    monkeypatch.setattr(implicit, "loaded_policy", lambda source: other)
    config = RewardConfig(
        functions=("implicit",), language_gate="off", implicit_form="response", implicit_policy="x"
    )  # fmt: skip
    found = scores(config, [SWAHILI] * 3)
    ids = [[*policy().tokenizer.encode(text), *policy().tokenizer.eos_ids] for text in (TEXTS[0], TEXTS[2])]
    wanted = [mean_logp(other.params, question(), i) - mean_logp(policy().params, question(), i) for i in ids]
    np.testing.assert_allclose(found.value_B, [wanted[0], 0, wanted[1]], atol=1e-5)
    assert found.valid_B.all()


@pytest.mark.parametrize("form", ["reference", "response"])
def test_what_a_model_was_not_made_for_is_invalid_and_ends_no_run(form, monkeypatch):
    """The text of the first row and what is compared with it are together one token longer than the positions."""
    tuned = Policy(policy().spec, tiny_params(policy().spec, seed=5), policy().tokenizer, "other")
    inputs = reward_inputs([SWAHILI] * 3, TEXTS, encoder())
    encode = policy().tokenizer.encode
    behind = encode(SWAHILI.reference.text) if form == "reference" else policy().tokenizer.eos_ids
    longest = len([*question(), *encode(TEXTS[0] + "\n" * (form == "reference")), *behind])
    found = {}
    for positions in (longest - 1, longest):
        kept = {"max_position_embeddings": positions}
        monkeypatch.setattr(implicit, "loaded_policy", lambda source, kept=kept: tuned._replace(kept=kept))
        config = RewardConfig(functions=("implicit",), language_gate="off", implicit_form=form, implicit_policy="x")
        assets = RewardAssets(encoder(), LANGUAGES, None, policy()._replace(kept=kept))
        found[positions] = make_reward(config, assets)(inputs).total
    assert [one.valid_B.tolist() for one in found.values()] == [[False, True, True], [True, True, True]]
    np.testing.assert_allclose(found[longest - 1].value_B[1:], found[longest].value_B[1:], rtol=1e-5, atol=1e-6)


def test_questions_are_put_as_the_run_puts_them(monkeypatch):
    """In the style of data.prompt_style, with the thinking switch of data.thinking."""
    asked = []

    def noted(questions, codes, tokenizer, style, thinking, wording):
        asked.append((codes, style, thinking))
        return format_prompts(questions, codes, tokenizer)

    monkeypatch.setattr(implicit, "format_prompts", noted)
    config = with_values(Config(), data={"prompt_style": "chat_boxed", "thinking": "off", "languages": LANGUAGES})
    known = {"config": config, "work": work_dir("runs/x"), "encoder": encoder(), "policy": policy()}
    run = Experiment(**dict.fromkeys(Experiment.__annotations__) | known)
    reward = make_reward(RewardConfig(functions=("implicit",), language_gate="off"), reward_assets(run))
    reward(reward_inputs([SWAHILI], TEXTS[:1], encoder()))
    assert asked == [(["en"], "chat_boxed", False)]


def test_what_is_missing_is_named():
    with pytest.raises(ConfigError, match="implicit_policy is empty"):
        scores(RewardConfig(functions=("implicit",), implicit_form="response"), [SWAHILI] * 3)


@pytest.mark.parametrize(("gate", "value", "fits"), [
    ("hard", 0.0, False), ("tokens", 0.5, False), ("hard", -5.0, True), ("penalty", -0.2, True), ("off", -0.2, True),
])  # fmt: skip
def test_a_bound_above_all_its_values_is_refused(gate, value, fits):
    """Log-likelihood gains of about -2 would all become the bound, and every group would be flat."""
    config = RewardConfig(
        functions=("implicit",), reward_weights=(1.0,), language_gate=gate, rejected_value=value, similarity="raw"
    )
    if fits:
        check_reward(config)
        return
    with pytest.raises(ConfigError, match=f"rejected_value is {value:g}.*--reward.rejected-value -5"):
        check_reward(config)
