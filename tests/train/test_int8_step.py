"""A training step whose responses a policy in eight bits samples."""

import json

from tiny_policy import quick_compiles  # noqa: F401

from configs.tiny_cpu import get_config
from pbrl_jax import with_values
from pbrl_jax.core.paths import work_dir
from pbrl_jax.run.assemble import build_experiment
from pbrl_jax.train import hosted, loop


def test_the_correction_is_on(tmp_path, monkeypatch):
    """The step's log-probs are those of the policy; the sampler's are near, and their ratio weights the loss."""
    made = []
    make = hosted.make_generate
    monkeypatch.setattr(hosted, "make_generate", lambda spec, *rest: made.append(spec) or make(spec, *rest))
    config = with_values(
        get_config(), data={"limit": 4}, log={"tensorboard": False}, eval={"limit": 0},
        rollout={"weight_dtype": "int8", "kv_dtype": "int8"}, train={"max_steps": 1, "save_steps": 50, "packed": False},
    )  # fmt: skip
    experiment = build_experiment(config, work_dir(tmp_path / "run"))
    loop.train(experiment, quiet=True)
    (row,) = [json.loads(line) for line in experiment.work.metrics.read_text().splitlines()]
    assert [(spec.weight_dtype, spec.kv_dtype) for spec in made] == [("int8", "int8")]
    assert experiment.policy.spec.weight_dtype == "model", "the update and evaluation keep the policy as it is"
    assert 1e-6 < abs(row["sampling/importance_sampling_ratio/mean"] - 1) < 0.01
    assert 1e-4 < row["sampling/logp_difference/mean"] < 0.01
