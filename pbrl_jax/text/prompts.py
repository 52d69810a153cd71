"""From a question to the ids a policy continues: one place for templates, one rule for the first token.

Exactly one beginning-of-sequence token opens a prompt where the tokenizer has one, whether a chat template writes it
or this module does. The wording is our own; no native speaker has reviewed it.
"""

from collections.abc import Sequence

from pbrl_jax.core.errors import lookup
from pbrl_jax.text.instructions import SYSTEM
from pbrl_jax.text.languages import answer_sentence, language
from pbrl_jax.text.tokenizers import Tokenizer, has_chat_template

STYLES = {
    "plain": "the question and a newline: small models trained in this form",
    "base": "Question: ... Step-by-Step Answer: in the prompt's language: pretrained models without a chat template",
    "chat": "an instruction in the prompt's language and the question, through the tokenizer's chat template",
    "chat_boxed": "as chat, with a system instruction: reason, then the answer in \\boxed{} (Qwen's and Llama's form)",
    "chat_tags": "as chat, with a system instruction: <think>reasoning</think><answer>answer</answer>",
    "auto": "chat where the tokenizer has a chat template, else plain",
}

THINKING = {"default": None, "on": True, "off": False}
"""Values of the thinking switch, `data.thinking` and `--thinking`, -> argument `thinking`."""

QUESTION_WORDS = {
    "ar": ("سؤال:", "الإجابة خطوة بخطوة:"),
    "bn": ("প্রশ্ন:", "ধাপে ধাপে উত্তর:"),
    "de": ("Frage:", "Schritt-für-Schritt-Antwort:"),
    "en": ("Question:", "Step-by-Step Answer:"),
    "es": ("Pregunta:", "Respuesta paso a paso:"),
    "fr": ("Question :", "Réponse étape par étape :"),
    "hi": ("प्रश्न:", "चरण-दर-चरण उत्तर:"),
    "id": ("Soal:", "Jawaban langkah demi langkah:"),
    "it": ("Domanda:", "Risposta passo dopo passo:"),
    "ja": ("問題：", "ステップごとの答え:"),
    "ko": ("문제:", "단계별 답변:"),
    "ms": ("Soalan:", "Jawapan langkah demi langkah:"),
    "pt": ("Pergunta:", "Resposta passo a passo:"),
    "ru": ("Задача:", "Пошаговое решение:"),
    "sw": ("Swali:", "Jibu la Hatua kwa Hatua:"),
    "te": ("ప్రశ్న:", "దశలవారీగా సమాధానం:"),
    "th": ("โจทย์:", "คำตอบทีละขั้นตอน:"),
    "tr": ("Soru:", "Adım adım cevap:"),
    "vi": ("Câu hỏi:", "Lời giải từng bước:"),
    "zh": ("问题：", "逐步解答:"),
}
"""What stands before a question and before its solution; for the MGSM languages, MGSM's words."""

INSTRUCTIONS = {
    "ar": "حل المسألة التالية خطوة بخطوة باللغة العربية. اختم بالجملة «{phrase}»",
    "bn": "নিচের প্রশ্নটি বাংলায় ধাপে ধাপে সমাধান করুন। শেষে লিখুন: “{phrase}”",
    "de": "Löse die folgende Aufgabe Schritt für Schritt auf Deutsch. Schließe mit dem Satz „{phrase}“",
    "en": "Solve the following problem step by step in English. End with the sentence “{phrase}”",
    "es": "Resuelve el siguiente problema paso a paso en español. Termina con la frase «{phrase}»",
    "fr": "Résous le problème suivant étape par étape en français. Termine par la phrase « {phrase} »",
    "hi": "निम्नलिखित प्रश्न को हिंदी में चरण-दर-चरण हल करें। अंत में लिखें: “{phrase}”",
    "id": "Selesaikan soal berikut langkah demi langkah dalam bahasa Indonesia. Akhiri dengan kalimat “{phrase}”",
    "it": "Risolvi il seguente problema passo dopo passo in italiano. Concludi con la frase «{phrase}»",
    "ja": "次の問題を日本語で順を追って解き、最後に「{phrase}」と書いてください。",
    "ko": "다음 문제를 한국어로 단계별로 풀고, 마지막에 “{phrase}”라고 쓰세요.",
    "ms": "Selesaikan soalan berikut langkah demi langkah dalam bahasa Melayu. Akhiri dengan ayat “{phrase}”",
    "pt": "Resolva o seguinte problema passo a passo em português. Termine com a frase “{phrase}”",
    "ru": "Реши следующую задачу шаг за шагом на русском языке. Закончи предложением «{phrase}»",
    "sw": "Tatua swali lifuatalo hatua kwa hatua kwa Kiswahili. Malizia kwa sentensi “{phrase}”",
    "te": "కింది సమస్యను తెలుగులో దశలవారీగా పరిష్కరించండి. చివరగా “{phrase}” అని రాయండి.",
    "th": "จงแก้โจทย์ต่อไปนี้ทีละขั้นตอนเป็นภาษาไทย และจบด้วยประโยค “{phrase}”",
    "tr": "Aşağıdaki soruyu Türkçe olarak adım adım çöz. Şu cümleyle bitir: “{phrase}”",
    "vi": "Hãy giải bài toán sau từng bước bằng tiếng Việt. Kết thúc bằng câu “{phrase}”",
    "zh": "请用中文逐步解答下面的问题，最后以“{phrase}”结尾。",
}
"""What a chat policy is asked to do; {phrase} is the language's answer sentence with N for the answer."""


def instruction(code: str) -> str:
    """The instruction in language `code`, its answer sentence filled in with N."""
    language(code)
    return INSTRUCTIONS[code].format(phrase=answer_sentence("N", code))


def system_instruction(code: str, style: str) -> str:
    """The system message of style `chat_boxed` or `chat_tags` in language `code`."""
    language(code)
    parts = SYSTEM[code]
    return f"{parts.lead} {parts.boxed if style == 'chat_boxed' else parts.tags}"


def chat_messages(question: str, code: str, style: str = "chat") -> list[dict[str, str]]:
    """The turns before the answer.

    Style `chat`: one user turn of the instruction in the question's language, an empty line, and the question. The
    other chat styles: a system turn that says where reasoning and answer go, and the question alone. Reasoning and
    answer are then told apart by `pbrl_jax.text.answers`.
    """
    if style == "chat":
        return [{"role": "user", "content": f"{instruction(code)}\n\n{question}"}]
    return [{"role": "system", "content": system_instruction(code, style)}, {"role": "user", "content": question}]


def resolve_style(style: str, tokenizer: Tokenizer) -> str:
    """`style`, with `auto` decided by the tokenizer.

    Raises:
      ConfigError: unknown style.
    """
    lookup(STYLES, style, "prompt style")
    if style != "auto":
        return style
    return "chat" if has_chat_template(tokenizer) else "plain"


def prompt_text(question: str, code: str, style: str) -> str:
    """The text of a prompt in style `plain` or `base`."""
    language(code)
    if style == "plain":
        return f"{question}\n"
    ask, answer = QUESTION_WORDS[code]
    return f"{ask} {question}\n{answer}"


def format_prompt(
    question: str, code: str, tokenizer: Tokenizer, style: str = "plain", thinking: bool | None = None
) -> list[int]:
    """The ids of one prompt, with exactly one beginning-of-sequence token where the tokenizer has one.

    Args:
      thinking: the switch of chat templates that have one (Qwen3): False writes an empty thought, so that the policy
        answers at once; None is the template's own default.

    Raises:
      ConfigError: unknown style or language, or a chat style without a chat template.
    """
    return format_prompts([question], [code], tokenizer, style, thinking)[0]


def format_prompts(
    questions: Sequence[str], codes: Sequence[str], tokenizer: Tokenizer, style: str = "plain",
    thinking: bool | None = None,
) -> list[list[int]]:  # fmt: skip
    """`format_prompt` of many questions, encoded together."""
    style = resolve_style(style, tokenizer)
    pairs = list(zip(questions, codes, strict=True))
    if style.startswith("chat"):
        encoded = [tokenizer.encode_chat(chat_messages(question, code, style), thinking) for question, code in pairs]
    else:
        encoded = tokenizer.encode_batch([prompt_text(question, code, style) for question, code in pairs])
    return [with_one_bos(ids, tokenizer.bos_id) for ids in encoded]


def with_one_bos(ids: Sequence[int], bos_id: int | None) -> list[int]:
    """`ids` with exactly one beginning-of-sequence token in front, where the tokenizer has one."""
    if bos_id is None:
        return list(ids)
    rest = 0
    while rest < len(ids) and ids[rest] == bos_id:
        rest += 1
    return [bos_id, *ids[rest:]]
