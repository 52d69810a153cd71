"""Utilities for trees of arrays: path names, rules by path, microbatches."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pbrl_jax.core.errors import ConfigError


def path_name(path) -> str:
    """`layers/attention/query/kernel` for a key path of jax.tree_util."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def map_with_path(function, tree, *rest):
    """`function(path_name, leaf, ...)` over a tree."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(path_name(path), *leaves), tree, *rest)


def flat_paths(tree: Any) -> dict[str, Any]:
    """Path name -> leaf, in the order of the leaves: `{"a": {"b": x}}` as `{"a/b": x}`."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def nested(flat: Mapping[str, Any]) -> dict:
    """`{"a/b": x}` as `{"a": {"b": x}}`."""
    tree: dict = {}
    for path, value in flat.items():
        *folders, last = path.split("/")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[last] = value
    return tree


def first_rule(path: str, rules: Sequence[tuple[str, Any]]) -> tuple[str, Any] | None:
    """The first (regular expression of the end of a path, value) that matches, or None."""
    return next((rule for rule in rules if re.search(rf"(^|/){rule[0]}$", path)), None)


def match_rules(tree: Any, rules: Sequence[tuple[str, Any]]) -> Any:
    """The value of the first rule whose pattern ends each leaf's path.

    Args:
      tree: any tree; only its structure is used.
      rules: (regular expression of the end of a path, value) pairs; the first match is used.

    Raises:
      ConfigError: a leaf without a rule, or a rule without a leaf.
    """
    used: set[str] = set()
    missing: list[str] = []

    def value_of(path: str, _leaf):
        rule = first_rule(path, rules)
        if rule is None:
            missing.append(path)
            return None
        used.add(rule[0])
        return rule[1]

    matched = map_with_path(value_of, tree)
    unused = [pattern for pattern, _ in rules if pattern not in used]
    if missing or unused:
        raise ConfigError(
            f"The rule table and the parameters differ. Without a rule: {missing or 'none'}. "
            f"Rules without a parameter: {unused or 'none'}. Add or remove lines of the model's AXES table."
        )
    return matched


def count_parameters(tree: Any) -> int:
    """Number of scalars in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def widest_type(tree: Any) -> Any:
    """The type that holds every leaf exactly: that of the leaves, or float32 for bfloat16 beside float32."""
    return jnp.result_type(*(leaf.dtype for leaf in jax.tree.leaves(tree)))


def all_finite(tree: Any) -> jax.Array:
    """Scalar bool: no leaf has a NaN or infinite entry."""
    return jnp.stack([jnp.bool_(True), *(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))]).all()


def select(condition: jax.Array, chosen: Any, otherwise: Any) -> Any:
    """`chosen` if the scalar condition is true, else `otherwise`; leaves may be PRNG keys or integers."""
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), chosen, otherwise)


def split_microbatches(tree: Any, groups: int, count: int) -> Any:
    """Leading axis [groups * k, ...] -> [count, groups / count * k, ...].

    Each microbatch takes every count-th group, so that it is spread over all devices that hold rows.
    """

    def split(x):
        per_group = x.shape[0] // groups
        x = x.reshape(groups // count, count, per_group, *x.shape[1:])
        return jnp.moveaxis(x, 1, 0).reshape(count, groups // count * per_group, *x.shape[3:])

    return jax.tree.map(split, tree)


def map_microbatches(function: Callable[[Any], jax.Array], tree: Any, groups: int, size: int) -> jax.Array:
    """`function(tree)`, rows on its leading axis, computed for `size` groups of rows at a time (0: all)."""
    if not 0 < size < groups:
        return function(tree)
    count = groups // size
    pieces = jax.lax.map(function, split_microbatches(tree, groups, count))
    rows = pieces.reshape(count, size, -1, *pieces.shape[2:])
    return jnp.moveaxis(rows, 0, 1).reshape(-1, *pieces.shape[2:])


def sum_microbatches(
    function: Callable[[Any], Any], tree: Any, groups: int, size: int, add: Callable[[Any, Any], Any] | None = None,
    used: jax.Array | None = None,
) -> Any:  # fmt: skip
    """`function(tree)`, a tree of sums over rows, computed for `size` groups of rows at a time (0: all) and added.

    Args:
      add: (total, result of a microbatch) -> total, if not every leaf is a sum; totals start at zero.
      used: how many microbatches are computed, the first ones; None: all.
    """
    if not 0 < size < groups:
        return function(tree)
    pieces = split_microbatches(tree, groups, groups // size)
    function = jax.jit(function, inline=True)  # traced once, for its shapes and for the loop
    shapes = function.eval_shape(jax.tree.map(lambda x: x[0], pieces))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def accumulate(total, piece):
        new = function(piece)
        return add(total, new) if add else jax.tree.map(jnp.add, total, new)

    if used is None:
        return jax.lax.scan(lambda total, piece: (accumulate(total, piece), None), zeros, pieces)[0]
    return jax.lax.fori_loop(0, used, lambda at, total: accumulate(total, jax.tree.map(lambda x: x[at], pieces)), zeros)


def take_groups(tree: Any, index: jax.Array, groups: int) -> Any:
    """The groups at `index` of arrays whose leading axis is [groups * k]."""

    def take(x):
        return x.reshape(groups, -1, *x.shape[1:])[index].reshape(-1, *x.shape[1:])

    return jax.tree.map(take, tree)
