"""The type checker that the tests' import hook applies to `pbrl_jax`: beartype for every function but constructors."""

from beartype import BeartypeConf, beartype

# `float` takes an int, as PEP 484 says and every caller expects.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function):
    """beartype's wrapper of `function`, with jaxtyping's axis names bound over one call.

    Constructors are left alone: JAX rebuilds a record through its constructor whenever it unflattens a tree, and then
    the fields hold whatever the tree was mapped to (None, ShapeDtypeStruct, NamedSharding, arrays with one more axis
    under vmap and scan). Checked there, `jax.tree.map`, `eval_shape`, `out_shardings`, `vmap`, `scan` and `grad` all
    fail on correct programs. Shapes are still checked wherever the fields enter a function.
    """
    return function if function.__name__ == "__init__" else checked(function)
