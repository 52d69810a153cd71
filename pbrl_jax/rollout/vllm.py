"""vLLM as the sampler of a run: token ids in, token ids and log-probs out, over HTTP.

`/v1/completions` takes a prompt as token ids and, with `return_token_ids`, gives those of the responses: no text is
tokenised on the way. Weights are written as safetensors to a folder that the server reads too, and taken over by
`/collective_rpc` with `reload_weights`, which vLLM documents for weights that change in place; vLLM's own transfer
engines (NCCL, CUDA IPC) need torch tensors on this side. `/collective_rpc` and `/reset_prefix_cache` exist where the
server was started with VLLM_SERVER_DEV_MODE=1.

Log-probs here are those of the tempered, untruncated distribution. A server reports them after temperature and
truncation (`--logprobs-mode processed_logprobs`) or before both (`raw_logprobs`), so that with another temperature than
1 responses cannot be truncated as well.
"""

import functools
import shutil
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from pbrl_jax.config.tree import Config
from pbrl_jax.core.errors import ConfigError, EndpointError
from pbrl_jax.core.records import PromptBatch, Rollout, on_host
from pbrl_jax.mesh.agree import host_count
from pbrl_jax.mesh.rows import rows_on_mesh
from pbrl_jax.models.decoder import causal_logits
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.rollout.sampling import row_keys
from pbrl_jax.rollout.transport import Request, read_json
from pbrl_jax.rollout.vllm_server import SPARE_BYTES, Patience, VllmServer, never, read_group
from pbrl_jax.weights.hf_export import export_weights
from pbrl_jax.weights.policies import Policy

BYTES_PER_TOKEN = 1024
"""Bytes of a reply for each sampled token, at most."""
CHECKED_TOKENS = 16
LARGEST_GAP = {"bfloat16": 0.2, "float32": 0.02}
"""Mean difference of log-probs (nats) between the server and the policy on CHECKED_TOKENS sampled tokens; rounding
makes a tenth of it."""
NOT_EXACT = (
    "rollout.engine vllm: a server draws the responses. They are not bit for bit the same again when a run is resumed; "
    "everything else is."
)


class VllmSampler:
    """`rollout(params, prompts, key, should_stop)` as `rollout.generate` gives it, sampled by a vLLM server.

    Args:
      policy: whose weights the server is sent.
      config: of the run.
      mesh: where the rows go.
      name: a file name of this run's own, the same when it is resumed.

    Raises:
      ConfigError: several hosts, or a server that does not fit the run.
      EndpointError: no server within rollout.vllm_timeout seconds.
    """

    def __init__(self, policy: Policy, config: Config, mesh: Mesh, name: str):
        if host_count() > 1:
            raise ConfigError(
                f"rollout.engine vllm runs on one host, and this run has {host_count()}. Use --rollout.engine jax."
            )
        self.policy, self.mesh, self.settings = policy, mesh, config.rollout
        self.samples, self.length = config.algo.num_generations, config.rollout.max_completion_length
        self.folder = epath.Path(config.rollout.vllm_folder) / name
        self.server = VllmServer(config.rollout, self.samples * self.length * BYTES_PER_TOKEN + SPARE_BYTES)
        self._logprobs = jax.jit(functools.partial(token_logprobs, spec=policy.spec))
        self.model = self._served_model()
        self._check_logprobs()
        self._sent: Callable[[], Any] = lambda: None
        """The first array of the parameters that the server has, while it exists."""
        print(NOT_EXACT)

    def rollout(self, params: Any, prompts: PromptBatch, key: jax.Array,
                should_stop: Callable[[], bool] = never) -> Rollout:  # fmt: skip
        """`algo.num_generations` responses to each prompt. Parameters that the server does not have are sent first.

        Raises:
          EndpointError: the server does not respond in time, or its answer cannot be used.
          Interrupted: `should_stop()` was true; it is asked every 0.2 s.
        """
        first = jax.tree.leaves(params)[0]
        if self._sent() is not first:
            self.send(params, should_stop)
        keys_B = row_keys(key, prompts.row_ids_P, self.samples)
        seeds_P = np.asarray(jax.random.key_data(keys_B))[:: self.samples, -1] >> 1
        tokens_PT, lengths_P = np.asarray(prompts.tokens_PT), np.asarray(prompts.lengths_P)
        requests = [
            self._request(tokens[:length].tolist(), int(seed))
            for tokens, length, seed in zip(tokens_PT, lengths_P, seeds_P, strict=True)
        ]

        def send_again(patience: Patience) -> None:
            self.send(params, should_stop, patience)

        groups = self.server.ask_all(requests, self._read, should_stop, again=send_again)
        return self._on_mesh([row for group in groups for row in group])

    def send(self, params: Any, should_stop: Callable[[], bool] = never, patience: Patience | None = None) -> None:
        """Give the server these weights, in the policy's compute type, empty its cache of prompts, and see that it has
        them.

        Raises:
          EndpointError: it does not take them, does not respond in time, or computes other log-probs with them.
          Interrupted: `should_stop()` was true.
        """
        self._sent = lambda: None
        kind = "bfloat16" if self.policy.spec.dtype == "bfloat16" else "float32"
        self._check_room(params, np.dtype(jax.numpy.dtype(kind)).itemsize)
        try:
            export_weights(self.policy._replace(params=params), str(self.folder), kind)
            self.server.load(str(self.folder), should_stop, patience)
        finally:
            self.folder.rmtree(missing_ok=True)
        self._check_policy(params, kind, should_stop, patience)
        self._sent = weakref.ref(jax.tree.leaves(params)[0])

    def _check_policy(self, params: Any, kind: str, should_stop: Callable[[], bool], patience: Patience | None) -> None:
        """Refuse a server that computes another policy: some layer kept its old weights, or its settings differ."""
        free = {
            "n": 1,
            "max_tokens": CHECKED_TOKENS,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "stop_token_ids": [],
        }
        vocab = self.policy.spec.vocab_size

        def read(content: bytes, number: int) -> tuple[list[int], list[float]]:
            return read_group(content, 1, CHECKED_TOKENS, vocab, ())[0]

        ((tokens, logp),) = self.server.ask_all([self._request([0], 0, **free)], read, should_stop, patience)
        own = np.asarray(self._logprobs(params, jax.numpy.array([[0, *tokens]])))
        gap = float(np.abs(own - np.asarray(logp)).mean())
        if not gap <= LARGEST_GAP[kind]:
            raise EndpointError(
                f"The vLLM server {self.server.address} has taken the weights, and its log-probs are still {gap:.3g} "
                f"from those of the policy on average (bound {LARGEST_GAP[kind]}). Start it from an export of this "
                f"policy with --dtype {kind}, without quantisation. A server on a CPU keeps the old output matrix of a "
                "policy whose embeddings are tied."
            )

    def _check_room(self, params: Any, size: int) -> None:
        """Refuse a folder without room for the weights, which a container's shared memory often has not."""
        needed = sum(leaf.size for leaf in jax.tree.leaves(params)) * size
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise EndpointError(
                f"rollout.vllm_folder {self.settings.vllm_folder!r} cannot be used ({error}). Name a folder that this "
                "process writes and the server reads."
            ) from None
        if free < needed:
            self.folder.rmtree(missing_ok=True)
            raise EndpointError(
                f"{self.settings.vllm_folder} has {free / 1e9:.2f} GB free, and the weights take {needed / 1e9:.2f} GB."
                " Give the container more shared memory (docker: --shm-size), or name a disk that the server reads: "
                "--rollout.vllm-folder."
            )

    def _request(self, prompt: list[int], seed: int, **other: Any) -> Request:
        """A group of responses. Every sampling setting is given: the model's own defaults would come in otherwise.
        Sample g of the group is drawn with seed + g."""
        settings = self.settings
        body = {
            "model": self.model, "prompt": prompt, "n": self.samples, "seed": seed, "max_tokens": self.length,
            "temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k, "min_p": 0.0,
            "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
            "stop_token_ids": list(self.policy.tokenizer.eos_ids), "ignore_eos": True, "logprobs": 0,
            "return_token_ids": True, "return_tokens_as_token_ids": True, "add_special_tokens": False,
        }  # fmt: skip
        return self.server.post("/v1/completions", body | other)

    def _read(self, content: bytes, number: int) -> list[tuple[list[int], list[float]]]:
        """(token ids, log-probs) of the rows of a group.

        Raises:
          ValueError: another number of rows, or rows that a policy with these settings cannot have given.
        """
        return read_group(content, self.samples, self.length, self.policy.spec.vocab_size,
                          self.policy.tokenizer.eos_ids)  # fmt: skip

    def _on_mesh(self, rows: Sequence[tuple[list[int], list[float]]]) -> Rollout:
        B, R = len(rows), self.length
        tokens_BR, logp_BR = np.zeros((B, R), np.int32), np.zeros((B, R), np.float32)
        for place, (tokens, logp) in enumerate(rows):
            tokens_BR[place, : len(tokens)], logp_BR[place, : len(logp)] = tokens, logp
        lengths_B = np.array([len(tokens) for tokens, _ in rows], np.int32)
        cut_B = np.array([tokens[-1] not in self.policy.tokenizer.eos_ids for tokens, _ in rows])
        return rows_on_mesh(on_host(Rollout, tokens_BR, lengths_B, logp_BR, cut_B), self.mesh, B)

    def _served_model(self) -> str:
        """The name of the server's model.

        Raises:
          ConfigError: it was started for shorter texts than the run's.
        """

        def read(content: bytes, number: int) -> tuple[str, int]:
            try:
                model = read_json(content)["data"][0]
                return str(model["id"]), int(model["max_model_len"])
            except (KeyError, IndexError, TypeError):
                raise ValueError("/v1/models names no model with max_model_len") from None

        ((name, longest),) = self.server.ask_all([self.server.get("/v1/models")], read)
        needed = self.settings.max_prompt_length + self.length
        if longest < needed:
            raise ConfigError(
                f"The vLLM server {self.server.address} takes {longest} tokens of prompt and response together, and "
                f"this run has up to {needed}. Start it with --max-model-len {needed}."
            )
        return name

    def _check_logprobs(self) -> None:
        """Refuse a server whose log-probs are not those of the distribution that the run trains on. With top_k 1 the
        log-prob of a token is 0 after truncation, and below 0 before it."""
        settings = self.settings
        truncated = settings.top_p < 1 or settings.top_k > 0
        if settings.temperature == 1 and not truncated:
            return  # both are the same
        request = self._request([0], 0, n=1, max_tokens=1, top_k=1, top_p=1.0, temperature=1.0)

        def read(content: bytes, number: int) -> float:
            ((_, logp),) = read_group(content, 1, 1, self.policy.spec.vocab_size, ())
            return logp[0]

        (logp,) = self.server.ask_all([request], read)
        if (logp == 0) == truncated:
            mode = "raw_logprobs" if truncated else "processed_logprobs"
            raise ConfigError(
                f"The vLLM server {self.server.address} reports log-probs {'after' if logp == 0 else 'before'} "
                f"temperature and truncation; with rollout.temperature {settings.temperature}, top_p {settings.top_p} "
                f"and top_k {settings.top_k} they are to be from {'before' if truncated else 'after'} them. Start it "
                f"with --logprobs-mode {mode}."
            )


def token_logprobs(params: Any, tokens_1T: Int[Array, "1 T"], *, spec: DecoderSpec) -> Float[Array, "N"]:
    """Log-probs of all tokens but the first of one row; traceable."""
    logits = causal_logits(params, spec, tokens_1T, jax.numpy.ones_like(tokens_1T, bool))[0, :-1]
    return jax.numpy.take_along_axis(jax.nn.log_softmax(logits), tokens_1T[0, 1:, None], axis=-1)[:, 0]
