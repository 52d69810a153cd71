"""Loading needs the parameters' memory and little more, and eight devices hold what one does."""

import load_memory
import pytest
from source_tree import ROOT

#: What the allocator and JAX itself may add while parameters are placed.
SLACK = 48_000_000


@pytest.mark.serial
def test_memory_of_a_load(tmp_path, monkeypatch):
    """Read whole and then converted or stacked, the files alone would take as much again as the parameters."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    rows = {row["case"]: row for row in load_memory.run(load_memory.parse(["--layers", "8", "--vocab", "16384"]))}
    one, wide, many = rows.values()
    assert one["sha256"] == many["sha256"] != wide["sha256"]
    assert one["parameters"] == one["files"] == many["parameters"] == wide["parameters"] / 2 > 250_000_000
    assert many["on devices"] == pytest.approx(2 * many["parameters"], rel=0.01), "each half of the data axis a copy"
    for row in rows.values():
        assert row["peak anonymous"] < row["on devices"] + row["largest parameter"] + SLACK, row
        assert row["peak file pages"] < 2 * row["largest parameter"] + SLACK, "what was read is given back"
        assert row["peak anonymous"] > 0.9 * row["on devices"], "it was measured"
    assert load_memory.table(list(rows.values())).count("\n") == 4


def test_sizes_of_the_written_model_are_those_of_the_spec(tmp_path):
    from pbrl_jax.core.trees import count_parameters
    from pbrl_jax.models.decoder import init_decoder
    from pbrl_jax.weights.folders import abstract_tree
    from pbrl_jax.weights.policies import load_policy

    flags = load_memory.parse(["--layers", "2", "--width", "256", "--ffn", "64", "--vocab", "96"])
    size = load_memory.write_model(tmp_path, load_memory.spec_of(flags))
    assert size == 2 * count_parameters(abstract_tree(init_decoder, load_memory.spec_of(flags)))
    assert load_policy(str(tmp_path)).spec.width == 256
