"""The counts by hand against programs that the TPU compiler makes: products within 15 %, bytes within 25 %."""

import dataclasses

import pytest

from pbrl_jax import Config, with_values
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.plan.analytic import estimate_step
from pbrl_jax.plan.chips import parse_topology
from pbrl_jax.plan.programs import PROGRAMS, resident_bytes
from pbrl_jax.plan.roofline import on_topology, sizes_on
from pbrl_jax.plan.shapes import run_models
from pbrl_jax.run.plan import tpu_devices

#: Four chips that share one layer as wide as those of Llama-3.1-8B, with a small vocabulary, and 8 groups of 8.
CONFIG = with_values(
    Config(), policy={"source": "meta-llama/Llama-3.1-8B", "dtype": "bfloat16", "remat": "full"},
    encoder={"source": "BAAI/bge-m3", "max_length": 512, "dtype": "bfloat16"}, mesh={"data": 1, "fsdp": 4},
    algo={"num_generations": 8, "beta": 0.001}, train={"prompts_per_step": 8, "microbatch_prompts": 4},
    rollout={"max_prompt_length": 256, "max_completion_length": 1024, "weights": "whole"},
)  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_for_a_tpu(name):
    pytest.importorskip("libtpu", reason="needs the TPU compiler: pip install -e '.[tpu]'")
    models, where = run_models(CONFIG), parse_topology("v5p:2x2x1")
    models = models._replace(
        policy=dataclasses.replace(models.policy, layers=1, vocab_size=8192),
        encoder=dataclasses.replace(models.encoder, layers=2, vocab_size=8192),
    )
    mesh = make_mesh(CONFIG.mesh, tpu_devices(where))
    found = PROGRAMS[name](CONFIG, models, mesh, resident_bytes(CONFIG, models, mesh))
    by_hand = estimate_step(CONFIG, on_topology(models, where), sizes_on(CONFIG, where))[name]
    assert by_hand.cost.flops == pytest.approx(found.cost.flops, rel=0.15)
    assert by_hand.cost.bytes == pytest.approx(found.cost.bytes, rel=0.25)
    if name != "update":  # what one layer keeps says nothing of many; all of them: docs/scaling.md
        assert by_hand.hbm_bytes == pytest.approx(found.hbm_bytes, rel=0.25)
