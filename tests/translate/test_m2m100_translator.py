"""A tiny NLLB folder against transformers' own translations, and what happens to texts around any model."""

import json
import logging
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_policy import quick_compiles  # noqa: F401

from pbrl_jax.core.errors import CheckpointError, ConfigError, DataError
from pbrl_jax.text.languages import LANGUAGES
from pbrl_jax.translate import m2m100_translator
from pbrl_jax.translate.m2m100_translator import NLLB_CODES, M2M100Translator, export_translator, load_m2m100
from pbrl_jax.translate.translator import Segment, Translator, Written
from pbrl_jax.weights.hf_fields import read_config

FOLDER = Path(__file__).parents[1] / "fixtures" / "hf" / "m2m100"
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
OURS = {"eng_Latn": "en", "deu_Latn": "de", "swh_Latn": "sw", "zho_Hans": "zh"}
SEGMENTS = [Segment(row["text"], OURS[row["source"]], OURS[row["target"]]) for row in EXPECTED]
LONGEST = 15
"""Tokens of the longest expected translation, without the start token."""


def load(num_beams: int = 1, batch_size: int = 32, folder: Path = FOLDER):
    config = read_config(str(folder), "tiny")
    return load_m2m100(str(folder), config, "tiny", num_beams=num_beams, batch_size=batch_size)


@pytest.fixture(scope="module")
def greedy():
    return load()


def test_an_export_that_fails_its_check_is_not_marked(greedy, tmp_path, monkeypatch):
    """And weights of an earlier, larger model are gone."""
    old = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json")
    for name in old:
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(m2m100_translator, "load_m2m100", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_translator(greedy, str(tmp_path))
    assert (tmp_path / "model.safetensors").exists() and not any((tmp_path / name).exists() for name in old)


def test_sources_are_tokenised_as_by_the_original(greedy):
    assert greedy.source_tokens(SEGMENTS) == [row["input_ids"] for row in EXPECTED]
    assert [greedy.language_id(segment.target) for segment in SEGMENTS] == [row["target_id"] for row in EXPECTED]


@pytest.mark.parametrize("name, num_beams, batch_size", [("greedy", 1, 32), ("beam4", 4, 3)])
def test_translations_are_those_of_the_original(name, num_beams, batch_size, monkeypatch):
    """From one `pytorch_model.bin`, tokenizer and all, in batches of other rows than the original's."""
    translator = load(num_beams, batch_size)
    monkeypatch.setattr(translator, "target_limit", lambda source_length: LONGEST)
    written = translator.write(SEGMENTS)
    assert [part.text for part in written] == [row[name]["text"] for row in EXPECTED]
    ends = [row[name]["ids"][1:][-1] == 2 for row in EXPECTED]
    assert [part.complete for part in written] == ends
    assert len(set(ends)) == 2 or num_beams > 1


def test_beams_follow_the_generation_settings_of_the_model(tmp_path):
    """M2M100's own have early_stopping; old files keep them in config.json."""
    folder = Path(shutil.copytree(FOLDER, tmp_path / "model"))
    plain = load(4)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"early_stopping": True, "length_penalty": 4.0}))
    found = load(4, folder=folder)
    assert (found.spec.early_stopping, found.spec.length_penalty) == (True, 4.0)
    assert found.fingerprint != plain.fingerprint and load(1, folder=folder).spec == plain.spec
    assert found.write(SEGMENTS) != plain.write(SEGMENTS)
    file.write_text(json.dumps({"early_stopping": "never"}))
    with pytest.raises(CheckpointError, match="early_stopping 'never'"):
        load(4, folder=folder)


def test_a_translation_does_not_depend_on_its_batch(greedy):
    texts = [row["text"] for row in EXPECTED]
    sources, targets = [s.source for s in SEGMENTS], [s.target for s in SEGMENTS]
    together = greedy.translate(texts, sources, targets)
    alone = [greedy.translate([text], a, b)[0] for text, a, b in zip(texts, sources, targets, strict=True)]
    assert together == alone
    assert together[0] == EXPECTED[0]["greedy"]["text"]


def test_long_sources_are_cut_into_parts_that_fit(greedy, monkeypatch):
    """Against the model's own tokenizer; a model that copies shows that nothing is lost."""
    seen = []

    def copy(segments):
        seen.extend(segments)
        return [Written(segment.text, True) for segment in segments]

    monkeypatch.setattr(greedy, "write", copy)
    text = " ".join(f"apples and more {chr(97 + i % 26)}{chr(97 + i // 26)}," for i in range(60))
    assert greedy.translate([text], "en", "sw") == [text]
    assert len(seen) > 2
    lengths = [len(ids) for ids in greedy.source_tokens(seen)]
    assert greedy.source_limit // 4 < min(lengths) <= max(lengths) <= greedy.source_limit == 64


def test_every_language_has_a_code_and_unknown_ones_are_refused(greedy):
    assert set(NLLB_CODES) == set(LANGUAGES)
    assert set(greedy.language_ids) == {"en", "de", "sw", "zh"}
    with pytest.raises(ConfigError, match=r"no token for Telugu \(te\); it knows de, en, sw, zh"):
        greedy.translate(["A word."], "en", "te")
    with pytest.raises(ConfigError, match="Unknown language 'xx'"):
        greedy.translate(["A word."], "xx", "en")
    with pytest.raises(ConfigError, match="2 languages for 1 texts"):
        greedy.translate(["A word."], ["en", "de"], "sw")
    with pytest.raises(ConfigError, match="num_beams=0"):
        load(num_beams=0)


def test_tokens_of_m2m100(greedy):
    """Its names of languages are others than NLLB's, and two of them than ours."""
    names = ["__en__", "__sw__", "__tl__", "__ns__", "__zh__"]
    core = SimpleNamespace(get_vocab=lambda: {name: 100 + n for n, name in enumerate(names)})
    made = M2M100Translator(greedy.spec, None, SimpleNamespace(tokenizer=core))
    assert made.language_ids == {"en": 100, "sw": 101, "tl": 102, "fil": 102, "nso": 103, "zh": 104}


def test_a_file_without_the_shared_name(tmp_path):
    """Some versions write the embedding under one of its copies alone."""
    from safetensors.numpy import save_file

    from pbrl_jax.weights.torch_file import state_dict

    tensors = dict(state_dict(FOLDER / "pytorch_model.bin"))
    shared = tensors.pop("model.shared.weight")
    assert np.array_equal(shared, tensors["lm_head.weight"])
    for name in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"):
        tensors.pop(name)
    for file in FOLDER.glob("*.json"):
        shutil.copy(file, tmp_path / file.name)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, tmp_path / "model.safetensors")
    found = load(folder=tmp_path)
    assert np.array_equal(found.params["embed"], shared)


def test_weights_of_another_model_are_refused(tmp_path):
    for file in FOLDER.iterdir():
        shutil.copy(file, tmp_path / file.name)
    config = json.loads((FOLDER / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"decoder_ffn_dim": 32}))
    with pytest.raises(CheckpointError, match=r"model.decoder.layers.0.fc1.weight has shape \(28, 24\)"):
        load(folder=tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes((FOLDER / "pytorch_model.bin").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="damaged"):
        load(folder=tmp_path)


# Texts around any model


class Scripted(Translator):
    """Writes what `rule` makes of a segment, and remembers what it was asked."""

    def __init__(self, rule, limit: int = 200, whole_texts: bool = False):
        self.rule, self.limit, self.whole_texts, self.asked = rule, limit, whole_texts, []

    def fits(self, text):
        return len(text) <= self.limit

    def write(self, segments):
        self.asked += [segment.text for segment in segments]
        return [Written(self.rule(segment.text), True) for segment in segments]


def shout(text: str) -> str:
    return text.upper()


def test_sentences_are_translated_one_by_one_and_lines_are_kept():
    model = Scripted(shout)
    text = "First this. Then that!\n\nAnd <b> last $x_1$ line"
    assert model.translate([text], "en", "de") == ["FIRST THIS. THEN THAT!\n\nAND <b> LAST $x_1$ LINE"]
    assert model.asked == ["First this.", "Then that!", "And XA last XB line"]


def test_whole_texts_stay_whole_while_they_fit():
    model = Scripted(shout, limit=40, whole_texts=True)
    assert model.translate(["One two.\nThree."], "en", "de") == ["ONE TWO.\nTHREE."]
    assert model.asked == ["One two.\nThree."]
    model.asked.clear()
    text = "Sentence number aa. Sentence number bb. Sentence number cc."
    assert model.translate([text], "en", "de") == [text.upper()]
    assert model.asked == ["Sentence number aa. Sentence number bb.", "Sentence number cc."]


def test_nothing_is_lost_of_a_text_far_beyond_the_limit():
    model = Scripted(lambda text: text, limit=50)
    words = " ".join(f"word{chr(97 + i % 26)}" for i in range(400))
    assert model.translate([words], "en", "de") == [words]
    assert max(map(len, model.asked)) <= 50


def test_languages_without_spaces():
    assert Scripted(lambda text: "好。").translate(["One thing. Two things."], "en", "zh") == ["好。好。"]
    assert Scripted(lambda text: "Good.").translate(["一。二。三个字。"], "zh", "en") == ["Good. Good. Good."]


def test_equal_languages_and_texts_without_words_are_left_alone():
    model = Scripted(shout)
    assert model.translate(["same text", "42", r"\boxed{7}", "", "…"], ["en", "sw", "sw", "sw", "sw"], "en") == [
        "same text", "42", r"\boxed{7}", "", "…",
    ]  # fmt: skip
    assert model.asked == []


def test_equal_sentences_are_written_once():
    model = Scripted(shout)
    assert model.translate(["Yes sir. Yes sir."] * 3, "en", "de") == ["YES SIR. YES SIR."] * 3
    assert model.asked == ["Yes sir."]


def test_numbers_that_do_not_come_through_are_hidden():
    """A model that garbles digits but copies names."""
    model = Scripted(lambda text: re.sub(r"\d+", "9", text))
    found = model.translations(["He has 12 and 13 cats. He has one."], "en", "de")[0]
    assert found == ("He has 12 and 13 cats. He has one.", True, True)
    assert model.asked == ["He has 12 and 13 cats.", "He has one.", "He has XA and XB cats."]


def test_formulas_whose_names_are_lost_are_translated_as_they_stand():
    """A model that drops capitals altogether, so that no name survives."""
    model = Scripted(lambda text: re.sub(r"\b[A-Z]+\b", "", text))
    found = model.translations(["so $x + y$ holds"], "en", "de")[0]
    assert found.text == "so $x + y$ holds"
    assert model.asked == ["so XA holds", "so $x + y$ holds"]


def test_lost_numbers_are_reported():
    model = Scripted(lambda text: "nothing")
    found = model.translations(["He has 12 cats.", "He has cats."], "en", "de")
    assert [translation.numbers_agree for translation in found] == [False, True]
    assert [translation.text for translation in found] == ["nothing", "nothing"]


def test_the_length_limit_is_reported(caplog):
    class Endless(Scripted):
        def write(self, segments):
            return [Written("and", "2" not in segment.text) for segment in segments]

    model = Endless(shout)
    assert [t.complete for t in model.translations(["a 1", "b 2. Done."], "en", "de")] == [True, False]
    with caplog.at_level(logging.WARNING):
        model.translate(["a 1", "b 2. Done."], "en", "de")
    assert "1 of 2 translations reached the length limit" in caplog.text


def test_one_text_in_place_of_a_list_is_refused(greedy):
    with pytest.raises(DataError, match="Texts to translate: expected a list of texts, found one text 'Tom'"):
        greedy.translate("Tom", "en", "sw")
