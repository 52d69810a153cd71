"""A stand-in for a vLLM server, with the requests and answers that vLLM 0.32 was seen to have (fixtures/vllm.json)."""

import contextlib
import functools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np

from pbrl_jax.rollout.vllm import CHECKED_TOKENS, token_logprobs
from pbrl_jax.weights.hf_decoder import decoder_names
from pbrl_jax.weights.policies import Policy
from pbrl_jax.weights.tensors import load_params, open_weights

MODELS = {"data": [{"id": "policy", "max_model_len": 64}]}


def choice(index: int, tokens: list[int], logp: list[float]) -> dict:
    """One response of /v1/completions, as far as a client reads it."""
    names = [f"token_id:{token}" for token in tokens]
    return {"index": index, "text": "?", "token_ids": tokens, "finish_reason": "length",
            "logprobs": {"tokens": names, "token_logprobs": logp}}  # fmt: skip


class TinyVllm:
    """Draws tokens at random from the seed of a request, each with log-prob -1; those that are asked for to see whether
    it has the policy's weights get the log-probs of the weights that it loaded last.

    `seen` holds (path, body) of every request, with `check` as the path of those; `weights` the tensors of every folder
    that it loaded. `faults` maps a path to a function of (body, answer) that gives another answer, (status, text), or
    None to send nothing.
    """

    def __init__(self, policy: Policy, models: dict = MODELS):
        self.policy, self.models, self.processed = policy, models, True
        self.score = jax.jit(functools.partial(token_logprobs, spec=policy.spec))
        self.seen, self.weights, self.faults = [], [], {}

    def answer(self, path: str, body: dict | None):
        if path == "/v1/models":
            return self.models
        if path == "/collective_rpc":
            tensors = open_weights(body["kwargs"]["weights_path"])
            self.weights.append({name: np.array(tensors[name]) for name in sorted(tensors)})
            shardings = jax.tree.map(lambda leaf: leaf.sharding, self.policy.params)
            self.params = load_params(tensors, decoder_names(self.policy.spec), shardings, jax.numpy.dtype("float32"))
            return {"results": [None]}
        if path == "/reset_prefix_cache":
            return {"success": True}
        return {"choices": [self.sampled(g, body) for g in range(body["n"])]}

    def sampled(self, g: int, body: dict) -> dict:
        """Like vLLM: seed + g, up to the first stop id, and log-probs after truncation where they are processed."""
        tokens = (
            np.random.default_rng(body["seed"] + g)
            .integers(0, self.policy.spec.vocab_size, body["max_tokens"])
            .tolist()
        )
        ends = [place for place, token in enumerate(tokens) if token in body["stop_token_ids"]]
        tokens = tokens[: ends[0] + 1] if ends else tokens
        logp = 0.0 if self.processed and body["top_k"] == 1 else -1.0
        if body["max_tokens"] == CHECKED_TOKENS:
            scored = self.score(self.params, jax.numpy.array([[*body["prompt"], *tokens]]))
            return choice(g, tokens, scored.tolist())
        return choice(g, tokens, [logp] * len(tokens))

    @contextlib.contextmanager
    def served(self):
        """Its address, while it runs."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def respond(self):
                length = int(self.headers.get("Content-Length", 0))
                body = json.loads(self.rfile.read(length)) if length else None
                checks = body is not None and body.get("max_tokens") == CHECKED_TOKENS
                path = "check" if checks else self.path
                outer.seen.append((path, body))
                status, found = 200, outer.answer(self.path, body)
                if fault := outer.faults.get(path):
                    found = fault(body, found)
                    status, found = found if isinstance(found, tuple) else (status, found)
                if found is None:
                    return self.close_connection
                content = found.encode() if isinstance(found, str) else json.dumps(found).encode()
                with contextlib.suppress(OSError):  # a client that did not wait
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            do_GET = do_POST = respond

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()

    def paths(self) -> list[str]:
        """Of the requests since the last call."""
        seen, self.seen = self.seen, []
        return [path for path, _ in seen]


RECORDED = json.loads((Path(__file__).parent / "fixtures" / "vllm.json").read_text())
"""What a real server answered."""
