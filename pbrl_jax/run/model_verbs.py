"""`pbrl generate`, `translate`, `eval` and `harness`: verbs on a model, without a configuration."""

import argparse
from collections.abc import Sequence

from pbrl_jax.core.lock import held


def wording_options(parser: argparse.ArgumentParser) -> None:
    """What stands around a question, as in the settings data.*."""
    parser.add_argument("--system-prompt", default="", help="your own system turn, in place of the style's words")
    parser.add_argument("--user-prompt", default="", help="your own user's turn, with {question} in it")
    parser.add_argument("--prompt-file", default="", help="both per language, YAML or JSON (docs/prompts.md)")
    parser.add_argument("--thinking", default="default", choices=("default", "on", "off"), help="Qwen3's switch")


def mesh_options(parser: argparse.ArgumentParser) -> None:
    """How devices share the model; the others take different rows."""
    parser.add_argument("--fsdp", type=int, default=1, help="devices that share the weights and take different rows")
    parser.add_argument("--tensor", type=int, default=1, help="devices that share each matrix product")


def generate(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="pbrl generate", description="Answer prompts with a policy.")
    parser.add_argument("--policy", required=True, help="folder, work directory, hub id such as Qwen/Qwen3-0.6B, gs://")
    parser.add_argument("--prompt", action="append", required=True, help="a question; may be given several times")
    parser.add_argument("--language", default="en", help="language code of the questions")
    parser.add_argument("--style", default="run", help="run: as the run that trained it, else the question alone; or "
                        "plain, base, chat_question, chat, chat_boxed, chat_tags, auto")  # fmt: skip
    wording_options(parser)
    parser.add_argument("--show-prompt", action="store_true", help="show the prompts as the policy reads them")
    parser.add_argument("--stream", action="store_true", help="show the answer to one prompt as it is written")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus mass; 1 is off")
    parser.add_argument("--top-k", type=int, default=0, help="candidates kept; 0 is off")
    parser.add_argument("--max-completion-length", type=int, default=64, help="tokens")
    parser.add_argument("--dtype", help="compute type, float32 or bfloat16; default: what the folder says")
    parser.add_argument("--tensor", type=int, default=1, help="devices that share each matrix product")
    parser.add_argument("--seed", type=int, default=0)
    known = parser.parse_args(arguments)
    from pbrl_jax.run.generate import main

    main(known)


def translate(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="pbrl translate", description="English prompts into other languages, each translation checked."
    )
    parser.add_argument("source", metavar="IN.jsonl", help="rows with an English question; other columns are kept")
    parser.add_argument("target", metavar="OUT.jsonl", help="accepted rows; rejected ones go to OUT.rejected.jsonl")
    parser.add_argument("--to", required=True, help="target languages, codes with commas between: sw,bn")
    parser.add_argument("--translator", required=True, help="folder or hub id: NLLB, M2M100, a policy; or endpoint")
    parser.add_argument("--column", default="question", help="column of the English question")
    parser.add_argument("--no-back-translation", action="store_true", help="half the work; names go unchecked")
    parser.add_argument("--min-agreement", type=float, default=0.35, help="least chrF of the way back, in [0, 1]")
    parser.add_argument("--limit", type=int, default=0, help="rows translated; 0: all")
    parser.add_argument("--batch-size", type=int, default=64, help="rows between two writes")
    parser.add_argument("--endpoint-url", default="", help="with endpoint: for example http://localhost:8000/v1")
    parser.add_argument("--endpoint-model", default="", help="with endpoint: its model's name")
    parser.add_argument("--timeout", type=float, default=60.0, help="with endpoint: seconds an answer may take")
    parser.add_argument("--max-requests", type=int, default=0, help="with endpoint: the budget; 0: no limit")
    known = parser.parse_args(arguments)
    from pbrl_jax.run.translate import main

    main(known)


def evaluation(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="pbrl eval", description="Accuracy per language on a benchmark, with intervals (docs/evaluation.md)."
    )
    parser.add_argument("--policy", required=True, help="policy folder, work directory, or Hugging Face folder")
    parser.add_argument("--benchmark", required=True, help="mgsm, ..., or table with --data; an unknown name lists all")
    parser.add_argument("--workdir", required=True, help="folder of this evaluation; an interrupted one goes on")
    parser.add_argument("--languages", default="", help="codes with commas between, sw,bn; default: all")
    parser.add_argument("--limit", type=int, default=0, help="problems of each language; 0: all")
    parser.add_argument("--shots", type=int, help="worked examples before each problem; default: the benchmark's")
    parser.add_argument("--protocol", help="native-cot, en-cot, direct, loglikelihood; default: the benchmark's first")
    parser.add_argument("--style", default="benchmark", help="benchmark: its own text; or a style the policy learnt")
    wording_options(parser)
    parser.add_argument("--data", default="", help="folder or hub id in place of the benchmark's (default: PBRL_DATA)")
    parser.add_argument("--columns", nargs="+", default=(), help="of --benchmark table: question=prompt answer=label")
    parser.add_argument("--samples", type=int, default=1, help="responses to each problem, for pass@k and maj@k")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-completion-length", type=int, help="tokens; default: the protocol's")
    parser.add_argument("--batch-size", type=int, default=32, help="problems at a time")
    parser.add_argument("--dtype", help="float32 or bfloat16; default: as stored")
    parser.add_argument("--base", nargs="+", default=(), help="work directories of earlier evaluations to compare with")
    parser.add_argument("--seen", default="", help="languages of the training; default: the policy's config.json")
    parser.add_argument("--training-data", default="", help="training config whose text is looked for in the problems")
    parser.add_argument("--ngram", type=int, default=13, help="words in a row that count as an overlap")
    parser.add_argument("--max-overlap", type=float, default=1.0, help="share of overlapping problems that is refused")
    mesh_options(parser)
    parser.add_argument("--compilation-cache", default="~/.cache/pbrl_jax/xla", help="folder; empty is off")
    known = parser.parse_args(arguments)
    from pbrl_jax.run.eval import main

    with held(known.workdir):
        main(known)


def harness(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="pbrl harness", description="Any task of lm-evaluation-harness on a policy (pip install -e '.[eval]')."
    )
    parser.add_argument("--policy", required=True, help="policy folder, work directory, or Hugging Face folder")
    parser.add_argument("--tasks", required=True, help="names with commas between; `lm_eval ls tasks` lists them")
    parser.add_argument("--workdir", required=True, help="gets harness.json and harness_samples.jsonl")
    parser.add_argument("--include-path", default="", help="folder with task files of your own")
    parser.add_argument("--limit", type=int, default=0, help="documents of each task; 0: all")
    parser.add_argument("--shots", type=int, help="worked examples; default: the task's")
    parser.add_argument("--batch-size", type=int, default=16, help="requests at a time")
    parser.add_argument("--max-length", type=int, default=2048, help="tokens of context and answer together")
    parser.add_argument("--max-gen-toks", type=int, default=256, help="tokens of an answer where the task says nothing")
    parser.add_argument("--apply-chat-template", action="store_true", help="put the contexts as a user's turn")
    parser.add_argument("--dtype", help="float32 or bfloat16; default: as stored")
    parser.add_argument("--seed", type=int, default=0)
    mesh_options(parser)
    parser.add_argument("--compilation-cache", default="~/.cache/pbrl_jax/xla", help="folder; empty is off")
    known = parser.parse_args(arguments)
    from pbrl_jax.run.harness import main

    with held(known.workdir):
        main(known)
