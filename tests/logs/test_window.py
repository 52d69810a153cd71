"""A row of the log is the mean over the steps since the row before."""

import json
import math

import numpy as np

from pbrl_jax.logs.window import MetricWindow


def test_means_by_hand():
    """A metric counts the steps that have it; settings and counters are the last step's; one step stays as it is."""
    window = MetricWindow()
    window.add({"loss": 1.0, "learning_rate": 0.5, "skipped_updates": np.int32(1), "num_tokens": 7, "who": "sw"})
    window.add({"loss": 2.0, "learning_rate": 0.25, "skipped_updates": np.int32(2), "kl": np.float32(0.5), "who": "th"})
    assert window.take() == {
        "loss": 1.5, "learning_rate": 0.25, "skipped_updates": 2, "num_tokens": 7, "kl": 0.5, "who": "th",
    }  # fmt: skip
    assert window.take() == {}


def test_a_checkpoint_keeps_the_window():
    """Bit by bit, what is not a number too."""
    one = MetricWindow()
    one.add({"loss": 0.1, "kl": math.nan, "num_tokens": 3})
    other = MetricWindow(json.loads(json.dumps(one.saved(), allow_nan=False)))
    for window in (one, other):
        window.add({"loss": 0.2, "kl": 0.5, "num_tokens": 4})
    row, resumed = one.take(), other.take()
    assert row["loss"] == resumed["loss"] == (0.1 + 0.2) / 2 and row["num_tokens"] == resumed["num_tokens"] == 3.5
    assert math.isnan(row["kl"]) and math.isnan(resumed["kl"])
