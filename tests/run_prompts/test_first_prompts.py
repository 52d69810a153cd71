"""What a run prints of its prompts before it starts, and prompts that lack what they should ask."""

import pytest
from tiny_hf import TEMPLATE, hf_tokenizer
from tiny_world import tokenizer

from pbrl_jax import DataConfig
from pbrl_jax.core.errors import DataError
from pbrl_jax.core.records import Prompt
from pbrl_jax.data.load import fit_prompts
from pbrl_jax.run.first_prompts import first_prompts
from pbrl_jax.text.prompts import form_of

PROMPTS = [Prompt(number, code, f"{code}: {number}?", "", gold)
           for number, (code, gold) in enumerate([("sw", "3"), ("sw", None), ("en", None), ("sw", "4")])]  # fmt: skip


def lines(template=TEMPLATE, **data):
    """For PROMPTS, with a tokenizer of this template (None: the quickstart's)."""
    form, found = form_of(DataConfig(**data)), tokenizer() if template is None else hf_tokenizer(template)
    kept, ids = fit_prompts(PROMPTS, found, 200, **form)
    return first_prompts(kept, ids, found, form)


def test_the_first_of_each_language_its_gold_and_the_stop_ids():
    turns = r"'<s><|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n'"
    assert lines(prompt_style="chat_question") == [
        "First prompt in sw (26 tokens, gold answer '3'): " + turns.format("sw: 0?"),
        "First prompt in en (26 tokens): " + turns.format("en: 2?"),
        "A response ends at: 1 '</s>', 3 '<|im_end|>'.",
    ]
    assert lines(None)[2:] == ["A response ends at: 2 '</s>'."]


@pytest.mark.parametrize(
    ("template", "data", "lacking"),
    [
        ("{% for m in messages %}{{ m.role }}{% endfor %}", {}, "the user's turn 'sw: 0"),
        ("{{ messages[-1].content }}", {"system_prompt": "Be short."}, "the system's turn 'Be short.'"),
    ],
)
def test_a_template_that_leaves_a_turn_out_is_refused(template, data, lacking):
    with pytest.raises(DataError, match=f"prompts of 'sw' lack {lacking}.*choose another data.prompt_style"):
        lines(template, prompt_style="chat_question", **data)
