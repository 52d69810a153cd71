"""The likelihood of the reference as a translation, by a tiny NLLB; its probabilities are those of its own decoding."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import LANGUAGES, encoder, problem_prompts, reward_inputs

from pbrl_jax import RewardConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.records import Reference
from pbrl_jax.models.m2m100 import target_logprobs
from pbrl_jax.rewards.combine import RewardAssets, make_reward
from pbrl_jax.rewards.translation import loaded_translator
from pbrl_jax.translate.translator import Segment

FOLDER = Path(__file__).parents[1] / "fixtures" / "hf" / "m2m100"
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
REFERENCES = Reference("Tom has 12 apples.", "The answer is 12."), Reference("He has twelve.", "The answer is 12.")
SWAHILI = problem_prompts(1, ("sw",))[0]._replace(reference=REFERENCES[0])


@pytest.fixture(scope="module")
def model():
    return loaded_translator(str(FOLDER))


def total(model, row: dict, targets: np.ndarray, length: int) -> np.ndarray:
    """Log-probs of targets [B, R] of one length for one source, summed."""
    source = np.array([row["input_ids"]] * len(targets), np.int32)
    lengths = np.full(len(targets), length, np.int32)
    arrays = map(jnp.asarray, (source, np.ones(source.shape, bool), targets, lengths))
    mean = target_logprobs(model.spec, model.params, *arrays)
    return np.asarray(mean) * (length - 1)


def test_the_probabilities_of_all_next_tokens(model):
    """They sum to 1, and the likeliest is the original's greedy one, whatever stands behind as padding."""
    row, every = EXPECTED[0], np.arange(model.spec.vocab_size, dtype=np.int32)
    _, *path = row["greedy"]["ids"]
    before = 0.0
    for length in range(2, len(path) + 1):
        targets = np.full((len(every), len(path) + 2), model.spec.pad_id, np.int32)
        targets[:, : length - 1], targets[:, length - 1] = path[: length - 1], every
        found = total(model, row, targets, length)
        keep = every != model.spec.pad_id
        assert found[keep].argmax() == np.flatnonzero(keep).tolist().index(path[length - 1])
        assert np.exp(found - before).sum() == pytest.approx(1, abs=1e-4)
        before = found[path[length - 1]]


def test_a_likelihood_does_not_depend_on_its_batch(model):
    texts = ["Tom ana matofaa 12.", "Jibu ni 12.", "Ana " + "matofaa " * 40]
    segments = [Segment(text, "sw", "en") for text in texts]
    targets = ["Tom has 12 apples.", "The answer is 12.", "He has apples."]
    together, cut = model.likelihoods(segments, targets)
    alone = [model.likelihoods([one], [target])[0][0] for one, target in zip(segments, targets, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert cut.tolist() == [False, False, True] and (together < 0).all()


def rewarded(prompts, texts, **config):
    config = {
        "functions": ("likelihood",),
        "language_gate": "off",
        "translator": str(FOLDER),
        "parts": "whole",
    } | config
    reward = make_reward(RewardConfig(**config), RewardAssets(encoder(), LANGUAGES, None))
    return reward(reward_inputs(prompts, texts))


def test_the_reward_by_hand(model):
    text = "Tom ana matofaa 12. Jibu ni 12."
    means, _ = model.likelihoods([Segment(text, "sw", "en")] * 2, [reference.text for reference in REFERENCES])
    both = SWAHILI._replace(more_references=REFERENCES[1:])
    prompts, texts = [SWAHILI, both, SWAHILI, SWAHILI._replace(reference=None)], [text, text, "", text]
    for form, value in (("inverse_loss", -1 / means), ("probability", np.exp(means))):
        for how, wanted in (("max", value.max()), ("mean", value.mean())):
            result = rewarded(prompts, texts, likelihood_form=form, references=how).total
            np.testing.assert_allclose(result.value_B, [value[0], wanted, 0, 0], rtol=1e-4)
            assert result.valid_B.tolist() == [True, True, True, False]
    cut = rewarded([SWAHILI], ["Ana " + "matofaa " * 40]).each["likelihood"].parts["likelihood_cut"]
    assert cut.tolist() == [1]
    gated = rewarded([SWAHILI], ["Tom has twelve apples and the answer is 12."], language_gate="hard")
    assert gated.each["likelihood"].value_B.tolist() == [0]


@pytest.mark.parametrize("name", ["", "policy", "endpoint"])
def test_what_is_no_model_of_likelihoods(name):
    with pytest.raises(ConfigError, match="facebook/nllb-200-distilled-600M"):
        rewarded([SWAHILI], ["Jibu ni 12."], translator=name)
