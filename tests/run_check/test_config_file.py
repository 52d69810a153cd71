"""Experiment files in YAML, and shipped configs by name."""

import pytest
from source_tree import ROOT

from pbrl_jax import ConfigError
from pbrl_jax.run.config_file import load_config, shipped_configs


def test_a_shipped_config_has_a_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = shipped_configs()
    assert {"quickstart", "tiny_cpu", "paper/lora", "machines/llama31_8b_h200"} <= set(found)
    by_file = load_config(str(ROOT / "configs" / "tiny_cpu.py"))
    assert by_file == load_config("tiny_cpu") == load_config("configs/tiny_cpu.py")
    with pytest.raises(ConfigError, match="name of a shipped one.*Did you mean 'tiny_cpu'"):
        load_config("tiny_cpus")


def test_yaml_changes_the_defaults_or_another_config(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: tiny_cpu\noptim: {learning_rate: 1e-4}\ndata: {languages: [en, no], thinking: off}\n")
    config, base = load_config(str(file)), load_config("tiny_cpu")
    assert (config.optim.learning_rate, config.data.languages, config.data.thinking) == (1e-4, ("en", "no"), "off")
    assert config.algo == base.algo and config.data.limit == base.data.limit == 32
    other = tmp_path / "other.yml"
    other.write_text("base: mine.yaml\ntrain: {max_steps: 9}\n")
    assert load_config(str(other)).optim.learning_rate == 1e-4 and load_config(str(other)).train.max_steps == 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {max_step: 2}", "Unknown key 'train.max_step'"),
        ("trian: {}", "Unknown section 'trian'.*Did you mean 'train'"),
        ("train: 3", "Section 'train' is 3"),
        ("train: {max_steps: two}", 'Found "two" .*expected int'),
        ("train: {max_steps: 1, max_steps: 2}", "'max_steps' stands twice"),
        ("a: [", "is not YAML"),
        ("- 1", "holds a list"),
        ("base: bad.yaml", "leads back to this file"),
        ("base: nope", "No config at 'nope'"),
    ],
)
def test_yaml_that_is_refused(text, message, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as refused:
        load_config(str(file))
    assert "written by" not in str(refused.value), "no version wrote what a user types"
