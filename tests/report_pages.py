"""What the tests of reports share: a summary, rows, a work directory, and a parser that checks a page."""

import json
from html.parser import HTMLParser

LANGUAGES = {
    "en": {"before": 0.99, "after": 0.98},
    "sw": {"before": 0.4, "after": 0.7},
    "th": {"before": 0.2, "after": 0.3},
}
QUESTIONS = {"sw": "Lina ana pakiti nne.", "zh": "丽娜有四包东西。", "th": "ลีน่ามี 4 ห่อ", "bn": "লীনার চারটি প্যাকেট।"}
SEEDS = [
    {"seed": 17, "mean_non_english": {"before": 0.3, "after": 0.5}, "languages": {"en": {"before": 1, "after": 0.98}}},
    {"seed": 18, "mean_non_english": {"before": 0.4, "after": 0.5}, "languages": {"en": {"before": 1, "after": 0.96}}},
]
SUMMARY = {
    "languages": LANGUAGES,
    "problems_per_language": {"en": 1024, "sw": 256, "th": 256},
    "seed": 17,
    "seeds": SEEDS,
    "controls": {
        "shuffled": {"mean_non_english": {"before": 0.3, "after": 0.21}},
        "answer": 0.61,
        "my <own>": 0.5,
    },
    "seconds": {"sft": 151.0, "grpo": 300.0, "total": 451.0},
}
VOID = {"meta", "link", "br", "rect", "path", "circle", "input"}


class Page(HTMLParser):
    """Checks nesting and gathers text, ids, references and outside addresses."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.wanted: list[str] = []
        self.outside: list[str] = []
        self.pictures: list[dict] = []
        self.words = ""
        self.feed(text)
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        self.wanted += (attrs.get("aria-labelledby") or "").split()
        self.outside += [attrs[a] for a in ("src", "href") if a in attrs and not attrs[a].startswith("data:")]
        if tag == "svg":
            self.pictures.append(attrs)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.words += data + " "


def sample(step: int, language: str, **changes) -> dict:
    return {
        "step": step, "prompt_id": 7, "language": language, "prompt": QUESTIONS.get(language, "q"), "completion": "12",
        "reference": "The answer is 12.", "reward": 0.5, "parts": {"cosine": 0.25}, "valid": True,
    } | changes  # fmt: skip


def graded_rows(samples: int = 1, **right) -> list[dict]:
    """graded_rows(sw=3): of ten problems the first three are right, in every sample."""
    return [
        {
            "key": f"{code}/{n}", "language": code, "sample": s, "correct": n < count, "completion": "abcd",
            "extracted": None if n == 9 else "4", "tokens": 3, "truncated": n == 9, "marker_missing": False,
            "published": {"lm_eval_strict": n < count - 1}, "right_language": n > 1, "code_switch": False,
            "line_pass": None, "word_pass": None,
        }
        for code, count in right.items() for n in range(10) for s in range(samples)
    ]  # fmt: skip


def metrics(count: int) -> tuple[dict, ...]:
    return tuple(
        {"step": n, "reward": n / 10, "kl": 0.01 * n, "loss": None, "rewards/cosine/mean/sw": 0.5, "time/update": 1.5}
        for n in range(1, count + 1)
    )


def make_workdir(folder, summary=True, samples=True):
    (folder / "samples").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics(3)))
    (folder / "config.json").write_text(json.dumps({"algo": {"beta": 0.1}}))
    if summary:
        (folder / "summary.json").write_text(json.dumps(SUMMARY))
    if samples:
        for step in (10, 9):
            (folder / "samples" / f"step_{step}.jsonl").write_text(json.dumps(sample(step, "th")) + "\n")
        (folder / "samples" / "notes.txt").write_text("mine")
