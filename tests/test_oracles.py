"""Our functions against values and gradients computed by TRL, verl, OpenRLHF and others.

`tests/fixtures/oracles` (or the folder named by PBRL_ORACLES: another draw of the same cases) holds the inputs and what
the other libraries made of them. CHECKS maps a case, or a pattern of cases, to a comparison, ELSEWHERE to the test file
that compares it with a model or a reward, NOT_COVERED the rest to the reason; every case is in exactly one of them. To
cover another case: write `check(case)`, and move its line.
"""

import fnmatch
from collections import Counter
from pathlib import Path

import jax
import pytest
from algos import oracle_advantages, oracle_checks
from algos.oracle_checks import CASES

CHECKS = {**oracle_checks.CHECKS, **oracle_advantages.CHECKS}

OTHER_OBJECTIVE = "an objective that is not offered (see pbrl_jax.algos.losses for those that are)"
REJECTION = "rows or tokens rejected by a KL that is no bound on their ratio: not offered"
OTHER_ESTIMATOR = "a KL estimator that is not offered (k1, k2 and k3 are)"
MISLABELLED = "the stored values are those of k1 whichever estimator the case names, so there is nothing to compare"

ELSEWHERE = {
    "trl.reward.*": "rewards/test_shaping.py",
    "st.*": "models/test_oracle_models.py",
    "comet.*": "models/test_comet.py",
    "step.qwen3_*": "train/test_update_oracles.py",
    **{f"hf.{name}": "models/test_oracle_models.py" for name in ("llama", "qwen2", "qwen3*", "bert", "xlmr")},
    "hf.m2m100*": "models/test_m2m100.py",
}
NOT_COVERED = {
    **{f"trl.loss.{kind}": OTHER_OBJECTIVE for kind in ("vespo",)},
    "trl.loss.*_top_entropy": "entropy-selected tokens: the threshold over a batch needs a second forward pass",
    "trl.loss.opsm": REJECTION,
    "verl.adv.grpo_singleton": "verl gives a group of one its raw reward; here it has no baseline and gets 0",
    "verl.adv.grpo_passk": "pass@k advantages are not offered",
    "verl.adv.remax": "needs a second, greedy rollout of every prompt",
    **{f"verl.loss.{kind}": OTHER_OBJECTIVE for kind in ("gmpo_geo_mean", "dppo_*")},
    **{f"verl.kl.{kind}{end}": OTHER_ESTIMATOR for kind in ("abs", "k1+", "k3+") for end in ("", "_extreme")},
    "verl.is.*_bn": "weights divided by their batch mean would tie microbatches together",
    "verl.rs.*k3*": REJECTION,
    "verl.offpolicy_metrics": "perplexities of sampler and trainer are not logged; the log-prob gap is",
    "openrlhf.kl.k2": MISLABELLED,
    "openrlhf.kl.k3": MISLABELLED,
    "openrlhf.loss.token_tv_gate": REJECTION,
}


def matching(table: dict, name: str) -> list[str]:
    return [pattern for pattern in table if fnmatch.fnmatchcase(name, pattern)]


COVERED = [name for name in CASES if matching(CHECKS, name)]


@pytest.mark.parametrize("name", COVERED)
def test_case(name):
    case = CASES[name]
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        CHECKS[matching(CHECKS, name)[0]](case)


def test_every_case_is_covered_or_has_a_reason(capsys):
    tables = (CHECKS, ELSEWHERE, NOT_COVERED)
    homes = {name: [t[p] for t in tables for p in matching(t, name)] for name in CASES}
    astray = {name: len(found) for name, found in homes.items() if len(found) != 1}
    assert not astray, f"cases without a line, or with more than one, in the tables: {astray}"
    idle = [p for t in tables for p in t if not fnmatch.filter(CASES, p)]
    assert not idle, f"lines that match no case: {idle}"
    for pattern, file in ELSEWHERE.items():
        assert f'"{pattern.rstrip("*")}' in (Path(__file__).parent / file).read_text("utf-8"), (pattern, file)
    elsewhere = Counter(found[0] for name, found in homes.items() if matching(ELSEWHERE, name))
    reasons = Counter(found[0] for name, found in homes.items() if matching(NOT_COVERED, name))
    covered = len(COVERED) + elsewhere.total()
    with capsys.disabled():
        print(f"\noracles: {covered} of {len(CASES)} cases covered: {len(COVERED)} here,")
        for file, count in elsewhere.items():
            print(f"  {count:3d}  in {file}")
        print(f"deliberately not covered: {reasons.total()}")
        for reason, count in reasons.most_common():
            print(f"  {count:3d}  {reason}")
    assert covered + reasons.total() == len(CASES)
