"""Prompts, choices and gold answers of every benchmark, on rows of our own typed in the original formats."""

import json
import os

import pytest

from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.eval.benchmarks import BENCHMARKS, mgsm, mmlu_prox
from pbrl_jax.eval.benchmarks.common import Request, check_request

DATA = os.environ.get("PBRL_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="PBRL_DATA is not set: it names the folder of real benchmark text")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """folder(name, path, content): a file below PBRL_DATA; rows become JSON lines, lists of lists become TSV."""
    monkeypatch.setenv("PBRL_DATA", str(tmp_path))

    def write(path, rows):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = ["\t".join(row) if isinstance(row, list) else json.dumps(row, ensure_ascii=False) for row in rows]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return file

    return write


def problems(name, *languages, **more):
    """The problems of a benchmark by its default protocol."""
    request = Request(languages, more.pop("protocol", BENCHMARKS[name].protocols[0]), **more)
    return BENCHMARKS[name].load(check_request(BENCHMARKS[name], request))


@pytest.fixture
def no_hub(monkeypatch):
    """A machine without PBRL_DATA and without a network."""
    import datasets

    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.delenv("PBRL_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def write_mgsm(folder):
    folder("mgsm/mgsm_en.tsv", [["Two and two?", "4"], ["A thousand and one?", "1,001"]])
    folder("mgsm/mgsm_sw.tsv", [["Mbili na mbili?", "4"], ["Elfu na moja?", "1,001"]])
    folder("mgsm/mgsm_zh.tsv", [["二加二?", "4"], ["一千加一?", "1,001"]])
    shots = {
        "en": ("Question: One and one?", "Step-by-Step Answer: One and one make 2. The answer is 2."),
        "sw": ("Swali: Moja na moja?", "Jibu la Hatua kwa Hatua: Moja na moja ni 2. Jibu ni 2."),
        "zh": ("问题：一加一？", "逐步解答：一加一是二。答案是 2。"),
    }
    stored = {"answers": [2] * 8, "exemplars": {
        code: {str(i): {"q": q, "a": a} for i in range(1, 9)} for code, (q, a) in shots.items()
    }}  # fmt: skip
    folder("mgsm/exemplars.json", [stored])


def test_mgsm_prompts_of_each_protocol(folder):
    write_mgsm(folder)
    native = problems("mgsm", "sw", "zh")
    assert [p.key for p in native] == ["sw/0", "sw/1", "zh/0", "zh/1"]
    assert native[0].prompt == "Swali: Mbili na mbili?\nJibu la Hatua kwa Hatua:"
    assert native[2].prompt == "问题： 二加二?\n逐步解答:"
    assert [p.answer for p in native] == ["4", "1001"] * 2 and native[0].answer_language == "sw"
    assert native[0].stops == ("Swali:", "</s>", "<|im_end|>")
    english = problems("mgsm", "sw", protocol="en-cot")[0]
    assert english.prompt == "Swali: Mbili na mbili?\nStep-by-Step Answer:" and english.answer_language == "en"
    assert problems("mgsm", "sw", protocol="direct")[0].prompt == "Swali: Mbili na mbili?\nAnswer:"


def test_mgsm_worked_solutions(folder):
    write_mgsm(folder)
    native = problems("mgsm", "sw", shots=2)[0].prompt
    solved = "Swali: Moja na moja?\nJibu la Hatua kwa Hatua: Moja na moja ni 2. Jibu ni 2.\n\n"
    assert native == solved * 2 + "Swali: Mbili na mbili?\nJibu la Hatua kwa Hatua:"
    chinese = problems("mgsm", "zh", shots=1)[0].prompt
    assert chinese.startswith("问题：一加一？\n逐步解答: 一加一是二。答案是 2。\n\n问题： 二")
    english = problems("mgsm", "sw", shots=1, protocol="en-cot")[0].prompt
    solved = "Swali: Moja na moja?\nStep-by-Step Answer: One and one make 2. The answer is 2.\n\nSwali:"
    assert english.startswith(solved)
    direct = problems("mgsm", "sw", shots=1, protocol="direct")[0].prompt
    assert direct == "Swali: Moja na moja?\nAnswer:2\n\nSwali: Mbili na mbili?\nAnswer:"
    with pytest.raises(ConfigError, match="--shots is 9, but MGSM has 8"):
        problems("mgsm", "sw", shots=9)


def test_mgsm_without_exemplars(folder):
    write_mgsm(folder)
    (folder("mgsm/exemplars.json", [])).unlink()
    with pytest.raises(DataError, match=r"has no exemplars\.json.*--shots 0"):
        problems("mgsm", "sw", shots=1)
    folder("mgsm/exemplars.json", [{"answers": [2], "exemplars": {}}])
    with pytest.raises(DataError, match=r"exemplars\.json: KeyError.*8 q and a of 'sw'"):
        problems("mgsm", "sw", shots=1)


def test_a_limit_takes_the_same_rows_in_every_language(folder):
    for code in ("en", "sw"):
        folder(f"mgsm/mgsm_{code}.tsv", [[f"{code} {i}?", str(i)] for i in range(40)])
    chosen = problems("mgsm", "en", "sw", limit=5)
    rows = [p.key.split("/")[1] for p in chosen]
    assert rows[:5] == rows[5:] and len(set(rows)) == 5 and [p.answer for p in chosen] == rows


def test_msvamp(folder):
    folder("msvamp/test_Swahili.json", [{"query": "Q?", "m_query": "Kuku 3?", "response": "8.0", "equation": "+ 3 5"}])
    (native,) = problems("msvamp", "sw")
    assert native.prompt == "Swali: Kuku 3?\nJibu la Hatua kwa Hatua:" and native.answer == "8"
    (alpaca,) = problems("msvamp", "sw", protocol="alpaca")
    assert alpaca.prompt.endswith("Please answer in Swahili.\n\n### Instruction:\nKuku 3?\n\n### Response:")
    grade = BENCHMARKS["msvamp"].published
    assert grade(alpaca, "Ni 1,008? Hapana, 8.", "alpaca") == {"math_octopus": True}
    assert not grade(alpaca, "Jibu ni nane.", "alpaca")["math_octopus"]


def test_afrimgsm(folder):
    folder("afrimgsm/data/hau/test.tsv", [["question", "answer"], ["Biyu da biyu?", "4"]])
    (cot,) = problems("afrimgsm", "ha")
    assert cot.prompt == "Question: Biyu da biyu?\nStep-by-Step Answer:" and cot.answer == "4"
    assert problems("afrimgsm", "hau", protocol="direct")[0].prompt.endswith("?\nAnswer:"), "the data set's own name"


def test_polymath(folder):
    for code, question in (("en", "What is 1/2?"), ("sw", "Nusu ni nini?")):
        folder(f"polymath/data/{code}/top.jsonl", [{"id": "x", "question": question, "answer": r"\frac{1}{2}"}])
    (problem,) = problems("polymath-top", "sw")
    assert problem.prompt == "Nusu ni nini?\nKumbuka: Tafadhali weka jibu la mwisho katika $\\boxed{}$.\n"
    grade = BENCHMARKS["polymath-top"].published
    assert grade(problem, r"So \boxed{ \frac{1}{2} }, not \boxed{3}", "native-cot") == {"first_boxed": True}
    assert grade(problem, r"Jibu ni \frac{1}{2}.", "native-cot") == {"first_boxed": False}


LETTER_ROW = {"question": " Je? ", "option_a": "w", "option_b": "x", "option_c": "y", "option_d": "z", "subject": "law",
              "domain": "STEM"}  # fmt: skip


def test_global_mmlu(folder):
    folder("global_mmlu/sw/test.jsonl", [LETTER_ROW | {"answer": "C"}])
    folder("global_mmlu/sw/dev.jsonl", [LETTER_ROW | {"question": "Mfano?", "answer": "B"}])
    (problem,) = problems("global-mmlu", "sw")
    assert problem.prompt == "Je?\nA. w\nB. x\nC. y\nD. z\nAnswer:" and problem.answer == "C"
    assert problem.choices == (" A", " B", " C", " D") and problem.group == "law"
    (few,) = problems("global-mmlu", "sw", shots=1)
    assert few.prompt == "Mfano?\nA. w\nB. x\nC. y\nD. z\nAnswer: B\n\n" + problem.prompt
    with pytest.raises(ConfigError, match="has 1 examples of a subject"):
        problems("global-mmlu", "sw", shots=2)
    assert problems("global-mmlu", "sw", protocol="direct")[0].choices == ()


def test_include_counts_its_answers_from_0(folder):
    folder("include/Swiss/test.jsonl", [])
    folder("include/German/test.jsonl", [LETTER_ROW | {"answer": 3}])
    (problem,) = problems("include", "de")
    assert problem.answer == "D" and problem.group == "STEM" and problem.prompt.startswith("Je?\nA. w\n")


def test_belebele_counts_its_answers_from_1(folder):
    row = {"flores_passage": "Mto.", "question": "Wapi?", "correct_answer_num": "2",
           **{f"mc_answer{i}": f"m{i}" for i in (1, 2, 3, 4)}}  # fmt: skip
    folder("belebele/swh_Latn.jsonl", [row])
    (problem,) = problems("belebele", "sw")
    assert problem.prompt == "P: Mto.\nQ: Wapi?\nA: m1\nB: m2\nC: m3\nD: m4\nAnswer:" and problem.answer == "B"
    with pytest.raises(ConfigError, match="examples would leak"):
        problems("belebele", "sw", shots=1)
    assert len(BENCHMARKS["belebele"].languages) == 122
    folder("belebele/swh_Latn.jsonl", [row, row | {"correct_answer_num": "5"}])
    with pytest.raises(DataError, match=r"swh_Latn\.jsonl: row 2: correct_answer_num is '5'"):
        problems("belebele", "sw")


def test_xcopa(folder):
    row = {"premise": "Alianguka.", "choice1": "Ilinyesha.", "choice2": "Alicheka.", "question": "cause", "label": 0}
    folder("xcopa/data/sw/test.sw.jsonl", [row, row | {"question": "effect", "label": 1}])
    folder("xcopa/data/sw/val.sw.jsonl", [row])
    cause, effect = problems("xcopa", "sw")
    assert cause.prompt == "Alianguka kwa sababu" and cause.choices == (" ilinyesha.", " alicheka.")
    assert effect.prompt == "Alianguka kwa hiyo" and [cause.answer, effect.answer] == ["A", "B"]
    assert problems("xcopa", "sw", shots=1)[0].prompt == "Alianguka kwa sababu ilinyesha.\n\nAlianguka kwa sababu"
    folder("xcopa/data/sw/test.sw.jsonl", [row | {"question": "why", "choice2": None}])
    with pytest.raises(DataError, match="row 1: choice2 is missing.*question is 'why', expected cause or effect"):
        problems("xcopa", "sw")


def prox_row(**more):
    options = {f"option_{i}": f"o{i}" if i < 3 else None for i in range(10)}
    return {"question": "Je?", "answer": "C", "category": "math", **options, **more}


def test_mmlu_prox(folder):
    solved = prox_row(question="Mfano?", cot_content="A: Hebu tufikiria hatua kwa hatua. Jibu ni (B).")
    folder("mmlu_prox/sw/test.jsonl", [prox_row()])
    folder("mmlu_prox/sw/validation.jsonl", [solved] * 2)
    (problem,) = problems("mmlu-prox", "sw", shots=1)
    assert problem.prompt == (
        "Yafuatayo ni maswali ya chaguo-nyingi (yenye majibu) kuhusu hisabati. Fikiria hatua kwa hatua kisha malizia "
        'jibu lako kwa "Jibu ni (X)" ambapo X ni herufi ya chaguo sahihi.\n'
        "Swali:\nMfano?\nChaguo:\nA. o0\nB. o1\nC. o2\nJibu: Hebu tufikiria hatua kwa hatua. Jibu ni (B).\n\n"
        "Swali:\nJe?\nChaguo:\nA. o0\nB. o1\nC. o2\nJibu: Hebu tufikiria hatua kwa hatua."
    )
    assert problem.stops[:2] == ("Q:", "Swali:") and problem.options == 3
    (scored,) = problems("mmlu-prox", "sw", protocol="loglikelihood")
    assert scored.prompt == "Swali:\nJe?\nChaguo:\nA. o0\nB. o1\nC. o2\nJibu:" and scored.choices == (" A", " B", " C")
    folder("mmlu_prox/sw/test.jsonl", [prox_row(answer="D")])
    with pytest.raises(DataError, match="row 1: answer is 'D', expected one of A, B, C"):
        problems("mmlu-prox", "sw")
    folder("mmlu_prox/sw/test.jsonl", [prox_row(answer="AB")])
    with pytest.raises(DataError, match="row 1: answer is 'AB', expected one of A, B, C"):
        problems("mmlu-prox", "sw")


def test_mmlu_prox_letters_stay_where_an_option_is_missing(folder):
    folder("mmlu_prox/sw/test.jsonl", [prox_row(option_1=None, answer="C")])
    (problem,) = problems("mmlu-prox", "sw", shots=0)
    assert "Chaguo:\nA. o0\nC. o2\nJibu" in problem.prompt and (problem.answer, problem.options) == ("C", 3)


def test_mmlu_prox_extraction_of_every_language():
    """The sentence that a language's prompt asks for is found by its expression, with and without brackets."""
    for code, words in mmlu_prox.benchmark_words().items():
        for letter in ("(G)", "G"):
            text = "... " + words.sentence.replace("({})", letter) + " ..."
            assert mmlu_prox.harness_strict(text, mmlu_prox.answer_pattern(code)) == "G", code
        assert len(words.subjects) == 14 and all(words.subjects.values()), code
    assert len(mmlu_prox.benchmark_words()) == 29


# Bad input.


def test_unknown_names_come_with_the_nearest():
    mgsm_benchmark = BENCHMARKS["mgsm"]
    with pytest.raises(ConfigError, match="mgsm has no language 'swahili'. Did you mean 'sw'"):
        check_request(mgsm_benchmark, Request(("swahili",), "direct"))
    with pytest.raises(ConfigError, match="has no protocol 'nativ-cot'.*Did you mean 'native-cot'"):
        check_request(mgsm_benchmark, Request((), "nativ-cot"))
    with pytest.raises(ConfigError, match="Languages given twice: sw"):
        check_request(BENCHMARKS["belebele"], Request(("sw", "swh_Latn"), "direct"))
    assert check_request(mgsm_benchmark, Request((), "direct")).languages == tuple(mgsm.WORDS)


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_a_hub_out_of_reach_names_the_local_file(no_hub, name):
    code = next(iter(BENCHMARKS[name].languages))
    message = "cannot be loaded: Couldn't reach the hub.*PBRL_DATA to a folder with"
    with pytest.raises(DataError, match=message) as found:
        problems(name, code)
    assert BENCHMARKS[name].dataset.folder + "/" in str(found.value) and "{" not in str(found.value)


def test_rows_from_the_hub(monkeypatch):
    import datasets

    def load_dataset(name, config, split):
        assert (name, config, split) == ("juletxara/mgsm", "sw", "test")
        return datasets.Dataset.from_list([{"question": "Mbili?", "answer": None, "answer_number": 1001}])

    monkeypatch.delenv("PBRL_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (problem,) = problems("mgsm", "sw")
    assert (problem.question, problem.answer) == ("Mbili?", "1001")


LETTERS_ON_HUB = {**LETTER_ROW, "answer": "C"}
ON_HUB = {
    "msvamp": ("Mathoctopus/MSVAMP", "sw", "test", {"m_query": "Kuku 3?", "response": "8.0"}, "8"),
    "afrimgsm": ("masakhane/afrimgsm", "swa", "test", {"question": "Q?", "answer": None, "answer_number": 4}, "4"),
    "polymath-high": ("Qwen/PolyMath", "sw", "high", {"id": "1", "question": "Q?", "answer": "7"}, "7"),
    "mmlu-prox": ("li-lab/MMLU-ProX", "sw", "test", prox_row(), "C"),
    "mmlu-prox-lite": ("li-lab/MMLU-ProX-Lite", "sw", "test", prox_row(), "C"),
    "global-mmlu": ("CohereLabs/Global-MMLU", "sw", "test", LETTERS_ON_HUB, "C"),
    "global-mmlu-lite": ("CohereLabs/Global-MMLU-Lite", "sw", "test", LETTERS_ON_HUB, "C"),
    "belebele": ("facebook/belebele", "swh_Latn", "test",
                 {"flores_passage": "Mto.", "question": "Wapi?", "correct_answer_num": "3",
                  **{f"mc_answer{i}": f"m{i}" for i in (1, 2, 3, 4)}}, "C"),
    "include": ("CohereForAI/include-base-44", "German", "test", {**LETTER_ROW, "answer": 2}, "C"),
    "xcopa": ("cambridgeltl/xcopa", "sw", "test",
              {"premise": "A.", "choice1": "B.", "choice2": "C.", "question": "cause", "label": 1}, "B"),
}  # fmt: skip
"""Benchmark -> hub id, configuration, split, a row as the hub has it, gold answer; MGSM has a test of its own."""


@pytest.mark.parametrize("name", ON_HUB)
def test_every_benchmark_loads_through_datasets(monkeypatch, name):
    import datasets

    hub, config, split, row, answer = ON_HUB[name]
    asked = []

    def load_dataset(path, name, split):
        asked.append((path, name, split))
        return datasets.Dataset.from_list([row])

    monkeypatch.delenv("PBRL_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (problem,) = problems(name, "de" if name == "include" else "sw", protocol=BENCHMARKS[name].protocols[-1])
    assert asked == [(hub, config, split)] and problem.answer == answer


def test_malformed_files(folder):
    folder("mgsm/mgsm_en.tsv", [["Two?", "4"]])
    folder("mgsm/mgsm_sw.tsv", [["Mbili?", "nne"]])
    with pytest.raises(DataError, match=r"mgsm_sw\.tsv: row 1: answer is 'nne', expected a number"):
        problems("mgsm", "sw")
    file = folder("global_mmlu/sw/test.jsonl", [LETTER_ROW | {"answer": "E", "option_b": None}])
    with pytest.raises(DataError, match=r"test\.jsonl: row 1: option_b is missing.*row 1: answer is 'E'"):
        problems("global-mmlu", "sw")
    file.write_text('{"question": \n')
    with pytest.raises(DataError, match=r"test\.jsonl: row 1: is no JSON"):
        problems("global-mmlu", "sw")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is not UTF-8"):
        problems("global-mmlu", "sw")
    file.unlink()
    with pytest.raises(DataError, match="holds no rows of 'sw', split 'test'. Expected one of: sw/test-"):
        problems("global-mmlu", "sw")
    (file.parent / "test-00000-of-00001.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="no parquet file"):
        problems("global-mmlu", "sw")


def test_parquet_and_csv(folder):
    import pyarrow
    import pyarrow.parquet

    file = folder("global_mmlu/sw/x", [])
    table = pyarrow.Table.from_pylist([LETTER_ROW | {"answer": "A"}])
    pyarrow.parquet.write_table(table, file.parent / "test-00000-of-00001.parquet")
    assert problems("global-mmlu", "sw")[0].answer == "A"
    file = folder("include/German/test.csv", [])
    file.write_text('question,option_a,option_b,option_c,option_d,answer,domain\n"Ja, oder?",1,2,3,4,B,x\n')
    assert problems("include", "de")[0].question == "Ja, oder?"


# Real text.


@needs_data
def test_all_of_mgsm():
    found = problems("mgsm", shots=8)
    assert len(found) == 2750 and len({p.key for p in found}) == 2750
    golds = {code: [p.answer for p in found if p.language == code] for code in mgsm.WORDS}
    assert all(golds[code] == golds["en"] for code in golds) and "276000" in golds["en"]
    word = mgsm.WORDS["zh"].native
    assert next(p for p in found if p.language == "zh").prompt.count(word) == 9


@needs_data
def test_gold_solutions_are_graded_as_was_measured():
    """The harness's strict expressions miss all Bengali, three Japanese and one German of MGSM's own solutions."""
    stored = json.loads(open(os.path.join(DATA, "mgsm", "exemplars.json"), encoding="utf-8").read())
    strict, flexible = {}, {}
    for code, solutions in stored["exemplars"].items():
        rows = [(solutions[str(i + 1)]["a"], str(gold)) for i, gold in enumerate(stored["answers"])]
        grades = [mgsm.harness_number(text, gold, mgsm.strict_pattern(code, "native-cot")) for text, gold in rows]
        strict[code] = sum(grade["lm_eval_strict"] for grade in grades)
        flexible[code] = sum(grade["lm_eval_flexible"] for grade in grades)
    assert strict == {code: {"bn": 0, "ja": 5, "de": 7}.get(code, 8) for code in strict}
    assert set(flexible.values()) == {8}


@needs_data
def test_all_of_xcopa_and_polymath():
    assert len(problems("xcopa")) == 11 * 500
    assert len(problems("polymath")) == len(problems("polymath-top")) == 18 * 125
