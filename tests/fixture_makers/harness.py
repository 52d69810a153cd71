"""What lm-evaluation-harness itself makes of stored responses and of stored log-likelihoods.

Its own task files are loaded with rows of ours in the place of the hub's, its prompts are built, and the stored
responses go through its filters and metrics. Needs lm_eval and no torch:

  python tests/make_fixtures.py tests/fixtures/hf harness
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval.tasks
from datasets import Dataset, DatasetDict
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

TASKS = Path(lm_eval.tasks.__file__).parent
MGSM_ROWS = [
    {"question": "Two and sixteen?", "answer": None, "answer_number": 18, "equation_solution": None},
    {"question": "A thousand and eighteen?", "answer": None, "answer_number": 1018, "equation_solution": None},
]
NUMBERS = ("18", "18.", "18.00", "-18", "1,018", "1018", "1.018", "1 018", "$18", "১৮", "٣", "1018.5", "018")
"""What stands behind an announcement."""
LOOSE = ("18", " 1 8 ", "x = 18, then 5", "5 and 18.", "no number", "", "$1,018 in all", "The answer is 18", "18,")
"""Responses that announce nothing, or announce it in English."""
PROX_WORDS = ("({})", "{}", "**({})**", "$({})$", "{}.")
PROX_LOOSE = ("C", "(C)", "", "the answer is (C)", "The answer is C.")
LETTERS = {"question": " Je, ipi? ", "option_a": "w w", "option_b": "x", "option_c": "y", "option_d": "z"}
SUMS = ([-3.0, -1.0, -2.0, -4.0], [-1.5, -1.5, -1.5, -1.5], [-9.25, -8.0, -7.5, -1.125], [-2.0, -2.0, -0.5, -0.5])


def task_of(file: Path, rows: list[dict[str, Any]], **changes: Any) -> ConfigurableTask:
    """A task file of the harness on rows of ours, which are its test split and every other split it names."""
    config = load_yaml(file) | {"num_fewshot": 0, "fewshot_config": None, "dataset_kwargs": None} | changes
    for name in ("tag", "group"):
        config.pop(name, None)
    names = ("training_split", "validation_split", "test_split", "fewshot_split")
    splits = {config[name] for name in names if config.get(name)}
    config["custom_dataset"] = lambda **_: DatasetDict({split: Dataset.from_list(rows) for split in sorted(splits)})
    return ConfigurableTask(config=config)


def prompts_of(task: ConfigurableTask) -> list[str]:
    """The prompt of each document, without worked examples."""
    task.build_all_requests(limit=None, rank=0, world_size=1)
    found: dict[int, str] = {}
    for instance in task.instances:
        found.setdefault(instance.doc_id, instance.args[0])
    return [found[number] for number in sorted(found)]


def grades(task: ConfigurableTask, responses: list[str]) -> dict[str, list[str]]:
    """Filter -> for each document, one 0 or 1 a response."""
    table: dict[str, list[list[str]]] = {}
    for text in responses:
        for instance in task.instances:
            instance.resps, instance.filtered_resps = [text], {}
        task.apply_filters()
        for instance in task.instances:
            for name, found in instance.filtered_resps.items():
                metrics = task.process_results(instance.doc, [found])
                rows = table.setdefault(name, [[] for _ in task.instances])
                rows[instance.doc_id].append(str(int(metrics["exact_match"])))
    return {name: ["".join(row) for row in rows] for name, rows in table.items()}


def announcement(pattern: str) -> str:
    """A strict expression with {} in the place of what it looks for."""
    head, _, rest = pattern.partition("(" if "[0-9" in pattern else r"\(?(")
    tail = rest.rpartition(")")[2] if "[0-9" in pattern else rest.partition(r")\)?")[2]
    return head.replace("\\", "") + "{}" + tail.replace("\\", "")


def strict_pattern(task: ConfigurableTask) -> str:
    """The expression of the first filter, "" where it is none."""
    return (task.config.filter_list[0]["filter"][0]).get("regex_pattern", "")


def mgsm() -> dict[str, Any]:
    """All languages and protocols of MGSM."""
    found = {}
    for protocol, folder in (("native-cot", "native_cot"), ("en-cot", "en_cot"), ("direct", "direct")):
        for file in sorted((TASKS / "mgsm" / folder).glob("mgsm_*.yaml")):
            task = task_of(file, MGSM_ROWS)
            says = announcement(strict_pattern(task)) if strict_pattern(task) else "The answer is {}"
            responses = [f"... {says.format(number)} ..." for number in NUMBERS]
            responses += [f"{says.format('18')} {says.format('1018')}", *LOOSE]
            prompts = prompts_of(task)
            code = file.stem.rpartition("_")[2]
            found[f"{protocol}/{code}"] = {"prompts": prompts, "responses": responses, **grades(task, responses)}
    return found


def mmlu_prox() -> dict[str, Any]:
    """All languages of MMLU-ProX, on a subject without worked examples."""
    options = {f"option_{index}": f"o{index}" for index in range(10)}
    row = {"question": "Je?", "answer": "C", "category": "law", "question_id": 1, "cot_content": "", **options}
    found = {}
    for folder in sorted(path for path in (TASKS / "mmlu_prox").iterdir() if (path / "utils.py").exists()):
        file = folder / f"mmlu_prox_{folder.name}_law.yaml"
        if not file.exists():
            continue
        task = task_of(file, [row])
        says = announcement(strict_pattern(task))
        responses = [f"... {says.format(form.format(letter))} ..." for form in PROX_WORDS for letter in "CDKc"]
        responses += [f"{says.format('(C)')} {says.format('(D)')}", f"{says.format('(D)')} {says.format('(C)')}"]
        responses += PROX_LOOSE
        prompts = prompts_of(task)
        found[folder.name] = {"prompts": prompts, "responses": responses, **grades(task, responses)}
    return found


def choices(file: Path, rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """Prompts, choices, and what stored sums make of each document."""
    task = task_of(file, rows, **changes)
    prompts = prompts_of(task)
    docs = {instance.doc_id: instance.doc for instance in task.instances}
    marks: dict[str, list[str]] = {}
    continuations = []
    for number in sorted(docs):
        own = [instance.args[1] for instance in task.instances if instance.doc_id == number]
        continuations.append(own)
        for sums in SUMS:
            metrics = task.process_results(docs[number], [(value, False) for value in sums[: len(own)]])
            for name in ("acc", "acc_norm"):
                rows_of = marks.setdefault(name, [""] * len(docs))
                rows_of[number] += str(int(metrics[name])) if name in metrics else ""
    return {"rows": rows, "prompts": prompts, "choices": continuations, "sums": SUMS, **marks}


def belebele() -> dict[str, Any]:
    """Belebele's Swahili task."""
    row = {"flores_passage": "Mto Nile.", "question": " Wapi? ", **{f"mc_answer{i}": f"m{i}" for i in (1, 2, 3, 4)}}
    rows = [row | {"correct_answer_num": str(number)} for number in (1, 2, 3, 4)]
    return choices(TASKS / "belebele" / "belebele_swh_Latn.yaml", rows)


def global_mmlu() -> dict[str, Any]:
    """Global-MMLU in Swahili: the template that its subjects share."""
    rows = [LETTERS | {"answer": letter, "subject": "law", "question": f" {letter}? "} for letter in "ABCD"]
    return choices(TASKS / "global_mmlu" / "full" / "sw" / "_sw_template_yaml", rows, task="global_mmlu_full_sw")


def include() -> dict[str, Any]:
    """INCLUDE in German: the template that its subjects share; their `description` is not in it."""
    rows = [LETTERS | {"answer": number, "domain": "STEM"} for number in range(4)]
    return choices(TASKS / "include" / "default" / "German" / "_german_template_yaml", rows, task="include_german")


def xcopa(code: str) -> dict[str, Any]:
    """XCOPA in one language."""
    row = {"premise": "Alianguka. ", "choice1": "Ilinyesha sana.", "choice2": "Alicheka.", "idx": 0, "changed": False}
    rows = [row | {"question": kind, "label": label} for kind in ("cause", "effect") for label in (0, 1)]
    return choices(TASKS / "xcopa" / f"default_{code}.yaml", rows)


BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {
    "mgsm": mgsm,
    "mmlu-prox": mmlu_prox,
    "belebele": belebele,
    "global-mmlu": global_mmlu,
    "include": include,
    "xcopa": lambda: {code: xcopa(code) for code in "et ht id it qu sw ta th tr vi zh".split()},
}


def make(out: Path) -> None:
    """Write OUT/../harness.json."""
    found = {"lm_eval": lm_eval.__version__, "mgsm_rows": MGSM_ROWS}
    for name, run in BENCHMARKS.items():
        found[name] = run()
    text = json.dumps(found, ensure_ascii=False, indent=0)
    (out.parent / "harness.json").write_text(text + "\n", encoding="utf-8")
