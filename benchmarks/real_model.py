"""A real model through every stage on a CPU: references, calibration, audit, GRPO, evaluation, export.

  python benchmarks/real_model.py --workdir runs/real --policy FOLDER --encoder FOLDER
  python benchmarks/real_model.py --workdir runs/real --policy FOLDER --encoder FOLDER --transformers PYTHON

Each stage is a command of its own, as a user types it; the table has its seconds, CPU-seconds and peak memory, and
W/stages.json and W/stages.md keep it. A stage that is finished is not run again. With --transformers, an interpreter
that has transformers and torch loads the export and must write, greedily, the text that `pbrl generate` writes. With
PBRL_DATA the trained policy is evaluated on four problems of MGSM in each language, else on none.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from pbrl_jax.core.paths import write_json_lines
from pbrl_jax.data.sources import quickstart
from pbrl_jax.run.config_file import load_config

CONFIG = "configs/real_model_cpu.py"
REPLIES = "replies.jsonl"
"""Faithful replies for the audit: a model of this size has no right response in Spanish."""
PROMPT = "What is the capital of France?"
TOKENS = 24
#: What transformers does with the export: greedy decoding of the chat prompt.
PEER = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
ids = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True,
                                    return_tensors="pt", return_dict=True)["input_ids"]
out = model.generate(ids, max_new_tokens=tokens, do_sample=False)
print(tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True).strip())
"""


class Stage(NamedTuple):
    """A command and its name in the table."""

    name: str
    words: list[str]


def stages_of(flags: argparse.Namespace, data: str) -> list[Stage]:
    """The commands, in order. `data`: folder of benchmark text; "" leaves MGSM out."""
    root = Path(flags.workdir)
    run, hf = str(root / "train"), str(root / "hf")
    sources = ["--policy.source", flags.policy, "--encoder.source", flags.encoder]
    store = ["--pivot.store", str(root / "pivots")]
    stages = [
        Stage("references", ["pivots", CONFIG, "--workdir", str(root / "references"), *sources, *store]),
        Stage("calibration", ["calibrate", CONFIG, "--workdir", str(root / "calibration"), *sources]),
        Stage("audit", ["audit", CONFIG, "--workdir", str(root / "audit"), "--limit", "16",
                        "--replies", str(root / REPLIES), "--pivot.source", "dataset", *sources]),  # fmt: skip
        Stage("training", ["train", CONFIG, "--workdir", run, *sources, *store]),
        Stage("export", ["convert", run, hf]),
    ]
    if data:
        evaluation = ["eval", "--policy", hf, "--benchmark", "mgsm", "--languages", "en,es", "--limit", "4",
                      "--style", "chat", "--max-completion-length", "128", "--batch-size", "8",
                      "--workdir", str(root / "mgsm")]  # fmt: skip
        stages.append(Stage("evaluation", evaluation))
    answer = ["generate", "--policy", hf, "--style", "chat_question", "--prompt", PROMPT,
              "--max-completion-length", str(TOKENS)]  # fmt: skip
    return [*stages, Stage("report", ["report", run]), Stage("answer", answer)]


def write_replies(file: Path) -> None:
    """The task's own responses to the prompts of the configuration."""
    config = load_config(CONFIG)
    data, problems = config.data, quickstart.problems("train", config.data.limit, config.train.seed)
    pairs = [(problem, code) for problem in problems for code in data.languages if code != "en"]
    write_json_lines(file, [{"id": quickstart.prompt(*pair).id, "language": pair[1],
                             "response": quickstart.response(*pair)} for pair in pairs])  # fmt: skip


def peak_bytes(process: int) -> int:
    """The peak memory of a running process. That of its resource usage would hold the memory of its parent."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def measured(command: list[str], log: Path) -> dict[str, float]:
    """Seconds, CPU-seconds and peak GB (looked at ten times a second, on Linux) of a command; SystemExit where it
    fails."""
    started, ended, peak = time.perf_counter(), 0, 0
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        while not ended:
            peak = max(peak, peak_bytes(process.pid))
            time.sleep(0.1)
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    if status:
        raise SystemExit(f"{' '.join(command)} failed; its output is in {log}.")
    return {"seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
            "peak_gb": round(peak / 2**30, 2)}  # fmt: skip


def markdown(rows: dict[str, dict[str, float]]) -> str:
    """The table of all stages."""
    lines = ["| stage | seconds | CPU-seconds | peak memory in GB |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {row['seconds']:.0f} | {row['cpu_seconds']:.0f} | {row['peak_gb']:.1f} |"
              for name, row in rows.items()]  # fmt: skip
    return "\n".join(lines) + "\n"


def answer_of(log: Path) -> str:
    """The answer in the output of `pbrl generate`: what stands behind the prompt."""
    return log.read_text().split(PROMPT)[-1].strip()


def compared(python: str, folder: str, ours: str) -> None:
    """Refuse an export to which transformers gives another answer (SystemExit)."""
    output = subprocess.run([python, "-c", PEER, folder, PROMPT, str(TOKENS)], capture_output=True, text=True)
    if output.returncode:
        raise SystemExit(f"transformers cannot load {folder}: {output.stderr[-2000:]}")
    theirs = output.stdout.strip()
    if theirs != ours:
        raise SystemExit(f"The export answers differently in transformers:\n{theirs!r}\nhere:\n{ours!r}")
    print(f"transformers gives the same answer: {ours!r}")


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Run what is not done yet; print and write the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--policy", required=True, help="folder or hub id of a small instruction-tuned model")
    parser.add_argument("--encoder", required=True, help="folder or hub id of a sentence encoder")
    parser.add_argument("--transformers", default="", help="an interpreter with transformers and torch")
    flags = parser.parse_args(arguments)
    root = Path(flags.workdir)
    root.mkdir(parents=True, exist_ok=True)
    write_replies(root / REPLIES)
    kept = root / "stages.json"
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    for stage in stages_of(flags, os.environ.get("PBRL_DATA", "")):
        if stage.name not in rows:
            print(f"{stage.name}: pbrl {' '.join(stage.words)}", flush=True)
            command = [sys.executable, "-m", "pbrl_jax", *stage.words]
            rows[stage.name] = measured(command, root / f"{stage.name}.log")
            kept.write_text(json.dumps(rows, indent=1))
    (root / "stages.md").write_text(markdown(rows))
    print(markdown(rows))
    if flags.transformers:
        compared(flags.transformers, str(root / "hf"), answer_of(root / "answer.log"))
    return rows


if __name__ == "__main__":
    main()
