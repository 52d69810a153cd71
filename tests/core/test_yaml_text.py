"""YAML values as people mean them."""

import pytest

from pbrl_jax.core.yaml_text import read_yaml


def test_values():
    text = "a: [no, off, on, yes, true, 1e-6, 1e6, -.5, 3, 1.0, 2026-01-01, null, ~, '1', 0x10]"
    assert read_yaml(text) == {
        "a": ["no", "off", "on", "yes", True, 1e-6, 1e6, -0.5, 3, 1.0, "2026-01-01", None, None, "1", 16]
    }
    assert read_yaml('{"a": [1, 2.5, false]}') == {"a": [1, 2.5, False]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "line 1"),
        ("a: 1\na: 2", "'a' stands twice"),
        ("!!python/object/apply:os.getcwd []", "could not determine"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_yaml(text)
