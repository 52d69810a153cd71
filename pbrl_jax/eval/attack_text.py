"""Sentences that the audit's attacks insert into a reply, in every language of this package (attack_text.json).

They imitate text that a policy may learn to write for its reward although it says nothing about the problem, or denies
the answer. The wording is ours; no native speaker has reviewed it.
"""

import json
from pathlib import Path
from typing import NamedTuple


class Phrases(NamedTuple):
    """`denied` has a slot `{answer}`. The second of each pair is held out: no encoder is trained on it."""

    denied: str
    untrue: str
    filler: tuple[str, str]
    boilerplate: tuple[str, str]


PHRASES = {
    code: Phrases(fields["denied"], fields["untrue"], tuple(fields["filler"]), tuple(fields["boilerplate"]))
    for code, fields in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")).items()
}
"""Language -> its sentences."""
