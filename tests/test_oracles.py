"""Our functions against values and gradients computed by TRL, verl, OpenRLHF and others.

`tests/fixtures/oracles` (or the folder named by PBRL_ORACLES: another draw of the same cases) holds the inputs and what
the other libraries made of them. CHECKS maps a case, or a pattern of cases, to a comparison, NOT_COVERED the rest to
the reason; every case is in exactly one of them. To cover another case: write `check(case)`, and move its line.
"""

import contextlib
import fnmatch
from collections import Counter

import jax
import pytest
from algos import oracle_advantages, oracle_checks
from algos.oracle_checks import CASES

#: Model cases (hf.*, step.*, st.*) join here. Cases of hf_oracles.npz run in float32, the others in float64.
CHECKS = {**oracle_checks.CHECKS, **oracle_advantages.CHECKS}

OTHER_OBJECTIVE = "an objective that is not offered (see pbrl_jax.algos.surrogates for those that are)"
REJECTION = "rows or tokens rejected by a KL between sampler and trainer: not offered, weights are"
REWARD = "a reward of text, not an objective"
OTHER_ESTIMATOR = "a KL estimator that is not offered (k1, k2 and k3 are)"
MISLABELLED = "the stored values are those of k1 whichever estimator the case names, so there is nothing to compare"
MODEL = "needs a model: compared where the models are tested"

NOT_COVERED = {
    **{f"trl.loss.{kind}": OTHER_OBJECTIVE for kind in ("vespo",)},
    "trl.loss.*_top_entropy": "entropy-selected tokens: the threshold over a batch needs a second forward pass",
    "trl.loss.grpo_entropy_coef": "TRL's bonus is a token mean whatever the loss; ours is aggregated like the loss",
    "trl.loss.opsm": REJECTION,
    "trl.reward.*": REWARD,
    "verl.adv.grpo_singleton": "verl gives a group of one its raw reward; here it has no baseline and gets 0",
    "verl.adv.grpo_passk": "pass@k advantages are not offered",
    "verl.adv.remax": "needs a second, greedy rollout of every prompt",
    **{f"verl.loss.{kind}": OTHER_OBJECTIVE for kind in ("gmpo_geo_mean", "dppo_*")},
    **{f"verl.kl.{kind}{end}": OTHER_ESTIMATOR for kind in ("abs", "k1+", "k3+") for end in ("", "_extreme")},
    "verl.is.*_bn": "weights divided by their batch mean would tie microbatches together",
    "verl.rs.*": REJECTION,
    "verl.offpolicy_metrics": "perplexities of sampler and trainer are not logged; the log-prob gap is",
    "openrlhf.kl.k2": MISLABELLED,
    "openrlhf.kl.k3": MISLABELLED,
    "openrlhf.loss.token_tv_gate": REJECTION,
    **{f"{kind}.*": MODEL for kind in ("st", "comet", "hf", "step")},
}


def matching(table: dict, name: str) -> list[str]:
    return [pattern for pattern in table if fnmatch.fnmatchcase(name, pattern)]


COVERED = [name for name in CASES if matching(CHECKS, name)]


@pytest.mark.parametrize("name", COVERED)
def test_case(name):
    case = CASES[name]
    float32 = case.file == "hf_oracles.npz"
    with contextlib.nullcontext() if float32 else jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        CHECKS[matching(CHECKS, name)[0]](case)


def test_every_case_is_covered_or_has_a_reason(capsys):
    homes = {name: [t[p] for t in (CHECKS, NOT_COVERED) for p in matching(t, name)] for name in CASES}
    astray = {name: len(found) for name, found in homes.items() if len(found) != 1}
    assert not astray, f"cases without a line, or with more than one, in CHECKS and NOT_COVERED: {astray}"
    idle = [p for t in (CHECKS, NOT_COVERED) for p in t if not fnmatch.filter(CASES, p)]
    assert not idle, f"lines that match no case: {idle}"
    reasons = Counter(found[0] for name, found in homes.items() if name not in COVERED)
    with capsys.disabled():
        print(f"\noracles: {len(COVERED)} of {len(CASES)} cases covered; not covered:")
        for reason, count in reasons.most_common():
            print(f"  {count:3d}  {reason}")
    assert len(COVERED) + sum(reasons.values()) == len(CASES)
