"""`pbrl generate --policy DIR --prompt TEXT`: try a policy."""

import argparse

from pbrl_jax.assets.policy import load_policy
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.eval.evaluate import Decoder, answer_texts
from pbrl_jax.text.languages import check_languages
from pbrl_jax.text.prompts import format_prompts


def main(arguments: argparse.Namespace) -> None:
    """Print one response per prompt."""
    check_languages((arguments.language,))
    for option, low in (("temperature", 0.0), ("max_completion_length", 1), ("seed", 0)):
        value = getattr(arguments, option)
        if not low <= value < 2**31:
            raise ConfigError(f"--{option.replace('_', '-')} is {value}; expected at least {low}.")
    if any(not prompt.strip() for prompt in arguments.prompt):
        raise ConfigError("An empty --prompt cannot be answered. Write a question between the quotes.")
    policy = load_policy(arguments.policy)
    languages = [arguments.language] * len(arguments.prompt)
    longest = max(len(ids) for ids in format_prompts(arguments.prompt, languages, policy.tokenizer))
    decoder = Decoder(
        policy.spec, policy.tokenizer, -(-longest // 16) * 16, arguments.max_completion_length, len(languages)
    )
    texts = answer_texts(
        decoder, policy.params, arguments.prompt, languages, arguments.temperature, arguments.seed
    )
    for prompt, text in zip(arguments.prompt, texts, strict=True):
        print(f"> {prompt}\n{text}\n")
