"""Policies as models of lm-evaluation-harness, so that any of its tasks can be run on them.

In:  a policy; the harness's requests.
Out: texts (generate_until), log-probabilities (loglikelihood, loglikelihood_rolling), as its own models give them.

lm_eval is an extra ([eval]) and is imported only when a model is made; it needs no torch.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pbrl_jax.core.batching import fill
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.records import PromptBatch
from pbrl_jax.data.batches import pad_prompts
from pbrl_jax.eval.respond import Settings, batch_rows, cut_at_stop, placed, plan, problem_id, rounded
from pbrl_jax.logs.progress import Progress
from pbrl_jax.models.decoder import logits_of
from pbrl_jax.models.logprobs import predicting_hidden, unpacked_streams
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.rollout.decode import completions
from pbrl_jax.rollout.generate import compiled_sampler
from pbrl_jax.rollout.sampling import sampling_params, step_key
from pbrl_jax.text.prompts import with_one_bos
from pbrl_jax.text.tokenizers import has_chat_template
from pbrl_jax.weights.encoders import length_bucket
from pbrl_jax.weights.policies import Policy

CHUNK = 64
"""Positions of a row whose logits exist at a time."""
KNOWN_OPTIONS = ("until", "max_gen_toks", "max_new_tokens", "do_sample", "temperature", "top_p", "top_k")
"""Generation options of a task that are obeyed; others are refused by name."""


def import_harness() -> Any:
    """The module lm_eval.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        import lm_eval
        import lm_eval.api.model
        import lm_eval.utils
    except ImportError as error:
        raise ConfigError(
            f"lm-evaluation-harness cannot be imported ({error}). Install it: pip install -e .[eval]"
        ) from error
    return lm_eval


def continuation_scores(params, contexts: PromptBatch, tokens_BL, lengths_B, *, spec: DecoderSpec):
    """(summed log-probability, whether every token is the likeliest one) of each row's continuation, [B] and [B].

    Args:
      contexts: B contexts of at least one token.
      tokens_BL: continuations, right-padded.
      lengths_B: tokens of each.
    """
    streams = unpacked_streams(tokens_BL, lengths_B, 1)
    hidden_BLD = predicting_hidden(params, spec, contexts, streams, packed=False)
    B, L = tokens_BL.shape
    size = min(CHUNK, L)
    count = -(-L // size)
    head = {name: params[name] for name in ("embed", "lm_head") if name in params}

    def chunks(x):
        x = jnp.pad(x, [(0, 0), (0, count * size - L)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B, count, size, *x.shape[2:]), 1, 0)

    def one(carry, xs):
        logits = logits_of(head, spec, xs[0])
        chosen = jnp.take_along_axis(logits, xs[1][..., None], axis=-1)[..., 0]
        return carry, (chosen - jax.nn.logsumexp(logits, axis=-1), chosen >= logits.max(axis=-1))

    _, found = jax.lax.scan(one, None, (chunks(hidden_BLD), chunks(tokens_BL)))
    logp_BL, best_BL = (jnp.moveaxis(x, 0, 1).reshape(B, count * size)[:, :L] for x in found)
    used_BL = jnp.arange(L)[None] < lengths_B[:, None]
    return jnp.where(used_BL, logp_BL, 0.0).sum(axis=1), jnp.where(used_BL, best_BL, True).all(axis=1)


@functools.cache
def compiled_scores(spec: DecoderSpec):
    """continuation_scores, compiled once for each padded shape."""
    return jax.jit(functools.partial(continuation_scores, spec=spec))


class PolicyRequests:
    """What the harness asks of a model, answered by a policy; `harness_model` makes a model of it.

    Args:
      policy: any that load_policy reads.
      batch_size: requests that run at a time.
      max_length: tokens of context and answer together; longer contexts lose their beginning, as with the harness's
        own models.
      max_gen_toks: tokens of an answer where the task does not say.
      seed: of sampled answers.
      mesh: spreads the rows over devices.
    """

    def __init__(self, policy: Policy, batch_size: int = 16, max_length: int = 2048, max_gen_toks: int = 256,
                 seed: int = 0, mesh: Any = None):  # fmt: skip
        super().__init__()
        self.policy, self.max_length = policy, max_length
        self.batch_size = batch_rows(Settings(batch_size=batch_size, mesh=mesh))
        self.max_gen_toks, self.seed, self.mesh = max_gen_toks, seed, mesh

    # Tokens.

    def encode(self, text: str) -> list[int]:
        """Ids with one beginning-of-sequence token where the tokenizer has one."""
        tokenizer = self.policy.tokenizer
        return with_one_bos(tokenizer.encode(text), tokenizer.bos_id)

    @property
    def prefix_token(self) -> int:
        """What stands before a text without a context: beginning of sequence, else end of sequence."""
        tokenizer = self.policy.tokenizer
        return tokenizer.eos_ids[0] if tokenizer.bos_id is None else tokenizer.bos_id

    def without_prefix(self, text: str) -> list[int]:
        """Ids of a text without what would stand before it."""
        ids = self.encode(text)
        return ids[1:] if ids[:1] == [self.prefix_token] else ids

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """(ids of the context, ids of the continuation), cut at the context's own length as the harness does.

        White space at the context's end belongs to the continuation.
        """
        if not context:
            return [self.prefix_token], self.without_prefix(continuation)
        if not continuation:
            return self.encode(context), []
        kept = context.rstrip()
        whole, head = self.encode(context + continuation), self.encode(kept) if kept else [self.prefix_token]
        # A continuation that merges with the whole context's end keeps its last token to be scored.
        place = min(len(head), len(whole) - 1)
        return (whole[:place], whole[place:]) if place else ([self.prefix_token], whole)

    # Requests.

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(summed log-probability, is it the greedy one) of each (context, continuation)."""
        texts = [request.args for request in requests]
        found = self._score([self.pair(*text) for text in texts], "loglikelihood", not disable_tqdm)
        for text, answer in zip(texts, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", text, answer)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text; a long one in windows that each condition on max_length tokens."""
        windows = []
        for number, request in enumerate(requests):
            parts = rolling_windows(self.without_prefix(request.args[0]), self.prefix_token, self.max_length - 1)
            windows += [(number, *part) for part in parts]
        scores = self._score([window[1:] for window in windows], "loglikelihood_rolling", not disable_tqdm)
        sums = [0.0] * len(requests)
        for (number, _, _), (value, _) in zip(windows, scores, strict=True):
            sums[number] += value
        for request, value in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The answer to each context, up to the first stop string; sampled only where the task asks for it."""
        answers = [""] * len(requests)
        groups: dict[tuple, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(generation_options(request.args[1], self.max_gen_toks)[1:], []).append(number)
        with Progress("generate_until", len(requests), unit="request", active=not disable_tqdm) as progress:
            for options, numbers in groups.items():
                self._generate(requests, numbers, options, answers, progress.advance)
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return answers

    # Chat.

    @property
    def tokenizer_name(self) -> str:
        """Tells tokenizers apart in the harness's caches."""
        return self.policy.tokenizer.fingerprint[:16]

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The tokenizer's chat template; "" where it has none or none is asked for."""
        tokenizer = self.policy.tokenizer
        return str(tokenizer.tokenizer.chat_template) if chat_template and has_chat_template(tokenizer) else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation.

        Raises:
          ConfigError: the tokenizer has no chat template.
        """
        if not has_chat_template(self.policy.tokenizer):
            raise ConfigError("This policy's tokenizer has no chat template. Leave --apply-chat-template out.")
        return self.policy.tokenizer.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )  # fmt: skip

    # Batches.

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]], name: str, shown: bool) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)  # of an empty continuation
        cut = {n: self._fitting(*pair) for n, pair in enumerate(pairs) if pair[1]}
        order = list(cut)
        longest = max((len(cut[n][0]) for n in order), default=1)
        widest = max((len(cut[n][1]) for n in order), default=1)
        run = compiled_scores(self.policy.spec)
        with Progress(name, len(order), unit="request", active=shown) as progress:
            for rows in plan([len(cut[n][0]) for n in order], self.batch_size):
                numbers = [order[row] for row in rows]
                filled = fill(numbers, self.batch_size)
                contexts, answers = [cut[n][0] for n in filled], [cut[n][1] for n in filled]
                width = length_bucket(max(map(len, answers)), rounded(widest))
                arrays = (
                    self._padded(contexts, filled, longest),
                    pad_prompts(answers, width, range(len(filled))).tokens_PT,
                    np.array([len(ids) for ids in answers], np.int32),
                )
                sums, best = jax.device_get(run(self.policy.params, *placed(arrays, self.mesh)))
                for place, number in enumerate(numbers):
                    found[number] = (float(sums[place]), bool(best[place]))
                progress.advance(len(numbers))
        return found

    def _fitting(self, context: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
        """The last max_length tokens of both together, the context never empty."""
        answer = answer[-(self.max_length - 1) :]
        return context[-(self.max_length - len(answer)) :], answer

    def _padded(self, contexts: list[list[int]], numbers: list[int], longest: int) -> PromptBatch:
        length = length_bucket(max(map(len, contexts)), rounded(longest))
        return pad_prompts(contexts, length, numbers, self.policy.tokenizer.pad_id)

    def _generate(self, requests: Sequence[Any], numbers: list[int], options: tuple, answers: list[str],
                  tick: Callable[[int], Any]) -> None:  # fmt: skip
        """Fill `answers` for the requests `numbers`, which share their options."""
        policy, (tokens, *sampled) = self.policy, options
        room = max(1, self.max_length - tokens)
        encoded = {number: self.encode(requests[number].args[0])[-room:] for number in numbers}
        run = compiled_sampler(policy.spec, tokens)
        sampling = sampling_params(*sampled, policy.tokenizer.eos_ids)
        longest = max(map(len, encoded.values()))
        for rows in plan([len(encoded[number]) for number in numbers], self.batch_size):
            chosen = [numbers[row] for row in rows]
            filled = fill(chosen, self.batch_size)
            keys = [problem_id(requests[number].args[0]) for number in filled]
            batch = self._padded([encoded[number] for number in filled], keys, longest)
            rollout = run(policy.params, placed(batch, self.mesh), step_key(self.seed, 0), sampling)
            for number, text in zip(chosen, completions(rollout, policy.tokenizer), strict=False):
                answers[number] = cut_at_stop(text, generation_options(requests[number].args[1], 1)[0])
            tick(len(chosen))


def rolling_windows(ids: list[int], prefix: int, size: int) -> Iterator[tuple[list[int], list[int]]]:
    """(context, tokens to predict) that cover `ids` once: at most `size` tokens at a time, and for the last of them as
    much context as fits beside, as the harness divides long texts."""
    for done in range(0, len(ids), size):
        end = min(done + size, len(ids))
        yield ([prefix] if done == 0 else ids[end - size - 1 : done]), ids[done:end]


def generation_options(options: dict[str, Any], default_tokens: int) -> tuple[tuple[str, ...], int, float, float, int]:
    """(stop strings, most tokens, temperature, top_p, top_k) of a request.

    As in the harness: without do_sample, or with a temperature of 0, it is greedy.

    Raises:
      ConfigError: an option that would be ignored.
    """
    unknown = sorted(set(options) - set(KNOWN_OPTIONS))
    if unknown:
        raise ConfigError(f"The task asks for {', '.join(unknown)}, which is not supported. Known: {KNOWN_OPTIONS}.")
    until = options.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    temperature = float(options.get("temperature") or 0.0)
    if not options.get("do_sample", temperature > 0):
        temperature = 0.0
    elif "temperature" not in options:
        temperature = 1.0
    tokens = int(options.get("max_gen_toks") or options.get("max_new_tokens") or default_tokens)
    return (
        tuple(filter(None, stops)),
        tokens,
        temperature,
        float(options.get("top_p") or 1.0),
        int(options.get("top_k") or 0),
    )


def harness_model(policy: Policy, **settings: Any) -> Any:
    """The policy as an `lm_eval.api.model.LM`, for `lm_eval.simple_evaluate(model=...)`.

    Args:
      settings: those of PolicyRequests.

    Raises:
      ConfigError: lm_eval is not installed.
    """
    base = import_harness().api.model.LM
    return type("PolicyModel", (PolicyRequests, base), {})(policy, **settings)


def result_text(result: dict[str, Any]) -> str:
    """The harness's results as JSON; what JSON does not know becomes text."""
    return json.dumps(result, indent=1, ensure_ascii=False, default=str) + "\n"


def sample_lines(samples: dict[str, Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row a document: task, its number, the question as it was put, the responses, the target and the metrics."""
    return [
        {"task": task, **json.loads(json.dumps(sample, default=str))}
        for task, rows in samples.items()
        for sample in rows
    ]
