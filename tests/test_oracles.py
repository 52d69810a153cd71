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
from algos import oracle_checks
from algos.oracle_checks import CASES

#: Model cases (hf.*, step.*, st.*) join here. Cases of hf_oracles.npz run in float32, the others in float64.
CHECKS = {**oracle_checks.CHECKS}

OTHER_OBJECTIVE = "another objective than the clipped token-level surrogate"
OTHER_ADVANTAGE = "another advantage estimator than the group-relative ones"
SAMPLER_CORRECTION = "importance correction between sampler and trainer; here both share weights and code"
CRITIC = "needs a value function"
REWARD = "a reward or a penalty inside the reward, not an objective"
OTHER_ESTIMATOR = "a KL estimator that is not offered (k1, k2 and k3 are)"
MISLABELLED = "the stored values are those of k1 whichever estimator the case names, so there is nothing to compare"
MODEL = "needs a model: compared where the models are tested"

NOT_COVERED = {
    **{f"trl.loss.{kind}": OTHER_OBJECTIVE for kind in ("sapo", "cispo*", "vespo", "gspo*", "luspo")},
    "trl.loss.*_delta": "two-sided clip is not offered",
    "trl.loss.*_top_entropy": "entropy-selected tokens are not offered",
    "trl.loss.*_entropy_coef": "entropy bonus is not offered",
    "trl.loss.opsm": SAMPLER_CORRECTION,
    "trl.loss.*_tis_token": SAMPLER_CORRECTION,
    "trl.is.*": SAMPLER_CORRECTION,
    "trl.adv.*gdpo*": OTHER_ADVANTAGE,
    "trl.rloo.loss": OTHER_OBJECTIVE,
    "trl.reward.*": REWARD,
    "verl.adv.gae_*": CRITIC,
    "verl.adv.grpo_singleton": "verl gives a group of one its raw reward; here it has no baseline and gets 0",
    **{f"verl.adv.{kind}": OTHER_ADVANTAGE for kind in ("opo", "gpg", "grpo_passk", "reinforce_plus_plus*", "remax")},
    "verl.loss.vanilla_tis": SAMPLER_CORRECTION,
    **{f"verl.loss.{kind}": OTHER_OBJECTIVE for kind in ("gspo_*", "sapo", "cispo", "gmpo_geo_mean", "gpg", "dppo_*")},
    "verl.value_loss.*": CRITIC,
    **{f"verl.kl.{kind}{end}": OTHER_ESTIMATOR for kind in ("abs", "k1+", "k3+") for end in ("", "_extreme")},
    "verl.kl.adaptive_controller": "beta is constant",
    "verl.rewards_with_kl": REWARD,
    "verl.is.*": SAMPLER_CORRECTION,
    "verl.rs.*": SAMPLER_CORRECTION,
    "verl.offpolicy_metrics": SAMPLER_CORRECTION,
    "openrlhf.kl.k2": MISLABELLED,
    "openrlhf.kl.k3": MISLABELLED,
    "openrlhf.loss.dual_clip": "two-sided clip is not offered",
    "openrlhf.loss.gspo": OTHER_OBJECTIVE,
    **{
        f"openrlhf.loss.{kind}": SAMPLER_CORRECTION
        for kind in ("tis_token_clip", "icepop_token_mask", "seq_mask", "token_tv_gate")
    },
    "openrlhf.value_loss.*": CRITIC,
    "openrlhf.compute_reward": REWARD,
    "openrlhf.gae": CRITIC,
    "openrlhf.adv.gae": CRITIC,
    "openrlhf.cumulative_returns": OTHER_ADVANTAGE,
    "openrlhf.adv.reinforce*": OTHER_ADVANTAGE,
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
