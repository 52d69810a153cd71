"""A policy asked to translate, and which translator a folder gives."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_world
from tiny_policy import quick_compiles, tiny_params, tiny_spec  # noqa: F401

from pbrl_jax.core.errors import CheckpointError, ConfigError
from pbrl_jax.text.tokenizers import HuggingFaceTokenizer
from pbrl_jax.translate.load import PromptedTranslator, load_translator
from pbrl_jax.translate.m2m100_translator import M2M100Translator
from pbrl_jax.translate.translator import Segment
from pbrl_jax.weights.policies import Policy, save_policy

NLLB = Path(__file__).parents[1] / "fixtures" / "hf" / "m2m100"
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}<mask>{% endif %}"
)


@functools.cache
def chat_policy() -> Policy:
    tokenizer = HuggingFaceTokenizer(str(NLLB))
    tokenizer.tokenizer.chat_template = TEMPLATE
    spec = tiny_spec(vocab_size=tokenizer.vocab_size)
    return Policy(spec, jax.tree.map(jnp.asarray, tiny_params(spec)), tokenizer, "chat")


def test_the_request_goes_through_the_chat_template():
    translator = PromptedTranslator(chat_policy(), max_completion_length=8)
    assert translator.whole_texts
    tokenizer = chat_policy().tokenizer
    ids = translator.prompt_tokens(Segment("Tom has 12 apples.\nShe has 5 left!", "en", "sw"))
    text = tokenizer.tokenizer.decode(ids, skip_special_tokens=False)
    assert ids[0] == tokenizer.bos_id and ids.count(tokenizer.bos_id) == 1
    assert "<mask>" in text, "thinking is switched off"
    wanted = tokenizer.encode("Tom has 12 apples.")
    assert any(ids[i : i + len(wanted) - 1] == wanted[1:] for i in range(len(ids)))


def test_the_request_without_a_chat_template():
    translator = PromptedTranslator(tiny_world.policy(), max_completion_length=8)
    assert not translator.whole_texts
    tokenizer = tiny_world.tokenizer()
    ids = translator.prompt_tokens(Segment("Tom 12", "en", "sw"))
    assert ids[0] == tokenizer.bos_id and ids[1:] == tokenizer.encode(
        "Translation from English into Swahili. Numbers and formulas stay as they are.\n\nEnglish: Tom 12\nSwahili:\n"
    )


@functools.cache
def logits_of_chat_policy():
    return jax.jit(chat_policy().logits)


def greedy_by_hand(policy: Policy, ids: list[int], count: int) -> list[int]:
    """The likeliest tokens, one full pass each."""
    ids, written, run = list(ids), [], logits_of_chat_policy()
    for _ in range(count):
        tokens = jnp.asarray([ids + [0] * (512 - len(ids))], jnp.int32)
        logits = run(policy.params, tokens, jnp.arange(512)[None] < len(ids))
        written.append(int(np.argmax(logits[0, len(ids) - 1])))
        ids.append(written[-1])
        if written[-1] in policy.tokenizer.eos_ids:
            break
    return written


def test_translations_are_the_greedy_continuations():
    policy = chat_policy()
    translator = PromptedTranslator(policy, max_completion_length=5, max_prompt_length=400, batch_size=2)
    segments = [Segment(text, "en", "sw") for text in ("Tom has apples.", "She", "A somewhat longer text than those.")]
    written = translator.write(segments)
    for segment, found in zip(segments, written, strict=True):
        tokens = greedy_by_hand(policy, translator.prompt_tokens(segment), 5)
        ended = tokens[-1] in policy.tokenizer.eos_ids
        expected = policy.tokenizer.decode(tokens[:-1] if ended else tokens)
        assert found == (expected.strip(), ended)


def test_what_is_taken_from_a_response():
    chat = PromptedTranslator(chat_policy(), max_completion_length=8)
    assert chat._finished("<think>\n\n</think>\n\nOne.\nTwo. ", True) == ("One.\nTwo.", True)
    assert chat._finished("It means\n</think>\n\nOne. ", True) == ("One.", True)
    assert chat._finished("<think>It means ", False) == ("", False), "a thought is no translation"
    plain = PromptedTranslator(tiny_world.policy(), max_completion_length=8)
    assert plain._finished(" One. \nSwahili: Two", False) == ("One.", True)
    assert plain._finished(" One", False) == ("One", False)


def test_every_text_gets_a_translation():
    translator = PromptedTranslator(chat_policy(), max_completion_length=6, max_prompt_length=400)
    found = translator.translations(["Tom has 12 apples.", "3", ""], "en", "de")
    assert [t.text for t in found][1:] == ["3", ""]
    assert isinstance(found[0].text, str)


def test_folders_give_their_translator(tmp_path):
    assert isinstance(load_translator(str(NLLB), num_beams=2), M2M100Translator)
    save_policy(tiny_world.policy(), str(tmp_path / "policy"))
    translator = load_translator(str(tmp_path / "policy"), max_completion_length=6, max_prompt_length=300)
    assert isinstance(translator, PromptedTranslator)
    assert translator.max_completion_length == 6
    assert len(translator.translate(["Tom has 12 apples."], "en", "sw")) == 1
    with pytest.raises(ConfigError, match="beam search is for m2m_100 models"):
        load_translator(str(tmp_path / "policy"), num_beams=4)
    with pytest.raises(ConfigError, match="max_prompt_length: only for policies"):
        load_translator(str(NLLB), max_prompt_length=300)
    with pytest.raises(CheckpointError):
        load_translator(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="the request alone takes"):
        load_translator(str(tmp_path / "policy"), max_prompt_length=10)
