"""Announcements that name the question, Thai "answer:" without a noun, and others of single languages."""

import pytest

from pbrl_jax.text.answers import extract_answer, split_response
from pbrl_jax.text.languages import LANGUAGES

ANNOUNCEMENTS = [
    ("ตอบ 18 ดอลลาร์", "th", "18"),
    ("ตอบ: 18", "th", "18"),
    ("**ตอบ:** 18", "th", "18"),
    ("ดังนั้น ตอบ 18 บาท", "th", "18"),
    ("9 * 2 = 18\nตอบ 18 บาท", "th", "18"),
    ("ผู้ตอบ 18 คน", "th", None),
    ("คำตอบ 18", "th", "18"),
    ("คำตอบของโจทย์คือ 18", "th", "18"),
    ("Jibu la swali hili ni 18.", "sw", "18"),
    ("Die Antwort auf die Frage ist 18.", "de", "18"),
    ("La respuesta a la pregunta es 18.", "es", "18"),
    ("La respuesta correcta al problema es 18.", "es", "18"),
    ("La réponse à la question est 18.", "fr", "18"),
    ("A resposta à pergunta é 18.", "pt", "18"),
    ("La risposta alla domanda è 18.", "it", "18"),
    ("Ответ на вопрос: 18", "ru", "18"),
    ("الإجابة على السؤال هي 18.", "ar", "18"),
    ("Câu trả lời cho câu hỏi là 18.", "vi", "18"),
    ("Jawaban dari soal ini adalah 18.", "id", "18"),
    ("Jadi, jawabannya 18.", "id", "18"),
    ("Jawaban 1: benar", "id", None),
    ("Tulis jawaban Anda dengan 10 kata.", "id", None),
    ("故选B。", "zh", "B"),
    ("故选：C", "zh", "C"),
    ("故选择乘法。", "zh", None),
]


@pytest.mark.parametrize(("text", "code", "answer"), ANNOUNCEMENTS)
def test_announcement(text, code, answer):
    assert extract_answer(text, code) == answer


@pytest.mark.parametrize("code", sorted(code for code, entry in LANGUAGES.items() if entry.to_question))
def test_every_language_with_words_for_to_the_question_keeps_its_own_sentence(code):
    sentence = LANGUAGES[code].answer_phrase.format(answer=18)
    assert extract_answer(sentence, code) == "18"


def test_the_split_begins_at_an_announcement_of_the_new_kinds():
    assert split_response("9 * 2 = 18\nตอบ 18 บาท", "th") == ("9 * 2 = 18", "ตอบ 18 บาท")
    text = "Die Antwort auf die Frage ist 18."
    assert split_response(f"9 * 2 = 18. {text}", "de") == ("9 * 2 = 18.", text)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("El resultado final es 18.", "es"),
        ("Le résultat final est 18.", "fr"),
        ("O resultado final é 18.", "pt"),
        ("Il risultato finale è 18.", "it"),
        ("Hasil akhirnya adalah 18.", "id"),
        ("Kết quả cuối cùng là 18.", "vi"),
        ("ผลลัพธ์สุดท้ายคือ 18", "th"),
        ("คำตอบที่ได้คือ 18", "th"),
        ("최종 결과는 18입니다.", "ko"),
        ("النتيجة النهائية هي 18.", "ar"),
        ("Matokeo ya mwisho ni 18.", "sw"),
        ("తుది ఫలితం: 18", "te"),
        ("अंतिम परिणाम: 18", "hi"),
        ("Nihai sonuç: 18", "tr"),
    ],
)
def test_the_final_result_is_announced_in_every_large_language(text, code):
    assert extract_answer(text, code) == "18"
