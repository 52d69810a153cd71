"""The type checks that the tests' import hook applies to `pbrl_jax`: beartype for every function but constructors.

Constructors are left alone: JAX rebuilds a record through its constructor whenever it unflattens a tree, and then the
fields hold whatever the tree was mapped to (None, ShapeDtypeStruct, NamedSharding, arrays with one more axis under vmap
and scan). Checked there, `jax.tree.map`, `eval_shape`, `out_shardings`, `vmap`, `scan` and `grad` all fail on correct
programs. Shapes are still checked wherever the fields enter a function.

jaxtyping's wrapper, which binds axis names over one call, makes every call 50 times as expensive and each definition
(of an inner function: each time the outer one runs) cost milliseconds. Only functions that name axes get it.

A wrapper is written and compiled when its function is first called: a process calls some of the functions that it
imports.
"""

import functools
import inspect
import typing

import jaxtyping
from beartype import BeartypeConf, beartype

# `float` takes an int, as PEP 484 says and every caller expects; one error whoever finds it.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError))
bind_axes = jaxtyping.jaxtyped


def check(function):
    """beartype's wrapper of `function`."""
    return function if function.__name__ == "__init__" else checked(function)


def names_axes(hint) -> bool:
    """Whether an annotation may hold an array's axes; a string may."""
    if isinstance(hint, list | tuple):
        return any(map(names_axes, hint))
    own = isinstance(hint, str) or getattr(hint, "__module__", "").startswith("jaxtyping")
    return own or names_axes(typing.get_args(hint))


def when_called(make, function):
    """`make(function)`, made at the first call; at once where the kind of function matters to who calls it."""
    if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
        return make(function)
    made = []

    @functools.wraps(function)
    def call(*args, **kwargs):
        if not made:
            made.append(make(function))
        return made[0](*args, **kwargs)

    return call


def checks(*, typechecker):
    """What the hook puts before each function and class, in place of `jaxtyping.jaxtyped`."""

    def decorate(thing):
        if inspect.isclass(thing) or thing.__name__ == "__init__":
            return thing
        if any(names_axes(hint) for hint in thing.__annotations__.values()):
            return when_called(bind_axes(typechecker=typechecker), thing)
        return when_called(typechecker, thing) if thing.__annotations__ else thing

    return decorate


def install() -> None:
    """Check every module of `pbrl_jax` that is imported from now on."""
    jaxtyping.jaxtyped = checks
    jaxtyping.install_import_hook("pbrl_jax", "shape_checks.check")
