"""Policies as models of lm-evaluation-harness, to run any of its tasks.

In:  a policy; the harness's requests.
Out: texts (generate_until) and log-probabilities (loglikelihood, loglikelihood_rolling), as from the harness's models.

lm_eval is an extra ([eval]), imported only when a model is made; it needs no torch.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.eval.respond import cut_at_stop, problem_id
from pbrl_jax.logs.progress import Progress
from pbrl_jax.rollout.engine import Engine, Sampling
from pbrl_jax.text.hf_tokenizer import dated
from pbrl_jax.text.prompts import with_one_bos
from pbrl_jax.text.tokenizers import has_chat_template
from pbrl_jax.weights.policies import Policy

KNOWN_OPTIONS = ("until", "max_gen_toks", "max_new_tokens", "do_sample", "temperature", "top_p", "top_k")
"""Supported generation options of a task; others are refused."""


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
            f"lm-evaluation-harness cannot be imported ({error}). Install it: pip install -e '.[eval]'"
        ) from error
    return lm_eval


class PolicyRequests:
    """The methods of a harness model, computed with a policy; `harness_model` adds the harness's base class.

    Args:
      policy: as from load_policy.
      batch_size: requests that run at a time.
      max_length: tokens of context and answer together; longer contexts are cut on the left, as by the harness's own
        models.
      max_gen_toks: tokens of an answer, if the task does not say.
      seed: of sampled answers.
      mesh: over whose devices rows are spread.
    """

    #: The harness's cache of answers, set by its base class.
    cache_hook: Any

    def __init__(self, policy: Policy, batch_size: int = 16, max_length: int = 2048, max_gen_toks: int = 256,
                 seed: int = 0, mesh: Any = None):  # fmt: skip
        super().__init__()
        if policy.positions and max_length > policy.positions:
            raise ConfigError(
                f"--max-length is {max_length}, but this model was made for {policy.positions} positions "
                f"(max_position_embeddings of its config.json). Use --max-length {policy.positions}."
            )
        self.policy, self.engine = policy, Engine.of(policy, batch_size, mesh)
        self.max_length, self.max_gen_toks, self.seed = max_length, max_gen_toks, seed

    # Tokens.

    def encode(self, text: str) -> list[int]:
        """Ids with one beginning-of-sequence token, if the tokenizer has one."""
        tokenizer = self.policy.tokenizer
        return with_one_bos(tokenizer.encode(text), tokenizer.bos_id)

    @property
    def prefix_token(self) -> int:
        """The token before a text without context: beginning of sequence, else end of sequence."""
        tokenizer = self.policy.tokenizer
        return tokenizer.eos_ids[0] if tokenizer.bos_id is None else tokenizer.bos_id

    def without_prefix(self, text: str) -> list[int]:
        """Ids of a text without `prefix_token`."""
        ids = self.encode(text)
        return ids[1:] if ids[:1] == [self.prefix_token] else ids

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """(ids of the context, ids of the continuation), encoded together and divided after the context's length.

        As in the harness, white space at the end of the context belongs to the continuation.
        """
        if not context:
            return [self.prefix_token], self.without_prefix(continuation)
        if not continuation:
            return self.encode(context), []
        stripped = context.rstrip()
        joined, head = self.encode(context + continuation), self.encode(stripped) if stripped else [self.prefix_token]
        # Even if the continuation merges with the end of the context, its last token is scored.
        place = min(len(head), len(joined) - 1)
        return (joined[:place], joined[place:]) if place else ([self.prefix_token], joined)

    # Requests.

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(summed log-probability, whether it is the greedy one) of each (context, continuation)."""
        texts = [request.args for request in requests]
        scores = self._score([self.pair(*text) for text in texts], "loglikelihood", not disable_tqdm)
        for text, score in zip(texts, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", text, score)
        return scores

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each full text; long texts are scored in windows of max_length tokens."""
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
        """The answer to each context, up to the first stop string; sampled only if the task asks for it."""
        options = [generation_options(request.args[1], self.max_gen_toks) for request in requests]
        answers = [""] * len(requests)
        with Progress("generate_until", len(requests), unit="request", active=not disable_tqdm) as progress:
            for sampling in dict.fromkeys(entry[1:] for entry in options):  # requests with the same options together
                numbers = [number for number, entry in enumerate(options) if entry[1:] == sampling]
                contexts = [requests[number].args[0] for number in numbers]
                prompts = [self.encode(context)[-max(1, self.max_length - sampling[0]) :] for context in contexts]
                ids = list(map(problem_id, contexts))
                results = self.engine.answer(prompts, Sampling(*sampling, seed=self.seed), ids, progress.advance)
                for number, result in zip(numbers, results, strict=True):
                    answers[number] = cut_at_stop(result.text, options[number][0])
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return answers

    # Chat.

    @property
    def tokenizer_name(self) -> str:
        """Identifies the tokenizer in the harness's caches."""
        return self.policy.tokenizer.fingerprint[:16]

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The tokenizer's chat template; "" if it has none or none is asked for."""
        tokenizer = self.policy.tokenizer
        return str(tokenizer.tokenizer.chat_template) if chat_template and has_chat_template(tokenizer) else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation.

        Raises:
          ConfigError: the tokenizer has no chat template.
        """
        tokenizer = self.policy.tokenizer
        if not has_chat_template(tokenizer):
            raise ConfigError("This policy's tokenizer has no chat template. Leave --apply-chat-template out.")
        return tokenizer.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            chat_template=dated(tokenizer.tokenizer.get_chat_template()),
        )  # fmt: skip

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]], name: str, shown: bool) -> list[tuple[float, bool]]:
        contexts, answers = zip(*(self._fitting(*pair) for pair in pairs), strict=True) if pairs else ((), ())
        with Progress(name, sum(map(bool, answers)), unit="request", active=shown) as progress:
            return [(score.logp, score.greedy) for score in self.engine.score(contexts, answers, progress.advance)]

    def _fitting(self, context: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
        """The last max_length tokens of both together; the context keeps at least one token."""
        answer = answer[-(self.max_length - 1) :]
        return context[-(self.max_length - len(answer)) :], answer


def rolling_windows(ids: list[int], prefix: int, size: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (context, tokens to predict) that cover `ids` once, divided as by the harness: at most `size` tokens each,
    and for the last ones as much context as fits."""
    for done in range(0, len(ids), size):
        end = min(done + size, len(ids))
        yield ([prefix] if done == 0 else ids[end - size - 1 : done]), ids[done:end]


def generation_options(options: dict[str, Any], default_tokens: int) -> tuple[tuple[str, ...], int, float, float, int]:
    """(stop strings, most tokens, temperature, top_p, top_k) of a request.

    As in the harness, decoding is greedy without do_sample or with a temperature of 0.

    Raises:
      ConfigError: an unsupported option.
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
      settings: arguments of PolicyRequests.

    Raises:
      ConfigError: lm_eval is not installed.
    """
    base = import_harness().api.model.LM
    return type("PolicyModel", (PolicyRequests, base), {})(policy, **settings)


def result_text(result: dict[str, Any]) -> str:
    """The harness's results as JSON; values of other types become text."""
    return json.dumps(result, indent=1, ensure_ascii=False, default=str) + "\n"


def sample_lines(samples: dict[str, Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row per document: task, number, prompt, responses, target and metrics."""
    return [
        {"task": task, **json.loads(json.dumps(sample, default=str))}
        for task, rows in samples.items()
        for sample in rows
    ]
