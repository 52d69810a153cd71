"""Rollouts over slots: rows take the places of those that ended, and sample what they sample without."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from tiny_policy import (
    compilations,
    largest_difference,
    quick_compiles,  # noqa: F401
    tiny_params,
    tiny_prompts,
    tiny_spec,
)
from tiny_rollout import KEY, LENGTHS, SAMPLING, G, R

from pbrl_jax.mesh.ahead import background_compiles, waited_seconds
from pbrl_jax.models import slots as cache_module
from pbrl_jax.rollout import slots as module
from pbrl_jax.rollout.generate import generate_samples
from pbrl_jax.rollout.refill import Queue, Refill, make_programs, slot_sizes, until
from pbrl_jax.rollout.slots import slot_programs

SPEC = tiny_spec(layer_pattern="lg", window=9)


@pytest.fixture(scope="module")
def params():
    return tiny_params(SPEC)


@pytest.fixture(scope="module")
def prompts():
    return tiny_prompts(SPEC, list(LENGTHS), 6)


@pytest.fixture(scope="module")
def whole(params, prompts):
    """All rows at a time, as one traced function."""
    run = jax.jit(functools.partial(generate_samples, spec=SPEC, samples=G, max_length=R))
    rollout = run(params, prompts, KEY, SAMPLING)
    assert rollout.lengths_B.min() == 1 and rollout.lengths_B.max() == R and len(set(rollout.lengths_B.tolist())) > 8
    return rollout


@pytest.fixture(scope="module")
def refill() -> Refill:
    return make_programs(SPEC, G, R, 7, slots=16)


def assert_same(found, expected):
    for name in ("tokens_BR", "lengths_B", "truncated_B"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert largest_difference(found.logp_BR, expected.logp_BR) < 1e-5


def test_slots_do_not_change_what_rows_sample(refill, params, prompts, whole, caplog):
    """16 slots for 30 rows, and 8 for the last of them; again, bit by bit, without another program."""
    looks: list[int] = []
    first = refill.rollout(params, prompts, KEY, SAMPLING, lambda: looks.append(1))
    assert_same(first, whole)
    with compilations(caplog) as found:
        again = refill.rollout(params, prompts, KEY, SAMPLING)
    assert not found
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), first, again)))
    assert len(looks) < R, "fewer looks than tokens of the longest row"


def test_short_blocks_and_prompts_in_parts(params, prompts, whole, monkeypatch):
    """A cache of several blocks, a window that leaves the first ones behind, and prompts longer than a part."""
    monkeypatch.setattr(cache_module, "BLOCK", 8)
    monkeypatch.setattr(module, "BLOCK", 8)
    monkeypatch.setattr(module, "PREFILL_TOKENS", 4)
    assert_same(make_programs(SPEC, G, R, 128, slots=5).rollout(params, prompts, KEY, SAMPLING), whole)


def test_steps_name_every_row_once(refill, params, prompts, whole):
    """Rows are read as soon as they ended; of prompts that are left out none is sampled."""
    seen = []
    for rollout, ended in refill.steps(params, prompts, KEY, SAMPLING, prompts_D=np.array([7])):
        for device, row in ended:
            assert device == 0 and rollout.lengths_B[row] == whole.lengths_B[row]
            assert np.array_equal(rollout.tokens_BR[row], whole.tokens_BR[row])
            seen.append(row)
    assert sorted(seen) == list(range(7 * G))


def test_segments_of_fewer_slots_are_compiled_beside_the_steps(params, prompts, whole, caplog):
    """Those that the first rollout did not need, as all its rows have full length. The next one waits for a segment
    that is not ready; then nothing is compiled."""
    slot_programs.cache_clear()
    refill = make_programs(SPEC, G, R, 7, slots=18)
    endless = dataclasses.replace(SAMPLING, eos_ids=np.full_like(SAMPLING.eos_ids, -1))
    with background_compiles() as background:
        background.stop()
        assert refill.rollout(params, prompts, KEY, endless).lengths_B.min() == R
        (later,) = refill.warm.values()
        before = waited_seconds()
        assert later.keys() == {18, 8} and later[8].made is None
        assert_same(refill.rollout(params, prompts, KEY, SAMPLING), whole)
    assert waited_seconds() > before and later[8].made is not None
    with compilations(caplog) as found:
        assert_same(refill.rollout(params, prompts, KEY, SAMPLING), whole)
    assert not found


@pytest.mark.parametrize("committed", [False, True])
def test_the_first_segment_is_compiled_beside_the_first_programs(params, prompts, whole, committed, caplog):
    """The segment of all slots, while the program of the prompts is; it and that of the last rows once each."""
    slot_programs.cache_clear()
    refill = make_programs(SPEC, G, R, 7, slots=17)
    given = jax.device_put((params, prompts), jax.devices()[0] if committed else None)
    jax.config.update("jax_log_compiles", True)  # of both threads
    try:
        with background_compiles() as background, compilations(caplog) as found:
            assert_same(refill.rollout(*given, KEY, SAMPLING), whole)
            background.join()
    finally:
        jax.config.update("jax_log_compiles", False)
    assert len([text for text in found if text.startswith("Compiling jit(segment)")]) == 2
    (segments,) = refill.warm.values()
    assert segments.keys() == {17} and segments[17].made


@pytest.mark.parametrize("slots", [1, 4, 5, 30])
def test_the_queue_by_itself(slots):
    """Two devices of 10 and 4 prompts; rows end at random: each row runs once, and each prompt once on its device."""
    rng, queue = np.random.default_rng(slots), Queue(np.array([10, 4]), G, slots)
    prompts_run: list[tuple[int, int]] = []
    placed: list[tuple[int, int]] = []
    ended: list[tuple[int, int]] = []
    while queue.waiting or queue.running_D.any():
        while queue.waiting:
            if (moves := queue.admit()) is not None:
                for device, moves_S3 in enumerate(moves.moves_S3.reshape(2, slots, 3)):
                    for slot, row, place in moves_S3[: moves.count_D[device]]:
                        assert queue.held_DS[device, slot] == row
                        assert queue.first_D[device] * G + place == row
                        placed.append((device, int(row)))
            if (needed := queue.stage()) is None:
                break
            first_D, fresh_D = needed
            for device in np.flatnonzero(fresh_D):
                past = min(first_D[device] + queue.prompts_at_once, (10, 4)[device])
                prompts_run += [(int(device), prompt) for prompt in range(first_D[device], past)]
        assert not queue.waiting or (queue.held_DS >= 0).all(axis=1)[queue.rows_D > queue.next_D].all()
        ended += queue.end(rng.random(2 * slots) < 0.3)
    every = [(device, prompt) for device, count in enumerate((10, 4)) for prompt in range(count)]
    rows = [(device, prompt * G + sample) for device, prompt in every for sample in range(G)]
    assert sorted(prompts_run) == every and sorted(placed) == rows and sorted(ended) == rows


def test_when_segments_end():
    queue = Queue(np.array([4, 4]), 4, 16)
    sizes = slot_sizes(0, 32, 2)
    assert sizes == (16, 4) and slot_sizes(100, 256) == (100, 25, 8) and slot_sizes(7, 256) == (7,)
    assert slot_sizes(64, 4096, 16) == (4, 1) and slot_sizes(0, 9) == (9,)
    queue.stage()
    queue.admit()
    assert until(queue, sizes, 128) == (128, 0, 4), "nobody waits: until 4 rows a device are left"
    queue.rows_D = np.array([32, 16])
    assert until(queue, sizes, 128) == (128, 28, 0), "some wait: until an eighth of the slots is free"
    queue.end(np.arange(32) % 16 > 2)
    assert queue.narrow(4).tolist() == [0, 1, 2, -1, 0, 1, 2, -1]
    assert queue.running_D.tolist() == [3, 3]
