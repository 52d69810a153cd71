"""`--dry-run` opens what a configuration names, without weights; the devices of a run in its first line; completion."""

import json
import logging
import shutil
import subprocess

import jax
import pytest
from tiny_hf import hf_policy

from pbrl_jax import Config, cli, with_values
from pbrl_jax.core.errors import CheckpointError, ConfigError
from pbrl_jax.core.version import __version__
from pbrl_jax.mesh import devices
from pbrl_jax.run import opened as run_opened
from pbrl_jax.run.opened import model, opened
from pbrl_jax.weights.hf_export import export_policy

TINY = with_values(
    Config(), data={"path": "small", "languages": ("en", "sw"), "limit": 2}, rollout={"max_prompt_length": 300}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder without its weights."""
    place = tmp_path_factory.mktemp("model")
    export_policy(hf_policy(), str(place))
    for file in place.glob("*.safetensors"):
        file.unlink()
    return str(place)


def test_everything_that_is_named_is_opened(folder, tmp_path, monkeypatch):
    config = with_values(
        TINY, policy={"source": folder}, encoder={"source": str(tmp_path)}, eval={"source": "mgsm"},
        pivot={"source": "file", "file": "no.jsonl"},
    )  # fmt: skip
    monkeypatch.delenv("PBRL_DATA", raising=False)
    found = {entry.setting: entry for entry in opened(config)}
    assert found["data"].found == "4 prompts (en 2, sw 2)" and found["policy.source"].found.startswith("qwen3, ")
    assert found["rollout.max_prompt_length"].found.startswith("4 of 4 prompts fit, the longest of them has ")
    assert found["eval"].found == "not opened: PBRL_DATA is not set here"
    assert "no config.json" in found["encoder.source"].problem and "no file 'no.jsonl' yet" in found["pivot.file"].found
    short = with_values(config, rollout={"max_prompt_length": 3})
    (entry,) = [entry for entry in opened(short) if entry.setting == "rollout.max_prompt_length"]
    assert "4 of 4 prompts are longer than 3 tokens" in entry.problem


def test_an_adapter_is_opened_with_its_base(folder, tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": folder}))
    with pytest.raises(CheckpointError, match="holds adapter_config.json, but no adapter_model.safetensors"):
        model(str(tmp_path))
    monkeypatch.setattr(run_opened, "base_of", lambda _: folder)
    assert model(str(tmp_path))[0] == f"a LoRA adapter for {folder}: {model(folder)[0]}"


def test_a_dry_run_says_all_that_cannot_be_opened(capsys):
    words = ["train", "tiny_cpu", "--workdir", "unused", "--dry-run", "--devices", "1"]
    assert cli.main(words) == 0 and "data: 96 prompts (en 32, sw 32, zh 32)" in capsys.readouterr().out
    wrong = ["--data.source", "table", "--data.path", "gone.jsonl", "--policy.tokenizer", "gone.model"]
    assert cli.main([*words, *wrong]) == 1
    errors = capsys.readouterr().err
    assert "data: No file 'gone.jsonl'" in errors and "policy.tokenizer: " in errors


def test_the_first_line_names_the_devices(monkeypatch):
    line = devices.devices_line()
    assert line.startswith(f"pbrl_jax {__version__}, jax {jax.__version__} on {jax.device_count()} cpu device")

    def warned():
        logging.getLogger("jax._src.xla_bridge").warning("An NVIDIA GPU may be present on this machine, but")
        return [jax.local_devices()[0]]

    monkeypatch.setattr(devices.jax, "devices", warned)
    assert devices.devices_line().splitlines()[1] == (
        "This machine has an NVIDIA GPU, which is not used: pip install -e '.[cuda]'"
    )


@pytest.mark.parametrize(("platform", "extra"), [("cuda", "cuda"), ("gpu,cpu", "cuda"), ("tpu", "tpu")])
def test_a_platform_that_is_missing_is_one_message(monkeypatch, platform, extra):
    def fails():
        raise RuntimeError(f"Unable to initialize backend '{platform}'\nand more")

    monkeypatch.setattr(devices.jax, "devices", fails)
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    with pytest.raises(ConfigError, match=rf"JAX_PLATFORMS={platform} .*pip install -e '.\[{extra}\]'"):
        devices.devices_line()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
def test_bash_completes_verbs_options_and_configs(capsys):
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out

    def completed(*words: str) -> list[str]:
        ask = f'COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; _pbrl; printf "%s\\n" "${{COMPREPLY[@]}}"'
        return subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True).stdout.split()

    assert completed("pbrl", "qui") == ["quickstart"]
    assert "--dry-run" in completed("pbrl", "train", "--d") and "paper/lora" in completed("pbrl", "train", "paper/l")
    assert "--show-prompt" in completed("pbrl", "generate", "--s")
    assert cli.main(["completion", "zsh"]) == 0 and "bashcompinit" in capsys.readouterr().out
