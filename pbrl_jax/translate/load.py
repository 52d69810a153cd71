"""Translators by name: a translation model, or any policy that is asked to translate.

The prompted translator stands here and not beside the translation models because it uses the sampler.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pbrl_jax.core.batching import by_length, few_rows
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.data.batches import pad_prompts
from pbrl_jax.rollout.decode import completions
from pbrl_jax.rollout.generate import compiled_sampler
from pbrl_jax.rollout.sampling import sampling_params, step_key
from pbrl_jax.text.languages import LANGUAGES
from pbrl_jax.text.prompts import with_one_bos
from pbrl_jax.text.tokenizers import has_chat_template
from pbrl_jax.translate.m2m100_translator import load_m2m100
from pbrl_jax.translate.translator import REQUEST, Segment, Translator, Written
from pbrl_jax.weights.encoders import length_bucket
from pbrl_jax.weights.hf_fields import read_config
from pbrl_jax.weights.hf_m2m100 import MODEL_TYPE
from pbrl_jax.weights.hub import local_copy
from pbrl_jax.weights.policies import Policy, load_policy

PLAIN = (
    "Translation from {source} into {target}. Numbers and formulas stay as they are.\n\n{source}: {text}\n{target}:\n"
)
"""What a model without a chat template continues; its translation ends with the line."""
_THOUGHT = re.compile(r"^\s*<think>.*?</think>\s*", re.DOTALL)


class PromptedTranslator(Translator):
    """A policy asked to translate, greedily; see `Translator.translate`.

    With a chat template it reads texts whole and writes several lines; without one it gets a sentence at a time.

    Args:
      policy: any decoder with its tokenizer.
      max_completion_length: most tokens of a translation.
      max_prompt_length: most tokens of a prompt, the request included; longer texts are cut into parts.
      batch_size: texts translated at a time.
    """

    def __init__(self, policy: Policy, max_completion_length: int = 512, max_prompt_length: int = 1024,
                 batch_size: int = 32):  # fmt: skip
        self.policy, self.batch_size = policy, batch_size
        self.max_completion_length, self.max_prompt_length = max_completion_length, max_prompt_length
        self.whole_texts = has_chat_template(policy.tokenizer)
        frame = max(len(self.prompt_tokens(Segment("", code, "en"))) for code in LANGUAGES)
        if frame >= max_prompt_length:
            raise ConfigError(
                f"max_prompt_length={max_prompt_length}, but the request alone takes {frame} tokens. "
                f"Use at least {4 * frame}."
            )
        self.text_limit = max_prompt_length - frame

    @property
    def fingerprint(self) -> str:
        """Names all that a translation depends on."""
        return f"{self.policy.fingerprint}:{self.max_prompt_length}:{self.max_completion_length}"

    def prompt_tokens(self, segment: Segment) -> list[int]:
        """The ids of the request, with one beginning-of-sequence token where the tokenizer has one."""
        tokenizer, form = self.policy.tokenizer, REQUEST if self.whole_texts else PLAIN
        text = form.format(
            source=LANGUAGES[segment.source].name, target=LANGUAGES[segment.target].name, text=segment.text
        )
        if self.whole_texts:
            ids = tokenizer.encode_chat([{"role": "user", "content": text}], thinking=False)
        else:
            ids = tokenizer.encode(text)
        return with_one_bos(ids, tokenizer.bos_id)

    def fits(self, text: str) -> bool:
        # Beside its neighbours a text may take a token or two more than alone; its translation, twice as many.
        count = len(self.policy.tokenizer.encode(text)) + 2
        return count <= min(self.text_limit, self.max_completion_length // 2)

    def write(self, segments: Sequence[Segment]) -> list[Written]:
        prompts = [self.prompt_tokens(segment) for segment in segments]
        written: dict[int, Written] = {}
        for rows, filled in by_length(list(map(len, prompts)), few_rows(len(prompts), self.batch_size)):
            written |= dict(zip(rows, self._write_batch([prompts[row] for row in filled], filled), strict=False))
        return [written[row] for row in range(len(segments))]

    def _write_batch(self, prompts: list[list[int]], row_ids: list[int]) -> list[Written]:
        policy = self.policy
        # A text of one character passes as fitting, however many tokens it has.
        length = length_bucket(max(map(len, prompts)), max(self.max_prompt_length, *map(len, prompts)))
        batch = jax.tree.map(jnp.asarray, pad_prompts(prompts, length, row_ids, policy.tokenizer.pad_id))
        sampling = sampling_params(0.0, 1.0, 0, policy.tokenizer.eos_ids)
        run = compiled_sampler(policy.spec, self.max_completion_length)
        rollout = run(policy.params, batch, step_key(0, 0), sampling)
        texts = completions(rollout, policy.tokenizer)
        return [self._finished(text, not cut) for text, cut in zip(texts, rollout.truncated_B.tolist(), strict=True)]

    def _finished(self, text: str, ended: bool) -> Written:
        """The translation without an empty thought; without a chat template, its first line."""
        text = _THOUGHT.sub("", text).strip()
        if self.whole_texts:
            return Written(text, ended)
        line, newline, _ = text.partition("\n")
        return Written(line.strip(), ended or bool(newline))


def load_translator(
    source: str, *, mesh=None, dtype: str | None = None, num_beams: int = 1, batch_size: int = 32, **limits: Any
) -> Translator:
    """A translator from a folder, a hub id or `gs://...`: `translate(texts, source_language, target_language)`.

    M2M100 and NLLB-200 models (`facebook/nllb-200-distilled-600M`) translate sentence by sentence; any policy that
    load_policy reads is asked to translate. Mind the licence: NLLB's weights are CC-BY-NC.

    Args:
      mesh: lay the parameters on this mesh.
      dtype: compute type; default: what the folder says.
      num_beams: for M2M100 and NLLB; 1 is greedy.
      batch_size: texts or sentences translated at a time.
      limits: for a policy, `max_completion_length` and `max_prompt_length` in tokens.

    Raises:
      CheckpointError: no model there, or one that is damaged or not understood.
      ConfigError: settings that the model does not have.
    """
    folder = local_copy(source)
    config = read_config(folder, source) or {}
    if config.get("model_type") == MODEL_TYPE:
        if limits:
            raise ConfigError(f"{', '.join(limits)}: only for policies; {source!r} is a {MODEL_TYPE} model.")
        return load_m2m100(folder, config, source, mesh, dtype, num_beams, batch_size)
    if num_beams != 1:
        raise ConfigError(f"num_beams={num_beams}: beam search is for {MODEL_TYPE} models; a policy decodes greedily.")
    policy = load_policy(source, mesh=mesh, dtype=dtype, param_dtype="stored")
    return PromptedTranslator(policy, batch_size=batch_size, **limits)
