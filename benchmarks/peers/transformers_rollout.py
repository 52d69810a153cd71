"""Seconds of transformers' generate for rows of given lengths; the work comes on standard input, see ../rollout.py."""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import json
import sys
import time

import torch
import transformers
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

transformers.logging.set_verbosity_error()


class AtLengths(StoppingCriteria):
    """Each row ends at its own length."""

    def __init__(self, prompt: int, lengths: torch.Tensor) -> None:
        self.prompt, self.lengths = prompt, lengths

    def __call__(self, input_ids, scores, **_):
        return self.lengths <= input_ids.shape[1] - self.prompt


def main() -> None:
    work = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=getattr(torch, work["dtype"])).eval()
    model.generation_config.eos_token_id = None
    prompts, lengths, size = torch.tensor(work["prompts"]), torch.tensor(work["lengths"]), work["rows"]

    def run() -> None:
        for start in range(0, len(prompts), size):
            ids, ends = prompts[start : start + size], lengths[start : start + size]
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                max_new_tokens=int(ends.max()), pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([AtLengths(ids.shape[1], ends)]),
            )  # fmt: skip
            assert made.shape[1] == ids.shape[1] + ends.max()

    best = None
    for _ in range(work["rounds"]):
        start, processor = time.perf_counter(), time.process_time()
        run()
        spent = (time.perf_counter() - start, time.process_time() - processor)
        best = spent if best is None else min(best, spent)
    print(json.dumps({"seconds": best[0], "cpu_seconds": best[1]}))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
