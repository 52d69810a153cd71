"""`pbrl generate --policy DIR --prompt TEXT`: try a policy, on a batch of prompts, or on one as the answer grows."""

import argparse
import functools
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from pbrl_jax.config.tree import MeshConfig
from pbrl_jax.core.errors import ConfigError, lookup
from pbrl_jax.core.records import PromptBatch, SamplingParams
from pbrl_jax.data.batches import pad_prompts
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.models.specs import DecoderSpec
from pbrl_jax.rollout.decode import completions
from pbrl_jax.rollout.generate import DecodeState, compiled_sampler, decode, finish, prefill, windows
from pbrl_jax.rollout.sampling import row_keys, sampling_params, step_key
from pbrl_jax.text.languages import check_languages
from pbrl_jax.text.prompts import STYLES, THINKING, format_prompts
from pbrl_jax.weights.policies import COMPUTE_TYPES, Policy, load_policy

#: Tokens that are decoded between two looks at them when they are shown as they come.
STREAMED_TOKENS = 8
PROMPT_STEP = 16
"""Prompts are padded to a multiple of it, so that few programs are compiled."""
LIMITS = {
    "temperature": (0.0, 100.0), "top_p": (1e-6, 1.0), "top_k": (0, 2**31 - 1), "max_completion_length": (1, 2**20),
    "seed": (0, 2**31 - 1), "tensor": (1, 2**20),
}  # fmt: skip


def check(arguments: argparse.Namespace) -> None:
    """Whatever can be refused before a model is loaded."""
    check_languages((arguments.language,))
    lookup(STYLES, arguments.style, "prompt style")
    for name, (low, high) in LIMITS.items():
        value = getattr(arguments, name)
        if not low <= value <= high:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} is {value}; expected at least {low} and at most {high}.")
    if any(not prompt.strip() for prompt in arguments.prompt):
        raise ConfigError("An empty --prompt cannot be answered. Write a question between the quotes.")
    if arguments.stream and len(arguments.prompt) > 1:
        raise ConfigError(f"--stream shows one answer as it grows, found {len(arguments.prompt)} prompts. Give one.")
    if arguments.dtype is not None and arguments.dtype not in COMPUTE_TYPES:
        raise ConfigError(f"--dtype is {arguments.dtype!r}; expected {' or '.join(COMPUTE_TYPES)}.")


def load(arguments: argparse.Namespace) -> Policy:
    """The policy, over `--tensor` devices, with parameters in the type they are stored in."""
    if arguments.tensor > jax.device_count():
        raise ConfigError(f"--tensor is {arguments.tensor}, but there are {jax.device_count()} devices. Use fewer.")
    mesh = None
    if arguments.tensor > 1:
        mesh = make_mesh(MeshConfig(1, 1, arguments.tensor), jax.devices()[: arguments.tensor])
    return load_policy(arguments.policy, mesh, arguments.dtype, "stored")


def prompt_batch(ids: list[list[int]], pad_id: int) -> PromptBatch:
    """The prompts, padded to a common length."""
    longest = max(map(len, ids))
    batch = pad_prompts(ids, -(-longest // PROMPT_STEP) * PROMPT_STEP, list(range(len(ids))), pad_id)
    return jax.tree.map(jnp.asarray, batch)


@functools.cache
def stepper(spec: DecoderSpec, max_length: int):
    """(prefill, one segment), compiled."""
    start = jax.jit(functools.partial(prefill, spec=spec, samples=1, max_length=max_length))
    return start, jax.jit(functools.partial(decode, spec=spec), static_argnames="window", donate_argnums=1)


def stream_states(
    policy: Policy, prompts: PromptBatch, key, sampling: SamplingParams, max_length: int
) -> Iterator[DecodeState]:
    """The decoding's state after the first token and after every further few, until all rows are done.

    A state's arrays are gone when the next one is asked for.
    """
    start, segment = stepper(policy.spec, max_length)
    state = start(policy.params, prompts, row_keys(key, prompts.row_ids_P, 1), sampling)
    yield state
    filled = 0
    for window in windows(max_length):
        while filled < window - 1 and not bool(state.done_B.all()):
            filled = min(filled + STREAMED_TOKENS, window - 1)
            state = segment(policy.params, state, sampling, jnp.int32(filled), window=window)
            yield state


def new_text(texts: Iterator[str]) -> Iterator[str]:
    """What each text adds to the one before; a character that is not yet whole waits for its rest."""
    shown = text = ""
    for text in texts:
        whole = text.rstrip("\ufffd")
        if len(whole) > len(shown) and whole.startswith(shown):
            yield whole[len(shown) :]
            shown = whole
    if text.startswith(shown) and len(text) > len(shown):
        yield text[len(shown) :]


def main(arguments: argparse.Namespace) -> None:
    """Print one response per prompt."""
    check(arguments)
    policy = load(arguments)
    tokenizer = policy.tokenizer
    languages = [arguments.language] * len(arguments.prompt)
    ids = format_prompts(arguments.prompt, languages, tokenizer, arguments.style, THINKING[arguments.thinking])
    prompts, key = prompt_batch(ids, tokenizer.pad_id), step_key(arguments.seed, 0)
    sampling = sampling_params(arguments.temperature, arguments.top_p, arguments.top_k, tokenizer.eos_ids)
    if arguments.stream:
        print(f"> {arguments.prompt[0]}")
        states = stream_states(policy, prompts, key, sampling, arguments.max_completion_length)
        for text in new_text(completions(finish(state), tokenizer)[0] for state in states):
            sys.stdout.write(text)
            sys.stdout.flush()
        print()
        return
    rollout = compiled_sampler(policy.spec, arguments.max_completion_length)(policy.params, prompts, key, sampling)
    for prompt, text in zip(arguments.prompt, completions(rollout, tokenizer), strict=True):
        print(f"> {prompt}\n{text}\n")
