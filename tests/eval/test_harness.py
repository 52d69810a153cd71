"""Policies as models of lm-evaluation-harness: against the plain causal model, and inside the harness itself."""

import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import policy, problem_prompts, tokenizer

from pbrl_jax.cli import main
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.eval.evaluate import Decoder, answer_texts
from pbrl_jax.eval.harness import PolicyRequests, generation_options, harness_model, rolling_windows
from pbrl_jax.models.decoder import causal_logits
from pbrl_jax.weights.policies import save_policy

QUESTIONS = [prompt.question + "\n" for prompt in problem_prompts(2)[:3]]
PAIRS = [("Ali starts with", " 10 bottles."), ("Ali starts with ", "4"), ("How many", " more bottles are there?"),
         ("", "The answer is 12."), ("x", "")]  # fmt: skip
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
{rest}
"""
KINDS = {
    "tiny_generate": ("generate_until", 'doc_to_target: "{{answer}}"\nmetric_list: [{metric: exact_match}]\n'
                      'generation_kwargs: {until: ["."], max_gen_toks: 8}'),
    "tiny_choice": ("multiple_choice", 'doc_to_choice: ["4", "10 bottles", "zero"]\ndoc_to_target: 1\n'
                    "metric_list: [{metric: acc}, {metric: acc_norm}]"),
    "tiny_rolling": ("loglikelihood_rolling", 'doc_to_target: "{{question}}"\n'
                     "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]"),
}  # fmt: skip


def requests(*arguments) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=args) for args in arguments]


@pytest.fixture(scope="module")
def model() -> PolicyRequests:
    """Of few tokens, so that long contexts are cut."""
    return of_length(24)


def of_length(tokens: int) -> PolicyRequests:
    """Without the harness's base class, which brings nothing but the hook of its cache."""
    found = PolicyRequests(policy(), batch_size=2, max_length=tokens, max_gen_toks=8)
    found.cache_hook = SimpleNamespace(add_partial=lambda *_: None)
    return found


@functools.cache
def logits_of():
    return jax.jit(functools.partial(causal_logits, spec=policy().spec))


def by_hand(ids: list[int], start: int) -> tuple[float, bool]:
    """Sum of the log-probabilities of ids[start:], and whether each was the likeliest, from one forward pass."""
    tokens = jnp.asarray([ids + [0] * (32 - len(ids))])
    logits = logits_of()(policy().params, tokens_BT=tokens, mask_BT=jnp.arange(32)[None] < len(ids))
    logp = np.asarray(jax.nn.log_softmax(logits[0]), np.float64)
    places = range(start, len(ids))
    return sum(logp[i - 1, ids[i]] for i in places), all(logp[i - 1].argmax() == ids[i] for i in places)


def test_loglikelihoods_are_those_of_the_causal_model(model):
    encode, bos = tokenizer().encode, [tokenizer().bos_id]
    # What the policy itself would say is the greedy continuation.
    greedy = [*bos, *encode("How many")]
    logits = logits_of()(
        policy().params, tokens_BT=jnp.asarray([greedy + [0] * (32 - len(greedy))]),
        mask_BT=jnp.arange(32)[None] < len(greedy),
    )  # fmt: skip
    likeliest = int(np.asarray(logits)[0, len(greedy) - 1].argmax())
    found = model._score([*(model.pair(*pair) for pair in PAIRS), (greedy, [likeliest])], "test", False)
    for (context, continuation), (value, best) in zip(PAIRS[:4], found, strict=False):
        whole, start = bos + encode(context + continuation), len(bos + encode(context.rstrip()))
        expected = by_hand(whole, start)
        np.testing.assert_allclose(value, expected[0], atol=2e-5)
        assert best == expected[1]
    assert found[4] == (0.0, True) and found[5][1] is True
    assert model.loglikelihood(requests(*PAIRS), disable_tqdm=True) == found[:5]


def test_long_contexts_lose_their_beginning(model):
    ids = list(range(5, 35))
    assert model._fitting(ids, [1, 2]) == (ids[-22:], [1, 2])
    assert model._fitting(ids, list(range(100, 140))) == (ids[-1:], list(range(117, 140)))


def test_rolling_is_the_sum_over_windows(model):
    text = QUESTIONS[0] + QUESTIONS[1]
    ids, prefix = tokenizer().encode(text), tokenizer().bos_id
    assert len(ids) > 24
    windows = list(rolling_windows(ids, prefix, 23))
    assert [token for _, part in windows for token in part] == ids and windows[0] == ([prefix], ids[:23])
    assert len(windows[-1][0]) + len(windows[-1][1]) == 24
    expected = sum(by_hand([*context, *part], len(context))[0] for context, part in windows)
    found = model.loglikelihood_rolling(requests((text,), ("",)), disable_tqdm=True)
    np.testing.assert_allclose(found, [expected, 0.0], atol=5e-5)


def test_rolling_windows_by_hand():
    assert list(rolling_windows(list(range(10)), 99, 4)) == [
        ([99], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9]),
    ]  # fmt: skip
    assert list(rolling_windows([7], 99, 4)) == [([99], [7])] and not list(rolling_windows([], 99, 4))


def greedy_texts() -> list[str]:
    return answer_texts(Decoder(policy().spec, tokenizer(), 48, 8, 2), policy().params, [q[:-1] for q in QUESTIONS],
                        ["en"] * 3)  # fmt: skip


def test_generation_is_that_of_the_sampler_up_to_the_stop():
    whole = greedy_texts()
    assert all(whole)
    stop = whole[0][1:3]
    asked = requests(*((question, {"until": [stop]}) for question in QUESTIONS))
    assert of_length(64).generate_until(asked, disable_tqdm=True) == [text.split(stop)[0] for text in whole]


def test_options_of_a_task():
    assert generation_options({}, 9) == ((), 9, 0.0, 1.0, 0)
    assert generation_options({"until": "\n", "max_gen_toks": 5, "do_sample": False, "temperature": 1}, 9) == (
        ("\n",), 5, 0.0, 1.0, 0)  # fmt: skip
    assert generation_options({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 5}, 9)[2:] == (0.7, 0.9, 5)
    assert (
        generation_options({"do_sample": True}, 9)[2] == 1.0 and generation_options({"temperature": 0.5}, 9)[2] == 0.5
    )
    with pytest.raises(ConfigError, match="num_beams.*not supported"):
        generation_options({"num_beams": 4}, 9)


def test_without_the_harness_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install -e '.\[eval\]'"):
        harness_model(policy())


# Inside the harness itself.


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with a task of each kind, on a local file."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install -e '.[eval]'")
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": question, "answer": text} for question, text in zip(QUESTIONS, greedy_texts(), strict=True)]
    rows[2]["answer"] = "something else"
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, (kind, rest) in KINDS.items():
        text = TASK.format(name=name, file=folder / "rows.jsonl", kind=kind, rest=rest)
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_the_harness_runs_our_policy(tasks, tmp_path, monkeypatch):
    """Two of three answers are the policy's own; choices and perplexity are those worked out by hand."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    save_policy(policy(), str(tmp_path / "policy" / "policy"))
    words = ["harness", "--policy", str(tmp_path / "policy"), "--tasks", ",".join(KINDS), "--include-path", str(tasks),
             "--workdir", str(tmp_path / "w"), "--batch-size", "2", "--compilation-cache", ""]  # fmt: skip
    assert main(words) == 0
    results = json.loads((tmp_path / "w" / "harness.json").read_text())["results"]
    rows = [json.loads(line) for line in (tmp_path / "w" / "harness_samples.jsonl").read_text().splitlines()]
    assert len(rows) == 9 and {row["task"] for row in rows} == set(KINDS)
    stopped = [text.split(".")[0] for text in greedy_texts()]
    assert results["tiny_generate"]["exact_match,none"] == pytest.approx(
        sum(a == b for a, b in zip(stopped, [*greedy_texts()[:2], "-"], strict=True)) / 3
    )
    encode, bos = tokenizer().encode, [tokenizer().bos_id]
    picks, total = [], 0.0
    for question in QUESTIONS:
        sums = []
        for choice in ("4", "10 bottles", "zero"):
            start = len(bos + encode(question.rstrip()))
            sums.append(by_hand(bos + encode(f"{question} {choice}"), start)[0])
        picks.append(int(np.argmax(sums)) == 1)
        total += by_hand(bos + encode(question), 1)[0]
    assert results["tiny_choice"]["acc,none"] == pytest.approx(np.mean(picks))
    size = sum(len(question.encode()) for question in QUESTIONS)
    assert results["tiny_rolling"]["bits_per_byte,none"] == pytest.approx(-total / size / np.log(2), abs=1e-4)


def test_windows_are_the_harness_s(tasks):
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    for length in (0, 1, 4, 5, 9, 10):
        ids = list(range(length))
        theirs = [make_disjoint_window(pair) for pair in get_rolling_token_windows(ids, 99, 4, 1)]
        assert list(rolling_windows(ids, 99, 4)) == theirs


def test_an_unknown_task_is_named(tasks, tmp_path, capsys):
    words = [
        "harness",
        "--policy",
        "x",
        "--tasks",
        "tiny_choise",
        "--include-path",
        str(tasks),
        "--workdir",
        str(tmp_path),
    ]
    assert main(words) == 1
    assert "no task 'tiny_choise'. Did you mean 'tiny_choice'?" in capsys.readouterr().err
