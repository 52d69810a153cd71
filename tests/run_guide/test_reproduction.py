"""docs/REPRODUCTION.md from its prompts to its tables, on a CPU: every command in its order, with tiny random models in
the places of the released ones, two languages and small lengths and batches."""

import json
import re

import pytest
import shipped_models as made
from readme_commands import commands_of, fenced_blocks
from shared_programs import programs_made_once
from source_tree import ROOT
from tiny_endpoint import TinyEndpoint
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax import cli
from pbrl_jax.core.paths import read_json_lines
from pbrl_jax.run import assemble, audit, plan, train

PAGE = (ROOT / "docs" / "REPRODUCTION.md").read_text("utf-8").split("**7. Variants.**")[0]
HF = ROOT / "tests" / "fixtures" / "hf"
SMALL = {
    "pivot.max-completion-length": 4, "algo.num-generations": 2, "data.limit": 4, "data.languages": "en sw",
    "rollout.max-completion-length": 4, "reward.overlong-length": 3, "train.max-steps": 1, "train.prompts-per-step": 4,
    "train.microbatch-prompts": 0, "train.logprob-chunk": 64, "eval.limit": 1, "eval.batch-size": 4,
    "eval.languages": "sw", "log.compilation-cache": "", "mesh.fsdp": 1, "reward.hybrid-answer": "cosine",
    "reward.comet": "", "reward.translator": "",
}  # fmt: skip
"""Settings of the runs. The answer part is a cosine; with COMET, tests/configs/test_first_step.py takes that step."""
MORE = {
    "sft": {"sft.steps": 1, "sft.batch-size": 2, "sft.warmup-steps": 0, "rollout.max-completion-length": 40},
    "audit": {"limit": 3, "min-auc": 0, "algo.num-generations": 1}, "calibrate": {"limit": 10, "data.limit": 12},
}  # fmt: skip
STARTED = ("sft_samples", "ppo_semantic", "reinforcepp")
"""Runs that are tried alone, up to their data and batches: their steps are those of other runs here."""
EVALUATION = "--limit 1 --languages sw --shots 0 --max-completion-length 4 --compilation-cache".split()


def right_answers(_decoder, _params, questions, *_, **__) -> list[str]:
    """In the place of a random policy, which has no answers: the product of the numbers of each problem."""
    numbers = [[int(number) for number in re.findall(r"\d+", question)[:2]] for question in questions]
    return [f"Kuna masanduku {a} ya kalamu {b}, kwa hiyo {a} * {b} = {a * b}. Jibu ni {a * b}." for a, b in numbers]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(word of the page) -> the word of the test: its models and files lie in a temporary folder."""
    root, patch = tmp_path_factory.mktemp("paper"), pytest.MonkeyPatch()
    patch.setenv("PBRL_DATA", str(root / "data"))
    patch.setattr(plan, "tpu_devices", lambda _: None)  # nothing is compiled for a TPU
    patch.setattr(train, "make_evaluate", lambda *_: None)  # `pbrl eval` comes later
    for module in (assemble, audit):
        patch.setattr(module, "answer_texts", right_answers)
    made.write_data(root / "data")
    made.write_policy(root / "llama", made.LLAMA, made.LLAMA_TOKENS, made.LLAMA_TEMPLATE, "PreTrainedTokenizerFast")
    made.write_policy(root / "qwen", made.QWEN3, made.QWEN_TOKENS, made.QWEN_TEMPLATE, "Qwen2Tokenizer")
    made.write_encoder(root / "e5", "e5")
    (root / "questions_en.jsonl").write_text(json.dumps({"question": "Two and three?", "answer": "5"}) + "\n")
    choice = {"question": "1 + 1?", "option_0": "2", "option_1": "3", "answer": "A", "category": "math",
              "cot_content": "A: It is 2. The answer is (A)."}  # fmt: skip
    (root / "data" / "mmlu_prox" / "sw").mkdir(parents=True)
    for split, count in (("test", 1), ("validation", 5)):
        rows = json.dumps(choice) + "\n"
        (root / "data" / "mmlu_prox" / "sw" / f"{split}.jsonl").write_text(rows * count)
    known = {
        "meta-llama/Llama-3.1-8B-Instruct": root / "llama", "Qwen/Qwen3-32B": root / "qwen", "E5": root / "e5",
        "facebook/nllb-200-distilled-600M": HF / "m2m100", "questions_en.jsonl": root / "questions_en.jsonl",
        "prompts_bn_th.jsonl": root / "prompts.jsonl", "expert_responses.jsonl": root / "data/expert_responses.jsonl",
        "bn,th": "sw,de",
    }  # fmt: skip
    with TinyEndpoint(lambda _: "The product is 6. The answer is 6.").served() as endpoint:
        known |= {"http://localhost:8000/v1": endpoint.url}

        def of(word: str) -> str:
            if word.startswith("runs/"):
                return str(root / word)
            return str(ROOT / word if word.startswith("configs/") else known.get(word, word))

        yield of
    patch.undo()


def walked(words: list[str], place) -> list[str]:
    """A command of the page as the test types it."""
    verb, typed = words[1], [place(word) for word in words[1:]]
    if verb == "eval":
        return [*typed, *EVALUATION, ""]
    if verb in ("translate", "plan", "report"):
        return typed
    qwen = "qwen3" in words[2]
    sources = {"policy.source": place("Qwen/Qwen3-32B" if qwen else "meta-llama/Llama-3.1-8B-Instruct"),
               "encoder.source": place("E5")}  # fmt: skip
    if "--pivot.source" not in words:
        sources["pivot.file"] = place("expert_responses.jsonl")
    if "sft" in words[2]:
        sources["sft.translator"] = place("facebook/nllb-200-distilled-600M") if "translated" in words[2] else ""
    given = {**sources, **SMALL, **MORE.get(verb, {})}
    if "ppo_outcome" in words[2]:  # right answers alone
        given = {name: value for name, value in given.items() if not name.startswith("reward.")}
    for name, value in given.items():
        typed += [f"--{name}", *(str(value).split() if value != "" else [""])]
    typed += ["--train.no-packed", "--log.no-entropy", "--log.no-tensorboard"] * (verb == "train")
    return typed + ["--pivot.keep-wrong", *["--dry-run"] * any(name in words[2] for name in STARTED)]


def test_the_paper_is_walked_to_its_tables(place, capsys):
    commands = [list(command.words) for block in fenced_blocks(PAGE, "bash") for command in commands_of(*block)]
    verbs = [words[1] for words in commands]
    assert list(dict.fromkeys(verbs)) == [
        "translate", "pivots", "calibrate", "audit", "plan", "eval", "train", "sft", "report"
    ]  # fmt: skip
    with programs_made_once({}):
        for words in commands:
            assert cli.main(walked(words, place)) == 0, f"{' '.join(words)}: {capsys.readouterr().err[-3000:]}"
    for run in ("llama", "qwen3", "ppo_outcome"):
        (row,) = read_json_lines(place(f"runs/{run}") + "/metrics.jsonl")
        assert row["step"] == 1 and row["reward"] is not None
    for benchmark in ("mgsm", "mmlu"):
        with open(place(f"runs/llama_{benchmark}/eval.json")) as file:
            assert set(json.load(file)["against"]) == {f"{run}_{benchmark}" for run in ("base", "sft", "ppo")}
    with open(place("runs/llama_mgsm/comparison.html")) as file:
        assert "</html>" in file.read()
