"""Every experiment file loads, validates on the devices it is for and on one, and survives its own JSON."""

import io
import re
import tokenize

import numpy as np
import pytest
from source_tree import ROOT
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import encoder, problem_prompts, reward_inputs

from pbrl_jax.cli import main
from pbrl_jax.config.serialize import from_json, to_json
from pbrl_jax.config.tree import with_values
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.data.sources import SOURCES
from pbrl_jax.rewards.combine import RewardAssets, make_reward
from pbrl_jax.run.assemble import check_start
from pbrl_jax.run.check import validate
from pbrl_jax.run.config_file import load_config

FILES = sorted(ROOT.glob("configs/*.py"))
HF = ROOT / "tests" / "fixtures" / "hf"
PAPER = ("llama31_8b_pbrlsvr", "qwen3_32b_pbrlsvr")

#: Devices each experiment is for, beside one.
DEVICES = {name: 8 for name in PAPER}

#: Lines of the paper's runs that need no mark: what the paper, or a summary of it, states.
STATED = re.compile(r'\b(source="(meta-llama|Qwen)/|source="file"|source="mgsm"|functions=|reward_weights=|parts='
                    r'|hybrid_answer="comet"|name="grpo")')  # fmt: skip


def named(name: str):
    return load_config(str(ROOT / "configs" / f"{name}.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_config_starts_and_round_trips(file):
    config = load_config(str(file))
    check_start(config, 1)
    validate(config, DEVICES.get(file.stem, 1))
    assert config.data.source in SOURCES
    assert from_json(to_json(config), type(config)) == config


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_docstring_says_how_and_what(file):
    first = file.read_text("utf-8").split('"""')[1]
    assert re.search(rf"pbrl \w+ configs/{re.escape(file.name)}\s+--workdir", first)
    for heading in ("Command:", "Hardware:", "Expected:"):
        assert heading in first, f"{file.name} does not say {heading}"


def test_unstated_values_are_marked():
    """Each `name=value` of the paper's run has its mark, or is a value that the paper gives."""
    lines = (ROOT / "configs" / f"{PAPER[0]}.py").read_text("utf-8").splitlines()
    values = [line for line in lines[lines.index("PIVOT = PivotConfig(") :] if re.search(r"=.*,\s*(#|$)", line)]
    values = [line for line in values if not re.fullmatch(r"\s*(\w+)=([A-Z]+),", line)]
    assert len(values) > 30
    for line in values:
        comments = [t.string for t in tokenize.generate_tokens(io.StringIO(line.strip()).readline)
                    if t.type == tokenize.COMMENT] if "#" in line else []  # fmt: skip
        is_languages_of_mgsm = 'languages=("en", "bn"' in line
        assert STATED.search(line) or is_languages_of_mgsm or any("ASSUMED" in c for c in comments), line


def test_what_the_larger_run_changes_is_marked_too():
    lines = (ROOT / "configs" / f"{PAPER[1]}.py").read_text("utf-8").splitlines()
    changes = [(before, line) for before, line in zip(lines, lines[1:], strict=False) if '={"' in line]
    assert len(changes) == 3
    for before, line in changes:
        assert "ASSUMED" in before + line or line.strip().startswith('policy={"source"'), line


def test_paper_runs_differ_only_in_the_policy_and_what_its_size_asks_for():
    small, large = (named(name) for name in PAPER)
    for section in ("pivot", "encoder", "reward", "algo", "rollout", "data", "optim", "mesh"):
        assert getattr(small, section) == getattr(large, section), section


@pytest.mark.parametrize("name", PAPER)
def test_paper_runs_have_the_papers_reward_above_a_floor(name):
    """COMET on the answer, a similarity of the reasoning; with small models in their places a batch is scored."""
    config = named(name)
    assert (config.reward.hybrid_answer, config.reward.functions[0]) == ("comet", "hybrid")
    assert config.reward.hybrid_reasoning in ("cosine", "alignment", "translation")
    small = {"comet": str(HF / "comet_regression"), "translator": str(HF / "m2m100"), "overlong_length": 30}
    prompt = problem_prompts(1, ("sw",))[0]
    texts = [prompt.question + " Jibu ni 20.", " ".join(["Jibu ni 20."] * 9), prompt.reference.text, ""]
    reward = make_reward(with_values(config, reward=small).reward, RewardAssets(encoder(), ("en", "sw"), None))
    found = reward(reward_inputs([prompt] * 4, texts, encoder()))
    assert found.valid_B.all() and set(found.each) == {"hybrid", "repetition", "overlong"}
    assert found.value_B[:2].min() > found.value_B[2] == found.value_B[3] == np.float32(-0.2)


@pytest.mark.parametrize("name", PAPER)
def test_dry_run_for_another_machine(name, capsys):
    command = ["train", str(ROOT / "configs" / f"{name}.py"), "--workdir", "unused", "--dry-run"]
    if name == PAPER[0]:  # for this machine, whatever the model
        assert main(command) == 0
    assert main([*command, "--devices", "8"]) == 0
    assert "fsdp 8 x tensor 1 on 8 device(s)" in capsys.readouterr().out
    assert main([*command, "--devices", "3"]) == 1
    assert "devices" in capsys.readouterr().err


def test_devices_is_for_dry_runs_only(tmp_path, capsys):
    command = ["train", str(ROOT / "configs" / "tiny_cpu.py"), "--workdir", str(tmp_path / "w")]
    assert main([*command, "--devices", "8"]) == 1
    assert "--dry-run" in capsys.readouterr().err
    assert main([*command, "--devices", "0", "--dry-run"]) == 1
    assert not (tmp_path / "w").exists()


def test_gsm8k_config_covers_the_languages_of_its_data():
    from pbrl_jax.data.sources import mgsm, mgsm8k

    config = named("gsm8k_multilingual_tiny")
    assert set(config.data.languages) == set(mgsm8k.LANGUAGES)
    assert set(config.eval.languages) == set(mgsm.LANGUAGES)


def test_wrong_mesh_is_refused():
    with pytest.raises(ConfigError, match="cannot be shared evenly"):
        check_start(named(PAPER[0]), 16)
