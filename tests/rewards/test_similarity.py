"""Scales, several references, hybrid forms, and the calibration file."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import LANGUAGES, canonical_responses, encoder, problem_prompts, reward_inputs

from pbrl_jax import Config, RewardConfig
from pbrl_jax.checkpoint import check_same_experiment
from pbrl_jax.checkpoint.older import with_later_fingerprints
from pbrl_jax.config.checks import check_section
from pbrl_jax.core.errors import CheckpointError, ConfigError
from pbrl_jax.rewards.cosine import make_cosine
from pbrl_jax.rewards.similarity import (
    calibration_fingerprint,
    combine_parts,
    load_baselines,
    reference_cosine,
    scale_similarity,
)


def test_scales_by_hand():
    cosine = jnp.array([-1.0, 0.5, 0.8, 1.0])
    np.testing.assert_allclose(scale_similarity(cosine, RewardConfig()), cosine)
    affine = scale_similarity(cosine, RewardConfig(similarity="affine"))
    np.testing.assert_allclose(affine, [0, 0.75, 0.9, 1], atol=1e-6)
    baseline, calibrated = jnp.array([0.6, 0.6, 0.6, 1.0]), RewardConfig(similarity="calibrated")
    np.testing.assert_allclose(scale_similarity(cosine, calibrated, baseline), [0, 0, 0.5, 0], atol=1e-6)
    floor = RewardConfig(similarity="floor", similarity_floor=0.6)
    np.testing.assert_allclose(scale_similarity(cosine, floor), [0, 0, 0.5, 1], atol=1e-6)
    with pytest.raises(ConfigError, match="host path"):
        scale_similarity(cosine, calibrated)


def test_several_references_by_hand():
    vectors = jnp.array([[1.0, 0.0], [0.6, 0.8], [1.0, 0.0]])
    references = jnp.broadcast_to(jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), (3, 3, 2))
    has = jnp.array([[True, True, True], [True, True, False], [False, False, False]])
    np.testing.assert_allclose(reference_cosine(vectors, references, has, "max"), [1, 0.8, 0], atol=1e-6)
    np.testing.assert_allclose(reference_cosine(vectors, references, has, "mean"), [0, 0.7, 0], atol=1e-6)


@pytest.mark.parametrize(
    "form, expected",
    [
        ("convex", [0.25 * 1.0 + 0.75 * 0.5, 0.25 * 0.4 + 0.75 * 0.8, 0.25 * -0.5 + 0.75 * 0.8]),
        ("product", [1.0 * 0.5**0.75, 0.4**0.25 * 0.8**0.75, 0.0]),
        ("gated", [0.625, 0.1, -0.125]),
    ],
)
def test_hybrid_forms_by_hand(form, expected):
    config = RewardConfig(answer_weight=0.25, hybrid_form=form, hybrid_gate=0.5)
    found = combine_parts(jnp.array([0.5, 0.8, 0.8]), jnp.array([1.0, 0.4, -0.5]), config)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def with_references(inputs, has):
    """The inputs with K = 2 references: the row's own, and that of the next row."""
    vectors = inputs.pivots
    both = [np.stack([field, np.roll(field, -1, axis=0)], axis=1) for field in vectors[:3]]
    return inputs._replace(pivots=vectors.__class__(*both, np.asarray(has)))


@pytest.mark.parametrize("parts", ["whole", "split"])
def test_the_reward_takes_several_references(parts):
    prompts, texts = problem_prompts(2, ("sw",)), canonical_responses(2, ("sw",))
    inputs = reward_inputs(prompts, texts, encoder())

    def score(how, given):
        config = RewardConfig(parts=parts, references=how)
        return make_cosine(config, encoder())(given)

    other = inputs._replace(pivots=inputs.pivots.rows(np.array([1, 0])))
    named = ("whole",) if parts == "whole" else ("reasoning", "answer")
    two = with_references(inputs, [[True, True], [True, True]])
    for name in named:
        one, swapped = score("max", inputs).parts[name], score("max", other).parts[name]
        np.testing.assert_allclose(score("max", two).parts[name], np.maximum(one, swapped), atol=1e-6)
        np.testing.assert_allclose(score("mean", two).parts[name], (one + swapped) / 2, atol=1e-6)
        lone = score("mean", with_references(inputs, [[True, False], [True, False]]))
        np.testing.assert_allclose(lone.parts[name], one, atol=1e-6)
    gone = score("max", with_references(inputs, [[False, True], [False, False]]))
    assert gone.valid_B.tolist() == [True, False]


def test_an_absent_part_scores_zero_on_every_scale():
    prompts = problem_prompts(1, ("sw",)) * 2
    inputs = reward_inputs(prompts, [canonical_responses(1, ("sw",))[0], ""], encoder())
    found = make_cosine(RewardConfig(similarity="affine"), encoder())(inputs)
    assert found.parts["answer"][1] == found.parts["reasoning"][1] == found.value_B[1] == 0
    raw = make_cosine(RewardConfig(), encoder())(inputs)
    np.testing.assert_allclose(found.parts["answer"][0], (1 + raw.parts["answer"][0]) / 2, atol=1e-6)


@pytest.fixture
def calibration(tmp_path):
    def write(key=None, languages=LANGUAGES, baseline=0.5):
        path = tmp_path / "calibration.json"
        rows = {code: {"baseline": baseline} for code in languages}
        path.write_text(json.dumps({"encoder": encoder().key if key is None else key, "languages": rows}))
        return RewardConfig(similarity="calibrated", calibration=str(path))

    return write


def test_the_calibrated_reward_by_hand(calibration):
    prompts, texts = problem_prompts(1), canonical_responses(1)
    inputs = reward_inputs(prompts, texts, encoder())
    raw = make_cosine(RewardConfig(parts="whole"), encoder())(inputs).value_B
    config = calibration()
    found = make_cosine(RewardConfig(parts="whole", similarity="calibrated", calibration=config.calibration),
                        encoder(), LANGUAGES)(inputs).value_B  # fmt: skip
    np.testing.assert_allclose(found, np.clip((np.asarray(raw) - 0.5) / 0.5, 0, 1), atol=1e-6)


def test_what_a_calibration_must_be(calibration, tmp_path):
    assert load_baselines(RewardConfig(), LANGUAGES, "any") is None
    assert load_baselines(calibration(), LANGUAGES, encoder().key) == dict.fromkeys(LANGUAGES, 0.5)
    with pytest.raises(ConfigError, match="needs reward.calibration"):
        load_baselines(RewardConfig(similarity="calibrated"), LANGUAGES, "key")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_baselines(RewardConfig(similarity="calibrated", calibration=str(tmp_path / "no.json")), LANGUAGES, "key")
    with pytest.raises(ConfigError, match="measured with encoder 'other'"):
        load_baselines(calibration("other"), LANGUAGES, encoder().key)
    with pytest.raises(ConfigError, match="lacks zh"):
        load_baselines(calibration(languages=("en", "sw")), LANGUAGES, encoder().key)


@pytest.mark.parametrize("field", ["similarity", "references", "hybrid_form"])
def test_unknown_names_are_refused(field):
    with pytest.raises(ConfigError, match=f"reward.{field} is 'best'"):
        check_section("reward", RewardConfig(**{field: "best"}))


def test_a_run_is_not_gone_on_with_by_another_calibration(calibration):
    """A file of the same name may be measured anew: rewards would change their scale in the middle of a run. Languages
    that the run does not have do not matter, and a checkpoint of before, without the fingerprint, is gone on with."""
    now = calibration_fingerprint(calibration(), LANGUAGES)
    assert calibration_fingerprint(calibration(languages=(*LANGUAGES, "de")), LANGUAGES) == now
    other = calibration_fingerprint(calibration(baseline=0.6), LANGUAGES)
    assert other.keys() == now.keys() == {"calibration"} and other != now
    assert calibration_fingerprint(RewardConfig(), LANGUAGES) == {}
    with pytest.raises(CheckpointError, match="fingerprint of calibration"):
        check_same_experiment(Config(), Config(), with_later_fingerprints(now, other), other)
    check_same_experiment(Config(), Config(), with_later_fingerprints({}, other), other)
