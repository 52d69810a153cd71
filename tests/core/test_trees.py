"""Trees of arrays: names of paths, rules, casts, counts, selection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pbrl_jax.core.errors import ConfigError
from pbrl_jax.core.records import PromptBatch
from pbrl_jax.core.trees import all_finite, count_parameters, map_with_path, match_rules, select

TREE = {"embed": jnp.ones((4, 2)), "layers": {"norm": {"scale": jnp.ones(3)}, "blocks": [jnp.zeros(1), jnp.zeros(2)]}}


def test_path_names():
    names = map_with_path(lambda path, leaf: f"{path}:{leaf.size}", TREE)
    assert names["embed"] == "embed:8"
    assert names["layers"]["norm"]["scale"] == "layers/norm/scale:3"
    assert names["layers"]["blocks"] == ["layers/blocks/0:1", "layers/blocks/1:2"]
    record = PromptBatch(jnp.ones((1, 1), int), jnp.ones(1, int), jnp.ones(1, int))
    assert map_with_path(lambda path, _: path, record).row_ids_P == "row_ids_P"
    assert map_with_path(lambda path, leaf, other: leaf + other, {"a": 1}, {"a": 2}) == {"a": 3}


def test_rules_match_the_end_of_a_path_and_the_first_wins():
    rules = [(r"norm/scale", "norm"), (r"blocks/0", "first"), (r"layers/.*", "rest"), (r"embed", "embed")]
    matched = match_rules(TREE, rules)
    assert matched == {"embed": "embed", "layers": {"norm": {"scale": "norm"}, "blocks": ["first", "rest"]}}


@pytest.mark.parametrize(
    "rules, found",
    [
        ([(r"embed", 0), (r"scale", 0), (r"blocks/0", 0)], r"Without a rule: \['layers/blocks/1'\].*parameter: none"),
        ([(r"embed", 0), (r"layers/.*", 0), (r"bias", 0)], r"rule: none\. Rules without a parameter: \['bias'\]"),
        ([(r"bed", 0), (r"layers/.*", 0)], r"Without a rule: \['embed'\]"),
        ([(r"emb", 0), (r"layers/.*", 0)], r"Without a rule: \['embed'\]"),
        ([(r".*", 0), (r"embed", 0)], r"Rules without a parameter: \['embed'\]"),
    ],
    ids=["missing", "unused", "not the whole name", "not to the end", "shadowed"],
)
def test_rules_and_parameters_must_agree(rules, found):
    with pytest.raises(ConfigError, match=found):
        match_rules(TREE, rules)


def test_count_parameters():
    assert count_parameters(TREE) == 8 + 3 + 1 + 2
    assert count_parameters(jax.eval_shape(lambda: TREE)) == 14


def test_all_finite():
    assert all_finite(TREE) and all_finite({"ids": jnp.array([1, 2])})
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        assert not all_finite({**TREE, "one": jnp.array([0.0, bad, 1.0])})


@pytest.mark.parametrize("condition", [True, False])
def test_select_takes_a_whole_tree(condition):
    """Numbers, integers, booleans and PRNG keys; what is not chosen may be NaN."""
    chosen = {"w": jnp.ones(2), "n": jnp.int32(1), "on": jnp.bool_(True), "key": jax.random.key(1)}
    other = {"w": jnp.full(2, jnp.nan), "n": jnp.int32(2), "on": jnp.bool_(False), "key": jax.random.key(2)}
    taken = select(jnp.bool_(condition), chosen, other)
    expected = chosen if condition else other
    np.testing.assert_array_equal(taken["w"], expected["w"])
    assert (taken["n"], taken["on"]) == (expected["n"], expected["on"])
    assert (jax.random.key_data(taken["key"]) == jax.random.key_data(expected["key"])).all()
