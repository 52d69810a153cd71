"""What one version of this package leaves behind, for the tests that later versions still read it.

Run it on a checkout of that version, from the root of this one:

  PYTHONPATH=CHECKOUT python tests/make_old_version.py 0.1.0

It fills tests/fixtures/versions/<version>. Each run there is one that was stopped; the end that the same version would
have brought it to is recorded beside it (`ended/`), and so is a hash of every array of every checkpoint. Models and
vocabulary are as small as they can be: the folder is to stay below 1 MB.

`expected.json` names jaxlib and the processor: bits are compared where they are the same, numbers everywhere.
"""

import json
import os
import shutil
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent

import conftest  # noqa: E402, F401  # the settings that tests run under must stand before jax is imported
import jax  # noqa: E402
import numpy as np  # noqa: E402
from digests import digest, machine  # noqa: E402
from etils import epath  # noqa: E402

from pbrl_jax import cli  # noqa: E402
from pbrl_jax.checkpoint import list_checkpoints, restore_checkpoint  # noqa: E402
from pbrl_jax.checkpoint.manifest import named_leaves, write_manifest  # noqa: E402
from pbrl_jax.core.paths import write_json_lines  # noqa: E402
from pbrl_jax.data.sources import quickstart  # noqa: E402
from pbrl_jax.models.decoder import init_decoder  # noqa: E402
from pbrl_jax.models.encoder import init_encoder  # noqa: E402
from pbrl_jax.models.specs import tiny_decoder, tiny_encoder  # noqa: E402
from pbrl_jax.run import assemble  # noqa: E402
from pbrl_jax.text.tokenizers import train_sentencepiece  # noqa: E402
from pbrl_jax.train import staged  # noqa: E402
from pbrl_jax.weights.encoders import Encoder, load_encoder, save_encoder  # noqa: E402
from pbrl_jax.weights.policies import Policy, load_policy, save_policy  # noqa: E402

LANGUAGES = ("en", "sw")
TEXT = "Ana ana vitabu vitatu."
COMMON = (
    "--policy.source start --encoder.source reader --encoder.max_length 24 --data.path small --data.languages en sw "
    "--data.limit 4 --rollout.max_prompt_length 88 --rollout.max_completion_length 8 --train.prompts_per_step 2 "
    "--algo.num_generations 2 --optim.learning_rate 3e-3 --optim.eps 1e-4 --train.save_total_limit 1 --eval.limit 1 "
    "--eval.batch_size 4 --reward.language_gate off --log.no-tensorboard --log.compilation_cache= "
    "--train.logprob_chunk 16"
).split()
RUNS = {
    "run": (2, 4, []),
    "cycle": (3, 4, "--algo.num_iterations 2 --pivot.source file --pivot.path own.jsonl".split()),
    "lora": (2, 3, "--lora.rank 1 --algo.kl_target 0.1 --pivot.source policy --pivot.path shared".split()),
}
"""Name -> (step at which it was stopped, last step, further settings)."""
STAGES = {
    "sft": (
        "--rollout.max_completion_length 120 --sft.steps 4 --sft.warmup_steps 0 --sft.batch_size 2 "
        "--sft.english_rows 8 --sft.warm_rows_per_language 2"
    ).split(),
    "encoder": "--contrastive.steps 4 --contrastive.batch_size 4".split(),
}
STOPPED_STAGE = 2
EVAL = "--benchmark mgsm --languages en,sw --max-completion-length 4 --batch-size 4 --limit 2 --compilation-cache="


def pbrl(*words: str) -> None:
    """One command; an error ends the script."""
    if cli.main([str(word) for word in words]):
        raise SystemExit(f"failed: pbrl {' '.join(map(str, words))}")


def write_models() -> None:
    """A policy and an encoder of one layer and width 8, with one vocabulary."""
    lines = quickstart.vocabulary_text(LANGUAGES, 0, 40, "small")
    tokenizer = train_sentencepiece(lines, 80)
    spec = tiny_decoder(vocab_size=tokenizer.vocab_size, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, ffn=8)
    save_policy(Policy(spec, init_decoder(jax.random.key(1), spec), tokenizer, ""), "start")
    spec = tiny_encoder(vocab_size=tokenizer.vocab_size, width=8, heads=2, ffn=8, max_positions=32, projection=8)
    save_encoder(Encoder(spec, init_encoder(jax.random.key(2), spec), tokenizer, "", 24), "reader")


def write_runs(config: str) -> None:
    """Runs that stop, each continued to its end in a copy.

    So small a policy writes no usable reference: where it is asked for them, it is given the problems' own.
    """
    problems = quickstart.problems("train", 4, 0, "small")
    known = {quickstart.question(one, "en"): quickstart.response(one, "en") for one in problems}
    write_json_lines(Path("own.jsonl"), [{"question": text, "response": known[text]} for text in known])
    assemble.answer_texts = lambda _decoder, _params, questions, *_: [known[text] for text in questions]
    for name, (stop, last, more) in RUNS.items():
        pbrl("train", config, "--workdir", name, *COMMON, *more, "--train.max_steps", stop, "--train.save_steps", stop)
        for file in ("final.json", "policy"):
            remove(Path(name) / file)
        shutil.copytree(name, f"ended/{name}")
        pbrl("train", config, "--workdir", f"ended/{name}", *COMMON, *more, "--train.max_steps", last)
        keep_only(Path("ended") / name, "policy", "final.json")


def write_stages(config: str) -> None:
    """Supervised and contrastive training, stopped after two steps, and their ends."""
    asked = staged.stop_requested
    for name, more in STAGES.items():
        answers = iter([False] * 2 * (STOPPED_STAGE - 1) + [True] * 2)
        staged.stop_requested = lambda answers=answers: next(answers)
        pbrl(name, config, "--workdir", name, *COMMON, *more)
        staged.stop_requested = asked
        shutil.copytree(name, f"ended/{name}")
        pbrl(name, config, "--workdir", f"ended/{name}", *COMMON, *more)
        keep_only(Path("ended") / name, "policy", "encoder")


def write_evaluation() -> None:
    """A finished `pbrl eval`, on two problems a language."""
    data = Path("data/mgsm")
    data.mkdir(parents=True)
    for code, words in (("en", "Ana has {n} and {n}?"), ("sw", "Ana ana {n} na {n}?")):
        (data / f"mgsm_{code}.tsv").write_text("".join(f"{words.format(n=n)}\t{2 * n}\n" for n in (3, 4)))
    os.environ["PBRL_DATA"] = "data"
    pbrl("eval", "--policy", "start", "--workdir", "evaluation", *EVAL.split())


def remove(path: Path) -> None:
    """A file or folder, where it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def keep_only(folder: Path, *names: str) -> None:
    """Everything else in the folder goes."""
    for entry in folder.iterdir():
        if entry.name not in names:
            remove(entry)


def arrays(folder: Path) -> dict[str, str]:
    """Path -> hash of every array of a checkpoint, as the version that wrote it restores it."""
    record = json.loads((folder / "meta.json").read_text())
    tree: dict = {}
    for name, leaf in record["leaves"].items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jax.ShapeDtypeStruct(leaf["shape"], leaf["dtype"])
    restored = restore_checkpoint(folder, tree).tree
    return {name: digest(leaf) for name, leaf in named_leaves(restored)}


def forget_places(root: Path) -> None:
    """Takes the path of this machine's folder out of the mark that orbax leaves, and writes the manifests anew."""
    for mark in root.rglob("commit_success.txt"):
        mark.write_text(mark.read_text().replace(str(root), "."))
        write_manifest(epath.Path(mark.parent), int(mark.parent.name.removeprefix("step_")))


def write_expected(version: str) -> None:
    """The record that the tests compare with."""
    checkpoints = {name: list_checkpoints(f"{name}/checkpoints")[0][1] for name in (*RUNS, *STAGES)}
    policy, encoder = load_policy("start"), load_encoder("reader")
    record = {
        "version": version,
        "machine": machine(),
        "checkpoints": {name: arrays(Path(folder)) for name, folder in checkpoints.items()},
        "start": {name: digest(leaf) for name, leaf in named_leaves(policy.params)},
        "reader": {name: digest(leaf) for name, leaf in named_leaves(encoder.params)},
        "text": TEXT,
        "embedding": np.asarray(encoder.embed([TEXT]))[0].tolist(),
        "settings": {name: [*COMMON, *more] for name, (_, _, more) in RUNS.items()}
        | {name: [*COMMON, *more] for name, more in STAGES.items()},
        "last": {name: last for name, (_, last, _) in RUNS.items()},
        "eval": EVAL.split(),
    }
    Path("expected.json").write_text(json.dumps(record, indent=1) + "\n")


def main(version: str) -> None:
    """Everything, into an empty folder."""
    root = TESTS / "fixtures" / "versions" / version
    config = Path(cli.__file__).parents[1] / "configs" / "tiny_cpu.py"
    remove(root)
    (root / "ended").mkdir(parents=True)
    os.chdir(root)
    jax.config.update("jax_disable_most_optimizations", True)
    write_models()
    write_runs(str(config))
    write_stages(str(config))
    write_evaluation()
    write_expected(version)
    forget_places(root)
    for lock in root.rglob(".lock"):
        lock.unlink()


if __name__ == "__main__":
    main(sys.argv[1])
