"""Pickles read as data: an interpreter of the opcodes that never imports or calls anything that a file names.

A pickle is a program, which Python's own reader runs. This one calls only a closed list of constructors (given by the
caller) and replaces every other object by an inert `Foreign`, so that the tensors of a Lightning checkpoint with
callbacks, optimizer state and a Namespace can be read. A restricted `pickle.Unpickler` would not be as safe: a deeply
nested tuple as a dict key overflows the C stack in its hash, and one large memo index allocates gigabytes.
"""

import pickle
import pickletools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

#: Largest nesting depth of the result, so that callers may walk it recursively.
MAX_DEPTH = 100
#: Largest number of items of the result as a tree; with shared lists, a small file can be exponentially large.
MAX_ITEMS = 10_000_000


class PickleDataError(ValueError):
    """A pickle that is damaged, or that uses features that no checkpoint needs."""


class Name(NamedTuple):
    """A class or function that the file names; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Foreign:
    """A placeholder for an object of a class that is not read; it holds the name of the class."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return f"<unread {self.name}>"


class Record(dict):
    """An object read as a dict of its attributes (argparse.Namespace)."""


Constructors = Mapping[Name, Callable[..., Any]]


def read_pickle(data: bytes, constructors: Constructors, load_persistent: Callable[[Any], Any]) -> Any:
    """The object tree of a pickle.

    Args:
      constructors: what the names that are understood build, called with the arguments in the file; it must check
        them. Classes and functions that are not listed become `Foreign`.
      load_persistent: from a persistent id to its object.

    Raises:
      PickleDataError: damaged, deeper or larger than any checkpoint, or cyclic.
    """
    machine = _Machine(constructors, load_persistent)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                break
            machine.step(opcode.name, argument)
        (value,) = machine.stack
    except PickleDataError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, AttributeError) as error:
        raise PickleDataError(f"not a valid pickle ({type(error).__name__}: {error})") from error
    _check_size(value)
    return value


class _Machine:
    """The stack machine of pickle protocols 0 to 5."""

    def __init__(self, constructors: Constructors, load_persistent: Callable[[Any], Any]):
        self.constructors, self.load_persistent = constructors, load_persistent
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _PUSH_ARGUMENT:
            self.stack.append(argument)
        elif opcode in _PUSH_CONSTANT:
            self.stack.append(_PUSH_CONSTANT[opcode]())
        elif opcode in _PUT:
            self.memo[len(self.memo) if argument is None else int(argument)] = self.stack[-1]
        elif opcode in _GET:
            self.stack.append(self.memo[int(argument)])
        elif opcode in _HANDLERS:
            _HANDLERS[opcode](self, argument)
        elif opcode not in _NO_EFFECT:
            raise PickleDataError(f"pickle opcode {opcode} has no place in a checkpoint")

    def check_protocol(self, version: int) -> None:
        if version > pickle.HIGHEST_PROTOCOL:
            raise PickleDataError(f"pickle protocol {version}; known are those up to {pickle.HIGHEST_PROTOCOL}")

    def mark(self, _argument) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def pop(self, _argument) -> Any:
        return self.stack.pop() if self.stack else self.marked()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def named(self, module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleDataError("a class whose name is no text")
        return Name(module, name)

    def build(self, callee: Any, arguments: Any) -> None:
        """What `callee(*arguments)` stands for; only listed constructors are ever called."""
        if not isinstance(arguments, tuple):
            raise PickleDataError("a call without a tuple of arguments")
        constructor = self.constructors.get(callee) if isinstance(callee, Name) else None
        if constructor is not None:
            self.push(constructor(*arguments))
        else:
            self.push(Foreign(str(callee) if isinstance(callee, Name) else type(callee).__name__))

    def reduce(self, _argument) -> None:
        arguments, callee = self.stack.pop(), self.stack.pop()
        self.build(callee, arguments)

    def reduce_with_keywords(self, _argument) -> None:
        self.stack.pop()
        self.reduce(None)

    def set_state(self, _argument) -> None:
        """Attributes of an object: read for a Record, ignored for others (the versions of a state dict)."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Record):
            self.put([part for item in state.items() for part in item])

    def extend(self, items: list[Any]) -> None:
        """Append to the list on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Foreign):
            raise PickleDataError(f"items appended to a {type(target).__name__}")

    def put(self, items: list[Any]) -> None:
        """Put keys and values, in turn, into the dict on top of the stack."""
        if len(items) % 2:
            raise PickleDataError("a dict with a key and no value")
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update((_checked_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))
        elif not isinstance(target, Foreign):
            raise PickleDataError(f"entries put into a {type(target).__name__}")

    def make_dict(self, _argument) -> None:
        items = self.marked()
        self.push({})
        self.put(items)

    def take(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise PickleDataError("the stack is too short")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items


_SCALARS = (str, bytes, int, float, bool, type(None))


def _checked_key(key: Any) -> Hashable:
    """A dict key: a scalar or a tuple of scalars (hashing a deep tuple recurses without a limit)."""
    if isinstance(key, _SCALARS):
        return key
    if isinstance(key, tuple) and all(isinstance(part, _SCALARS) for part in key):
        return tuple(key)
    if isinstance(key, Foreign | Name):
        return repr(key) if isinstance(key, Foreign) else str(key)
    raise PickleDataError(f"a dict key of type {type(key).__name__}")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) and not isinstance(value, Name) else []


def _check_size(root: Any) -> None:
    """Check depth and size of the tree, counting shared parts each time they appear; without recursion."""
    measured: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()
    todo = [(root, False)]
    while todo:
        node, finished = todo.pop()
        children = _children(node)
        if not children or id(node) in measured:
            continue
        if finished:
            sizes = [measured.get(id(child), (1, 1)) for child in children]
            depth, items = 1 + max(size[0] for size in sizes), 1 + sum(size[1] for size in sizes)
            if depth > MAX_DEPTH or items > MAX_ITEMS:
                raise PickleDataError(f"nested {depth} deep with {items} items; at most {MAX_DEPTH} and {MAX_ITEMS}")
            measured[id(node)] = depth, items
            open_nodes.discard(id(node))
        elif id(node) in open_nodes:
            raise PickleDataError("a list or dict that contains itself")
        else:
            open_nodes.add(id(node))
            todo.append((node, True))
            todo.extend((child, False) for child in children)


def _callee_first(items: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    return items[0], tuple(items[1:])


_PUSH_ARGUMENT = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_PUSH_CONSTANT: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    # Sets are read as lists: their elements need not be hashed.
    "EMPTY_SET": list,
}
_PUT = frozenset(["PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"])
_GET = frozenset(["GET", "BINGET", "LONG_BINGET"])
_NO_EFFECT = frozenset(["FRAME"])
_HANDLERS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": _Machine.check_protocol,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda machine, _: machine.marked(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    "LIST": lambda machine, _: machine.push(machine.marked()),
    "FROZENSET": lambda machine, _: machine.push(machine.marked()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.take(3))),
    "DICT": _Machine.make_dict,
    "APPEND": lambda machine, _: machine.extend(machine.take(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.marked()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.marked()),
    "SETITEM": lambda machine, _: machine.put(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.put(machine.marked()),
    "GLOBAL": lambda machine, argument: machine.push(machine.named(*argument.split(" ", 1))),
    "STACK_GLOBAL": lambda machine, _: machine.push(machine.named(*machine.take(2))),
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.reduce_with_keywords,
    "INST": lambda machine, argument: machine.build(machine.named(*argument.split(" ", 1)), tuple(machine.marked())),
    "OBJ": lambda machine, _: machine.build(*_callee_first(machine.marked())),
    "BUILD": _Machine.set_state,
    "PERSID": lambda machine, argument: machine.push(machine.load_persistent(argument)),
    "BINPERSID": lambda machine, _: machine.push(machine.load_persistent(machine.stack.pop())),
}
