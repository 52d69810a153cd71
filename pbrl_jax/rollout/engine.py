"""One engine for everything that decodes or scores: token ids in; token ids, log-probs and texts out.

Training calls `rollout.refill` on batches that it lays out itself; everything else goes through an Engine, which
sorts rows by length into batches of few compiled shapes. Batches of one padded length share a queue of rows, and slots
for one batch; slots have room for the longest prompt of all, so that all lengths share the programs of a segment.
Batches depend on the rows and the batch size alone, and a row's randomness on the seed, its id and the sample's number:
an interrupted caller that leaves out finished batches gets the same tokens.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pbrl_jax.core.batching import by_length, few_rows, length_bucket, pad_prompts, padded_length
from pbrl_jax.core.errors import DataError
from pbrl_jax.core.records import PromptBatch, Rollout
from pbrl_jax.mesh.agree import host_array
from pbrl_jax.mesh.sharding import batch_sharding, constrain, row_shards
from pbrl_jax.models.decoder import logits_of
from pbrl_jax.models.logprobs import predicting_hidden, unpacked_streams
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.rollout.decode import completions
from pbrl_jax.rollout.refill import make_programs
from pbrl_jax.rollout.sampling import sampling_params, step_key
from pbrl_jax.text.tokenizers import Tokenizer
from pbrl_jax.weights.policies import Policy

SEGMENT_LENGTH = 128
"""Tokens decoded between two looks of the host."""
LOGITS_CHUNK = 256
"""Positions, over all rows, whose logits exist at a time while continuations are scored."""


class Sampling(NamedTuple):
    """How prompts are answered; temperature 0 is greedy, top_p 1 and top_k 0 are off."""

    max_completion_length: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    samples: int = 1
    seed: int = 0


class Answer(NamedTuple):
    """One response: its tokens with the end of sequence, the log-prob of each under the tempered distribution, whether
    the limit came first, and the text without the end of sequence."""

    tokens: list[int]
    logp: list[float]
    truncated: bool
    text: str


class Continuations(NamedTuple):
    """Several continuations of one prompt; the first `skip[c]` tokens of `tokens[c]` are context and not scored."""

    prompt: Sequence[int]
    tokens: Sequence[Sequence[int]]
    skip: Sequence[int]


class Likelihood(NamedTuple):
    """Summed log-prob (natural logarithm) of a continuation's scored tokens, whether each of them is the likeliest
    one, and their number."""

    logp: float
    greedy: bool
    tokens: int


class Engine(NamedTuple):
    """A policy that answers and scores.

    Args:
      batch_size: most prompts that run at a time, rounded up to a multiple of the devices that hold different rows.
      mesh: spreads the rows of a batch over its devices; default: wherever the parameters are.
      max_prompt_length: longer prompts are refused (DataError); 0 for no limit.
      positions: tokens of a prompt and its response together that the model was made for; more are refused
        (DataError); 0 for no limit.
      weights: how the matrices lie while it answers, as `rollout.weights` of the config.
    """

    spec: DecoderSpec
    params: Any
    tokenizer: Tokenizer
    batch_size: int = 32
    mesh: Any = None
    max_prompt_length: int = 0
    positions: int = 0
    weights: str = "auto"

    @classmethod
    def of(cls, policy: Policy, batch_size: int = 32, mesh: Any = None) -> "Engine":
        """The engine of a policy."""
        return cls(policy.spec, policy.params, policy.tokenizer, batch_size, mesh, positions=policy.positions)

    def answer(self, prompts: Sequence[Sequence[int]], sampling: Sampling, row_ids: Sequence[int] | None = None,
               tick: Callable[[int], Any] | None = None, should_stop: Callable[[], bool] | None = None
               ) -> list[Answer]:  # fmt: skip
        """`sampling.samples` answers to each prompt; answer p * samples + g is sample g of prompt p.

        Args:
          prompts, row_ids, should_stop: as in answer_batches.
          tick: called with the number of prompts that a batch has finished.
        """
        found: dict[int, list[Answer]] = {}
        for rows, answers in self.answer_batches(prompts, sampling, row_ids, should_stop=should_stop):
            groups = (answers[start : start + sampling.samples] for start in range(0, len(answers), sampling.samples))
            found.update(zip(rows, groups, strict=True))
            if tick is not None:
                tick(len(rows))
        return [answer for row in range(len(prompts)) for answer in found[row]]

    def answer_batches(self, prompts: Sequence[Sequence[int]], sampling: Sampling,
                       row_ids: Sequence[int] | None = None, wanted: Set[int] | None = None,
                       should_stop: Callable[[], bool] | None = None
                       ) -> Iterator[tuple[list[int], list[Answer]]]:  # fmt: skip
        """(prompt numbers, their answers, `sampling.samples` for each) of every batch as it finishes.

        Args:
          prompts: token ids, at least one each.
          row_ids: stable 31-bit ids of the prompts, from which the random numbers derive; default: their places.
          wanted: prompt numbers; batches that hold none of them are left out.
          should_stop: asked after every segment of tokens.

        Raises:
          DataError: a prompt that is empty or too long, or beyond the model's positions with its response.
          Interrupted: `should_stop()` was true.
        """
        self._refuse_beyond(max(map(len, prompts), default=0), sampling.max_completion_length)
        ids = range(len(prompts)) if row_ids is None else row_ids
        longest = max(self._buckets(prompts), default=1)
        for length, batches in itertools.groupby(self._batches(prompts, wanted), operator.itemgetter(2)):
            yield from self._answer_batches(list(batches), length, longest, prompts, ids, sampling, should_stop)

    def _answer_batches(self, batches, length: int, longest: int, prompts, ids, sampling: Sampling, should_stop
                        ) -> Iterator[tuple[list[int], list[Answer]]]:  # fmt: skip
        """Batches of one padded length as one queue of rows over the slots of one batch, which have room for prompts of
        `longest` tokens."""
        places = spread([rows for rows, _, _ in batches], len(batches[0][1]), row_shards(self.mesh))
        lists = [prompts[n] if n >= 0 else [self.tokenizer.pad_id] for n in places.prompts]
        batch = pad_prompts(lists, length, [ids[n] if n >= 0 else 0 for n in places.prompts], self.tokenizer.pad_id)
        G = sampling.samples
        run = self._programs(sampling, SEGMENT_LENGTH)._replace(slots=len(batches[0][1]) * G)
        settings, left = self._settings(sampling), [len(rows) * G for rows, _, _ in batches]
        steps = run.steps(self.params, self._placed(batch), step_key(sampling.seed, 0), settings, should_stop,
                          places.counts_D, longest)  # fmt: skip
        given = 0
        for rollout, ended in steps:
            for device, row in ended:
                left[places.batches[places.place(device, row // G)]] -= 1
            while given < len(batches) and not left[given]:
                rows, filled, _ = batches[given]
                at = np.array([places.of[number] * G + sample for number in filled for sample in range(G)], np.int32)
                yield rows, read_answers(taken_rows(rollout, at), self.tokenizer)[: len(rows) * G]
                given += 1

    def stream(self, prompt: Sequence[int], sampling: Sampling, tokens: int) -> Iterator[Answer]:
        """One answer as it grows: after the first token and then after every `tokens` tokens."""
        self._refuse_beyond(len(prompt), sampling.max_completion_length)
        run = self._programs(sampling._replace(samples=1), tokens)
        batch = self._placed(pad_prompts([prompt], padded_length(len(prompt)), [0], self.tokenizer.pad_id))
        for rollout, ended in run.steps(self.params, batch, step_key(sampling.seed, 0), self._settings(sampling)):
            yield read_answers(rollout, self.tokenizer)[0]
            if ended:
                return

    def score(self, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]],
              tick: Callable[[int], Any] | None = None) -> list[Likelihood]:  # fmt: skip
        """The likelihood of each continuation behind its context; of one without tokens it is (0.0, True, 0)."""
        found = [Likelihood(0.0, True, 0)] * len(continuations)
        full = [row for row, ids in enumerate(continuations) if ids]
        for rows, scores in self.score_batches([Continuations(contexts[n], [continuations[n]], [0]) for n in full]):
            for row, (likelihood,) in zip(rows, scores, strict=True):
                found[full[row]] = likelihood
            if tick is not None:
                tick(len(rows))
        return found

    def score_batches(self, asked: Sequence[Continuations], wanted: Set[int] | None = None
                      ) -> Iterator[tuple[list[int], list[list[Likelihood]]]]:  # fmt: skip
        """(row numbers, the likelihoods of each row's continuations) of every batch as it finishes; a prompt runs once
        for all its continuations.

        Args:
          wanted: row numbers; batches that hold none of them are left out.

        Raises:
          DataError: a prompt or a continuation without tokens, or both together beyond the model's positions.
        """
        samples = max((len(row.tokens) for row in asked), default=1)
        widths = [max(map(len, row.tokens)) for row in asked]
        longest = max(range(len(asked)), key=lambda row: len(asked[row].prompt) + widths[row], default=None)
        if longest is not None:
            self._refuse_beyond(len(asked[longest].prompt), widths[longest])
        run = compiled_scores(self.spec, samples)
        for rows, filled, length in self._batches([row.prompt for row in asked], wanted, widths):
            batch = pad_prompts([asked[n].prompt for n in filled], length, filled, self.tokenizer.pad_id)
            # Rows with fewer continuations repeat their first one.
            picks = [(asked[n], c if c < len(asked[n].tokens) else 0) for n in filled for c in range(samples)]
            tokens = pad_prompts([row.tokens[c] for row, c in picks], padded_length(max(widths[n] for n in rows)),
                                 range(len(picks)))  # fmt: skip
            skip_B = np.array([row.skip[c] for row, c in picks], np.int32)
            arrays = self._placed((batch, tokens.tokens_PT, tokens.lengths_P, skip_B))
            sums, best = (host_array(x).tolist() for x in run(self.params, *arrays))
            counts = (tokens.lengths_P - skip_B).tolist()
            found = [Likelihood(*one) for one in zip(sums, best, counts, strict=True)]
            yield rows, [found[i * samples :][: len(asked[row].tokens)] for i, row in enumerate(rows)]

    def _programs(self, sampling: Sampling, segment: int):
        return make_programs(self.spec, sampling.samples, sampling.max_completion_length, segment, self.weights)

    def _refuse_beyond(self, prompt: int, response: int) -> None:
        if self.positions and prompt + response > self.positions:
            raise DataError(beyond_positions(prompt, response, self.positions))

    def _batches(self, prompts: Sequence[Sequence[int]], wanted: Set[int] | None, widths: Sequence[int] | None = None
                 ) -> Iterator[tuple[list[int], list[int], int]]:  # fmt: skip
        """(row numbers, the same filled up, padded length) of the batches; within a length bucket rows are sorted by
        `widths`, or else by their own lengths."""
        lengths, buckets = list(map(len, prompts)), self._buckets(prompts)
        shards = row_shards(self.mesh)
        size = -(-few_rows(len(prompts), self.batch_size) // shards) * shards
        sizes = list(zip(buckets, lengths if widths is None else widths, strict=True))
        for rows, filled in by_length(sizes, size, operator.itemgetter(0)):
            if wanted is None or not wanted.isdisjoint(rows):
                yield rows, filled, buckets[rows[-1]]

    def _buckets(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """The padded length of each prompt."""
        limit = self.max_prompt_length or padded_length(max(map(len, prompts), default=1))
        return [length_bucket(len(prompt), limit) for prompt in prompts]

    def _placed(self, tree: Any) -> Any:
        """Arrays on the device, rows spread over the mesh where there is one."""
        return jax.tree.map(jnp.asarray, tree) if self.mesh is None else jax.device_put(tree, batch_sharding(self.mesh))

    def _settings(self, sampling: Sampling):
        return sampling_params(sampling.temperature, sampling.top_p, sampling.top_k, self.tokenizer.eos_ids)


class Places(NamedTuple):
    """Where the prompts of several batches stand in one array: the number of the prompt at each place, -1 for none, and
    of its batch, the place of each prompt, and how many prompts each device has, at its first places."""

    prompts: list[int]
    batches: list[int]
    of: dict[int, int]
    counts_D: np.ndarray

    def place(self, device: int, prompt: int) -> int:
        """The place of a device's prompt."""
        return device * (len(self.prompts) // len(self.counts_D)) + prompt


def spread(batches: Sequence[list[int]], size: int, devices: int) -> Places:
    """Prompts of batches dealt to the devices in turn, in the order of the batches; of a power of two times `size`
    places, so that few shapes are compiled."""
    count = size << (len(batches) - 1).bit_length()
    prompts, numbers = [-1] * count, [-1] * count
    dealt = [(number, prompt) for number, rows in enumerate(batches) for prompt in rows]
    for turn, (number, prompt) in enumerate(dealt):
        place = turn % devices * (count // devices) + turn // devices
        prompts[place], numbers[place] = prompt, number
    counts_D = np.array([len(dealt[device::devices]) for device in range(devices)])
    return Places(prompts, numbers, {prompt: place for place, prompt in enumerate(prompts)}, counts_D)


@jax.jit
def taken_rows(rollout: Rollout, rows) -> Rollout:
    """Some rows of a rollout, on every device."""
    return jax.tree.map(lambda x: constrain(x[rows], "none"), rollout)


def beyond_positions(prompt: int, response: int, positions: int) -> str:
    """What to say of a prompt and a response, in tokens, that are together longer than the model's positions."""
    return (
        f"A prompt of {prompt} tokens and a response of {response} are more than the {positions} positions that this "
        "model was made for (max_position_embeddings of its config.json). Shorten the prompts or the responses."
    )


def read_answers(rollout: Rollout, tokenizer: Tokenizer) -> list[Answer]:
    """The rows of a rollout on the host."""
    host = jax.tree.map(host_array, rollout)
    rows = zip(host.tokens_BR, host.logp_BR, host.lengths_B.tolist(), host.truncated_B.tolist(),
               completions(host, tokenizer), strict=True)  # fmt: skip
    return [Answer(tokens[:n].tolist(), logp[:n].tolist(), cut, text) for tokens, logp, n, cut, text in rows]


def continuation_scores(params, contexts: PromptBatch, tokens_BL, lengths_B, skip_B, *, spec: DecoderSpec,
                        samples: int):  # fmt: skip
    """(summed log-prob, whether every token is the likeliest one) of each row's scored tokens, [B] and [B].

    Args:
      contexts: P contexts; row b continues context b // samples.
      tokens_BL: continuations, right-padded.
      lengths_B: tokens of each.
      skip_B: leading tokens of each that are not scored.
    """
    B, L = tokens_BL.shape
    streams = unpacked_streams(tokens_BL, lengths_B, samples)
    hidden_BLD = predicting_hidden(params, spec, contexts, streams, packed=False).reshape(B, L, -1)
    size = min(L, max(1, LOGITS_CHUNK // B))
    count = -(-L // size)

    def chunks(x):
        x = jnp.pad(x, [(0, 0), (0, count * size - L)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B, count, size, *x.shape[2:]), 1, 0)

    def score(xs):
        logits = logits_of(params, spec, xs[0])
        chosen = jnp.take_along_axis(logits, xs[1][..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1), chosen >= logits.max(axis=-1)

    found = jax.lax.map(score, (chunks(hidden_BLD), chunks(tokens_BL)))
    logp_BL, best_BL = (jnp.moveaxis(x, 0, 1).reshape(B, count * size)[:, :L] for x in found)
    place_1L = jnp.arange(L)[None]
    scored_BL = (place_1L >= skip_B[:, None]) & (place_1L < lengths_B[:, None])
    return jnp.where(scored_BL, logp_BL, 0.0).sum(axis=1), jnp.where(scored_BL, best_BL, True).all(axis=1)


@functools.cache
def compiled_scores(spec: DecoderSpec, samples: int):
    """continuation_scores, compiled for each padded shape."""
    return jax.jit(functools.partial(continuation_scores, spec=spec, samples=samples))
