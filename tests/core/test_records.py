"""Records: what type checkers and jax see of them."""

import dataclasses

import jax
import numpy as np
import pytest
from source_tree import ROOT

from pbrl_jax.core.records import Rollout, on_host, pytree


def host_rollout() -> Rollout:
    return on_host(Rollout, np.zeros((2, 3), np.int32), np.ones(2, np.int32), np.zeros((2, 3)), np.zeros(2, bool))


def test_records_are_frozen_pytrees():
    rollout = jax.tree.map(lambda x: x + 1, host_rollout())
    assert rollout.lengths_B.tolist() == [2, 2] and len(jax.tree.leaves(rollout)) == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        rollout.lengths_B = None


def test_a_record_on_the_host_keeps_its_arrays():
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(host_rollout()))


def test_type_checkers_read_the_package_and_its_records():
    """The decorator is declared as one that makes frozen dataclasses, and the installed package says it has types."""
    declared = pytree.__dataclass_transform__
    assert (declared | declared["kwargs"])["frozen_default"]
    assert (ROOT / "pbrl_jax" / "py.typed").exists() and '"py.typed"' in (ROOT / "setup.py").read_text()
