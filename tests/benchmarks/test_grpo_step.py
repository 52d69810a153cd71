"""Our side of the speed comparison: its numbers are complete, its step is the shared workload, nothing recompiles."""

import json
import math
import os
import subprocess
import sys

import pytest
from grpo_step import main
from source_tree import ROOT

SCRIPT = ROOT / "benchmarks" / "grpo_step.py"
SIZES = {
    "vocab": 64, "d": 32, "layers": 2, "heads": 4, "kv-heads": 2, "head-dim": 8, "ffn": 32, "prompts": 2, "group": 4,
    "prompt-len": 8, "response-len": 8, "steps": 5, "seed": 3,
}  # fmt: skip
PHASES = ("rollout", "reward", "reference", "update")


def run(tmp_path, *more: str) -> dict:
    """The JSON that one process wrote."""
    result = tmp_path / "result.json"
    sizes = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    cheap = {"PYTHONPATH": path, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    child = subprocess.run(
        [sys.executable, str(SCRIPT), *sizes, *more, "--json", str(result)],
        cwd=tmp_path, env=os.environ | cheap, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(result.read_text())


def check_steps(result: dict) -> None:
    assert result["library"] == "pbrl_jax"
    assert result["compilations_after_warmup"] == 0
    assert result["peak_rss_bytes"] > 50e6
    assert len(result["steps"]) == SIZES["steps"] - 2
    for step in result["steps"]:
        assert set(step) == {"total", "cpu_seconds", "response_tokens", *PHASES, *(f"{phase}_cpu" for phase in PHASES)}
        assert all(math.isfinite(value) and value >= 0 for value in step.values())
        inside = step["rollout"] + step["reward"] + step["update"]
        assert 0 < inside <= step["total"], "a phase is counted that the step does not contain"
        assert result["first_step_seconds"] > step["total"], "the first step has the compilation"


def test_full_length_step(tmp_path):
    result = run(tmp_path)
    check_steps(result)
    assert result["flags"]["vocab"] == 64 and result["flags"]["seed"] == 3 and "logprob_chunk" not in result["flags"]
    rows = SIZES["prompts"] * SIZES["group"]
    assert [step["response_tokens"] for step in result["steps"]] == [rows * SIZES["response-len"]] * 3
    assert all(step["reference"] > 0 for step in result["steps"])


def test_ragged_step_without_reference(tmp_path):
    """EOS ends responses early, every bucket is compiled beforehand, and beta 0 has no reference pass."""
    result = run(tmp_path, "--mean-response", "2", "--ragged-prompts", "--beta", "0", "--entropy",
                 "--logprob-chunk", "16", "--remat", "none")  # fmt: skip
    check_steps(result)
    rows = SIZES["prompts"] * SIZES["group"]
    tokens = [step["response_tokens"] for step in result["steps"]]
    # Three steps of 8 rows, geometric with mean 2 (standard deviation 1.4) and cut at 8: 24 rows make 48 +- 7 tokens.
    assert all(rows <= count < rows * SIZES["response-len"] for count in tokens) and 27 < sum(tokens) < 69
    assert all(step["reference"] == 0 for step in result["steps"])


@pytest.mark.parametrize("flags", [["--mean-response", "1"], ["--steps", "2"]], ids=lambda flags: flags[0])
def test_contradicting_flags_are_refused(flags):
    with pytest.raises(SystemExit) as left:
        main(flags)
    assert isinstance(left.value.code, str) and flags[0] in left.value.code, "said on stderr, with status 1"
