"""Four faults of a seed: nothing is lost, and the run ends as the one that nobody disturbed."""

import chaos
import pytest

#: What a run gets over, so that one command each is enough; kills and signals are in test_resume.
SHORT = ["damaged newest checkpoint", "reward that raises", "connection cut", "clock step"]


@pytest.mark.serial
def test_four_faults(monkeypatch):
    rows = chaos.run(chaos.parse(["--faults", "4", "--seed", "4", "--kinds", *SHORT]))
    assert sorted(row.kind for row in rows) == sorted(SHORT)
    assert [(row.same, row.kept, row.outcome.wrong) for row in rows] == [(True, True, "")] * 4
    assert chaos.table(rows).count("| 1 | 1 | 1 |") == 4


def test_a_seed_gives_every_kind_in_turn_and_the_same_numbers_again():
    drawn, again = ([(kind, draw.random()) for kind, draw in chaos.faults(3, 26, list(chaos.KINDS))] for _ in range(2))
    assert drawn == again and len(chaos.KINDS) == 13
    kinds = [kind for kind, _ in drawn]
    assert set(kinds[:13]) == set(chaos.KINDS) and kinds[:13] == kinds[13:]
    assert len({number for _, number in drawn}) == 26
