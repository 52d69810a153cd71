"""`rollout.slots 0`: what the plan finds room for, saved with the run and used again."""

import dataclasses
import os
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_policy import tiny_config

from pbrl_jax import with_values
from pbrl_jax.config.serialize import to_json
from pbrl_jax.core.paths import work_dir
from pbrl_jax.models.specs import DECODERS, ENCODERS
from pbrl_jax.plan.analytic import Sizes, generate_estimate
from pbrl_jax.plan.chips import CHIPS
from pbrl_jax.plan.roofline import USABLE, fitting_slots
from pbrl_jax.plan.shapes import Models
from pbrl_jax.run import decoding as module
from pbrl_jax.train.experiment import Experiment

CONFIG = tiny_config(4, 256, train={"prompts_per_step": 64})
MODELS = Models(next(iter(DECODERS.values())), next(iter(ENCODERS.values())))
ROWS = 64 * 4


def held(slots: int) -> float:
    """Bytes of a chip while so many rows decode at a time."""
    return generate_estimate(with_values(CONFIG, rollout={"slots": slots}), MODELS, Sizes(2, 1, 1)).hbm_bytes


def experiment(config, work) -> Experiment:
    nothing = dict.fromkeys(Experiment._fields)
    mesh = SimpleNamespace(devices=np.zeros((2, 1, 1)))
    policy, encoder = SimpleNamespace(spec=MODELS.policy), SimpleNamespace(spec=MODELS.encoder)
    work = work_dir("none")
    return Experiment(**nothing | {"config": config, "mesh": mesh, "policy": policy, "encoder": encoder, "work": work})


@pytest.fixture
def memory(monkeypatch):
    """Sets the memory of the local chip."""
    monkeypatch.setattr(module, "list_checkpoints", lambda _: [])

    def chosen(memory: float):
        monkeypatch.setattr(module, "local_plan_chip", lambda _: CHIPS["v5p"]._replace(memory=memory))

    return chosen


def test_as_many_rows_as_fit():
    assert held(ROWS) > held(ROWS // 2) > held(ROWS // 4)
    for slots in (ROWS, ROWS // 2, ROWS // 4):
        assert fitting_slots(CONFIG, MODELS, Sizes(2, 1, 1), held(slots) / USABLE * 1.001) == slots
    assert fitting_slots(CONFIG, MODELS, Sizes(2, 1, 1), 1.0) == 2, "one row a device at least"


def test_what_was_chosen_is_used_again(memory, monkeypatch, tmp_path):
    work = work_dir(tmp_path)
    memory(held(ROWS) * 2)
    chosen = module.with_decoding(experiment(CONFIG, work)).config
    assert chosen == with_values(CONFIG, rollout={"weights": "whole"}), "all rows"
    memory(held(ROWS // 2) / USABLE * 1.001)
    chosen = module.with_decoding(experiment(CONFIG, work)).config
    assert chosen.rollout.slots == ROWS // 2
    for given in (with_values(CONFIG, rollout={"slots": 6}), with_values(CONFIG, train={"fused": True})):
        chosen_rollout = module.with_decoding(experiment(given, work)).config.rollout
        assert chosen_rollout == dataclasses.replace(given.rollout, weights="whole")
    monkeypatch.setattr(module, "list_checkpoints", lambda _: [(1, "folder")])
    monkeypatch.setattr(module, "read_meta", lambda _: {"config": to_json(chosen)})
    memory(held(ROWS) * 2)
    assert module.with_decoding(experiment(CONFIG, work)).config == chosen, "as the run was begun with"
    given = with_values(CONFIG, rollout={"weights": "as_trained", "slots": 8})
    assert module.with_decoding(experiment(given, work)).config == given, "what is configured comes first"


@pytest.mark.parametrize(("limit", "bytes_left"), [("4096\n", 4096), ("max\n", None), (None, None)])
def test_a_processor_in_a_container_has_the_memory_of_the_container(limit, bytes_left, tmp_path, monkeypatch):
    file = tmp_path / "memory.max"
    if limit is not None:
        file.write_text(limit)
    monkeypatch.setattr(module, "CONTAINER_LIMITS", (str(file),))
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert module.local_memory() == (bytes_left or whole)
