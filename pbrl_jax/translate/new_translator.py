"""A new M2M100 model with a vocabulary that is trained on given text."""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from pbrl_jax.core.errors import ConfigError, lookup
from pbrl_jax.mesh.once import jit_once
from pbrl_jax.models.m2m100 import TRANSLATORS, M2M100Spec, init_m2m100
from pbrl_jax.text.sentencepiece_json import convert
from pbrl_jax.text.tokenizers import HuggingFaceTokenizer, train_sentencepiece
from pbrl_jax.translate.m2m100_translator import M2M100Translator
from pbrl_jax.weights.hf_m2m100 import MODEL_TYPE, SIZES


def new_translator(
    preset: str, languages: Sequence[str], lines: Sequence[str], vocab_size: int, seed: int, **options: Any
) -> M2M100Translator:
    """A translator with random parameters.

    Args:
      preset: a name in models.m2m100.TRANSLATORS.
      languages: codes; each of them, and English, gets a token `__code__`.
      lines: training sentences of the vocabulary.
      vocab_size: maximum number of pieces, without the languages' tokens.
      seed: of the parameters.
      options: of `train_sentencepiece`.
    """
    tokenizer = language_tokenizer(languages, lines, vocab_size, **options)
    spec = dataclasses.replace(
        lookup(TRANSLATORS, preset, "translator preset"), vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id,
        start_id=tokenizer.eos_ids[0], eos_ids=tokenizer.eos_ids,
    )  # fmt: skip
    params = jit_once(functools.partial(init_m2m100, spec=spec))(jax.random.key(seed))
    translator = M2M100Translator(spec, params, tokenizer)
    translator.config = config_json(spec)
    translator.fingerprint = f"random-{preset}-{seed}-{tokenizer.fingerprint[:16]}"
    return translator


def language_tokenizer(languages: Sequence[str], lines: Sequence[str], vocab_size: int,
                       **options: Any) -> HuggingFaceTokenizer:  # fmt: skip
    """A trained vocabulary as a transformers tokenizer, with a special token `__code__` for each language.

    Raises:
      ConfigError: the vocabulary cannot be converted.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    pieces = train_sentencepiece(lines, vocab_size, **options)
    core, problem = convert(pieces, begin=False)
    if core is None:
        raise ConfigError(f"The vocabulary cannot be written as tokenizer.json: {problem}. Change data.vocab_size.")
    codes = sorted({*languages, "en"})
    core.add_special_tokens([AddedToken(f"__{code}__", special=True, normalized=False) for code in codes])
    name = pieces.processor.id_to_piece
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=name(pieces.eos_ids[0]), pad_token=name(pieces.pad_id),
        unk_token=name(pieces.processor.unk_id()), clean_up_tokenization_spaces=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        fast.save_pretrained(folder)
        settings = Path(folder) / "tokenizer_config.json"
        kept = json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        settings.write_text(json.dumps(kept))
        return HuggingFaceTokenizer(folder)


def config_json(spec: M2M100Spec) -> dict[str, Any]:
    """The config.json of a model of this spec, for transformers."""
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["M2M100ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "activation_function": "relu",
        **{theirs: getattr(spec, ours) for ours, theirs in SIZES.items()},
        "scale_embedding": spec.embed_scale != 1.0,
        "pad_token_id": spec.pad_id,
        "decoder_start_token_id": spec.start_id,
        "eos_token_id": spec.eos_ids[0],
        "bos_token_id": spec.start_id,
    }
