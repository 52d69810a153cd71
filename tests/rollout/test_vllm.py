"""vLLM as the sampler, against a stand-in: what is asked and sent, answers that are none, servers that do not respond,
and a training. `test_vllm_server.py` runs a real server."""

import dataclasses
import functools
import itertools
import json
import threading
import time

import jax
import numpy as np
import pytest
from shared_programs import programs_made_once
from tiny_hf import hf_tokenizer
from tiny_policy import quick_compiles, tiny_config, tiny_params, tiny_prompts, tiny_spec  # noqa: F401  the first is a fixture
from tiny_vllm import MODELS, RECORDED, TinyVllm, choice

from pbrl_jax import Config, export_policy, run_training, with_values
from pbrl_jax.core.errors import ConfigError, EndpointError
from pbrl_jax.core.stopping import Interrupted
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.rollout import vllm, vllm_server
from pbrl_jax.rollout.sampling import step_key
from pbrl_jax.rollout.vllm import VllmSampler
from pbrl_jax.rollout.vllm_server import read_group
from pbrl_jax.run.check import validate
from pbrl_jax.weights.policies import Policy

G, R, P = 3, 6, 2
ASKED, LOADED = "/v1/completions", ["/collective_rpc", "/reset_prefix_cache", "check"]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(vllm_server, "RETRY_SECONDS", 0.05)


@functools.cache
def policy() -> Policy:
    spec = tiny_spec(vocab_size=272)
    return Policy(spec, tiny_params(spec), hf_tokenizer(), "tiny")


@pytest.fixture
def server():
    return TinyVllm(policy())


def sampler(address: str, folder, timeout: float = 20.0, **rollout) -> VllmSampler:
    settings = {"engine": "vllm", "vllm_address": address, "vllm_folder": str(folder), "vllm_timeout": timeout}
    config = tiny_config(G, R, rollout={"max_prompt_length": 8, **settings, **rollout})
    return VllmSampler(policy(), config, make_mesh(config.mesh), "pbrl_run")


def prompts():
    return tiny_prompts(policy().spec, [4, 7], 8)


def sampled(made: VllmSampler, params=None, **options):
    return made.rollout(policy().params if params is None else params, prompts(), step_key(3, 0), **options)


def test_a_rollout(server, tmp_path):
    """Prompts go out as ids with every setting given; rows come back as they were drawn; tokens do not depend on the
    order of prompts."""
    with server.served() as address:
        server.processed = False
        made = sampler(address, tmp_path, top_k=5)
        server.seen.clear()
        rollout = sampled(made)
        bodies = [body for path, body in server.seen if path == ASKED]
        batch = prompts()
        turned = jax.tree.map(lambda x: x[::-1], batch)
        other = made.rollout(policy().params, turned, step_key(3, 0))
    rows = zip(np.asarray(batch.tokens_PT), np.asarray(batch.lengths_P), strict=True)
    bodies = sorted(bodies[:P], key=lambda body: len(body["prompt"]))
    assert [body["prompt"] for body in bodies] == [row[:length].tolist() for row, length in rows]
    settings = {key: bodies[0][key] for key in ("model", "n", "max_tokens", "temperature", "top_p", "top_k", "min_p")}
    assert settings == {"model": "policy", "n": G, "max_tokens": R, "temperature": 1.0, "top_p": 1.0, "top_k": 5,
                        "min_p": 0.0}  # fmt: skip
    assert bodies[0]["stop_token_ids"] == list(policy().tokenizer.eos_ids) and bodies[0]["ignore_eos"]
    assert len({body["seed"] for body in bodies}) == P and all(0 <= body["seed"] < 2**31 for body in bodies)
    assert set(RECORDED["group"]["request"]) == set(bodies[0]), "the request that a real server answered"
    for p, body in enumerate(bodies):
        for g in range(G):
            row, expected = p * G + g, server.sampled(g, body)["token_ids"]
            assert rollout.lengths_B[row] == len(expected)
            assert np.asarray(rollout.tokens_BR)[row].tolist() == expected + [0] * (R - len(expected))
            assert np.asarray(rollout.logp_BR)[row].tolist() == [-1.0] * len(expected) + [0.0] * (R - len(expected))
            assert bool(rollout.truncated_B[row]) == (expected[-1] not in policy().tokenizer.eos_ids)
    swapped = np.asarray(other.tokens_BR).reshape(P, G, R)[::-1].reshape(-1, R)
    assert np.array_equal(swapped, np.asarray(rollout.tokens_BR))


def test_weights_are_sent_before_the_first_rollout_with_them(server, tmp_path):
    with server.served() as address:
        made = sampler(address, tmp_path)
        server.paths()
        sampled(made)
        assert server.paths() == [*LOADED, ASKED, ASKED]
        sampled(made)
        assert server.paths() == [ASKED, ASKED], "the server has them"
        changed = jax.tree.map(lambda x: x + 0.5, policy().params)
        sampled(made, changed)
        assert server.paths() == [*LOADED, ASKED, ASKED]
        assert not list(tmp_path.iterdir()), "no weights are left in memory"
    before, after = server.weights
    assert np.array_equal(before["model.embed_tokens.weight"], np.asarray(policy().params["embed"]))
    assert all(np.allclose(before[name] + 0.5, after[name]) for name in before) and len(before) > 10


def test_weights_go_out_in_the_type_that_the_policy_computes_in(server, tmp_path):
    with server.served() as address:
        made = sampler(address, tmp_path)
        made.policy = made.policy._replace(spec=dataclasses.replace(made.policy.spec, dtype="bfloat16"))
        sampled(made)
    assert {str(tensor.dtype) for tensor in server.weights[0].values()} == {"bfloat16"}


def test_a_server_that_keeps_old_weights_is_refused(server, tmp_path):
    with server.served() as address:
        made = sampler(address, tmp_path)
        sampled(made)
        changed = jax.tree.map(lambda x: 1.1 * x, policy().params)
        server.faults["/collective_rpc"] = lambda body, answer: setattr(server, "params", policy().params) or answer
        with pytest.raises(EndpointError, match="has taken the weights, and its log-probs are still .* from those"):
            sampled(made, changed)


def test_a_server_that_comes_back_has_its_weights_sent_again(server, tmp_path, capfd):
    """It may have been started anew, with those of its folder."""
    replies = itertools.chain(["lost", "busy", "lost"], itertools.repeat("ok"))

    def fault(body, answer):
        return {"lost": None, "busy": (503, "starting"), "ok": answer}[next(replies)]

    server.faults[ASKED] = fault
    with server.served() as address:
        made = sampler(address, tmp_path)
        server.paths()
        rollout = sampled(made)
        paths = server.paths()
    assert paths.count(ASKED) == P + 3 and 3 <= paths.count("/collective_rpc") <= 4
    assert paths.index(ASKED) == 3 and paths[-1] == ASKED != paths[-2], "the weights come before what is asked again"
    assert int(rollout.lengths_B.min()) > 0
    assert capfd.readouterr().out.count("waiting for it, 20 s at most") == 1


def test_a_cache_that_is_in_use_is_emptied_later(server, tmp_path):
    answers = iter([{"success": False}, {"success": True}])
    server.faults["/reset_prefix_cache"] = lambda body, answer: next(answers)
    with server.served() as address:
        sampled(sampler(address, tmp_path))
    assert server.paths().count("/reset_prefix_cache") == 2


def test_dead_and_slow_servers_are_named_within_the_bound(server, tmp_path):
    with server.served() as address:
        made = sampler(address, tmp_path, timeout=0.5)
        released = threading.Event()
        server.faults[ASKED] = lambda body, answer: released.wait(20) and answer
        start = time.monotonic()
        with pytest.raises(EndpointError, match=f"{address} has not finished an answer, for 0.5 s"):
            sampled(made)
        released.set()
    with pytest.raises(EndpointError, match=f"{address} failed .ConnectError.*, for 0.5 s.*--rollout.vllm-timeout"):
        sampled(made, jax.tree.map(lambda x: x + 1, policy().params))
    with pytest.raises(EndpointError, match="ConnectError"):
        sampler(address, tmp_path, timeout=0.5)
    assert time.monotonic() - start < 10 and not list(tmp_path.iterdir())


def test_a_request_to_stop_is_seen_while_the_server_works(server, tmp_path):
    with server.served() as address:
        made = sampler(address, tmp_path)
        server.faults[ASKED] = lambda body, answer: time.sleep(20) or answer
        start = time.monotonic()
        with pytest.raises(Interrupted):
            sampled(made, should_stop=lambda: time.monotonic() > start + 0.3)
        server.faults["/collective_rpc"] = lambda body, answer: (503, "down")
        with pytest.raises(Interrupted):
            sampled(made, jax.tree.map(lambda x: x + 1, policy().params), should_stop=lambda: time.monotonic() > start)
    assert time.monotonic() - start < 5


def group(change=None, count: int = G) -> dict:
    """An answer of three rows of three tokens, with one row changed."""
    rows = [choice(g, [10, 11, 1], [-1.0, -0.5, -2.0]) for g in range(count)]
    rows[0] |= change or {}
    return {"choices": rows}


BROKEN = {
    "two rows": (group(count=2), "2 responses where 3 were asked for"),
    "no ids": (group({"token_ids": None}), "without token_ids"),
    "no log-probs": (group({"logprobs": None}), "without token_ids or logprobs"),
    "too few log-probs": (group({"logprobs": {"token_logprobs": [-1.0]}}), "3 tokens with 1 log-probs"),
    "beyond the vocabulary": (group(choice(0, [10, 272, 1], [-1.0] * 3)), "token 272 of a policy with 272 ids"),
    "no integer": (group(choice(0, [10, True, 1], [-1.0] * 3)), "token True"),
    "a null": (group(choice(0, [10, 11, 1], [-1.0, None, -1.0])), "log-prob None"),
    "above 0": (group(choice(0, [10, 11, 1], [-1.0, 0.5, -1.0])), "log-prob 0.5"),
    "NaN": (json.dumps(group(choice(0, [10, 11, 1], [-1.0, float("nan"), -1.0]))), "NaN, which is no number"),
    "cut off": (json.dumps(group())[:-9], "cannot be used"),
    "too long": (group(choice(0, [10] * 7, [-1.0] * 7)), "7 tokens with 7 log-probs, of at most 6"),
    "ended early": (group(choice(0, [10, 11], [-1.0] * 2)), "ends neither with"),
    "not ended": (group(choice(0, [10, 1, 11, 12, 13, 14], [-1.0] * 6)), "ends neither with"),
    "empty": (group(choice(0, [], [])), "0 tokens"),
    "a list": ([1], "without token_ids"),
    "refused": ((400, "no such field"), "answered 400 to /v1/completions: no such field"),
    "another place": ((307, ""), "redirects, and no key is sent there"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_an_answer_that_is_none_ends_the_run(kind, server, tmp_path):
    answer, message = BROKEN[kind]
    server.faults[ASKED] = lambda body, _: answer
    with server.served() as address:
        with pytest.raises(EndpointError, match="The vLLM server") as caught:
            sampled(sampler(address, tmp_path))
    assert message in str(caught.value) and address in str(caught.value)


def test_an_answer_that_the_server_broke_off_is_asked_for_again(server, tmp_path):
    """A paused or ending server gives what it has, or nothing, with finish_reason abort."""
    asked = []

    def once(body, answer):
        asked.append(body["seed"])
        return group({"finish_reason": "abort", "token_ids": [], "logprobs": None}) if len(asked) == 1 else answer

    with server.served() as address:
        whole = sampled(sampler(address, tmp_path))
        server.faults[ASKED] = once
        found = sampled(sampler(address, tmp_path))
    assert len(asked) == P + 1 and np.array_equal(found.tokens_BR, whole.tokens_BR)


def test_a_server_with_another_model_is_named_as_such(server, tmp_path):
    server.faults[ASKED] = lambda body, answer: (404, "The model `policy` does not exist.")
    with server.served() as address, pytest.raises(EndpointError, match="does not exist.*another model") as caught:
        sampled(sampler(address, tmp_path))
    assert "development mode" not in str(caught.value)


def test_answers_of_a_real_server():
    for kind, rows in (("group", 2), ("stopped", 1), ("greedy", 1)):
        asked = RECORDED[kind]["request"]
        found = read_group(json.dumps(RECORDED[kind]["reply"]).encode(), rows, asked["max_tokens"], 272,
                           asked["stop_token_ids"])  # fmt: skip
        assert [len(tokens) for tokens, _ in found] == [2 if kind == "stopped" else 4] * rows
        assert (found[0][0][-1] in asked["stop_token_ids"]) == (kind == "stopped")


def test_servers_that_do_not_fit(server, tmp_path, monkeypatch):
    with server.served() as address:
        server.models = {"data": [{**MODELS["data"][0], "max_model_len": 13}]}
        with pytest.raises(ConfigError, match="takes 13 tokens.*Start it with --max-model-len 14"):
            sampler(address, tmp_path)
        server.models = MODELS
        sampler(address, tmp_path)  # temperature 1: both kinds of log-probs are the same
        server.processed = False
        with pytest.raises(ConfigError, match="before temperature.*--logprobs-mode processed_logprobs"):
            sampler(address, tmp_path, temperature=0.7)
        sampler(address, tmp_path, top_p=0.9)
        server.processed = True
        with pytest.raises(ConfigError, match="after temperature.*--logprobs-mode raw_logprobs"):
            sampler(address, tmp_path, top_p=0.9)
        sampler(address, tmp_path, temperature=0.7)
        server.faults["/collective_rpc"] = lambda body, answer: (404, "Not Found")
        with pytest.raises(EndpointError, match="development mode is off.*gpu_node.sh serve"):
            sampled(sampler(address, tmp_path))
        monkeypatch.setattr(vllm.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
        with pytest.raises(EndpointError, match="0.00 GB free.*--shm-size"):
            sampled(sampler(address, tmp_path))
        monkeypatch.setattr(vllm, "host_count", lambda: 2)
        with pytest.raises(ConfigError, match="runs on one host, and this run has 2"):
            sampler(address, tmp_path)


def test_the_key_goes_to_the_server_and_into_no_message(server, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "sk-SECRET")
    server.faults["/v1/models"] = lambda body, answer: (401, "Bearer sk-SECRET is wrong")
    with server.served() as address, pytest.raises(EndpointError, match="VLLM_API_KEY") as caught:
        sampler(address, tmp_path)
    assert "SECRET" not in str(caught.value) and "***" in str(caught.value)


@pytest.mark.parametrize(
    "changes, message",
    [({"train": {"fused": True}}, "fused step samples on the devices"),
     ({"algo": {"importance_sampling_mode": "off"}}, "nothing would correct it"),
     ({"rollout": {"temperature": 0.7, "top_p": 0.9}}, "--rollout.temperature 1.0, or"),
     ({"rollout": {"vllm_address": "localhost:8000"}}, "expected http://HOST:PORT"),
     ({"rollout": {"vllm_address": "http://me:pw@localhost:8000"}}, "VLLM_API_KEY")],
)  # fmt: skip
def test_settings_that_cannot_work(changes, message):
    changes = {**changes, "rollout": {"engine": "vllm", **changes.get("rollout", {})}}
    with pytest.raises(ConfigError, match=message) as caught:
        validate(with_values(Config(), **changes), 1)
    assert "pw" not in str(caught.value).replace("http", "")


def short(prompts, completions, **columns):
    return [-len(text) / 10 for text in completions]


def test_a_training_whose_server_fails(server, tmp_path):
    """It saves, stops with one error, and goes on where it was with the weights that it had."""
    export_policy(policy(), str(tmp_path / "policy"))
    rows = [{"question": f"{n}?", "language": "sw", "answer": str(n), "reference": str(n)} for n in range(4)]
    server.models = {"data": [{"id": "policy", "max_model_len": 512}]}

    def run(address):
        return run_training(
            workdir=tmp_path / "run", rows=rows, reward_functions=[short],
            policy={"source": str(tmp_path / "policy")}, algo={"num_generations": 2}, optim={"learning_rate": 1e-2},
            rollout={"engine": "vllm", "vllm_address": address, "vllm_folder": str(tmp_path), "vllm_timeout": 60.0,
                     "max_prompt_length": 200, "max_completion_length": R},
            reward={"language_gate": "off"}, log={"tensorboard": False},
            train={"max_steps": 2, "prompts_per_step": 2, "save_steps": 5},
        )  # fmt: skip

    with server.served() as address, programs_made_once({}):
        server.faults[ASKED] = lambda body, answer: answer if len(server.weights) == 1 else (400, "dead")
        with pytest.raises(EndpointError, match=f"{address} answered 400 to /v1/completions: dead"):
            run(address)
        trained = server.weights[1]
        server.faults.clear()
        finished = run(address)
    assert finished.finished and [row["step"] for row in finished.history] == [1, 2]
    resumed = server.weights[-1]
    assert all(np.array_equal(trained[name], resumed[name]) for name in trained), "sent again after the resume"
    assert any(not np.array_equal(trained[name], server.weights[0][name]) for name in trained)
    assert 0 < finished.metrics["sampling/importance_sampling_ratio/mean"] < 1, "the correction is on in float32"
