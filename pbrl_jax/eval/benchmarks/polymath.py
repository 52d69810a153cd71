"""PolyMath: 125 problems of each of four levels in eighteen languages (Wang et al. 2025, arXiv 2504.18428).

The question is followed by the benchmark's request, in the question's language, for a boxed answer. The published grade
reads the first box; ours the last box or, without a box, the announced answer.
"""

import re

from pbrl_jax.core.errors import ConfigError, DataError
from pbrl_jax.data.row_errors import RowErrors
from pbrl_jax.data.sources import polymath
from pbrl_jax.data.sources.common import row_of
from pbrl_jax.eval.benchmarks.common import (
    ENDS,
    Benchmark,
    Dataset,
    Problem,
    Request,
    benchmark_rows,
    limited,
    local_folder,
)
from pbrl_jax.text.answers import same_answer

LEVELS = ("low", "medium", "high", "top")
PROTOCOLS = ("native-cot", "en-cot")
DATASET = Dataset(
    "polymath", "Qwen/PolyMath", ("data/{code}/{split}.jsonl", "{code}/{split}.jsonl", "{code}/{split}-*.parquet")
)
_BOX = r"$\boxed{}$"
NOTES = {
    "en": f"Note: Please put the final answer in the {_BOX}.",
    "ar": f"ملاحظة: يُرجى وضع الإجابة النهائية في {_BOX}.",
    "bn": f"বিঃদ্রঃ: অনুগ্রহ করে চূড়ান্ত উত্তরটি {_BOX} এর মধ্যে রাখুন।",
    "de": f"Hinweis: Bitte setzen Sie die endgültige Antwort in {_BOX}.",
    "es": f"Nota: Por favor, coloque la respuesta final en el {_BOX}.",
    "fr": f"Remarque : Veuillez mettre la réponse finale dans le {_BOX}.",
    "id": f"Catatan: Silakan letakkan jawaban akhir di dalam {_BOX}.",
    "it": f"Nota: Per favore, metti la risposta finale nel {_BOX}.",
    "ja": f"注意：最終的な答えを {_BOX} に入れてください。",
    "ko": f"참고: 최종 답안을 {_BOX} 안에 넣어 주세요.",
    "ms": f"Nota: Sila letakkan jawapan akhir dalam {_BOX}.",
    "pt": f"Nota: Por favor, coloque a resposta final no {_BOX}.",
    "ru": f"Примечание: Пожалуйста, поместите окончательный ответ в {_BOX}.",
    "sw": f"Kumbuka: Tafadhali weka jibu la mwisho katika {_BOX}.",
    "te": f"గమనిక: దయచేసి తుది జవాబును {_BOX} లో ఉంచండి.",
    "th": f"หมายเหตุ: กรุณาใส่คำตอบสุดท้ายใน {_BOX}.",
    "vi": f"Lưu ý: Vui lòng đặt câu trả lời cuối cùng trong {_BOX}.",
    "zh": f"注意：请将最终答案放在 {_BOX} 中。",
}
_OPEN = re.compile(r"\\boxed\{")


def first_box(text: str) -> str | None:
    r"""The content of the first `\boxed{...}` with balanced braces, without white space; None without one."""
    start = _OPEN.search(text)
    if start is None:
        return None
    depth = 1
    for index in range(start.end(), len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return re.sub(r"\s+", "", text[start.end() : index])
    return None


def _rows(request: Request, code: str, level: str) -> list[tuple[str, str]]:
    if local_folder(DATASET, request.data) is not None:
        prompts = polymath.rows(str(local_folder(DATASET, request.data)), level, (code,), 0, 0)
        return [(p.question, p.answer or "") for p in sorted(prompts, key=lambda p: row_of(p.id))]
    rows, place = benchmark_rows(DATASET, code, code, level, request.data)
    errors = RowErrors(place)
    pairs = [
        (errors.text(number, "question", row.get("question")), errors.text(number, "answer", row.get("answer")))
        for number, row in enumerate(rows, start=1)
    ]
    errors.check()
    return pairs


def load_level(level: str):
    """The loader of one level."""

    def load(request: Request) -> list[Problem]:
        if request.shots:
            raise ConfigError("PolyMath has no worked solutions. Use --shots 0.")
        problems = []
        for code in request.languages:
            language = "en" if request.protocol == "en-cot" else code
            for row, (question, answer) in limited(_rows(request, code, level), request.limit):
                if not answer:
                    raise DataError(f"PolyMath {code}/{level}: row {row + 1}: answer is empty.")
                text = f"{question}\n{NOTES[language]}\n"
                problems.append(
                    Problem(f"{code}/{row}", code, question, text, answer, "latex", language, stops=ENDS, group=level)
                )
        return problems

    return load


def published(problem: Problem, text: str, protocol: str) -> dict[str, bool]:
    """Whether the first box is the gold answer."""
    return {"first_boxed": same_answer(first_box(text), problem.answer)}


def benchmark(name: str, level: str) -> Benchmark:
    """The benchmark of one level."""
    return Benchmark(
        name=name, version="1", languages={code: code for code in NOTES}, protocols=PROTOCOLS,
        tokens={"native-cot": 2048, "en-cot": 2048}, shots=0, dataset=DATASET, load=load_level(level),
        published=published,
    )  # fmt: skip
