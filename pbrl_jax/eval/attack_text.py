"""Sentences that the audit's attacks insert into a reply, in every language of this package (attack_text.json).

Our own wording; no native speaker has reviewed it. It stands for text that a policy might find to be rewarded although
it says nothing about the problem, or denies it.
"""

import json
from pathlib import Path
from typing import NamedTuple


class Phrases(NamedTuple):
    """`denied` has one slot `{answer}`; the second of each pair is held out: no encoder is trained on it."""

    denied: str
    untrue: str
    filler: tuple[str, str]
    boilerplate: tuple[str, str]


PHRASES = {
    code: Phrases(fields["denied"], fields["untrue"], tuple(fields["filler"]), tuple(fields["boilerplate"]))
    for code, fields in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")).items()
}
"""Language -> its sentences."""
