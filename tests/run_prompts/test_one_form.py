"""`data.prompt_style` and `data.thinking` reach every place that puts a question to the policy."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
from text_helpers import format_prompt
from tiny_hf import TEMPLATE, hf_policy, hf_tokenizer
from tiny_world import SPACE

from pbrl_jax import Config, cli, with_values
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.paths import work_dir
from pbrl_jax.core.records import Rollout
from pbrl_jax.data.responses import read_preferences
from pbrl_jax.eval.benchmarks.common import Problem
from pbrl_jax.eval.respond import encode_prompts
from pbrl_jax.rollout import engine
from pbrl_jax.rollout.refill import Ended
from pbrl_jax.run import assemble, generate
from pbrl_jax.run import eval as run_eval
from pbrl_jax.run.check import validate
from pbrl_jax.run.dpo import stored_pairs
from pbrl_jax.run.sft import supervised
from pbrl_jax.text.prompts import response_end

SWITCH = "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
CONFIG = with_values(
    Config(),
    data={
        "path": SPACE, "languages": ("en", "sw"), "limit": 2, "prompt_style": "chat_tags", "thinking": "off",
        "overlong_prompts": "drop",
    },
    sft={"english_rows": 6, "warm_rows_per_language": 2, "batch_size": 6},
    train={"prompts_per_step": 2, "seed": 0}, eval={"limit": 2},
    rollout={"max_prompt_length": 900, "max_completion_length": 300},
)  # fmt: skip


@pytest.fixture(scope="module")
def policy():
    return hf_policy()._replace(tokenizer=hf_tokenizer(TEMPLATE + SWITCH))


@pytest.fixture
def asked(monkeypatch):
    """The prompts that reach the evaluation's sampler, which answers nothing."""
    found = []

    def programs(spec, samples, max_length, segment_length, weights):
        def steps(params, batch, key, sampling, should_stop, prompts_D, prompt_length):
            rows = list(zip(batch.tokens_PT.tolist(), batch.lengths_P.tolist(), strict=True))[: prompts_D[0]]
            found.extend(tuple(tokens[:length]) for tokens, length in rows)
            count = len(batch.lengths_P)
            empty, none = jnp.zeros((count, max_length), jnp.int32), jnp.zeros(count, jnp.int32)
            yield Rollout(empty, none, jnp.zeros(empty.shape), none > 0), [Ended(0, row) for row in range(len(rows))]

        return SimpleNamespace(_replace=lambda slots: SimpleNamespace(steps=steps))

    monkeypatch.setattr(engine, "make_programs", programs)
    return found


def formed(policy, prompts) -> set[tuple[int, ...]]:
    """Each question as it should be put."""
    ids = {tuple(format_prompt(p.question, p.language, policy.tokenizer, "chat_tags", False)) for p in prompts}
    assert all(policy.tokenizer.tokenizer.decode(one).endswith("assistant\n<think></think>") for one in ids)
    return ids


def test_training_and_references(policy, asked, monkeypatch, tmp_path):
    monkeypatch.setattr(assemble, "run_policy", lambda *_: policy)
    monkeypatch.setattr(assemble, "reference_vectors", lambda *_: None)
    experiment = assemble.build_experiment(CONFIG, work_dir(tmp_path))
    assert set(map(tuple, experiment.prompt_tokens.values())) == formed(policy, assemble.training_prompts(CONFIG))
    answers = assemble.sample_texts_of(policy, CONFIG)(["Two and two?"])
    assert answers == [""] and asked == [
        tuple(format_prompt("Two and two?", "en", policy.tokenizer, "chat_tags", False))
    ]


def test_evaluation(policy, asked):
    assemble.make_evaluate(CONFIG, policy)(policy.params)
    assert set(asked) == formed(policy, assemble.evaluation_prompts(CONFIG))


def test_supervised_rows(policy):
    for pool in supervised(CONFIG, policy.tokenizer).pools.values():
        for prompt, _ in pool:
            text = policy.tokenizer.tokenizer.decode(prompt)
            assert "<think> " in text and text.endswith("assistant\n<think></think>"), "the instruction, and the switch"


def test_supervised_responses_end_as_the_template_ends_a_turn(policy, tmp_path):
    """`<|im_end|>` (3) in a chat, the tokenizer's own end of sequence (1) elsewhere and where no stop token is written;
    the same for preference pairs, where a prompt that is given as it is has no turns."""
    plain = with_values(CONFIG, data={"prompt_style": "plain"})
    for config, end in ((CONFIG, 3), (plain, 1)):
        pools = supervised(config, policy.tokenizer).pools.values()
        assert {response[-1] for pool in pools for _, response in pool} == {end}
    file = tmp_path / "pairs.jsonl"
    told = {"chosen": [{"role": "assistant", "content": "4"}], "rejected": [{"role": "assistant", "content": "5"}]}
    rows = [
        {"language": "en", "prompt": [{"role": "user", "content": "2 + 2?"}], **told},
        {"language": "en", "chosen": "2 + 2 = 4", "rejected": "2 + 2 = 5"},
    ]
    for row, end in zip(rows, (3, 1), strict=True):
        file.write_text(json.dumps(row))
        ((_, *both),) = stored_pairs(read_preferences(str(file), "train", ("en",)), CONFIG, policy.tokenizer)
        assert [ids[-1] for ids in both] == [end, end]


@pytest.mark.parametrize(
    "template, end",
    [
        (TEMPLATE, 3),
        (TEMPLATE.replace("<|im_end|>", "<|im_start|>"), 1),
        ("{% if messages|length > 1 %}{{ raise_exception('one') }}{% endif %}" + TEMPLATE, 1),
    ],
)
def test_the_token_behind_a_response(template, end):
    assert response_end(hf_tokenizer(template), "chat") == [end]


def test_the_form_of_a_question_is_part_of_a_references_key():
    forms = [{}, {"prompt_style": "chat"}, {"prompt_style": "chat", "thinking": "off"}]
    templates = [assemble.expert_template(with_values(Config(), data=form)) for form in forms]
    assert templates == ["{question}", "chat: {question}", "chat, thinking off: {question}"]


def test_benchmarks(policy):
    for kind in ("number", "letter"):
        problem = Problem("en/0", "en", "2 + 2?", "Question: 2 + 2?", "4", kind, "en")
        ids = encode_prompts([problem], policy.tokenizer, "chat", False)[0]
        assert policy.tokenizer.tokenizer.decode(ids).endswith("<think></think>")
        assert ids != encode_prompts([problem], policy.tokenizer, "chat")[0]


def test_the_command_line_passes_the_switch(monkeypatch):
    for verb, module in (("eval", run_eval), ("generate", generate)):
        seen = []
        monkeypatch.setattr(module, "main", seen.append)
        needed = {"eval": ["--benchmark", "mgsm", "--workdir", "w"], "generate": ["--prompt", "x"]}[verb]
        assert cli.main([verb, "--policy", "p", *needed, "--thinking", "off"]) == 0
        assert seen[0].thinking == "off"


def test_an_unknown_switch_is_refused():
    with pytest.raises(ConfigError, match="data.thinking is 'of'.*Did you mean 'off'"):
        validate(with_values(Config(), data={"thinking": "of"}), 1)
