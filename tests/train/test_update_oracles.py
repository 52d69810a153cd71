"""Three GRPO steps with AdamW on a tiny Qwen3, as TRL, transformers and torch computed them.

The reference's log-probs are given as numbers there, and so here: `row_outputs` hands them out in the reference's
place. Everything else is the update as it runs: policy forward over the shared prompt, objective, exact sums, clip,
AdamW.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algos.oracle_checks import CASES
from hf_weights import Weights, decoder_params, decoder_spec
from tiny_policy import largest_difference, quick_compiles, tiny_config  # noqa: F401

from pbrl_jax.core.records import PromptBatch, Rollout, TrainBatch
from pbrl_jax.train import optimizer, update
from pbrl_jax.train.programs import run_optimizer, update_context
from pbrl_jax.train.state import new_state
from pbrl_jax.train.trained import Frozen, Trained

SAMPLES = 4
TOLERANCE = 1e-4
METRIC_TOLERANCE = 1e-5


def config_of(case):
    given = dict(case.config)
    assert given.pop("decay_applies_to").startswith("all parameters")
    b1, b2 = given["betas"]
    return tiny_config(
        SAMPLES,
        given["max_completion_length"],
        algo={key: given[key] for key in ("loss_type", "beta", "use_bias_correction_kl", "epsilon", "epsilon_high")},
        rollout={"temperature": given["temperature"]},
        optim={
            "learning_rate": given["lr"], "b1": b1, "b2": b2,
            **{key: given[key] for key in ("eps", "weight_decay", "max_grad_norm")},
        },
        log={"entropy": True},
    )  # fmt: skip


def batch_of(case) -> TrainBatch:
    """One prompt per group, right-padded; responses as they are, which are right-padded already."""
    ids, mask = np.asarray(case.input("prompt_ids")), np.asarray(case.input("prompt_mask"))
    tokens = np.stack([np.roll(row, seen.sum()) for row, seen in zip(ids, mask, strict=True)])
    assert (tokens.reshape(-1, SAMPLES, tokens.shape[1]) == tokens[::SAMPLES, None]).all()
    lengths = mask.sum(axis=1)[::SAMPLES]
    row_lengths = np.asarray(case.input("completion_mask")).sum(axis=1)
    completions = np.asarray(case.input("completion_ids"))
    rollout = Rollout(
        jnp.asarray(completions, jnp.int32),
        jnp.asarray(row_lengths, jnp.int32),
        case.input("old_logps"),
        jnp.zeros(len(row_lengths), bool),
    )
    prompts = PromptBatch(
        jnp.asarray(tokens[::SAMPLES], jnp.int32), jnp.asarray(lengths, jnp.int32), jnp.arange(len(lengths))
    )
    return TrainBatch(
        prompts, rollout, case.input("advantages"), jnp.ones(len(row_lengths), bool), old_logp_BR=rollout.logp_BR
    )


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_three_steps(loss_type, monkeypatch):
    case = CASES[f"step.qwen3_{loss_type}"]
    spec, config, batch = decoder_spec(CASES["hf.qwen3"].config), config_of(case), batch_of(case)
    everything = {**{k: np.asarray(case.input(k)) for k in case.inputs}, **{k: case.output(k) for k in case.outputs}}
    params = jax.tree.map(jnp.asarray, decoder_params(Weights(everything), spec))
    given_reference = {"logp": case.input("ref_logps")}
    of_model = update.row_outputs

    def row_outputs(params, *args):
        return (params["logp"], None, None) if "logp" in params else of_model(params, *args)

    monkeypatch.setattr(update, "row_outputs", row_outputs)
    monkeypatch.setattr(optimizer, "decays", lambda path: True)

    @jax.jit
    def step(state):
        targets = update.Targets(batch.reward_B, update.loss_mask(batch, config))
        grads, metrics = update.gradient_sums(
            Trained(state.params), Frozen(given_reference), None, (batch, targets), update_context(spec, config)
        )
        state, more = update.optimizer_step(state, grads.policy, run_optimizer(config))
        return state, metrics | more

    state = new_state(params, optimizer.make_optimizer(config.optim))
    for index in range(case.config["steps"]):
        state, metrics = step(state)
        for name in ("loss", "grad_norm", "kl", "entropy", "clip_ratio/region_mean"):
            expected = case.output(name)[index]
            np.testing.assert_allclose(metrics[name], expected, rtol=1e-5, atol=METRIC_TOLERANCE, err_msg=name)
    final = decoder_params(Weights(everything, "final:"), spec)
    assert largest_difference(state.params, final) < TOLERANCE
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), final, params)
    assert min(jax.tree.leaves(moved)) > 10 * TOLERANCE
