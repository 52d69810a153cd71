"""What the maker of the old versions' fixtures and their tests compare: hashes of arrays, and the machine."""

import hashlib

import jaxlib
import numpy as np


def digest(array) -> str:
    """Hex SHA-256 of type, shape and bytes."""
    array = np.ascontiguousarray(array)
    head = f"{array.dtype} {','.join(map(str, array.shape))}\n".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()


def machine() -> str:
    """Version of jaxlib, and the processor: compiled programs give the same bits where both agree."""
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")
    return f"jaxlib {jaxlib.__version__} on {model}"
