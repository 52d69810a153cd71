"""`pbrl generate` on a Hugging Face folder: its chat template, a batch, and an answer that is shown as it grows."""

import copy
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_hf import hf_policy
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import policy as own_policy

from pbrl_jax import Config, cli, with_values
from pbrl_jax.config.serialize import to_json
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.rollout.engine import Engine, Sampling
from pbrl_jax.run import generate
from pbrl_jax.run.options import GenerateOptions
from pbrl_jax.text.prompts import format_prompts
from pbrl_jax.weights.hf_export import export_policy
from pbrl_jax.weights.policies import load_policy, save_policy

LONGEST = 200
QUESTIONS = ["2 + 2?", "How many apples?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    export_policy(hf_policy(), str(place))
    return place


@pytest.fixture
def answer(capsys, folder):
    def run(*arguments, policy=folder):
        capsys.readouterr()  # what making the folder said
        status = cli.main(["generate", "--policy", str(policy), "--max-completion-length", "12", *arguments])
        return status, *capsys.readouterr()

    return run


def greedy_by_hand(policy, ids: list[int], count: int) -> list[int]:
    """The most likely token, again and again, from whole forward passes; without the end of the response."""
    tokens, forward = list(ids), jax.jit(policy.logits)
    while len(tokens) < len(ids) + count:
        row = jnp.asarray([tokens + [0] * (LONGEST - len(tokens))])
        logits = forward(policy.params, row, jnp.arange(LONGEST)[None] < len(tokens))
        tokens.append(int(np.argmax(logits[0, len(tokens) - 1])))
        if tokens[-1] in policy.tokenizer.eos_ids:
            return tokens[len(ids) : -1]
    return tokens[len(ids) :]


def test_a_batch_answers_as_whole_forward_passes_do(answer, folder):
    policy = load_policy(str(folder))
    prompts = format_prompts(QUESTIONS, ["en", "en"], policy.tokenizer, "chat")
    first, second = (policy.tokenizer.decode(greedy_by_hand(policy, ids, 12)) for ids in prompts)
    status, output, errors = answer("--prompt", QUESTIONS[0], "--prompt", QUESTIONS[1], "--style", "chat")
    assert (status, errors) == (0, "")
    assert output == f"> {QUESTIONS[0]}\n{first}\n\n> {QUESTIONS[1]}\n{second}\n\n"


def test_a_question_is_put_alone_through_the_chat_template_where_there_is_one(answer, tmp_path):
    automatic, alone, auto, chat, plain = (
        answer("--prompt", QUESTIONS[0], *more)[1]
        for more in ([], *(["--style", style] for style in ("chat_question", "auto", "chat", "plain")))
    )
    assert automatic == alone and auto == chat and len({alone, chat, plain}) == 3
    save_policy(own_policy(), str(tmp_path))
    assert answer("--prompt", QUESTIONS[0], policy=tmp_path)[0] == 0
    status, _, errors = answer("--prompt", QUESTIONS[0], "--style", "chat", policy=tmp_path)
    assert status == 1 and "has no chat template. Use the prompt style 'plain'" in errors


def test_a_streamed_answer_is_the_batched_one_in_pieces(answer, monkeypatch):
    monkeypatch.setattr(generate, "STREAMED_TOKENS", 3)
    whole = answer("--prompt", QUESTIONS[1], "--temperature", "0.9", "--seed", "3")[1]
    pieces = []
    monkeypatch.setattr(sys.stdout, "write", lambda text, write=sys.stdout.write: pieces.append(text) or write(text))
    status, output, errors = answer("--prompt", QUESTIONS[1], "--temperature", "0.9", "--seed", "3", "--stream")
    assert (status, errors) == (0, "") and output == whole.rstrip("\n") + "\n"
    written = [piece for piece in pieces if piece.strip() and not piece.startswith(">")]
    assert len(written) > 2, "it came in pieces"


def test_states_stop_where_every_row_is_done():
    """Segments of 3 of 12 tokens: all of them, and only the first where the first token already ends the response."""
    policy, tokenizer = hf_policy(), hf_policy().tokenizer
    prompt = format_prompts(QUESTIONS[:1], ["en"], tokenizer)[0]

    def lengths(ends):
        other = copy.copy(tokenizer)
        other.eos_ids = ends
        engine = Engine.of(policy._replace(tokenizer=other))
        return [(len(answer.tokens), answer.tokens[0]) for answer in engine.stream(prompt, Sampling(12), 3)]

    long = lengths((9999,))
    assert [length for length, _ in long] == [1, 4, 7, 10, 12]
    assert lengths((long[0][1],)) == long[:1]


def test_the_prompt_can_be_seen_and_its_words_are_the_user_s(answer):
    shown = answer("--prompt", "Tell me of a lake.", "--show-prompt")[1]
    assert "Tell me of a lake." in shown and "step by step" not in shown and "tokens]" in shown
    shown = answer("--prompt", "A lake?", "--show-prompt", "--system-prompt", "Speak {language}.")[1]
    assert "Speak English." in shown and "step by step" not in shown
    assert "step by step" in answer("--prompt", "A lake?", "--show-prompt", "--style", "chat")[1]


def test_a_trained_policy_is_asked_as_its_run_asked_it(tmp_path):
    save_policy(own_policy(), str(tmp_path / "policy"))
    config = with_values(Config(), data={"user_prompt": "Q: {question}"})
    (tmp_path / "config.json").write_text(to_json(config))
    arguments = _arguments("--policy", str(tmp_path))
    assert generate.form(arguments, own_policy().tokenizer)["wording"].user == {"default": "Q: {question}"}
    other = _arguments("--policy", str(tmp_path), "--style", "base")
    assert generate.form(other, own_policy().tokenizer)["style"] == "base"


def test_half_a_character_waits_for_its_other_half():
    """Of 水 (three bytes) nothing is shown before its last byte; an end in the middle shows what there is."""
    data = "a水b".encode()
    texts = [data[:count].decode(errors="replace") for count in range(1, 6)]
    assert texts[1] == "a\ufffd"
    assert list(generate.new_text(iter(texts))) == ["a", "水", "b"]
    assert list(generate.new_text(iter(texts[:2]))) == ["a", "\ufffd"]
    assert list(generate.new_text(iter([""]))) == []


def test_what_is_refused(answer):
    for more, message in [
        (["--stream", "--prompt", "3?"], "--stream shows one answer as it grows, found 2 prompts"),
        (["--style", "chatt"], "Unknown prompt style 'chatt'. Known: auto"),
        (["--top-p", "0"], "--top-p is 0.0; expected at least"),
        (["--prompt", "caf\udce9", "--style", "plain"], "A prompt holds bytes that are not UTF-8"),
        (["--dtype", "int4"], "--dtype is 'int4'; expected float32"),
        (["--tensor", "64"], "--tensor is 64, but there"),
        (["--user-prompt", "Go."], "Error: --user-prompt: the user's turn 'Go.' has no {question}"),
        (
            ["--system-prompt", "Go.", "--style", "base"],
            "--style is base. Use --style chat, or put the words into --user-prompt",
        ),
    ]:
        status, output, errors = answer("--prompt", "2?", *more)
        assert status == 1 and not output and errors.startswith("Error: ") and message in errors, errors
    with pytest.raises(ConfigError, match="--top-k is -1; expected at least 0"):
        GenerateOptions(policy="p", prompt=("2?",), top_k=-1)


@pytest.mark.serial
def test_devices_share_the_work(answer):
    alone, shared = (answer("--prompt", QUESTIONS[0], *more)[1] for more in ([], ["--tensor", "2"]))
    assert alone == shared


def test_the_help_says_what_numbers_may_be(capsys):
    with pytest.raises(SystemExit):
        cli.main(["generate", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in ("temperature FLOAT 0 is greedy (at least 0 and at most 100) (default: 0.0)",
                  "top-p FLOAT nucleus mass; 1 is off (at least 1e-06 and at most 1)", "thinking {default,on,off}",
                  "tensor INT devices that share each matrix product (at least 1)"):  # fmt: skip
        assert words in text, text


def _arguments(*more: str) -> GenerateOptions:
    seen = []
    original, generate.main = generate.main, seen.append
    try:
        cli.main(["generate", "--policy", "x", "--prompt", "y", *more])
    finally:
        generate.main = original
    return seen[0]
