"""The benchmark's own problems: in their languages, faithful, and attackable in every way."""

import importlib.util

from source_tree import ROOT

from pbrl_jax.eval.audit import MIN_PROBLEMS, is_faithful, unmade_attacks
from pbrl_jax.rewards.language import response_share
from pbrl_jax.text.langid import RIGHT_SHARE


def test_its_replies_are_faithful_and_in_their_languages():
    spec = importlib.util.spec_from_file_location("real_encoder_audit", ROOT / "benchmarks" / "real_encoder_audit.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    cases = benchmark.cases()
    codes = {case.prompt.language for case in cases}
    assert len(codes) == 10 and len(cases) >= MIN_PROBLEMS * len(codes)
    for case in cases:
        assert is_faithful(case.faithful, case.prompt), case.faithful
        for text in (case.faithful, case.prompt.question):
            assert response_share(text, case.prompt.language, (*codes, "en")) >= RIGHT_SHARE, text
    assert unmade_attacks(cases) == []
