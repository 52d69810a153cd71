"""Translation and COMET rewards by hand, with a translator and a scorer that note what they were given."""

import sys

import numpy as np
import pytest
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import LANGUAGES, encoder, problem_prompts, reward_inputs, vectors_of

from pbrl_jax import RewardConfig
from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.records import Reference
from pbrl_jax.core.stopping import Interrupted, clear_request, request_stop
from pbrl_jax.rewards import translation
from pbrl_jax.rewards.combine import RewardAssets, make_reward
from pbrl_jax.rewards.cosine import make_cosine
from pbrl_jax.rewards.text_similarity import TEXT_SIMILARITIES, bleu, chrf, rouge_l_scores
from pbrl_jax.translate.cache import CachedTranslator
from pbrl_jax.translate.translator import Segment, Translator, Written

REASONING, ANSWER = "Ali starts with 10 bottles and buys 10 more bottles.", "The answer is 20."
SWAHILI = problem_prompts(1, ("sw",))[0]._replace(answer="20", reference=Reference(REASONING, ANSWER))
RIGHT = "Ali anaanza na chupa 10 na kununua chupa 10 zaidi. Jibu ni 20."
WRONG = "Ali anaanza na chupa 10 na kununua chupa 10 zaidi. Jibu ni 21."
ENGLISH = f"{REASONING} {ANSWER}"


class Glossary(Translator):
    """Knows the sentences of this test, and notes what it was asked."""

    whole_texts, fingerprint = True, "glossary"
    words = {"Ali anaanza na chupa 10 na kununua chupa 10 zaidi.": REASONING, "Jibu ni 20.": ANSWER}

    def __init__(self):
        self.asked: list[Segment] = []

    def fits(self, text):
        return True

    def write(self, segments):
        self.asked += segments
        return [Written(self.words.get(s.text, "The answer is 21." if "21" in s.text else "?"), True) for s in segments]


class FakeComet:
    """Scores by the lengths of its slots, and notes them."""

    needs_reference = True
    takes_reference = False

    def __init__(self):
        self.seen = []

    def score(self, src, mt, ref=None):
        self.seen += zip(src, mt, ref or [None] * len(src), strict=True)
        return np.array([len(text) / 100 for text in mt], np.float32)

    def cut(self, texts):
        return np.array([len(text) > 12 for text in texts])


@pytest.fixture
def models(monkeypatch):
    found = Glossary(), FakeComet()
    monkeypatch.setattr(translation, "loaded_translator", lambda source: found[0])
    monkeypatch.setattr("pbrl_jax.rewards.comet.loaded_comet", lambda source: found[1])
    monkeypatch.setattr(translation, "loaded_comet", lambda source: found[1])
    return found


def combined(completions, prompts=None, folder="", **settings):
    defaults = {"language_gate": "off", "translator": "x", "comet": "y", "functions": ("translation",)}
    prompts = prompts or [SWAHILI] * len(completions)
    reward = make_reward(RewardConfig(**defaults | settings), RewardAssets(encoder(), LANGUAGES, None, folder=folder))
    return reward(reward_inputs(prompts, completions, encoder()))


def test_overlap_by_parts_and_what_is_asked_for(models):
    """The right reply translates into the reference; the wrong one differs in the answer alone."""
    result = combined([RIGHT, WRONG, "", RIGHT], translation_similarity="chrf", answer_weight=0.25)
    wrong = 0.25 * chrf("The answer is 21.", ANSWER) + 0.75
    np.testing.assert_allclose(result.total.value_B, [1, wrong, 0, 1], atol=1e-6)
    assert result.total.valid_B.all() and 0 < wrong < 1
    assert sorted(s.text for s in models[0].asked) == ["Ali anaanza na chupa 10 na kununua chupa 10 zaidi.",
                                                      "Jibu ni 20.", "Jibu ni 21."]  # fmt: skip
    assert {(s.source, s.target) for s in models[0].asked} == {("sw", "en")}


def test_only_the_right_language_is_translated(models):
    result = combined([ENGLISH, RIGHT], language_gate="hard", translation_similarity="chrf")
    assert result.total.value_B.tolist() == [np.float32(-0.2), 1]
    assert not [s for s in models[0].asked if "starts" in s.text]


def test_a_text_is_translated_once_also_by_the_next_run(models, tmp_path):
    for _ in range(2):
        combined([RIGHT, RIGHT], folder=str(tmp_path), translation_similarity="chrf")
    assert len(models[0].asked) == 2
    file = tmp_path / "translations.jsonl"
    file.write_text(file.read_text()[:-20])  # as a kill leaves it
    combined([RIGHT], folder=str(tmp_path), translation_similarity="chrf")
    assert len(models[0].asked) == 3
    models[0].fingerprint = "another model"
    other = CachedTranslator(models[0], file)
    assert other.translate(["Jibu ni 20."], ["sw"], "en") == [ANSWER] and len(models[0].asked) == 4


def test_what_a_stop_left_untranslated_is_not_stored(tmp_path):
    """Pieces whose numbers do not agree yet are dropped at a stop; the next run translates the text again."""

    class Stopped(Glossary):
        def write(self, segments):
            request_stop()
            return super().write(segments)

    text, file = "Ali ana chupa 10.", tmp_path / "translations.jsonl"
    try:
        with pytest.raises(Interrupted):
            CachedTranslator(Stopped(), file).translate([text], ["sw"], "en")
    finally:
        clear_request(True)
    assert CachedTranslator(Glossary(), file).translate([text], ["sw"], "en") == ["?"]


def test_the_embedding_of_the_translation(models):
    result = combined([RIGHT, WRONG, ""], parts="answer")
    english = make_cosine(RewardConfig(parts="answer"), encoder())
    wanted = english(reward_inputs([SWAHILI._replace(language="en")] * 2, [ANSWER, "The answer is 21."], encoder()))
    np.testing.assert_allclose(result.total.value_B, [*np.asarray(wanted.value_B), 0], atol=1e-5)


def test_several_references_by_max_and_mean(models):
    other = Reference("Nothing alike at all!", "Forty-two.")
    prompts = [SWAHILI._replace(more_references=(other,)), SWAHILI, SWAHILI._replace(reference=None)]
    for how, share in (("max", 1.0), ("mean", (1 + chrf(ANSWER, "Forty-two.")) / 2)):
        result = combined(
            [RIGHT] * 3, prompts, parts="answer", references=how, translation_similarity="chrf"
        )  # fmt: skip
        np.testing.assert_allclose(result.total.value_B, [share, 1, 0], atol=1e-6)
        assert result.total.valid_B.tolist() == [True, True, False]


def test_cosine_with_several_references():
    """[B, K, E] vectors, as run.embedding makes them: the best of two, and one missing."""
    other = Reference("Nothing alike at all!", "Forty-two.")
    pair = vectors_of([SWAHILI.reference, other, SWAHILI.reference, None], encoder())
    pivots = type(pair)(*(np.asarray(column).reshape(2, 2, *column.shape[1:]) for column in pair))
    inputs = reward_inputs([SWAHILI] * 2, [RIGHT, RIGHT], encoder())
    each = [make_cosine(RewardConfig(parts="whole"), encoder())(inputs._replace(pivots=vectors_of([r] * 2, encoder())))
            for r in (SWAHILI.reference, other)]  # fmt: skip
    own, far = (float(scores.value_B[0]) for scores in each)
    for how, wanted in (("max", max(own, far)), ("mean", (own + far) / 2)):
        config = RewardConfig(parts="whole", references=how)
        found = make_cosine(config, encoder())(inputs._replace(pivots=pivots)).value_B
        np.testing.assert_allclose(found, [wanted, own], atol=1e-5)


@pytest.mark.parametrize(
    "wiring, slots",
    [("reference", ("Jibu ni 20.", ANSWER, ANSWER)), ("direct", ("Jibu ni 20.", "Jibu ni 20.", ANSWER)),
     ("quality", (ANSWER, "Jibu ni 20.", None))],
)  # fmt: skip
def test_the_wirings_of_comet(models, wiring, slots):
    models[1].needs_reference = wiring != "quality"
    result = combined([RIGHT, "bila jibu", ""], functions=("comet",), comet_wiring=wiring)
    assert models[1].seen == [slots]
    assert result.each["comet"].parts["comet_cut"].tolist() == [len(slots[1]) > 12, 0, 0]
    np.testing.assert_allclose(result.total.value_B, [len(slots[1]) / 100, 0, 0], atol=1e-6)
    assert result.total.valid_B.all()


def test_the_mean_of_several_comets(models, monkeypatch):
    """As in gemmax: of two, one of which reads no reference; the longer-sighted one cuts nothing."""
    other = FakeComet()
    other.score = lambda src, mt, ref=None: np.full(len(mt), 0.5, np.float32)
    other.cut = lambda texts: np.zeros(len(texts), bool)
    monkeypatch.setattr("pbrl_jax.rewards.comet.loaded_comet", {"y": models[1], "z": other}.get)
    monkeypatch.setattr(translation, "loaded_comet", {"y": models[1], "z": other}.get)
    result = combined([RIGHT, ""], functions=("comet",), comet_more=("z",))
    np.testing.assert_allclose(result.total.value_B, [(0.17 + 0.5) / 2, 0], atol=1e-6)
    assert result.each["comet"].parts["comet_cut"].tolist() == [1, 0]
    similar = combined([RIGHT], parts="answer", translation_similarity="comet", comet_more=("z",))
    np.testing.assert_allclose(similar.total.value_B, [(0.17 + 0.5) / 2], atol=1e-6)
    models[1].needs_reference = False
    with pytest.raises(ConfigError, match="The COMET model 'z' compares with a reference"):
        combined([RIGHT], functions=("comet",), comet_more=("z",), comet_wiring="quality")


def test_the_papers_hybrid_by_hand(models):
    """alpha * COMET of the answer + (1 - alpha) * translation similarity of the reasoning; each sees its own part."""
    result = combined(
        [RIGHT, WRONG], functions=("hybrid",), hybrid_answer="comet", hybrid_reasoning="translation",
        translation_similarity="chrf", answer_weight=0.25,
    )  # fmt: skip
    np.testing.assert_allclose(result.total.value_B, [0.25 * 0.17 + 0.75] * 2, atol=1e-6)
    assert len(ANSWER) == 17 and [slot[1] for slot in models[1].seen] == [ANSWER, "The answer is 21."]


def test_comet_as_the_similarity_of_translations(models):
    combined([RIGHT], parts="answer", translation_similarity="comet")
    assert models[1].seen == [("Jibu ni 20.", ANSWER, ANSWER)]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"translator": ""}, "reward.translator is empty"),
        ({"functions": ("hybrid",), "hybrid_answer": "comet", "comet": ""}, "reward.comet is empty"),
        ({"functions": ("comet",), "comet_wiring": "quality"}, "compares with a reference"),
        ({"functions": ("comet",), "comet": "kiwi"}, "comet_wiring reference compares with English references, which"),
        ({"functions": ("comet",), "comet": "kiwi", "comet_wiring": "direct"}, "the COMET model 'kiwi' does not read"),
        ({"translation_similarity": "comet", "comet": "kiwi"}, "translation_similarity comet compares"),
        ({"translator": "endpoint"}, "endpoint.url"),
        ({"translator": "policy"}, "no policy here"),
    ],
)
def test_what_is_missing_is_named(models, settings, message):
    models[1].needs_reference = settings.get("comet") != "kiwi"
    with pytest.raises(ConfigError, match=message):
        combined([RIGHT], **settings)


def test_measures_of_overlap():
    assert TEXT_SIMILARITIES.keys() == {"chrf", "bleu", "rouge_l"}
    cat = "the cat sat on the mat"
    for measure in (chrf, bleu):
        assert measure(cat, cat) == pytest.approx(1)
        assert measure("xyz", cat) < 0.1 < measure("the cat sat on a mat", cat) < 1
    # LCS "the cat mat" of 4 and 6 words: precision 3/4, recall 1/2.
    found = rouge_l_scores(["The cat, a mat", "", "x"], ["the cat sat on the mat", "y", "x"])
    np.testing.assert_allclose(found, [2 * 0.75 * 0.5 / 1.25, 0, 1], atol=1e-6)


def test_rouge_without_its_package_is_refused_at_the_start(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)
    with pytest.raises(ConfigError, match="rouge_l needs tensorflow-text, which has no wheels.*Use chrf"):
        combined([RIGHT], translation_similarity="rouge_l")
