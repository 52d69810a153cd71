"""The single entry to data: requirements, fingerprints, English rows, and prompts that are too long."""

import json

import pytest

from pbrl_jax import DataConfig
from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.core.records import Prompt, Reference
from pbrl_jax.data.load import dataset_fingerprint, fit_prompts, load_prompts, refuse_trained, with_english
from pbrl_jax.data.row_errors import RowErrors
from pbrl_jax.data.sources.common import ID_ORDER, language_of, prompt_id, row_of, take
from pbrl_jax.text.languages import LANGUAGES
from pbrl_jax.text.tokenizers import train_sentencepiece

SMALL = DataConfig(languages=("en", "sw"), limit=20)


def prompts_of(*languages, count=3):
    return [
        Prompt(prompt_id(row, code), code, f"{code} {row}", f"en {row}", str(row), Reference("r", "a"))
        for row in range(count)
        for code in languages
    ]


def test_every_language_has_a_number_and_ids_lead_back():
    assert set(ID_ORDER) == set(LANGUAGES) and len(ID_ORDER) == len(set(ID_ORDER)) <= 256
    assert ID_ORDER[:20] == tuple("en ar bn de es fr hi id it ja ko ms pt ru sw te th tr vi zh".split()), "append only"
    assert prompt_id(3, "sw") == 3 * 64 + 14 and len({prompt_id(7, code) for code in LANGUAGES}) == len(LANGUAGES)
    for code in LANGUAGES:
        for row in (0, 1, 2**23 - 1):
            identifier = prompt_id(row, code)
            assert 0 <= identifier < 2**31
            assert (row_of(identifier), language_of(identifier)) == (row, code)
    with pytest.raises(DataError, match="no 32-bit id"):
        prompt_id(2**23, "en")


def test_load_prompts_follows_the_config_and_its_overrides():
    prompts = load_prompts(SMALL, seed=0)
    assert len(prompts) == 40 and {p.language for p in prompts} == {"en", "sw"}
    assert prompts == load_prompts(SMALL, seed=0) != load_prompts(SMALL, seed=1)
    tests = load_prompts(SMALL, seed=0, split="test", languages=("th",), limit=5)
    assert len(tests) == 5 and {p.language for p in tests} == {"th"}
    assert not {p.question_en for p in tests} & {p.question_en for p in prompts}


def test_languages_without_rows_are_named(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    rows = [{"question": f"How many are {n}?", "language": "en", "answer": str(n)} for n in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = DataConfig(source="table", path=str(file), languages=("sw", "en", "th"))
    assert len(load_prompts(table, 0)) == 3
    said = "Note: data.languages names sw, th, and the data has no row in them; all 3 are in en."
    assert said in capsys.readouterr().err
    assert len(load_prompts(table, 0, languages=("sw", "en"))) == 3 and "Note" not in capsys.readouterr().err


def test_load_prompts_refuses():
    with pytest.raises(ConfigError, match="Unknown data source 'quikstart'.*Did you mean 'quickstart'"):
        load_prompts(DataConfig(source="quikstart"), 0)
    with pytest.raises(ConfigError, match="Unknown language 'xx'"):
        load_prompts(DataConfig(languages=("xx",)), 0)
    with pytest.raises(ConfigError, match="only for the source 'table'"):
        load_prompts(DataConfig(columns=("question=q",)), 0)
    with pytest.raises(ConfigError, match="Unknown required field"):
        load_prompts(SMALL, 0, require=("gold",))


def test_required_fields_are_checked_with_row_numbers(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = [{"q": "a", "answer": "1", "en": "a"}, {"q": "b", "answer": "1"}, {"q": "c", "en": "c"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(source="table", path=str(path), languages=("sw",), columns=("question=q", "question_en=en"))
    assert len(load_prompts(data, 0)) == 3
    with pytest.raises(DataError, match=r"1 of 3 rows have no answer, the first at row 3 \(sw\)"):
        load_prompts(data, 0, require=("answer",))
    with pytest.raises(DataError, match=r"1 of 3 rows have no question_en, the first at row 2 \(sw\)"):
        load_prompts(data, 0, require=("question_en",))
    with pytest.raises(DataError, match=r"3 of 3 rows have no reference, the first at row 1 \(sw\), row 2 \(sw\)"):
        load_prompts(data, 0, require=("reference",))
    assert len(load_prompts(SMALL, 0, require=("answer", "question_en", "reference"))) == 40


def test_fingerprint_sees_every_field_and_the_order():
    prompts = prompts_of("en", "sw")
    known = {dataset_fingerprint(prompts)}
    changes = {
        "id": 7, "language": "th", "question": "x", "question_en": "x", "answer": None,
        "reference": Reference("r", "b"),
    }  # fmt: skip
    for field, value in changes.items():
        known.add(dataset_fingerprint([*prompts[:-1], prompts[-1]._replace(**{field: value})]))
    known |= {dataset_fingerprint(prompts[::-1]), dataset_fingerprint(prompts[:-1]), dataset_fingerprint([])}
    assert len(known) == 10
    assert dataset_fingerprint(prompts) == dataset_fingerprint(prompts_of("en", "sw"))


def test_english_rows_are_added_where_there_are_none():
    prompts = prompts_of("sw", "th")
    both = with_english(prompts)
    assert both[: len(prompts)] == prompts
    assert [(p.id, p.language, p.question) for p in both[len(prompts) :]] == [
        (prompt_id(row, "en"), "en", f"en {row}") for row in range(3)
    ]
    assert with_english(prompts_of("en", "sw")) == prompts_of("en", "sw")
    assert with_english([prompts[0]._replace(question_en="")]) == [prompts[0]._replace(question_en="")]


@pytest.fixture(scope="module")
def tokenizer():
    """One id per character and one for the space in front."""
    return train_sentencepiece(["a b c d e f g h i j k l m n o p q r s t u v w x y z"] * 3, 60)


def test_fit_prompts_keeps_what_fits(tokenizer):
    prompts = [Prompt(prompt_id(i, "sw"), "sw", "q " * n, "q", None, None) for i, n in enumerate((1, 3, 2))]
    kept, ids = fit_prompts(prompts, tokenizer, 64)
    assert kept == prompts
    lengths = [len(row) for row in ids]
    assert lengths[0] < lengths[2] < lengths[1] and all(row[0] == tokenizer.bos_id for row in ids)
    kept, ids = fit_prompts(prompts, tokenizer, lengths[2], "drop")
    assert kept == [prompts[0], prompts[2]] and [len(row) for row in ids] == [lengths[0], lengths[2]]
    assert fit_prompts(prompts, tokenizer, lengths[1])[0] == prompts


def test_overlong_prompts_are_counted_per_language_and_named(tokenizer):
    prompts = [
        Prompt(prompt_id(0, "sw"), "sw", "a", "a"),
        Prompt(prompt_id(1, "sw"), "sw", "a b c d e f", "a"),
        Prompt(prompt_id(1, "th"), "th", "a b c d e f g", "a"),
        Prompt(prompt_id(2, "sw"), "sw", "a b c d e f", "a"),
    ]
    with pytest.raises(DataError) as caught:
        fit_prompts(prompts, tokenizer, 6)
    message = str(caught.value)
    for part in (
        "3 of 4 prompts are longer than 6 tokens (sw 2, th 1)",
        "row 2 (sw), row 2 (th), row 3 (sw)",
        "rollout.max_prompt_length",
        "drop",
    ):
        assert part in message
    with pytest.raises(DataError, match="2 of 2 prompts are longer"):
        fit_prompts(prompts[1:3], tokenizer, 2, "drop")
    with pytest.raises(ConfigError, match="overlong_prompts is 'cut'"):
        fit_prompts(prompts, tokenizer, 6, "cut")
    with pytest.raises(DataError, match="No prompts"):
        fit_prompts([], tokenizer, 6)


def test_a_language_that_loses_all_its_prompts_is_refused(tokenizer, capsys):
    rows = [Prompt(prompt_id(i, c), c, "a b c d e f" if c == "th" or i == 0 else "a", "a")
            for i in range(3) for c in ("sw", "th")]  # fmt: skip
    with pytest.raises(DataError, match=r"4 of 6 .*\(sw 1, th 3\): none of th is left; .*Raise rollout.max_prompt"):
        fit_prompts(rows, tokenizer, 6, "drop")
    kept, _ = fit_prompts([row for row in rows if row.language == "sw"], tokenizer, 6, "drop")
    assert len(kept) == 2 and "Dropped: 1 of 3 prompts are longer than 6 tokens (sw 1)." in capsys.readouterr().out


def test_take():
    assert take(list(range(10)), 0, 0) == take(list(range(10)), 99, 0) == list(range(10))
    some = take(list(range(100)), 10, 1)
    assert some == sorted(some) == take(list(range(100)), 10, 1) != take(list(range(100)), 10, 2)
    with pytest.raises(ConfigError, match="limit is -2"):
        take([1], -2, 0)


def test_row_errors_are_silent_without_errors():
    errors = RowErrors("f")
    assert errors.text(1, "q", " a ") == "a"
    errors.check()


def test_evaluation_problems_that_are_trained_on_are_refused():
    """The same question in another language is another problem."""
    trained = prompts_of("en", "sw")
    refuse_trained([row._replace(language="de") for row in trained], trained)
    others = [row._replace(question=row.question + "?") for row in trained]
    with pytest.raises(DataError, match=r"1 of 7 .* at row 2 \(sw\).*'sw 1'.*eval.training_rows"):
        refuse_trained([*others, trained[3]], trained)
    seen = trained[3]
    asked = seen.question.upper().replace(" ", "\u00a0 ") + "\u200b"
    again = seen._replace(question="Other", turns=(("system", "Be short."), ("user", asked)))
    with pytest.raises(DataError, match=r"1 of 1 evaluation problems"):
        refuse_trained([again], trained)
