"""`pbrl translator`: what is learnt from parallel text, the loss by hand, and a model that learns a small language."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_world
from source_tree import ROOT
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax import Config, with_values
from pbrl_jax.cli import main
from pbrl_jax.core.errors import CheckpointError, ConfigError, DataError
from pbrl_jax.core.paths import work_dir, write_json_lines
from pbrl_jax.mesh.sharding import make_mesh
from pbrl_jax.models.layouts import Causal
from pbrl_jax.models.m2m100 import M2M100, logits_of
from pbrl_jax.run.translator import (
    EncodedPairs,
    parallel_text,
    split_pairs,
    start_translator,
    train_translator,
    training_segments,
)
from pbrl_jax.train.translation import TranslationBatch, translation_sums
from pbrl_jax.translate.load import load_translator
from pbrl_jax.translate.translator import Segment
from pbrl_jax.weights.policies import save_policy

FOLDER = ROOT / "tests" / "fixtures" / "hf" / "m2m100"
WORDS = {"lima": "grow", "soma": "read", "imba": "sing", "kula": "eat", "lala": "sleep", "cheka": "laugh"}
#: Two words in either language, in opposite orders: 36 sentences.
PAIRS = [(f"{a} {b}.", f"{WORDS[b]} {WORDS[a]}.") for a in WORDS for b in WORDS]
QUICKSTART = with_values(Config(), data={"source": "quickstart", "path": "small", "languages": ("en", "sw", "th")})


def test_the_quickstarts_text_is_questions_and_responses():
    pairs = parallel_text(with_values(QUICKSTART, data={"limit": 3}))
    assert {code: len(own) for code, own in pairs.items()} == {"sw": 6, "th": 6}
    assert all("The answer is" in english for _, english in pairs["sw"][1::2])


def test_held_out_pairs_share_no_side_with_training_pairs():
    twice = [("a", "1"), ("a", "2"), ("b", "3"), ("c", "1"), ("d", "4"), ("d", "4"), ("e", "5")]
    training, held = split_pairs({"sw": twice}, 2, 0)
    assert len(held["sw"]) == 2 and len(set(training["sw"])) == len(training["sw"])
    for side in (0, 1):
        assert not {pair[side] for pair in held["sw"]} & {pair[side] for pair in training["sw"]}
    assert split_pairs({"sw": twice}, 2, 0) == (training, held)
    with pytest.raises(DataError, match="sw has 6 different pairs .* Lower translator.held_out"):
        split_pairs({"sw": twice}, 6, 0)
    with pytest.raises(DataError, match="a language beside English"):
        split_pairs({}, 2, 0)


def test_sentences_are_paired_where_both_sides_have_as_many():
    pairs = {"sw": [("Moja. Mbili.", "One. Two."), ("Tatu. Nne.", "Three and four.")]}
    into = [(Segment("Moja.", "sw", "en"), "One."), (Segment("Mbili.", "sw", "en"), "Two."),
            (Segment("Tatu. Nne.", "sw", "en"), "Three and four.")]  # fmt: skip
    back = [(Segment(text, "en", "sw"), segment.text) for segment, text in into]
    assert training_segments(pairs, "into_english")["sw"] == into
    assert training_segments(pairs, "from_english")["sw"] == back
    assert sorted(training_segments(pairs, "both")["sw"]) == sorted(into + back)


def test_a_batch_holds_as_many_of_each_language_as_tokens_of_the_model(capsys):
    config = with_values(Config(), translator={"source": str(FOLDER), "batch_size": 5})
    model = start_translator(config, {}, make_mesh(config.mesh))
    segments = {"sw": [(Segment("Jibu ni 18.", "sw", "en"), "The answer is 18.")],
                "de": [(Segment("Die Antwort lautet 4.", "de", "en"), "The answer is 4.")]}  # fmt: skip
    data = EncodedPairs(segments, model, config)
    assert "left out" not in capsys.readouterr().out
    long = {"sw": [*segments["sw"], (Segment("Jibu ni 18. " * model.source_limit, "sw", "en"), "The answer is 18.")]}
    assert EncodedPairs(long, model, config).pairs == {"sw": data.pairs["sw"]}
    assert f"1 of 2 pairs of sw have more than {model.source_limit} tokens a side" in capsys.readouterr().out
    batch = data.batch(0)
    assert data.counts == {"sw": 3, "de": 2}
    ids = model.tokenizer.encode
    expected = [model.language_id("de"), *ids("Die Antwort lautet 4."), 2], [model.language_id("en"),
                                                                            *ids("The answer is 4."), 2]  # fmt: skip
    assert batch.source_BS[3, : batch.source_lengths_B[3]].tolist() == expected[0]
    assert batch.target_BR[3, : batch.target_lengths_B[3]].tolist() == expected[1]
    assert set(batch.target_BR[3, batch.target_lengths_B[3] :].tolist()) <= {model.spec.pad_id}


def test_loss_and_gradient_are_those_of_all_logits_at_once():
    """Cross-entropy with 0.1 of the weight spread over the vocabulary, on every token behind the language's."""
    config = with_values(Config(), translator={"source": str(FOLDER)})
    model = start_translator(config, {}, make_mesh(config.mesh))
    rng = np.random.default_rng(0)
    source, target = rng.integers(4, 60, (2, 6)), rng.integers(4, 60, (2, 5))
    batch = TranslationBatch(*map(jnp.asarray, (source, np.array([6, 3]), target, np.array([5, 3]))))

    def plain(params):
        net = M2M100(model.spec)
        mask = jnp.arange(6)[None] < jnp.array([[6], [3]])
        state = net.apply({"params": params}, net.apply({"params": params}, batch.source_BS, mask, method="encode"),
                          mask, method="source_keys")  # fmt: skip
        inputs = jnp.concatenate([jnp.full((2, 1), 2), batch.target_BR[:, :-1]], axis=1)
        place = jnp.broadcast_to(jnp.arange(5)[None], (2, 5))
        hidden, _ = net.apply({"params": params}, inputs, place, Causal(jnp.ones((2, 5), bool)), state, method="decode")
        logp = jax.nn.log_softmax(logits_of(params, hidden))
        weight = 0.9 * jax.nn.one_hot(batch.target_BR, model.spec.vocab_size) + 0.1 / model.spec.vocab_size
        used = jnp.array([[0, 1, 1, 1, 1], [0, 1, 1, 0, 0]])
        return -((weight * logp).sum(axis=-1) * used).sum()

    def ours(params):
        loss, (count, _) = translation_sums(params, batch, spec=model.spec, smoothing=0.1)
        return loss, count

    expected, expected_grads = jax.value_and_grad(plain)(model.params)
    (loss, count), grads = jax.value_and_grad(ours, has_aux=True)(model.params)
    assert count == 6
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), grads, expected_grads)


def test_a_small_language_is_learnt_and_the_folder_translates_it(tmp_path, capsys):
    """Held-out sentences are other pairs of known words."""
    text = tmp_path / "pairs.jsonl"
    write_json_lines(text, [{"lang": "sw", "src": a, "en": b} for a, b in PAIRS])
    config = tmp_path / "learn.py"
    config.write_text(
        "from pbrl_jax import Config, with_values\n"
        "def get_config():\n"
        "    return with_values(Config(), data={'languages': ('en', 'sw'), 'vocab_size': 300},\n"
        f"        translator={{'path': {str(text)!r}, 'preset': 'tiny', 'steps': 300, 'batch_size': 16,\n"
        "                     'learning_rate': 1e-2, 'warmup_steps': 10, 'held_out': 6, 'microbatch_size': 8})\n"
    )
    assert main(["translator", str(config), "--workdir", str(tmp_path / "w")]) == 0
    shown = capsys.readouterr().out
    assert "sw-en" in shown and "--reward.translator" in shown
    record = json.loads((tmp_path / "w" / "translator.json").read_text())
    assert record["pairs"] == {"sw": 30} and record["held_out"] == {"sw": 6}
    assert record["chrf"]["sw-en"] > 60
    model = load_translator(str(tmp_path / "w" / "translator"))
    right = sum(model.translate([a], "sw", "en") == [b] for a, b in PAIRS)
    assert right >= 30


def test_a_resumed_training_may_have_other_microbatches_and_no_other_smoothing(tmp_path, capsys):
    """What does not change the result is no other training: its checkpoint is gone on with."""
    text = tmp_path / "pairs.jsonl"
    long = " ".join(["lima"] * 300)
    rows = [*PAIRS, (long, "grow")]
    write_json_lines(text, [{"lang": "sw", "src": a, "en": b} for a, b in rows])
    config = with_values(
        Config(), data={"languages": ("en", "sw")},
        translator={"source": str(FOLDER), "path": str(text), "steps": 2, "warmup_steps": 1, "batch_size": 4,
                    "held_out": 1},
    )  # fmt: skip
    work, mesh = work_dir(tmp_path / "w"), make_mesh(config.mesh)
    train_translator(config, work, mesh)
    assert "1 of 36 pairs of sw have more than" in capsys.readouterr().out
    text.rename(tmp_path / "moved.jsonl")
    moved = {"microbatch_size": 2, "path": str(tmp_path / "moved.jsonl")}
    train_translator(with_values(config, translator=moved), work, mesh)
    assert "Resuming from step_00000002" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="other data, settings"):
        train_translator(with_values(config, translator={**moved, "label_smoothing": 0.2}), work, mesh)


def test_a_start_that_is_no_translation_model_is_refused(tmp_path):
    save_policy(tiny_world.policy(), str(tmp_path / "policy"))
    config = with_values(Config(), translator={"source": str(tmp_path / "policy")})
    with pytest.raises(ConfigError, match="PromptedTranslator; expected an M2M100 or NLLB model"):
        start_translator(config, {}, make_mesh(config.mesh))
