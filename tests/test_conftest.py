"""The test process itself: records survive JAX under the import hook, and the hook does catch a wrong shape."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from pbrl_jax.core.errors import lookup
from pbrl_jax.core.records import PromptBatch, Scores


def batch() -> PromptBatch:
    return PromptBatch(jnp.ones((2, 3), jnp.int32), jnp.full((2,), 3), jnp.arange(2))


@pytest.mark.parametrize(
    "value", [None, object(), jax.ShapeDtypeStruct((1,), jnp.float32), jax.sharding.PartitionSpec("data")]
)
def test_records_unflatten_with_anything_in_them(value):
    mapped = jax.tree.map(lambda _: value, batch())
    assert isinstance(mapped, PromptBatch)
    assert mapped.tokens_PT is value


def test_records_pass_through_transformations():
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), batch())
    assert jax.eval_shape(batch).tokens_PT.shape == (2, 3)
    assert jax.vmap(lambda b: b)(stacked).tokens_PT.shape == (2, 2, 3)
    assert jax.jit(lambda b: jax.tree.map(lambda x: x + 1, b))(batch()).lengths_P.tolist() == [4, 4]
    assert jax.lax.scan(lambda carry, b: (carry + b.lengths_P.sum(), b), 0, stacked)[0] == 12
    scores = Scores(jnp.ones(2), jnp.ones(2, bool), {"cosine": jnp.ones(2)})
    grads = jax.grad(lambda s: (s.value_B**2).sum(), allow_int=True)(scores)
    assert grads.value_B.tolist() == [2.0, 2.0]


def test_replace_works_on_records():
    assert dataclasses.replace(batch(), lengths_P=jnp.array([1, 2])).lengths_P.tolist() == [1, 2]


def test_hook_checks_functions(tmp_path, monkeypatch):
    """A module imported under the hook refuses an array of the wrong rank, and axes that disagree."""
    (tmp_path / "pbrl_jax_probe.py").write_text(
        "from jaxtyping import Array, Float\n"
        "def add(x_B: Float[Array, 'B'], y_B: Float[Array, 'B']) -> Float[Array, 'B']:\n"
        "    return x_B + y_B\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import jaxtyping

    with jaxtyping.install_import_hook("pbrl_jax_probe", "shape_checks.check"):
        from pbrl_jax_probe import add
    assert add(jnp.ones(3), jnp.ones(3)).tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(TypeCheckError):
        add(jnp.ones((3, 1)), jnp.ones((3, 1)))
    with pytest.raises(TypeCheckError):
        add(jnp.ones(3), jnp.ones(4))


def test_hook_is_on_for_the_package():
    with pytest.raises(TypeCheckError):
        lookup(["cosine"], "cosine", "reward")


def test_rank_promotion_raises():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones(4) * jnp.ones((4, 4))


@pytest.mark.serial
def test_serial_process_has_virtual_devices():
    assert jax.device_count() == int(os.environ["PBRL_TEST_DEVICES"])
