"""Loading of translators: a translation model, or any policy with an instruction to translate."""

from collections.abc import Sequence
from typing import Any

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.rollout.endpoint import without_thoughts
from pbrl_jax.rollout.engine import Engine, Sampling
from pbrl_jax.text.languages import LANGUAGES
from pbrl_jax.text.prompts import with_one_bos
from pbrl_jax.text.tokenizers import has_chat_template
from pbrl_jax.translate.m2m100_translator import load_m2m100
from pbrl_jax.translate.translator import REQUEST, Segment, Translator, Written
from pbrl_jax.weights.hf_fields import read_config
from pbrl_jax.weights.hf_m2m100 import MODEL_TYPE
from pbrl_jax.weights.hub import local_copy
from pbrl_jax.weights.policies import Policy, load_policy

PLAIN = (
    "Translation from {source} into {target}. Numbers and formulas stay as they are.\n\n{source}: {text}\n{target}:\n"
)
"""The prompt of a model without a chat template; its translation is the next line."""


class PromptedTranslator(Translator):
    """A policy with an instruction to translate, decoded greedily; see `Translator.translate`.

    With a chat template it translates whole texts of several lines; without one, one sentence at a time.

    Args:
      policy: any decoder with its tokenizer.
      max_completion_length: maximum tokens of a translation.
      max_prompt_length: maximum tokens of a prompt, including the request; longer texts are split.
      batch_size: texts per batch.
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
        """Identifies the policy and the limits."""
        return f"{self.policy.fingerprint}:{self.max_prompt_length}:{self.max_completion_length}"

    def prompt_tokens(self, segment: Segment) -> list[int]:
        """The ids of the request, with one beginning-of-sequence token if the tokenizer has one."""
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
        # Inside the prompt a text may have one or two tokens more than alone; its translation may have twice as many.
        count = len(self.policy.tokenizer.encode(text)) + 2
        return count <= min(self.text_limit, self.max_completion_length // 2)

    def write(self, segments: Sequence[Segment]) -> list[Written]:
        engine, prompts = Engine.of(self.policy, self.batch_size), [self.prompt_tokens(segment) for segment in segments]
        answers = engine.answer(prompts, Sampling(self.max_completion_length))
        return [self._finished(answer.text, not answer.truncated) for answer in answers]

    def _finished(self, text: str, ended: bool) -> Written:
        """The translation without the thought; without a chat template, its first line."""
        text = without_thoughts(text)
        if self.whole_texts:
            return Written(text, ended)
        line, newline, _ = text.partition("\n")
        return Written(line.strip(), ended or bool(newline))


def load_translator(
    source: str, *, mesh=None, dtype: str | None = None, num_beams: int = 1, batch_size: int = 32, **limits: Any
) -> Translator:
    """A translator from a folder, a hub id or `gs://...`: `translate(texts, source_language, target_language)`.

    M2M100 and NLLB-200 models (`facebook/nllb-200-distilled-600M`) translate sentence by sentence; a policy (any model
    of load_policy) is prompted to translate. The licence of NLLB's weights is CC-BY-NC.

    Args:
      mesh: the mesh for the parameters.
      dtype: compute type; default: the folder's.
      num_beams: for M2M100 and NLLB; 1 is greedy.
      batch_size: texts or sentences per batch.
      limits: for a policy, `max_completion_length` and `max_prompt_length` in tokens.

    Raises:
      CheckpointError: no model, or one that is damaged or not supported.
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
