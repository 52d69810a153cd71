"""Every attack of `pbrl audit` against the default reward with a real sentence encoder, in the ten languages of MGSM.

    python benchmarks/real_encoder_audit.py ENCODER [--gate off] [--languages sw th]

ENCODER is a folder or hub id that `load_encoder` reads, for example sentence-transformers/all-MiniLM-L6-v2. It prints,
per attack, the mean value and in how many of the replies the faithful one scores higher; the exit status is 1 where a
wrapped English reply wins in any of them. The problems are ours; no native speaker has reviewed their sentences.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from pbrl_jax import RewardConfig, load_encoder
from pbrl_jax.core.records import Prompt, Reference
from pbrl_jax.eval.attacks import ATTACKS, Case, attack_reply
from pbrl_jax.eval.audit import make_scorer
from pbrl_jax.rewards.combine import RewardAssets, make_reward
from pbrl_jax.text.languages import answer_sentence

PROBLEMS = json.loads(Path(__file__).with_name("audit_problems.json").read_text("utf-8"))


def cases() -> list[Case]:
    """The problems in all ten languages as the audit has them."""
    found, codes = [], [code for code in PROBLEMS if code != "en"]
    for number, code in enumerate(codes):
        replies = [
            f"{own['steps']} {answer_sentence(english['answer'], code)}"
            for own, english in zip(PROBLEMS[code], PROBLEMS["en"], strict=True)
        ]
        for row, (own, english) in enumerate(zip(PROBLEMS[code], PROBLEMS["en"], strict=True)):
            answer = english["answer"]
            reference = Reference(english["steps"], answer_sentence(answer, "en"))
            prompt = Prompt(64 * row + number, code, own["question"], english["question"], answer, reference)
            others = tuple(
                f"{PROBLEMS[other][row]['steps']} {answer_sentence(answer, other)}"
                for other in (codes[number - 1], codes[number - 2])
            )
            neighbours = tuple(replies[(row + shift) % len(replies)] for shift in (1, 2))
            found.append(Case(prompt, replies[row], reference.text, others, neighbours))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", help="folder or hub id")
    parser.add_argument("--languages", nargs="+", help="some of the ten; default: all")
    parser.add_argument("--gate", default="hard", help="reward.language_gate; off shows what the encoder alone says")
    known = parser.parse_args(arguments)
    encoder = load_encoder(known.encoder)
    problems = [case for case in cases() if not known.languages or case.prompt.language in known.languages]
    config = RewardConfig(language_gate=known.gate)
    score = make_scorer(make_reward(config, RewardAssets(encoder, tuple(PROBLEMS), None)), encoder, encoder.tokenizer)
    rows = [(case, "faithful", case.faithful) for case in problems]
    for case in problems:
        for name in ATTACKS:
            for held_out in (False, True):
                rows.append((case, name + "/held_out" * held_out, attack_reply(name, held_out, case, 0)))
    values = np.asarray(score([case.prompt for case, _, _ in rows], [reply for _, _, reply in rows]).value_B)
    table: dict[str, dict[int, float]] = defaultdict(dict)
    for (case, name, _), value in zip(rows, values, strict=True):
        table[name][case.prompt.id] = float(value)
    faithful = table.pop("faithful")
    print(f"faithful, mean of {len(faithful)}: {np.mean(list(faithful.values())):.3f}")
    failed = 0
    for name, found in table.items():
        wins = sum(faithful[key] > value for key, value in found.items())
        failed += name.startswith("english_in") and wins < len(found)
        print(f"{name:35} mean {np.mean(list(found.values())):+.3f}   faithful above in {wins} of {len(found)}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
