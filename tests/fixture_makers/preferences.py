"""Losses of preference pairs as TRL computes them: `DPOTrainer._compute_loss` of TRL 1.16 on given log-probs.

    python -m fixture_makers.preferences          from the folder `tests`; needs torch and trl==1.16.0

The model is replaced by a function that returns the log-probs; each pair is a batch of its own, since TRL returns the
mean over a batch.
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
import trl
from trl import DPOTrainer

TARGET = Path(__file__).parents[1] / "fixtures" / "preferences.json"
LOSSES = ("sigmoid", "sigmoid_norm", "robust", "hinge", "ipo", "nca_pair", "sppo_hard", "apo_zero", "apo_down")
REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
METRICS = (*REWARDS, "logps/chosen", "logps/rejected")


class Accelerator:
    """One process."""

    device = torch.device("cpu")

    def gather_for_metrics(self, x):
        return x

    def gather(self, x):
        return x


def trainer(loss_type: str, beta: float, share: float, logp_2T: torch.Tensor, metrics) -> SimpleNamespace:
    def model(**_):
        zeros = torch.zeros_like(logp_2T)
        return SimpleNamespace(log_probs=logp_2T, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    model.training = True
    return SimpleNamespace(
        model=model, accelerator=Accelerator(), aux_loss_enabled=False, precompute_ref_logps=True, beta=beta,
        loss_types=[loss_type], loss_weights=[1.0], f_divergence_type="reverse_kl", label_smoothing=share,
        use_weighting=False, ld_alpha=None, _metrics={"train": metrics}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip


def pair(loss_type: str, beta: float, share: float, logp_2T, mask_2T, ref_2) -> dict:
    """One pair's loss and metrics; position 0 is the prompt's."""
    inputs = {
        "input_ids": torch.zeros_like(mask_2T), "attention_mask": torch.ones_like(mask_2T),
        "completion_mask": mask_2T, "ref_chosen_logps": ref_2[:1], "ref_rejected_logps": ref_2[1:],
    }  # fmt: skip
    metrics = defaultdict(list)
    one = trainer(loss_type, beta, share, logp_2T, metrics)
    loss = DPOTrainer._compute_loss(one, one.model, inputs, False)
    return {"loss": loss.item()} | {name: float(metrics[name][0]) for name in METRICS}


def main() -> None:
    assert trl.__version__ == "1.16.0", trl.__version__
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    lengths_P2 = torch.tensor([[3, 7], [1, 4], [6, 2], [5, 5]])
    P, T = len(lengths_P2), int(lengths_P2.max())
    mask_P2T = (torch.arange(T) < lengths_P2[..., None]).long()
    logp_P2T = -torch.rand(P, 2, T) * 3 * mask_P2T
    ref_P2 = logp_P2T.sum(-1) + torch.randn(P, 2) * 2
    cases = []
    for loss_type in LOSSES:
        for beta, share in ((0.1, 0.0), (0.7, 0.2)):
            share = share if loss_type == "robust" else 0.0
            found = [
                pair(loss_type, beta, share, logp_P2T[p], torch.nn.functional.pad(mask_P2T[p], (1, 0)), ref_P2[p])
                for p in range(P)
            ]
            columns = {name: [one[name] for one in found] for name in found[0]}
            cases.append({"loss_type": loss_type, "beta": beta, "label_smoothing": share} | columns)
    record = {
        "trl": trl.__version__, "logp_P2": logp_P2T.sum(-1).tolist(), "ref_logp_P2": ref_P2.tolist(),
        "lengths_P2": lengths_P2.tolist(), "cases": cases,
    }  # fmt: skip
    TARGET.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
