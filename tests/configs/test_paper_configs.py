"""The paper's comparisons and ablations: each file loads, starts, and differs from the paper's run where it says so."""

import re

import pytest
from source_tree import ROOT

from pbrl_jax.config.serialize import from_json, to_json
from pbrl_jax.plan.roofline import USABLE, mesh_sizes
from pbrl_jax.plan.shapes import run_models
from pbrl_jax.plan.stages import estimate_stage
from pbrl_jax.run.assemble import check_start
from pbrl_jax.run.check import validate
from pbrl_jax.run.config_file import load_config, override

FILES = sorted(ROOT.glob("configs/paper/*.py"))
QWEN = "--policy.source Qwen/Qwen3-32B --train.prompts-per-step 32 --eval.batch-size 64"
#: Sections that each file changes.
CHANGES = {
    "alpha_sweep": set(),
    "curriculum": {"reward"},
    "dpo_mapo": {"dpo"},
    "encoder_swap": {"encoder"},
    "lora": {"lora", "optim", "train", "mesh"},
    "pivot_swap": {"pivot"},
    "ppo_outcome": {"reward", "algo"},
    "ppo_semantic": {"algo"},
    "reinforcepp": {"algo"},
    "seen_unseen": {"data"},
    "sft_samples": {"sft"},
    "sft_translated": {"sft"},
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_starts_on_its_devices_and_changes_what_it_says(file):
    config = load_config(str(file))
    check_start(config, 1 if file.stem == "lora" else 8)
    assert from_json(to_json(config), type(config)) == config
    paper = load_config(str(ROOT / "configs" / "llama31_8b_pbrlsvr.py"))
    changed = {name for name in vars(paper) if getattr(paper, name) != getattr(config, name)}
    assert changed == CHANGES[file.stem]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_says_how_with_both_models(file):
    doc = file.read_text("utf-8").split('"""')[1]
    assert re.search(rf"pbrl (train|sft|dpo) configs/paper/{file.name} --workdir", doc) and QWEN in doc
    assert "Hardware:" in doc and "Expected:" in doc
    larger = override(load_config(str(file)), QWEN.split(), "pbrl")
    validate(larger, 1 if file.stem == "lora" else 8)
    assert larger.policy.source == "Qwen/Qwen3-32B"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_values_are_marked(file):
    """Every changed value has its mark on the line, or stands below one for the whole call."""
    code = file.read_text("utf-8").split('"""')[2]
    for line in code.splitlines():
        if re.search(r'": ', line) and not re.search(r'"(packed|path|functions|data|name)":', line):
            assert "ASSUMED" in line or re.search(r"# ASSUMED: (all values|the paper's)", code), line


def test_every_experiment_has_its_command_in_the_docs():
    text = (ROOT / "docs" / "REPRODUCTION.md").read_text("utf-8")
    missing = [file.stem for file in FILES if f"configs/paper/{file.name}" not in text]
    assert not missing


@pytest.mark.parametrize("name, verb", [("sft_samples", "sft"), ("sft_translated", "sft"), ("dpo_mapo", "dpo")])
def test_the_plan_of_a_stage_in_its_docstring(name, verb):
    """Bytes of a device in each program, for both models, as the plan of that verb gives them by hand."""
    file = ROOT / "configs" / "paper" / f"{name}.py"
    doc, config = " ".join(file.read_text("utf-8").split('"""')[1].split()), load_config(str(file))
    assert f"pbrl plan configs/paper/{name}.py --topology h100:8 --verb {verb}" in doc
    large = override(config, [*QWEN.split(), "--mesh.fsdp", "2", "--mesh.tensor", "4"], name)
    for settings, part in ((config, doc.split("Qwen3-32B: 8")[0]), (large, doc.split("Qwen3-32B: 8")[1])):
        sizes = mesh_sizes(settings, 8)
        for need in estimate_stage(settings, run_models(settings), sizes, verb).values():
            assert f"{need.hbm_bytes / 1e9:.1f}" in part
            assert need.hbm_bytes < USABLE * (80e9 if settings is config else 141e9)
