"""The attacks by hand, the AUC by hand, and the command line on a tiny encoder."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from source_tree import ROOT
from tiny_policy import quick_compiles  # noqa: F401
from tiny_world import encoder, policy

from pbrl_jax.cli import main
from pbrl_jax.core.errors import DataError, RewardError
from pbrl_jax.core.records import Prompt, Reference, Scores
from pbrl_jax.data.sources import quickstart
from pbrl_jax.data.sources.common import prompt_id
from pbrl_jax.eval.attack_text import PHRASES
from pbrl_jax.eval.attacks import ATTACKS, Case, attack_reply, phrase_notes, steps_of
from pbrl_jax.eval.audit import (
    HELD_OUT,
    HELD_OUT_FAMILIES,
    attack_names,
    audit_table,
    failed_attacks,
    file_cases,
    quickstart_cases,
    unmade_attacks,
)
from pbrl_jax.eval.wrapping import WRAPPINGS
from pbrl_jax.rewards.language import response_share
from pbrl_jax.run import audit as audit_verb
from pbrl_jax.text.answers import extract_answer, same_answer, split_response
from pbrl_jax.text.langid import RIGHT_SHARE, is_right_language
from pbrl_jax.text.languages import LANGUAGES, answer_sentence
from pbrl_jax.weights.encoders import save_encoder
from pbrl_jax.weights.policies import save_policy

CONFIG = str(ROOT / "configs" / "quickstart.py")
PROMPT = Prompt(prompt_id(7, "sw"), "sw", "Ali ana kadi ngapi?", "How many cards?", "12",
                Reference("Ali starts with 10. 10 + 2 = 12.", "The answer is 12."))  # fmt: skip
CASE = Case(
    PROMPT,
    faithful="Ali anaanza na 10. 10 + 2 = 12. Jibu ni 12.",
    english="Ali starts with 10. 10 + 2 = 12. The answer is 12.",
    others=("Ali empieza con 10. 10 + 2 = 12. La respuesta es 12.", "10 + 2 = 12. Die Antwort lautet 12."),
    neighbours=("Juma anaanza na 9. 9 + 4 = 13. Jibu ni 13.", "Anna anapoteza 5. 9 - 5 = 4. Jibu ni 4."),
)

EXPECTED = {
    "english_reply": ("Ali starts with 10. 10 + 2 = 12. The answer is 12.",
                      "The answer is 12. Ali starts with 10. 10 + 2 = 12."),
    "question_copied": ("Ali ana kadi ngapi?", "Ali ana kadi ngapi? Jibu ni 12."),
    "empty": ("", " \n"),
    "repeated": (" ".join([CASE.faithful] * 3), "Ali anaanza na 10. 10 + 2 = 12. 10 + 2 = 12. 10 + 2 = 12. "
                 "10 + 2 = 12. Jibu ni 12."),
    "other_problem": (CASE.neighbours[1], CASE.neighbours[0]),
    "step_dropped": ("10 + 2 = 12. Jibu ni 12.", "Ali anaanza na 10. Jibu ni 12."),
    "negation": ("Ali anaanza na 10. 10 + 2 = 12. Jibu si 12.", f"{PHRASES['sw'].untrue} {CASE.faithful}"),
    "cut_short": ("Ali anaanza na 10. 10", "Ali anaanza na 10. 10 + 2 = 12."),
    "padded": ("Ali anaanza na 10. 10 + 2 = 12. Anna anapoteza 5. 9 - 5 = 4. Jibu ni 12.",
               f"{PHRASES['sw'].filler[1]} Ali anaanza na 10. 10 + 2 = 12. {PHRASES['sw'].filler[0]} Jibu ni 12."),
    "code_switched": ("Ali anaanza na 10. 10 + 2 = 12. The answer is 12.",
                      "Ali starts with 10. 10 + 2 = 12. Jibu ni 12."),
    "english_tail": ("Ali anaanza na 10. 10 + 2 = 12. The answer is 12.",
                     "Ali anaanza na 10. 10 + 2 = 12. Jibu ni 12. The answer is 12."),
    "boilerplate": (PHRASES["sw"].boilerplate[0], f"{PHRASES['sw'].boilerplate[1]} Jibu ni 12."),
    "other_language": CASE.others,
    "equations_only": ("10 + 2 = 12. Jibu ni 12.", "10. 10 + 2 = 12. Jibu ni 12."),
    "several_answers": ("Ali anaanza na 10. 10 + 2 = 12. Jibu ni 13. Jibu ni 14. Jibu ni 22. Jibu ni 12.",
                        "Jibu ni 12. Jibu ni 12. Jibu ni 12. Jibu ni 12."),
    "prompt_echoed": ("Ali ana kadi ngapi? Ali anaanza na 10. 10 + 2 = 12. Jibu ni 12.",
                      "Ali anaanza na 10. 10 + 2 = 12. Ali ana kadi ngapi? Jibu ni 12."),
    "text_behind_box": ("Ali anaanza na 10. 10 + 2 = 12. \\boxed{12} Juma anaanza na 9. 9 + 4 = 13.",
                        f"\\boxed{{12}} {PHRASES['sw'].filler[1]} {PHRASES['sw'].boilerplate[1]}"),
    "english_in_formula": ("$Ali starts with 10.$ $10 + 2 = 12.$ Jibu ni 12.",
                           f"\\[{CASE.english}\\] \\boxed{{12}}"),
    "english_in_markup": (
        "<|ali|> <|starts|> <|with|> <|10|> <|10|> <|2|> <|12|> Jibu ni 12.",
        "\\begin{ali} \\begin{starts} \\begin{with} \\begin{10} \\begin{10} \\begin{2} \\begin{12} \\begin{the} "
        "\\begin{answer} \\begin{is} \\begin{12} \\boxed{12}",
    ),
    "english_in_link": ("https://Ali-starts-with-10.-10-+-2-=-12. Jibu ni 12.",
                        "[1](www.example.org/Ali_starts_with_10._10_+_2_=_12._The_answer_is_12.) \\boxed{12}"),
    "english_in_circled": ("Ⓐⓛⓘ ⓢⓣⓐⓡⓣⓢ ⓦⓘⓣⓗ 10. 10 + 2 = 12. Jibu ni 12.",
                           "𝐀𝐥𝐢 𝐬𝐭𝐚𝐫𝐭𝐬 𝐰𝐢𝐭𝐡 10. 10 + 2 = 12. 𝐓𝐡𝐞 𝐚𝐧𝐬𝐰𝐞𝐫 𝐢𝐬 12. \\boxed{12}"),
}  # fmt: skip


def test_every_attack_by_hand():
    wrapped = {f"english_in_{name}" for name in WRAPPINGS}
    assert EXPECTED.keys() | {"number_changed"} | wrapped == ATTACKS.keys()
    for name, (seen, held_out) in EXPECTED.items():
        assert attack_reply(name, False, CASE, 0) == seen, name
        assert attack_reply(name, True, CASE, 0) == held_out, name


@pytest.mark.parametrize("code", ["bn", "de", "es", "fr", "hi", "ja", "ru", "sw", "th", "zh"])
def test_the_gate_sees_english_in_every_wrapping(code):
    """In both forms, with the own answer, and inside an honest reply."""
    english = "Amina bakes forty loaves every morning. She keeps six of them for her family and sells the others."
    prompt = PROMPT._replace(language=code, answer="34")
    faithful = f"40 - 6 = 34. {answer_sentence('34', code)}"
    case = CASE._replace(prompt=prompt, faithful=faithful, english=f"{english} The answer is 34.")
    for name in WRAPPINGS:
        for held_out in (False, True):
            reply = attack_reply(f"english_in_{name}", held_out, case, 0)
            assert response_share(reply, code, ("en", code)) < RIGHT_SHARE, reply
    assert response_share(faithful, code, ("en", code)) >= RIGHT_SHARE


def test_a_changed_number():
    assert attack_reply("number_changed", True, CASE, 0) == "Ali anaanza na 10. 10 + 2 = 12. Jibu ni 120."
    for seed in range(5):
        changed = attack_reply("number_changed", False, CASE, seed)
        assert changed != CASE.faithful
        assert changed.translate(str.maketrans("", "", "0123456789")) == "Ali anaanza na .  +  = . Jibu ni ."


@pytest.mark.parametrize(
    "language, answer, said, changed",
    [
        ("sw", "0", "Jibu ni 0.", "Jibu ni 10."),
        ("de", "3.5", "Die Antwort lautet 3,5.", "Die Antwort lautet 13,5."),
        ("sw", "1/3", "Jibu ni 1/3.", "Jibu ni 11/3."),
        ("bn", "12", "উত্তর হল ১২।", "উত্তর হল ১২০।"),
        ("es", "B", "La respuesta es B.", "La respuesta es C."),
    ],
)
def test_another_answer_is_another_value_in_the_same_digits(language, answer, said, changed):
    case = CASE._replace(prompt=PROMPT._replace(language=language, answer=answer), faithful=f"3 + 4 = 7. {said}")
    assert attack_reply("number_changed", True, case, 0) == f"3 + 4 = 7. {changed}"
    assert not same_answer(extract_answer(changed, language), answer)


def test_an_attack_that_changes_nothing_is_an_error():
    with pytest.raises(DataError, match="other_language cannot be made of problem"):
        attack_reply("other_language", False, CASE._replace(others=(CASE.faithful, "x")), 0)
    words = CASE._replace(prompt=PROMPT._replace(answer="maji"), faithful="Ni maji. Jibu ni maji.")
    for held_out in (False, True):
        with pytest.raises(DataError, match="number_changed cannot be made of problem"):
            attack_reply("number_changed", held_out, words, 0)
    bare = CASE._replace(faithful="Jibu ni 12.")
    for held_out in (False, True):
        with pytest.raises(DataError, match="step_dropped cannot be made of problem"):
            attack_reply("step_dropped", held_out, bare, 0)


@pytest.mark.parametrize(
    "text, steps",
    [
        ("ก่อนอื่น 3 + 4 = 7 จากนั้น 7 - 2 = 5", ["ก่อนอื่น 3 + 4 = 7", "จากนั้น 7 - 2 = 5"]),
        ("อาลีแบ่ง 6 ใบใส่ 3 ห่อ 6 / 3 = 2", ["อาลีแบ่ง 6 ใบใส่ 3 ห่อ", "6 / 3 = 2"]),
        ("มี 4 ห่อ ห่อละ 7 ลูก 4 * 7 = 28", ["มี 4 ห่อ ห่อละ 7 ลูก", "4 * 7 = 28"]),
        ("ฉัน มี 4 ลูก", ["ฉัน มี", "4 ลูก"]),
        ("先有七个瓶子", ["先有七", "个瓶子"]),
        ("One. Two.", ["One.", "Two."]),
        ("", []),
    ],
)
def test_a_text_without_full_stops_is_cut_at_its_equations(text, steps):
    assert steps_of(text) == steps


def test_a_language_without_phrases_gets_general_ones_and_a_note():
    assert phrase_notes(tuple(PHRASES)) == []
    (note,) = phrase_notes(("sw", "yo", "am"))
    assert note.startswith("Yoruba (yo), Amharic (am): no attack sentences")
    boxed = [text.replace("Jibu ni 12", "\\boxed{12}") for text in (CASE.faithful, *CASE.neighbours)]
    case = CASE._replace(prompt=PROMPT._replace(language="yo"), faithful=boxed[0], neighbours=tuple(boxed[1:]))
    assert attack_reply("negation", False, case, 0) == "Ali anaanza na 10. 10 + 2 = 12. ≠ 12"
    assert attack_reply("boilerplate", False, case, 0) == "Juma anaanza na 9."
    for name in ATTACKS:
        for held_out in (False, True):
            attack_reply(name, held_out, case, 0)


@pytest.mark.parametrize("code", sorted(PHRASES))
def test_phrases_are_in_their_language_and_state_no_answer(code):
    own = PHRASES[code]
    for text in (*own.filler, *own.boilerplate, own.untrue):
        assert extract_answer(text, code) is None
        assert is_right_language(text, code, ("en", code)) is not False, text
    assert "12" in own.denied.format(answer="12")


@pytest.mark.parametrize("code", [code for code in quickstart.LANGUAGES if code != "en"])
def test_quickstart_cases_can_be_attacked_in_every_way(code):
    cases = quickstart_cases((code, "en"), 36, 0)
    assert len(cases) == 36 and {case.prompt.language for case in cases} == {code}
    assert sum(case.held_out for case in cases) == 12
    for case in cases:
        assert extract_answer(case.faithful, code) == case.prompt.answer
        assert all(split_response(case.faithful, code)) and case.english == case.prompt.reference.text
        assert extract_answer(case.neighbours[0], code) != case.prompt.answer
        for name in ATTACKS:
            for held_out in (False, True):
                attack_reply(name, held_out, case, 0)


def test_held_out_families_are_some_of_all():
    assert set(HELD_OUT_FAMILIES) < set(quickstart.SPACES[""].families)


def cases_with(held_out=(False, True), languages=("sw",)):
    return [
        CASE._replace(prompt=PROMPT._replace(id=prompt_id(row, code), language=code), held_out=flag)
        for row, flag in enumerate(held_out)
        for code in languages
    ]


def test_auc_by_hand():
    """Values are lengths: the faithful reply of 43 letters wins, ties and loses where its length does. Two held-out
    problems, one of them with another value: half of the pairs."""

    def score(prompts, replies):
        value = [len(reply) + (100 if p.id == prompt_id(2, "sw") and reply == CASE.faithful else 0)
                 for p, reply in zip(prompts, replies, strict=True)]  # fmt: skip
        value = [43.0 if reply == CASE.neighbours[0] else v for v, reply in zip(value, replies, strict=True)]
        return Scores(jnp.array(value, jnp.float32), jnp.ones(len(value), bool), {})

    assert len(CASE.faithful) == 43
    table = audit_table(cases_with((False, True, True)), score)
    row = table["sw"]
    assert row.keys() == set(attack_names()) and len(row) == 2 * len(ATTACKS)
    assert row["empty"] == 1 and row["empty" + HELD_OUT] == 1 and row["english_reply"] == 0
    assert row["english_reply" + HELD_OUT] == 0.5  # 50 letters against 43, and against 143
    assert row["other_problem" + HELD_OUT] == 0.75  # a tie, and a win
    assert failed_attacks(table, 0.6)[0] == (0.0, "sw", "boilerplate")
    assert (0.5, "sw", "english_reply" + HELD_OUT) in failed_attacks(table, 0.6)


def test_an_attack_that_cannot_be_made_is_left_out_and_said():
    """Without replies in other languages there is no attack with them."""
    score = lambda prompts, replies: Scores(jnp.zeros(len(replies)), jnp.ones(len(replies), bool), {})  # noqa: E731
    cases = [case._replace(others=()) for case in cases_with()]
    assert attack_names() == [*audit_table(cases_with(), score)["sw"]]
    left = [name for name in attack_names() if not name.startswith("other_language")]
    assert [*audit_table(cases, score)["sw"]] == left
    assert unmade_attacks(cases) == [
        f"Attack other_language{end} does not change 1 of the replies; those pairs are left out."
        for end in ("", HELD_OUT)
    ]
    assert unmade_attacks(cases_with()) == []


def test_english_is_left_out_and_every_language_is_there():
    score = lambda prompts, replies: Scores(jnp.zeros(len(replies)), jnp.ones(len(replies), bool), {})  # noqa: E731
    table = audit_table(cases_with(languages=("sw", "en")), score)
    assert table == {"sw": dict.fromkeys(attack_names(), 0.5)}
    with pytest.raises(DataError, match="no problem in sw for .*/held_out"):
        audit_table(cases_with((False, False)), score)


def test_an_attack_without_a_score_is_an_error():
    def score(prompts, replies):
        return Scores(jnp.zeros(len(replies)), jnp.array([reply != "" for reply in replies]), {})

    with pytest.raises(RewardError, match="1 of 56 have none. The first is empty to problem"):
        audit_table(cases_with(), score)


def test_cases_of_a_file(tmp_path):
    prompts = [
        PROMPT._replace(id=prompt_id(row, code), language=code) for row in range(3) for code in ("en", "sw", "de")
    ]
    ends = {code: f"{LANGUAGES[code].answer_phrase.format(answer=12)}" for code in ("en", "sw", "de")}
    said = {p.id: f"{p.id - 12} + 12 = {p.id}. {ends[p.language]}" for p in prompts}
    rows = [{"id": p.id, "language": p.language, "response": said[p.id]} for p in prompts]
    path = tmp_path / "replies.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    cases = file_cases(str(path), prompts)
    assert len(cases) == 6 and {case.prompt.language for case in cases} == {"sw", "de"}
    first = cases[0]
    assert first.english == PROMPT.reference.text and not first.held_out and cases[2].held_out
    assert first.others == (said[prompt_id(0, "de")],) * 2
    assert first.neighbours == (said[prompt_id(1, "sw")], said[prompt_id(2, "sw")])
    assert [case.neighbours for case in file_cases(str(path), prompts, 1)] == [case.neighbours for case in cases[:2]]
    for reply in ("12 + 1 = 13. Jibu ni 13.", "12 + 1 = 13.", "Jibu ni 12."):
        path.write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[1] | {"response": reply}))
        with pytest.raises(DataError, match="row 2: the audit needs faithful replies, .*'Jibu ni 12.'; found"):
            file_cases(str(path), prompts)
    with pytest.raises(DataError, match="needs three problems"):
        path.write_text("\n".join(map(json.dumps, rows[:3])))
        file_cases(str(path), prompts)
    with pytest.raises(DataError, match="row 1: id 99"):
        path.write_text(json.dumps({"id": 99, "language": "sw", "response": "x"}))
        file_cases(str(path), prompts)


def test_rows_of_one_english_question_are_one_problem(tmp_path):
    """As in a table with a row per language: the reply in the other language is known."""
    prompts = [PROMPT._replace(id=prompt_id(3 * row + place, code), language=code, question_en=f"Of {row}?")
               for row in range(3) for place, code in enumerate(("sw", "de"))]  # fmt: skip
    ends = {code: f"{LANGUAGES[code].answer_phrase.format(answer=12)}" for code in ("sw", "de")}
    rows = [{"id": p.id, "language": p.language, "response": f"{p.id} + 1. {ends[p.language]}"} for p in prompts]
    path = tmp_path / "replies.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    first = file_cases(str(path), prompts)[0]
    assert first.others == (rows[1]["response"],) * 2


def test_the_command_line_on_a_tiny_encoder(tmp_path, capsys):
    save_encoder(encoder(), str(tmp_path / "encoder"))
    arguments = ["audit", CONFIG, "--workdir", str(tmp_path), "--data.path", "small", "--data.languages", "en", "sw",
                 "zh", "--encoder.max-length", "64", "--log.compilation-cache", "", "--limit", "12"]  # fmt: skip
    assert main([*arguments, "--min-auc", "0.0"]) == 0
    assert "configured reward" in (text := capsys.readouterr().out) and "plain cosine" in text
    table = json.loads((tmp_path / "audit.json").read_text())
    assert table.keys() == {"sw", "zh"}
    assert all(row.keys() == set(attack_names()) and all(0 <= v <= 1 for v in row.values()) for row in table.values())
    # The token gate needs no training: whatever the encoder, another language never wins.
    assert np.mean([table[code][name] for code in table for name in ("english_reply", "other_language")]) == 1
    assert (tmp_path / "audit.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "audit_plain_cosine.json").read_text())["sw"]["english_reply"] < 1
    assert main([*arguments, "--min-auc", "1.0"]) == 1
    assert "below --min-auc 1.0; the worst: " in capsys.readouterr().err


def test_right_responses_of_a_policy_are_audited(tmp_path, monkeypatch, capsys):
    """A table of prompts in one language and a policy: what it says rightly is attacked, the rest is left out."""
    rows = [
        {"question": f"Ali ana {n} na kununua 5?", "question_en": f"Ali has {n} and buys 5?", "answer": str(n + 5),
         "language": "sw", "reference": f"Ali starts with {n}. {n} + 5 = {n + 5}. The answer is {n + 5}."}
        for n in range(3, 9)
    ]  # fmt: skip
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    save_encoder(encoder(), str(tmp_path / "encoder"))
    save_policy(policy(), str(tmp_path / "policy"))
    asked = []

    def answers(decoder, params, questions, languages, temperature, seed):
        asked.append((len(questions), temperature))
        numbers = [int(question.split()[2]) for question in questions]
        wrong = numbers[0] if len(asked) == 1 else -1
        return [f"Ali anaanza na {n}. {n} + 5 = {n + 5}. Jibu ni {n + 5 + (n == wrong)}." for n in numbers]

    monkeypatch.setattr(audit_verb, "answer_texts", answers)
    arguments = ["--data.source", "table", "--data.path", str(tmp_path / "prompts.jsonl"), "--data.languages", "sw",
                 "--pivot.source", "dataset", "--policy.source", str(tmp_path / "policy"), "--algo.num-generations",
                 "3", "--reward.language-gate", "hard", "--reward.rejected-value", "-0.2"]  # fmt: skip
    assert main(["audit", CONFIG, "--workdir", str(tmp_path), "--encoder.max-length", "64",
                 "--log.compilation-cache", "", "--limit", "5", *arguments]) == 0, capsys.readouterr().err  # fmt: skip
    said = capsys.readouterr().out
    assert asked[:2] == [(5, asked[0][1]), (1, asked[0][1])] and asked[0][1] > 0
    assert "5 of 5 in sw" in said and "Attack other_language does not change 3 of the replies" in said
    table = json.loads((tmp_path / "audit.json").read_text())["sw"]
    assert "other_language" not in table and table["english_in_formula"] == table["english_reply"] == 1
    assert len((tmp_path / "audit_replies.jsonl").read_text().splitlines()) == 5


def test_rewards_get_the_settings_of_the_run(tmp_path, monkeypatch):
    """Where they keep files, whom they ask, and how a policy is asked, as in training."""
    save_encoder(encoder(), str(tmp_path / "encoder"))
    given = []

    def make_reward(config, assets):
        given.append(assets)
        raise RewardError("seen")

    monkeypatch.setattr(audit_verb, "make_reward", make_reward)
    arguments = ["--data.path", "small", "--data.languages", "en", "sw", "zh", "--log.compilation-cache", "",
                 "--data.thinking", "off", "--data.prompt-style", "chat", "--endpoint.url", "http://localhost:9/v1",
                 "--endpoint.model", "judge"]  # fmt: skip
    assert main(["audit", CONFIG, "--workdir", str(tmp_path), "--encoder.max-length", "64", "--limit", "12",
                 *arguments]) == 1  # fmt: skip
    (assets,) = given
    assert (assets.form["style"], assets.form["thinking"], assets.folder) == ("chat", False, str(tmp_path))
    assert assets.endpoint.config.model == "judge" and tuple(assets.languages) == ("en", "sw", "zh")


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "No trained encoder"),
        (["--min-auc", "95"], "--min-auc is 95.0"),
        (["--reward.functions", "cosin"], "Did you mean 'cosine'"),
        (["--reward.functions", "implicit", "--reward.reward-weights", "1"], "reward.rejected_value is 0, below which"),
        (
            ["--reward.functions", "implicit", "--reward.reward-weights", "1", "--reward.rejected-value", "-5"],
            "Name its folder: --policy.source DIR",
        ),
    ],
)
def test_bad_input_is_one_message(tmp_path, capsys, more, message):
    assert main(["audit", CONFIG, "--workdir", str(tmp_path), "--log.compilation-cache", "", *more]) == 1
    assert message in capsys.readouterr().err
