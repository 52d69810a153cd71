"""A tiny quickstart world: vocabulary, random encoder and policy, prompts and their references' vectors."""

import functools

import jax
import numpy as np
from tiny_policy import tiny_params, tiny_spec

from pbrl_jax.core.records import Prompt, Reference
from pbrl_jax.core.trees import map_with_path
from pbrl_jax.data.sources import quickstart
from pbrl_jax.models.encoder import init_encoder
from pbrl_jax.models.specs import EncoderSpec, tiny_encoder
from pbrl_jax.rewards.inputs import PivotVectors, RewardInputs
from pbrl_jax.text.tokenizers import SentencePieceTokenizer, train_sentencepiece
from pbrl_jax.weights.encoders import Encoder
from pbrl_jax.weights.folders import abstract_tree
from pbrl_jax.weights.policies import Policy

LANGUAGES = ("en", "sw", "zh")
SPACE = "small"


@functools.cache
def tokenizer() -> SentencePieceTokenizer:
    """A vocabulary of the small quickstart task in three languages."""
    lines = quickstart.vocabulary_text(LANGUAGES, 0, 150, SPACE)
    return train_sentencepiece(lines, 600, user_symbols=quickstart.USER_SYMBOLS)


def encoder_params(spec: EncoderSpec, seed: int = 0):
    """Parameters large enough that every part of the encoder matters."""
    rng = np.random.default_rng(seed)
    shapes = abstract_tree(init_encoder, spec)
    return map_with_path(
        lambda path, leaf: jax.numpy.asarray(path.endswith("scale") + 0.3 * rng.normal(size=leaf.shape), leaf.dtype),
        shapes,
    )


@functools.cache
def encoder(max_length: int = 64, prefix: str = "", pooling: str = "mean") -> Encoder:
    spec = tiny_encoder(vocab_size=tokenizer().vocab_size, pooling=pooling)
    return Encoder(spec, encoder_params(spec), tokenizer(), f"tiny-{pooling}", max_length, prefix)


@functools.cache
def policy() -> Policy:
    spec = tiny_spec(vocab_size=tokenizer().vocab_size)
    return Policy(spec, tiny_params(spec), tokenizer(), "tiny")


def problem_prompts(count: int, languages=LANGUAGES, split: str = "train") -> list[Prompt]:
    """`count` problems in each language, problem by problem."""
    return quickstart.rows(SPACE, split, languages, count, 0)


def canonical_responses(count: int, languages=LANGUAGES, split: str = "train") -> list[str]:
    """The right response to each of `problem_prompts(count, languages, split)`."""
    chosen = quickstart.problems(split, count, 0, SPACE)
    return [quickstart.response(problem, code) for problem in chosen for code in languages]


def vectors_of(references: list[Reference | None], model: Encoder) -> PivotVectors:
    """Unit vectors of references; zeros where there is none, or none of a part."""

    def embed(texts):
        return model.embed(texts) * np.array([bool(text) for text in texts])[:, None]

    return PivotVectors(
        embed([r.text if r else "" for r in references]),
        embed([r.reasoning if r else "" for r in references]),
        embed([r.answer if r else "" for r in references]),
        np.array([r is not None for r in references]),
    )


def reward_inputs(prompts: list[Prompt], completions: list[str], model: Encoder | None = None) -> RewardInputs:
    """Rows as a reward receives them; without an encoder the vectors are empty."""
    ids = [[*tokenizer().encode(text), *tokenizer().eos_ids] for text in completions]
    tokens = np.zeros((len(ids), max(map(len, ids))), np.int32)
    for row, row_ids in enumerate(ids):
        tokens[row, : len(row_ids)] = row_ids
    count = len(prompts)
    empty = PivotVectors(*(np.zeros((count, 1), np.float32),) * 3, np.ones(count, bool))
    vectors = empty if model is None else vectors_of([p.reference for p in prompts], model)
    return RewardInputs(prompts, completions, tokens, np.array([len(row) for row in ids]), vectors, 3)
