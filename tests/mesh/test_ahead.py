"""Programs compiled beside the steps: each step takes its own, errors reach the run, and the thread ends with it."""

import threading

import jax
import jax.numpy as jnp
import pytest
from tiny_policy import compilations

from pbrl_jax.mesh import ahead
from pbrl_jax.mesh.ahead import Program, Variants, background_compiles, compile_later, waited_seconds


def program(traced: list | None = None):
    """A function of its own each time, of which nothing is compiled; its buckets are noted when they are traced."""

    def added(x, bucket):
        if traced is not None:
            traced.append(bucket)
        if bucket == "broken":
            raise ValueError("no such bucket")
        return x + bucket

    return jax.jit(added, static_argnames="bucket")


def compile_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "compile"]


@pytest.mark.parametrize("beside", [False, True])
def test_each_variant_is_compiled_once(beside, caplog):
    """Before the first result, or in the thread after the step; later calls compile nothing."""
    traced: list = []
    variants, x = Variants(program(traced), (0, 16, 32)), jnp.arange(3)
    with background_compiles() as background:
        if not beside:
            ahead._current.remove(background)
        assert variants(x, bucket=0).tolist() == [0, 1, 2]
        assert traced == ([0] if beside else [0, 16, 32])
        background.begin_rest()
        background.join()
        with compilations(caplog) as found:
            later = [variants(x, bucket=size).tolist() for size in (16, 32)]
        if not beside:
            ahead._current.append(background)
    assert later == [[16, 17, 18], [32, 33, 34]] and traced == [0, 16, 32] and not found
    assert not compile_threads()


def test_a_step_waits_for_its_own_program():
    """While the thread is at another one; the waiting is counted, and each program is made once."""
    begun, release, made = threading.Event(), threading.Event(), []

    def slow():
        begun.set()
        release.wait()
        made.append("slow")
        return lambda: "slow"

    with background_compiles() as background:
        background.add([one := Program(slow)])
        begun.wait()
        before = waited_seconds()
        variants = Variants(program(), (1, 2))
        assert variants(jnp.ones(1), bucket=2).tolist() == [3]
        assert not made and waited_seconds() > before
        release.set()
        assert one.get()() == "slow" and one.get() is one.get()
    assert made == ["slow"]


def test_a_step_that_waits_compiles_what_it_needs_next():
    """The thread is at the first program, so the step makes the second one; what is for later it leaves alone."""
    begun, release, made = threading.Event(), threading.Event(), []

    def first():
        begun.set()
        release.wait(60)
        made.append(("first", threading.current_thread().name))
        return print

    def second():
        made.append(("second", threading.current_thread().name))
        release.set()
        return print

    with background_compiles() as background:
        programs = [Program(first), Program(second)]
        background.keep([Program(lambda: made.append("later") or print)])
        background.add(programs)
        begun.wait()
        programs[0].wait()
    assert made == [("second", threading.current_thread().name), ("first", "compile")]


def test_others_come_after_the_first_step():
    """Until then its programs have the processor; a step that needs one of them before does not wait for that."""
    traced = []

    def added(x, bucket):
        traced.append(bucket)
        return x + bucket

    variants, x = Variants(jax.jit(added, static_argnames="bucket"), (1, 2, 3)), jnp.ones(1)
    with background_compiles() as background:
        variants.prepare((x,), (2,))
        background.join()
        assert traced == [2]
        variants(x, bucket=2)
        background.join()
        assert traced == [2]
        assert variants(x, bucket=3).tolist() == [4]
        background.begin_rest()
        background.join()
    assert traced == [2, 3, 1]


def test_what_is_kept_for_later_is_compiled_at_once_without_a_thread():
    made = []

    def named(name):
        return Program(lambda: made.append(name) or print)

    compile_later([named("now")])
    with background_compiles() as background:
        compile_later([named("later")])
        background.join()
        assert made == ["now"]
        background.begin_rest()
        background.join()
    assert made == ["now", "later"]


def test_an_error_of_the_thread_reaches_the_run():
    variants = Variants(program(), (1, "broken"))
    with background_compiles() as background:
        assert variants(jnp.ones(1), bucket=1).tolist() == [2]
        background.begin_rest()
        background.join()
        with pytest.raises(ValueError, match="no such bucket"):
            variants(jnp.ones(1), bucket=1)


def test_a_run_that_ends_begins_no_further_program():
    """The one under way is waited for, those behind it are not made."""
    begun, release, made = threading.Event(), threading.Event(), []

    def slow():
        begun.set()
        release.wait(60)
        made.append("slow")

    with pytest.raises(KeyboardInterrupt), background_compiles() as background:
        background.add([Program(slow), Program(lambda: made.append("never"))])
        begun.wait()
        threading.Timer(0.05, release.set).start()
        raise KeyboardInterrupt
    assert made == ["slow"] and not compile_threads()
