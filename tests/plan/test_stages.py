"""Plans of the supervised stages: compiled and by hand they agree."""

import jax
import pytest
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax import Config, MeshConfig, with_values
from pbrl_jax.config.supervised import STAGES
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.plan.analytic import Sizes
from pbrl_jax.plan.shapes import run_models
from pbrl_jax.plan.stages import compile_stage, estimate_stage, samples_first

TINY = with_values(
    Config(), encoder={"max_length": 16}, rollout={"max_prompt_length": 16, "max_completion_length": 24},
    data={"vocab_size": 512}, policy={"remat": "full"}, mesh={"data": 1}, dpo={"path": "scored.jsonl"},
    **dict.fromkeys(("sft", "contrastive"), {"batch_size": 8}),
)  # fmt: skip


@pytest.mark.parametrize("verb, microbatch", [("sft", 0), ("dpo", 2), ("encoder", 2)])
def test_products_agree_with_those_worked_by_hand(verb, microbatch):
    section = {"batch_size": 8, "microbatch_size": microbatch}
    config = with_values(TINY, **{STAGES[verb]: section})
    models, mesh = run_models(config), make_mesh(MeshConfig(1), jax.devices()[:1])
    found = compile_stage(config, models, mesh, verb, lambda text: None)
    by_hand = estimate_stage(config, models, Sizes(1, 1, 1), verb)
    assert found.keys() == by_hand.keys() == {"train"} and not samples_first(config, verb)
    assert found["train"].cost.flops == pytest.approx(by_hand["train"].cost.flops, rel=0.06)
    held = [need["train"].hbm_bytes - need["train"].temp_bytes for need in (found, by_hand)]
    assert held[0] == pytest.approx(held[1], rel=0.1)


def test_stages_that_sample_hold_the_start_policy_and_the_encoder():
    sampling = with_values(TINY, sft={"source": "samples"}, dpo={"path": ""})
    for verb in ("sft", "dpo"):
        needs = estimate_stage(sampling, run_models(sampling), Sizes(1, 1, 1), verb)
        assert list(needs) == ["generate", "reward", "train"]
