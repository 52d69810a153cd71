"""How a field of a configuration says whether another value makes another experiment."""

from dataclasses import field


def identity(default):
    """A field that defines the experiment."""
    return field(default=default, metadata={"kind": "identity"})


def operational(default):
    """A field that changes how an experiment runs, never what it computes."""
    return field(default=default, metadata={"kind": "operational"})
