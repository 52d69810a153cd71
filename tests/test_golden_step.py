"""The numbers of one tiny rollout and two updates, as they were when they were last looked at.

Oracles hold the parts to other people's numbers; this table holds the whole to its own: a change of a default, of a key
derivation, of what a mask covers shows here first. `python tests/test_golden_step.py` writes the table anew.
"""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from tiny_policy import quick_compiles, tiny_config, tiny_params, tiny_prompts  # noqa: F401

from pbrl_jax.core.records import TrainBatch
from pbrl_jax.models.specs import tiny_decoder
from pbrl_jax.rollout.generate import generate_samples
from pbrl_jax.rollout.sampling import sampling_params, step_key
from pbrl_jax.train.optimizer import make_optimizer
from pbrl_jax.train.programs import make_logprobs, make_update
from pbrl_jax.train.state import new_state
from pbrl_jax.train.trained import Frozen

TABLE = Path(__file__).parent / "fixtures" / "golden_step.json"
EOS = (1, 33, 65, 97, 129, 161, 193, 225)
WHEN_TO_CHANGE = """\
{name} was {expected} and is now {found}.
Find out which change did it before touching the table. It is right to write it anew (python tests/test_golden_step.py,
with PYTHONPATH=.) only when that change was meant to alter training for everyone: a default, the objective, how keys
are derived. A change of speed, layout or structure must leave every number as it is. Say in the commit which and why.
"""


def measured() -> dict[str, list[float]]:
    """Each metric after the first and the second update on one rollout, of which short responses are invalid."""
    spec = tiny_decoder()
    config = tiny_config(4, 8, algo={"beta": 0.05}, optim={"learning_rate": 1e-3}, train={"seed": 17})
    params, prompts = tiny_params(spec), tiny_prompts(spec, [3, 6, 2], 6)
    sampling = sampling_params(config.rollout.temperature, config.rollout.top_p, config.rollout.top_k, EOS)
    sampler = jax.jit(functools.partial(generate_samples, spec=spec, samples=4, max_length=8))
    rollout = sampler(params, prompts, step_key(config.train.seed, 0), sampling)
    used = jnp.arange(8)[None] < rollout.lengths_B[:, None]
    reward = jnp.where(used, rollout.tokens_BR % 2, 0).sum(axis=1) / rollout.lengths_B
    batch = TrainBatch(prompts, rollout, reward, rollout.lengths_B > 5)
    update, ref_params = make_update(spec, config), tiny_params(spec)
    state, steps = new_state(params, make_optimizer(config.optim)), []
    old_logp_BR = make_logprobs(spec, config)(state, Frozen(), batch)
    for rows in (batch, dataclasses.replace(batch, old_logp_BR=old_logp_BR)):
        state, metrics = update(state, ref_params, rows)
        steps.append(metrics)
    return {name: [float(metrics[name]) for metrics in steps] for name in sorted(steps[0])}


def test_golden_step():
    table, found = json.loads(TABLE.read_text()), measured()
    assert table.keys() == found.keys()
    for name, expected in table.items():
        message = WHEN_TO_CHANGE.format(name=name, expected=expected, found=found[name])
        assert found[name] == pytest.approx(expected, rel=1e-4, abs=1e-5), message


if __name__ == "__main__":
    TABLE.write_text(json.dumps(measured(), indent=2) + "\n")
