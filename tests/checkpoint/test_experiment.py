import hashlib
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from pbrl_jax import Config, with_values
from pbrl_jax.checkpoint import check_same_experiment, params_sha256
from pbrl_jax.core.errors import CheckpointError

PARAMS = {"params": {"head": {"kernel": jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), "bias": jnp.int32(-2)}}}
PRINTS = {"dataset": "ab12", "pivots": "ef56"}


def changed(kernel=None, **others):
    head = dict(PARAMS["params"]["head"], **others)
    return {"params": {"head": head if kernel is None else {**head, "kernel": kernel}}}


def test_params_sha256_by_hand():
    """Bytes packed one by one, the path of each leaf sorted: bias before kernel."""
    content = b"params/head/bias int32 \n" + struct.pack("<i", -2)
    content += b"params/head/kernel float32 2,3\n" + struct.pack("<6f", 1, 2, 3, 4, 5, 6)
    assert params_sha256(PARAMS) == hashlib.sha256(content).hexdigest()


def test_params_sha256_does_not_depend_on_order_or_memory_layout():
    head = PARAMS["params"]["head"]
    backwards = {"params": {"head": {name: head[name] for name in sorted(head, reverse=True)}}}
    assert params_sha256(backwards) == params_sha256(PARAMS)
    fortran = np.asfortranarray(np.arange(1, 7, dtype=np.float32).reshape(2, 3))
    assert params_sha256(changed(kernel=fortran)) == params_sha256(PARAMS)


def test_params_sha256_sees_every_kind_of_change():
    kernel = PARAMS["params"]["head"]["kernel"]
    variants = {
        "none": PARAMS,
        "value": changed(kernel=kernel.at[1, 2].add(1e-6)),
        "sign of zero": changed(kernel=kernel.at[0, 0].set(-0.0)),
        "zero": changed(kernel=kernel.at[0, 0].set(0.0)),
        "dtype": changed(kernel=kernel.view(jnp.int32)),
        "rounded": changed(kernel=kernel.astype(jnp.bfloat16)),
        "shape": changed(kernel=kernel.reshape(3, 2)),
        "path": {"params": {"tail": PARAMS["params"]["head"]}},
        "depth": {"params": {"head/x": PARAMS["params"]["head"]}},
        "no prefix": PARAMS["params"],
        "one more": changed(scale=jnp.zeros((0,))),
    }
    assert len({params_sha256(tree) for tree in variants.values()}) == len(variants)


def test_params_sha256_of_bfloat16():
    """1.0 and -2.5 are 3f80 and c020 in bfloat16."""
    content = b"w bfloat16 2\n" + bytes.fromhex("803f20c0")
    assert params_sha256({"w": jnp.array([1.0, -2.5], jnp.bfloat16)}) == hashlib.sha256(content).hexdigest()


def test_same_experiment_passes():
    check_same_experiment(Config(), Config(), PRINTS, dict(reversed(PRINTS.items())))


def test_operational_changes_pass():
    now = with_values(
        Config(),
        train={"max_steps": 7, "microbatch_prompts": 2, "save_steps": 1},
        mesh={"data": 2, "tensor": 4},
        data={"path": "/elsewhere"},
        log={"tensorboard": False},
    )
    check_same_experiment(Config(), now, PRINTS, PRINTS)


def test_identity_changes_are_listed_with_the_way_back():
    saved = with_values(Config(), algo={"beta": 0.01, "leave_one_out": True}, train={"max_steps": 5})
    now = with_values(Config(), algo={"beta": 0.02}, train={"seed": 1}, data={"languages": ("sw",)})
    with pytest.raises(CheckpointError) as caught:
        check_same_experiment(saved, now, PRINTS, PRINTS)
    message = str(caught.value)
    assert "algo.beta: saved 0.01, now 0.02" in message
    assert "algo.leave_one_out: saved True, now False" in message
    assert "train.seed: saved 0, now 1" in message
    assert "data.languages: saved ('en', 'es', 'de', 'sw', 'id', 'zh', 'th', 'bn'), now ('sw',)" in message
    assert "max_steps" not in message and "fingerprint" not in message
    assert "another --workdir" in message and "--algo.beta 0.01" in message and "--train.seed 0" in message


@pytest.mark.parametrize(
    ("saved", "now", "words"),
    [
        (PRINTS, {**PRINTS, "dataset": "cd34"}, "fingerprint of dataset: saved ab12, now cd34"),
        (PRINTS, {"dataset": "ab12"}, "fingerprint of pivots: saved ef56, now nothing"),
        ({}, {"dataset": "ab12"}, "fingerprint of dataset: saved nothing, now ab12"),
    ],
)
def test_other_fingerprints_are_refused(saved, now, words):
    with pytest.raises(CheckpointError) as caught:
        check_same_experiment(Config(), Config(), saved, now)
    assert words in str(caught.value) and "another --workdir" in str(caught.value)
