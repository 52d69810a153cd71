"""`pbrl generate --policy DIR --prompt TEXT`: try a policy, on a batch of prompts, or on one as the answer grows."""

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

import jax

from pbrl_jax.config.tree import DataConfig, MeshConfig
from pbrl_jax.core.characters import visible
from pbrl_jax.core.errors import ConfigError, lookup
from pbrl_jax.core.paths import encodes
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.rollout.engine import Engine, Sampling
from pbrl_jax.run.config_file import run_config
from pbrl_jax.run.options import GenerateOptions
from pbrl_jax.text.languages import check_languages
from pbrl_jax.text.prompts import STYLES, form_of, format_prompts, rendered
from pbrl_jax.text.tokenizers import Tokenizer, has_chat_template
from pbrl_jax.text.wording import with_own_words
from pbrl_jax.weights.policies import COMPUTE_TYPES, Policy, load_policy

#: Tokens that are decoded between two looks at them when they are shown as they come.
STREAMED_TOKENS = 8
RUN = "run"
"""As the run that trained the policy puts questions; for another policy, the question alone."""


def check(arguments: GenerateOptions) -> None:
    """Whatever can be refused before a model is loaded."""
    check_languages((arguments.language,))
    lookup({RUN: "", **STYLES}, arguments.style, "prompt style")
    if any(not prompt.strip() for prompt in arguments.prompt):
        raise ConfigError("An empty --prompt cannot be answered. Write a question between the quotes.")
    if not encodes([*arguments.prompt, arguments.system_prompt, arguments.user_prompt]):
        raise ConfigError("A prompt holds bytes that are not UTF-8. Write it in UTF-8, or set LC_ALL=C.UTF-8.")
    if arguments.stream and len(arguments.prompt) > 1:
        raise ConfigError(f"--stream shows one answer as it grows, found {len(arguments.prompt)} prompts. Give one.")
    if arguments.dtype is not None and arguments.dtype not in COMPUTE_TYPES:
        raise ConfigError(f"--dtype is {arguments.dtype!r}; expected {' or '.join(COMPUTE_TYPES)}.")


def load(arguments: GenerateOptions) -> Policy:
    """The policy, over `--tensor` devices, with parameters in the type they are stored in."""
    if arguments.tensor > jax.device_count():
        raise ConfigError(f"--tensor is {arguments.tensor}, but there are {jax.device_count()} devices. Use fewer.")
    mesh = None
    if arguments.tensor > 1:
        mesh = make_mesh(MeshConfig(1, 1, arguments.tensor), jax.devices()[: arguments.tensor])
    return load_policy(arguments.policy, mesh, arguments.dtype, "stored")


def form(arguments: GenerateOptions, tokenizer: Tokenizer) -> dict[str, Any]:
    """How the questions are put: style, thinking and wording, as in format_prompts."""
    trained = run_config(arguments.policy) if arguments.style == RUN else None
    bare = DataConfig(prompt_style="chat_question" if has_chat_template(tokenizer) else "plain")
    data = trained.data if trained is not None else bare
    if arguments.style != RUN:
        data = dataclasses.replace(data, prompt_style=arguments.style)
    if arguments.thinking != "default":
        data = dataclasses.replace(data, thinking=arguments.thinking)
    return form_of(with_own_words(data, arguments))


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


def main(arguments: GenerateOptions) -> None:
    """Print one response per prompt."""
    check(arguments)
    policy = load(arguments)
    languages = [arguments.language] * len(arguments.prompt)
    ids = format_prompts(arguments.prompt, languages, policy.tokenizer, **form(arguments, policy.tokenizer))
    shown = visible if sys.stdout.isatty() else str
    if arguments.show_prompt:
        for tokens in ids:
            print(f"{shown(rendered(tokens, policy.tokenizer))}\n[{len(tokens)} tokens]\n")
    engine = Engine.of(policy, len(ids))
    sampling = Sampling(
        arguments.max_completion_length, arguments.temperature, arguments.top_p, arguments.top_k, seed=arguments.seed
    )
    if arguments.stream:
        print(f"> {shown(arguments.prompt[0])}")
        for text in new_text(answer.text for answer in engine.stream(ids[0], sampling, STREAMED_TOKENS)):
            sys.stdout.write(shown(text))
            sys.stdout.flush()
        print()
        return
    for prompt, answer in zip(arguments.prompt, engine.answer(ids, sampling), strict=True):
        print(f"> {shown(prompt)}\n{shown(answer.text)}\n")
