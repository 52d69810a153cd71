r"""What a chat policy is told, in each language: think here, answer there, all of it in the language of the question.

The wording is our own; no native speaker has reviewed it. `\boxed{}`, `<think>` and `<answer>` are never translated or
transliterated: they are what the answer is found by.
"""

from typing import NamedTuple


class Instruction(NamedTuple):
    """The parts of a system message in one language."""

    lead: str
    """Solve step by step, in this language."""
    boxed: str
    """The final answer goes into `\\boxed{}`."""
    tags: str
    """The reasoning goes between `<think>` tags, the final answer alone between `<answer>` tags."""


SYSTEM = {
    "ar": Instruction(
        "حل المسألة خطوة بخطوة. اكتب التفكير والإجابة كلها باللغة العربية.",
        "ضع الإجابة النهائية داخل \\boxed{}.",
        "اكتب التفكير بين <think> و </think>، ثم الإجابة النهائية وحدها بين <answer> و </answer>.",
    ),
    "bn": Instruction(
        "সমস্যাটি ধাপে ধাপে সমাধান করুন। চিন্তা ও উত্তর সবই বাংলায় লিখুন।",
        "চূড়ান্ত উত্তর \\boxed{} এর ভেতরে লিখুন।",
        "চিন্তা <think> ও </think> এর মধ্যে লিখুন, তারপর শুধু চূড়ান্ত উত্তর <answer> ও </answer> এর মধ্যে লিখুন।",
    ),
    "de": Instruction(
        "Löse die Aufgabe Schritt für Schritt. Schreibe Überlegung und Antwort ganz auf Deutsch.",
        "Setze das Endergebnis in \\boxed{}.",
        "Schreibe die Überlegung zwischen <think> und </think>, danach nur das Endergebnis zwischen <answer> und "
        "</answer>.",
    ),
    "en": Instruction(
        "Solve the problem step by step. Write both the reasoning and the answer in English.",
        "Put the final answer inside \\boxed{}.",
        "Write the reasoning between <think> and </think>, then only the final answer between <answer> and </answer>.",
    ),
    "es": Instruction(
        "Resuelve el problema paso a paso. Escribe el razonamiento y la respuesta en español.",
        "Pon la respuesta final dentro de \\boxed{}.",
        "Escribe el razonamiento entre <think> y </think>, y después solo la respuesta final entre "
        "<answer> y </answer>.",
    ),
    "fr": Instruction(
        "Résous le problème étape par étape. Écris le raisonnement et la réponse en français.",
        "Mets la réponse finale dans \\boxed{}.",
        "Écris le raisonnement entre <think> et </think>, puis seulement la réponse finale entre "
        "<answer> et </answer>.",
    ),
    "hi": Instruction(
        "प्रश्न को चरण-दर-चरण हल करें। सोच और उत्तर दोनों हिंदी में लिखें।",
        "अंतिम उत्तर \\boxed{} के अंदर लिखें।",
        "सोच को <think> और </think> के बीच लिखें, फिर केवल अंतिम उत्तर <answer> और </answer> के बीच लिखें।",
    ),
    "id": Instruction(
        "Selesaikan soal langkah demi langkah. Tulis penalaran dan jawaban dalam bahasa Indonesia.",
        "Tulis jawaban akhir di dalam \\boxed{}.",
        "Tulis penalaran di antara <think> dan </think>, lalu hanya jawaban akhir di antara <answer> dan </answer>.",
    ),
    "it": Instruction(
        "Risolvi il problema passo dopo passo. Scrivi il ragionamento e la risposta in italiano.",
        "Metti la risposta finale dentro \\boxed{}.",
        "Scrivi il ragionamento tra <think> e </think>, poi solo la risposta finale tra <answer> e </answer>.",
    ),
    "ja": Instruction(
        "問題を順を追って解いてください。考え方も答えもすべて日本語で書いてください。",
        "最後の答えは \\boxed{} の中に書いてください。",
        "考え方を <think> と </think> の間に書き、続けて最後の答えだけを <answer> と </answer> の間に書いてください。",
    ),
    "ko": Instruction(
        "문제를 단계별로 푸세요. 풀이와 답을 모두 한국어로 쓰세요.",
        "최종 답은 \\boxed{} 안에 쓰세요.",
        "풀이는 <think> 와 </think> 사이에 쓰고, 그다음 최종 답만 <answer> 와 </answer> 사이에 쓰세요.",
    ),
    "ms": Instruction(
        "Selesaikan soalan langkah demi langkah. Tulis penaakulan dan jawapan dalam bahasa Melayu.",
        "Tulis jawapan akhir di dalam \\boxed{}.",
        "Tulis penaakulan di antara <think> dan </think>, kemudian hanya jawapan akhir di antara "
        "<answer> dan </answer>.",
    ),
    "pt": Instruction(
        "Resolva o problema passo a passo. Escreva o raciocínio e a resposta em português.",
        "Coloque a resposta final dentro de \\boxed{}.",
        "Escreva o raciocínio entre <think> e </think>, depois apenas a resposta final entre <answer> e </answer>.",
    ),
    "ru": Instruction(
        "Реши задачу шаг за шагом. Пиши и рассуждение, и ответ на русском языке.",
        "Запиши окончательный ответ внутри \\boxed{}.",
        "Запиши рассуждение между <think> и </think>, затем только окончательный ответ между <answer> и </answer>.",
    ),
    "sw": Instruction(
        "Tatua swali hatua kwa hatua. Andika hoja na jibu vyote kwa Kiswahili.",
        "Weka jibu la mwisho ndani ya \\boxed{}.",
        "Andika hoja kati ya <think> na </think>, kisha jibu la mwisho peke yake kati ya <answer> na </answer>.",
    ),
    "te": Instruction(
        "సమస్యను దశలవారీగా పరిష్కరించండి. ఆలోచన, సమాధానం రెండూ తెలుగులో రాయండి.",
        "తుది సమాధానాన్ని \\boxed{} లోపల రాయండి.",
        "ఆలోచనను <think> మరియు </think> మధ్య రాయండి, తర్వాత తుది సమాధానాన్ని మాత్రమే <answer> మరియు </answer> మధ్య రాయండి.",
    ),
    "th": Instruction(
        "จงแก้โจทย์ทีละขั้นตอน เขียนทั้งวิธีคิดและคำตอบเป็นภาษาไทย",
        "ใส่คำตอบสุดท้ายไว้ใน \\boxed{}",
        "เขียนวิธีคิดระหว่าง <think> และ </think> แล้วเขียนเฉพาะคำตอบสุดท้ายระหว่าง <answer> และ </answer>",
    ),
    "tr": Instruction(
        "Soruyu adım adım çöz. Hem düşünceni hem cevabını Türkçe yaz.",
        "Son cevabı \\boxed{} içine yaz.",
        "Düşünceni <think> ile </think> arasına, ardından yalnızca son cevabı <answer> ile </answer> arasına yaz.",
    ),
    "vi": Instruction(
        "Hãy giải bài toán từng bước. Viết cả phần suy luận và câu trả lời bằng tiếng Việt.",
        "Đặt câu trả lời cuối cùng trong \\boxed{}.",
        "Viết phần suy luận giữa <think> và </think>, sau đó chỉ viết câu trả lời cuối cùng giữa "
        "<answer> và </answer>.",
    ),
    "zh": Instruction(
        "请逐步解题。思考过程和答案都用中文书写。",
        "把最终答案写在 \\boxed{} 里。",
        "把思考过程写在 <think> 和 </think> 之间，然后只把最终答案写在 <answer> 和 </answer> 之间。",
    ),
}
