"""docs/guide_one_gpu.md from its prompts to its comparison, on a CPU: every command, with a tiny random Llama and E5 in
the places of the released models, and small lengths and batches."""

import json

import pytest
import shipped_models as made
from readme_commands import commands_of, fenced_blocks
from source_tree import ROOT
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax import cli
from pbrl_jax.core.paths import read_json_lines
from pbrl_jax.run import assemble

PAGE = (ROOT / "docs" / "guide_one_gpu.md").read_text("utf-8").split("## Checks on a new GPU")[0]
CONFIG_VERBS = ("pivots", "train")
SMALL = {
    "pivot.max-completion-length": 4, "algo.num-generations": 2, "data.limit": 2,
    "rollout.max-completion-length": 4, "train.max-steps": 1, "train.prompts-per-step": 4, "eval.limit": 1,
    "eval.batch-size": 4, "eval.languages": "sw", "train.logprob-chunk": 64, "log.compilation-cache": "",
}  # fmt: skip
"""Settings of the guide's runs."""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """(word of the guide) -> the word of the test: its models and files lie under tmp_path."""
    monkeypatch.setenv("PBRL_DATA", str(tmp_path / "data"))
    said = "It is 20. The answer is 20."  # a random policy has no answers
    monkeypatch.setattr(assemble, "answer_texts", lambda _decoder, _params, asked, *_, **__: [said] * len(asked))
    made.write_data(tmp_path / "data")
    made.write_policy(tmp_path / "llama", made.LLAMA, made.LLAMA_TOKENS, made.LLAMA_TEMPLATE, "PreTrainedTokenizerFast")
    made.write_encoder(tmp_path / "e5", "e5")

    def of(word: str) -> str:
        if word.startswith("runs/"):
            return str(tmp_path / word)
        known = {"meta-llama/Llama-3.2-1B-Instruct": tmp_path / "llama", "configs/own_jsonl.py": ROOT / word}
        return str(known.get(word, tmp_path / "data" / word if word == "my_prompts.jsonl" else word))

    return of


def walked(words: list[str], place) -> list[str]:
    """A command of the guide as the test types it. The three trainings that it offers get a run each."""
    kind = "".join(f"_{name}" for name, word in (("lora", "--lora.rank"), ("nf4", "nf4")) if word in words)
    verb, typed = words[1], [place(word + kind if word.startswith("runs/") else word) for word in words[1:]]
    if verb in CONFIG_VERBS:
        models = {"policy.source": place("meta-llama/Llama-3.2-1B-Instruct"), "encoder.source": place("runs/../e5")}
        typed += [str(word) for name, value in {**models, **SMALL}.items() for word in (f"--{name}", value)]
        typed += ["--pivot.keep-wrong"]
    if verb == "eval":
        typed += ["--limit", "1", "--languages", "sw", "--max-completion-length", "4", "--compilation-cache", ""]
    return typed


def test_the_guide_is_walked_to_its_end(place, capsys):
    commands = [command.words for block in fenced_blocks(PAGE, "bash") for command in commands_of(*block)]
    ours = [list(words) for words in commands if words[0] == "pbrl" and words[1] != "harness"]
    verbs = [words[1] for words in ours]
    assert verbs == ["pivots", *["train"] * 4, "report", "convert", "eval", "eval", "report"], "all steps of the page"
    for words in ours:
        assert cli.main(walked(words, place)) == 0, f"{' '.join(words)}: {capsys.readouterr().err}"
    for run in ("own", "own_lora", "own_lora_nf4"):
        (row,) = read_json_lines(place(f"runs/{run}") + "/metrics.jsonl")[:1]
        assert row["step"] == 1 and row["reward"] is not None
    with open(place("runs/mgsm_after") + "/eval.json") as file:
        assert set(json.load(file)["against"]) == {"mgsm_before"}
    for run in ("own", "mgsm_after"):
        with open(place(f"runs/{run}/report.html")) as file:
            assert "</html>" in file.read()
