"""Finds sums of many half-precision terms that are kept in half precision; shared by tests of training steps."""

import math

import jax
import jax.numpy as jnp

#: A sum of at most so many terms may be kept in half precision.
MOST_TERMS = 256
NARROW = (jnp.bfloat16, jnp.float16)


def inner_jaxprs(eqn) -> list:
    """The programs inside an equation: bodies of loops, branches, checkpointed or compiled functions."""
    leaves = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
    found = [getattr(leaf, "jaxpr", leaf) for leaf in leaves]
    return [jaxpr for jaxpr in found if hasattr(jaxpr, "eqns")]


def place_of(eqn, outer: tuple = ()) -> str:
    """`file:line` of the innermost frame of this package behind an equation, or else behind one of those around it,
    `outer` (outermost first). Reading a traceback costs more than tracing its equation, so only faults are placed."""
    for one in (eqn, *reversed(outer)):
        trace = one.source_info.traceback
        for frame in [] if trace is None else trace.frames:
            if "/pbrl_jax/" in frame.file_name:
                return f"{frame.file_name}:{frame.line_num}"
    return "unknown place"


def carried_sums(eqn, outer: tuple) -> list[str]:
    """Half-precision carries of a scan that its body only adds to."""
    body, first = eqn.params["jaxpr"].jaxpr, eqn.params["num_consts"]
    count, producers = eqn.params["num_carry"], {var: one for one in body.eqns for var in one.outvars}
    found = []
    for before, after in zip(body.invars[first : first + count], body.outvars[:count], strict=True):
        made = None if hasattr(after, "val") else producers.get(after)
        adds = made is not None and made.primitive.name in ("add", "add_any") and before in made.invars
        if adds and before.aval.dtype in NARROW and eqn.params["length"] > MOST_TERMS:
            place = place_of(made, (*outer, eqn))
            found.append(f"sum over {eqn.params['length']} turns of a scan, {before.aval.str_short()}: {place}")
    return found


def faults_of(eqn, outer: tuple) -> list[str]:
    """What an equation itself sums in half precision, with its place in the source; `outer` as in `place_of`."""
    name, operand = eqn.primitive.name, eqn.invars[0].aval if eqn.invars else None
    if name == "scan":
        return carried_sums(eqn, outer)
    if getattr(operand, "dtype", None) not in NARROW:
        return []
    if name in ("scatter-add", "scatter_add") and not eqn.params["unique_indices"]:
        return [f"{name} into {operand.str_short()}: {place_of(eqn, outer)}"]
    if name == "reduce_sum" and math.prod(operand.shape[axis] for axis in eqn.params["axes"]) > MOST_TERMS:
        return [f"{name} of {operand.str_short()} over {eqn.params['axes']}: {place_of(eqn, outer)}"]
    if name in ("cumsum", "cumlogsumexp", "cumprod") and operand.shape[eqn.params["axis"]] > MOST_TERMS:
        return [f"{name} of {operand.str_short()}: {place_of(eqn, outer)}"]
    return []


def casts_in_loops(function, *args, shape: tuple[int, ...]) -> list[str]:
    """Casts to half precision, at each turn of a loop, of an array of this shape that the loop is given.

    The gradient of a matrix, which a turn makes and then adds to the sum, is none.
    """

    def walk(jaxpr, loop: bool) -> list[str]:
        found, given = [], {*jaxpr.invars, *jaxpr.constvars}
        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            if loop and name == "convert_element_type" and eqn.params["new_dtype"] in NARROW:
                (operand,) = eqn.invars
                found += [place_of(eqn)] if operand in given and operand.aval.shape == shape else []
            found += [text for inner in inner_jaxprs(eqn) for text in walk(inner, loop or name in ("scan", "while"))]
        return found

    return walk(jax.make_jaxpr(function)(*args).jaxpr, False)


def narrow_sums(function, *args) -> list[str]:
    """Sums of more than MOST_TERMS half-precision terms in half precision that `function(*args)` makes; nothing is run.

    Matrix products are left out: hardware adds their terms in float32 and rounds the result once. Scatters count at any
    number of terms, since that depends on the indices, unless these are promised to be unique.
    """

    def walk(jaxpr, outer: tuple) -> list[str]:
        found = []
        for eqn in jaxpr.eqns:
            found += faults_of(eqn, outer)
            found += [text for inner in inner_jaxprs(eqn) for text in walk(inner, (*outer, eqn))]
        return found

    return sorted(set(walk(jax.make_jaxpr(function)(*args).jaxpr, ())))


#: Primitives that add. Scatters into half precision have unique indices (`narrow_sums`), and so add nothing.
ADDING = ("dot_general", "reduce_sum", "cumsum", "add_any")


def with_wide_sums(function, *args):
    """`function(*args)`, computed equation by equation with every sum in float32 and rounded once: what half precision
    costs a program that never adds in it."""

    def bind(eqn, values):
        params = dict(eqn.params)
        name, dtype = eqn.primitive.name, eqn.outvars[0].aval.dtype
        if name not in ADDING or dtype not in NARROW:
            return eqn.primitive.bind(*values, **params)
        if params.get("preferred_element_type") is not None:
            params["preferred_element_type"] = jnp.float32
        wide = [x.astype(jnp.float32) if x.dtype in NARROW else x for x in values]
        return jax.tree.map(lambda x: x.astype(dtype), eqn.primitive.bind(*wide, **params))

    def scan(eqn, values):
        first, count = eqn.params["num_consts"], eqn.params["num_consts"] + eqn.params["num_carry"]
        body, carries = eqn.params["jaxpr"], eqn.params["num_carry"]

        def turn(carry, row):
            found = evaluate(body.jaxpr, body.consts, [*values[:first], *carry, *row])
            return tuple(found[:carries]), tuple(found[carries:])

        length, reverse = eqn.params["length"], eqn.params["reverse"]
        carry, rows = jax.lax.scan(turn, tuple(values[first:count]), tuple(values[count:]), length, reverse)
        return [*carry, *rows]

    def evaluate(jaxpr, consts, values):
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *values), strict=True))
        read = lambda var: var.val if hasattr(var, "val") else known[var]  # noqa: E731
        for eqn in jaxpr.eqns:
            given, inner = [read(var) for var in eqn.invars], inner_jaxprs(eqn)
            if eqn.primitive.name == "scan":
                found = scan(eqn, given)
            elif eqn.primitive.name in ("cond", "while"):
                raise NotImplementedError(eqn.primitive.name)
            elif len(inner) == 1 and len(inner[0].invars) == len(given):
                closed = next((x for x in eqn.params.values() if getattr(x, "jaxpr", None) is inner[0]), None)
                found = evaluate(inner[0], closed.consts if closed else (), given)
            else:
                found = bind(eqn, given)
                found = found if eqn.primitive.multiple_results else [found]
            known |= dict(zip(eqn.outvars, found, strict=True))
        return [read(var) for var in jaxpr.outvars]

    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    run = jax.jit(lambda values: evaluate(closed.jaxpr, closed.consts, values))
    return jax.tree.unflatten(jax.tree.structure(shape), run(jax.tree.leaves(args)))
