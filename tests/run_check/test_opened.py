"""`--dry-run` opens what a configuration names, without weights; the devices of a run in its first line; completion."""

import json
import logging
import shutil
import subprocess

import jax
import pytest
from tiny_hf import hf_policy
from tiny_world import policy

from pbrl_jax import Config, cli, with_values
from pbrl_jax.core.errors import CheckpointError, ConfigError
from pbrl_jax.core.paths import work_dir
from pbrl_jax.core.version import __version__
from pbrl_jax.mesh import devices
from pbrl_jax.run import named_models
from pbrl_jax.run.check_verb import check_verb
from pbrl_jax.run.opened import opened
from pbrl_jax.weights.hf_export import export_policy
from pbrl_jax.weights.policies import save_policy

TINY = with_values(
    Config(), data={"path": "small", "languages": ("en", "sw"), "limit": 2}, rollout={"max_prompt_length": 300}
)


def look(verb: str, config: Config, workdir, **options) -> dict:
    """Setting -> what a dry run of a verb finds there."""
    return {entry.setting: entry for entry in opened(config, verb, work_dir(str(workdir)), options)}


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
    found = look("train", config, tmp_path / "run")
    assert found["data"].found == "4 prompts (en 2, sw 2)" and found["policy.source"].found.startswith("qwen3, ")
    assert found["rollout.max_prompt_length"].found.startswith("4 of 4 prompts fit, the longest of them has ")
    assert found["eval.source"].found == "not opened: PBRL_DATA is not set here"
    assert "No encoder in" in found["encoder.source"].problem
    assert "no file 'no.jsonl' yet" in found["pivot.file"].found
    short = with_values(config, rollout={"max_prompt_length": 3})
    entry = look("train", short, tmp_path / "run")["rollout.max_prompt_length"]
    assert "4 of 4 prompts are longer than 3 tokens" in entry.problem


def test_references_that_no_reward_reads_may_be_absent(tmp_path):
    """Where the verb samples and scores; `pbrl pivots` and translated examples are made of references."""
    (tmp_path / "rows.jsonl").write_text('{"question": "1 + 1?", "question_en": "1 + 1?", "language": "sw"}\n')
    table = {"source": "table", "path": str(tmp_path / "rows.jsonl"), "languages": ("sw",)}
    config = with_values(TINY, data=table, reward={"functions": ("repetition",)})
    for verb, source in (("train", "pivot"), ("dpo", "pivot"), ("sft", "samples"), ("sft", "translated")):
        entry = look(verb, with_values(config, sft={"source": source}), tmp_path / "run")["pivot.source"]
        assert bool(entry.problem) == (source == "translated"), (verb, source, entry)
    assert look("pivots", config, tmp_path / "run")["pivot.source"].problem


def test_an_adapter_is_opened_with_its_base(folder, tmp_path, monkeypatch):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": folder}))
    with pytest.raises(CheckpointError, match="holds adapter_config.json, but no adapter_model.safetensors"):
        named_models.policy(str(tmp_path))
    monkeypatch.setattr(named_models, "base_of", lambda _: folder)
    assert named_models.policy(str(tmp_path))[0] == f"a LoRA adapter for {folder}: {named_models.policy(folder)[0]}"


def test_a_policy_is_compared_with_lengths_and_tokens(folder, tmp_path):
    """As the verbs do when they load it; a dry run used to pass."""
    long = with_values(TINY, policy={"source": folder}, rollout={"max_prompt_length": 1 << 30})
    assert "more than the" in look("sft", long, tmp_path / "run")["policy.source"].problem
    own = str(tmp_path / "own")
    save_policy(policy()._replace(kept={"max_position_embeddings": 128}), own)
    found = look("train", with_values(TINY, policy={"source": own}), tmp_path / "run")
    assert "more than the 128 positions" in found["policy.source"].problem
    small = shutil.copytree(folder, tmp_path / "small")
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"vocab_size": 8}))
    found = look("train", with_values(TINY, policy={"source": str(small)}), tmp_path / "run")
    assert "vocab" in found["policy.source"].problem or "embedding" in found["policy.source"].problem


def test_a_dry_run_says_all_that_cannot_be_opened(capsys):
    words = ["train", "tiny_cpu", "--workdir", "unused", "--dry-run", "--devices", "1"]
    assert cli.main(words) == 0 and "data: 96 prompts (en 32, sw 32, zh 32)" in capsys.readouterr().out
    wrong = ["--data.source", "table", "--data.path", "gone.jsonl", "--policy.tokenizer", "gone.model"]
    assert cli.main([*words, *wrong]) == 1
    errors = capsys.readouterr().err
    assert "data: No file 'gone.jsonl'" in errors and "policy.tokenizer: " in errors


def test_each_verb_opens_what_it_reads(folder, tmp_path):
    rows, pairs, text = tmp_path / "rows.jsonl", tmp_path / "pairs.jsonl", tmp_path / "text.jsonl"
    rows.write_text('{"question": "2 + 2?", "response": "4", "language": "sw"}\n')
    pairs.write_text('{"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "language": "sw"}\n')
    text.write_text("".join(f'{{"lang": "sw", "src": "namba {n}", "en": "number {n}"}}\n' for n in range(60)))
    config = with_values(
        TINY, policy={"source": folder}, sft={"source": "file", "path": str(rows)}, dpo={"path": str(pairs)},
        translator={"path": str(text)},
    )  # fmt: skip
    work = tmp_path / "run"
    assert look("sft", config, work).keys() == {"sft.path", "policy.source"}
    assert look("dpo", config, work)["dpo.path"].found == "1 pairs of preference, of which 1 fit"
    assert look("translator", config, work)["translator.path"].found == "sw 10 pairs"
    assert look("calibrate", config, work, pairs=str(text))["--pairs"].found == "sw 60 pairs"
    assert look("encoder", config, work).keys() == {"data", "policy.source"}
    assert look("pivots", config, work)["pivot.source"].found.startswith("references (dataset): 2 of 2 kept")
    assert "No trained encoder in" in look("audit", config, work, replies="")["encoder.source"].problem
    assert not work.exists()


@pytest.mark.parametrize(
    ("verb", "arguments", "said"),
    [
        ("train", "--reward.functions gone:reward", "reward.functions: reward.functions names 'gone:reward', which"),
        ("train", "--reward.functions comet --reward.comet {empty} --reward.comet-wiring direct",
         "no hparams.yaml and no checkpoints/model.ckpt"),
        ("train", "--reward.functions translation --reward.translator {empty}", "reward.translator: No model in"),
        ("train", "--reward.similarity calibrated --reward.calibration gone.json", "'gone.json' cannot be read"),
        ("train", "--eval.contamination nothing", "Unknown benchmark of eval.contamination 'nothing'"),
        ("train", "--eval.path gone --train.eval-steps 2", "eval.source: "),
        ("train", "--data.source table --data.path {rows} --data.languages sw --data.english-share 0",
         "pivot.source: pivot.source is dataset, but 1 of 1 rows have no reference"),
        ("train", "--train.fused --reward.language-gate soft", "reward.language_gate soft (use tokens or off)"),
        ("sft", "--sft.source file --sft.path gone.jsonl", "sft.source file reads sft.path, which is 'gone.jsonl'"),
        ("sft", "--sft.source file --sft.path {empty}/bad.jsonl", "sft.path: "),
        ("sft", "--sft.source translated", "sft.source translated needs a translator"),
        ("sft", "--sft.batch-size 7 --devices 2", "sft.batch_size is 7; expected a multiple of mesh data * fsdp = 2"),
        ("sft", "--data.source table --data.path {rows} --data.languages sw", "sft.source: "),
        ("dpo", "--dpo.path {empty}/bad.jsonl", "dpo.path: "),
        ("encoder", "--contrastive.batch-size 9 --devices 2", "contrastive.batch_size is 9; expected a multiple"),
        ("translator", "--translator.path gone.jsonl", "translator.path: "),
        ("translator", "--translator.source {empty}", "translator.source: No model in"),
        ("audit", "--replies gone.jsonl", "--replies: No file 'gone.jsonl'"),
        ("audit", "--data.source table --data.path {rows}", "The audit needs faithful replies in each language"),
        ("train", "--train.prompts-per-step 4096", "train.prompts_per_step: A batch needs"),
        ("sft", "--sft.source file --sft.path {rows} --data.languages sw", "sft.path: "),
        ("encoder", "--data.source table --data.path {rows} --data.languages sw", "contrastive.batch_size: A batch of"),
        ("translator", "--data.source table --data.path {rows} --data.languages sw", "none is left to train on"),
        ("calibrate", "--pairs gone.jsonl", "--pairs: "),
        ("calibrate", "--data.source table --data.path {bare} --data.languages sw", "rows have no question_en"),
        ("calibrate", "--data.languages en", "needs parallel text of a language other than English"),
        ("calibrate", "--data.limit 1", "Calibration has 1 different pairs of"),
        ("audit", "--data.source table --data.path {rows} --data.languages sw --replies {rows}", "--replies: "),
        ("pivots", "--data.source table --data.path {bare} --data.languages sw --data.english-share 0 "
         "--pivot.source policy", "pivot.source: 1 of 1 rows have no English question"),
        ("train", "--pivot.source endpoint --endpoint.model m --endpoint.url localhost:8000/v1", "expected http://"),
        ("train", "--pivot.source endpoint --endpoint.model m --endpoint.url http://localhost:99999/v1",
         "is no address of a server: Port out of range"),
        ("train", "--rollout.engine vllm --rollout.vllm-address http://localhost:port", "is no address of a server"),
        ("train", "--workdir {rows}", "is a file. Name a folder."),
        ("train", "--devices 3 --mesh.tensor 3", "axis 'kv_heads' of size 2 does not divide over mesh axis 'tensor'"),
        ("dpo", "--devices 4 --mesh.tensor 4", "policy.preset: layers/key/kernel: axis 'kv_heads' of size 2 does not"),
        ("sft", "--lora.rank 4 --policy.preset tiny_qwen3_moe", "feed-forward is made of experts"),
        ("sft", "--sft.packed --sft.microbatch-size 6 --devices 4", "4 devices. Use --sft.microbatch-size 8."),
    ],
)  # fmt: skip
def test_a_dry_run_refuses_what_the_verb_refuses(tmp_path, capsys, verb, arguments, said):
    """Each of them used to pass, and the run failed later."""
    empty, rows = tmp_path / "empty", tmp_path / "rows.jsonl"
    empty.mkdir()
    (empty / "bad.jsonl").write_text('{"a": 1}\n')
    rows.write_text('{"question": "2 + 2?", "answer": "4", "question_en": "2 + 2?", "language": "sw"}\n')
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"question": "2 + 2?", "answer": "4", "language": "sw"}\n')
    words = arguments.format(empty=empty, rows=rows, bare=bare).split()
    work = tmp_path / "run"
    assert cli.main([verb, "tiny_cpu", "--workdir", str(work), "--dry-run", *words]) == 1
    assert said in capsys.readouterr().err and not work.exists()


def test_a_verb_that_samples_nothing_does_not_check_batches_of_prompts():
    """train.prompts_per_step, which it does not read, used to be refused."""
    config = with_values(TINY, train={"prompts_per_step": 4}, dpo={"path": "pairs.jsonl"})
    for verb in ("sft", "dpo", "encoder", "translator", "pivots"):
        check_verb(verb, config, 8)
    sampling = with_values(config, sft={"source": "samples"}, dpo={"path": ""})
    for verb in ("train", "sft", "dpo"):
        with pytest.raises(ConfigError, match="4 prompts of a microbatch cannot be shared evenly"):
            check_verb(verb, sampling, 8)
    with pytest.raises(ConfigError, match="does not fit 8 devices"):
        check_verb("pivots", with_values(config, mesh={"fsdp": 3}), 8)


@pytest.mark.parametrize("verb", ["train", "sft", "encoder", "translator", "pivots"])
def test_a_benchmark_of_another_shell_is_no_fault(tmp_path, monkeypatch, verb):
    """sft and translator used to refuse what the others said was not opened."""
    monkeypatch.delenv("PBRL_DATA", raising=False)
    found = look(verb, with_values(TINY, data={"source": "mgsm8k", "path": ""}), tmp_path / "run")
    assert not [entry for entry in found.values() if entry.problem]
    assert "not opened: PBRL_DATA is not set here" in {entry.found for entry in found.values()}


def test_a_hub_or_store_that_does_not_answer_is_no_fault(tmp_path, monkeypatch):
    class StoreError(Exception):
        """A store's own kind."""

    def no_hub(*_, **__):
        raise ConnectionError("Couldn't reach 'owner/rows' on the Hub")

    def no_store(*_):
        raise StoreError("no host\n when reading metadata of gs://b/checkpoints")

    monkeypatch.setattr("datasets.load_dataset", no_hub)
    rows = {"source": "table", "path": "owner/rows"}
    for verb, setting, values in (
        ("train", "data", {"data": rows}),
        ("sft", "sft.path", {"sft": {"source": "file", "path": "owner/rows"}}),
        ("dpo", "dpo.path", {"dpo": {"path": "owner/rows"}}),
    ):
        entry = look(verb, with_values(TINY, **values), tmp_path / "run")[setting]
        assert entry.found == "not opened: Couldn't reach 'owner/rows' on the Hub" and not entry.problem
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    entry = look("train", with_values(TINY, policy={"tokenizer": "owner/words"}), tmp_path / "run")["policy.tokenizer"]
    assert entry.found == "not opened: owner/words is on the hub, which cannot be reached now"
    monkeypatch.setattr("pbrl_jax.run.opened.refuse_other_experiment", no_store)
    assert look("train", TINY, tmp_path / "run")["--workdir"].found == (
        "not opened: its store cannot be reached now (no host)"
    )
    check_verb("sft", with_values(TINY, sft={"source": "file", "path": "gs://b/rows.jsonl"}), 1)


def test_a_dry_run_compares_with_the_work_directory(tmp_path, monkeypatch):
    def differs(config, work):
        raise CheckpointError(f"{work.root.name} holds another experiment")

    monkeypatch.setattr("pbrl_jax.run.opened.refuse_other_experiment", differs)
    assert look("train", TINY, tmp_path / "run")["--workdir"].problem == "run holds another experiment"


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


def test_packages_that_a_setting_needs_and_this_machine_lacks_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr("pbrl_jax.run.opened.installed", lambda package: False)
    config = with_values(TINY, log={"wandb": "x"}, lora={"rank": 2, "quantization": "nf4"})
    found = look("train", config, tmp_path / "run")
    assert found["log.wandb"].found == "not opened: wandb is not installed here"
    assert found["lora.quantization"].found == "not opened: qwix is not installed here"
    assert "log.mlflow" not in found and "lora.quantization" not in look("train", TINY, tmp_path / "run")
    assert "lora.quantization" in look("sft", config, tmp_path / "run")
