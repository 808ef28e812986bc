import jax
import jax.numpy as jnp
import pytest

from gac_jax.clock import CompileClock

EVENT = "/jax/core/compile/backend_compile_duration"


def test_compiling_is_noticed() -> None:
    clock = CompileClock()
    with clock.running():
        jax.jit(lambda x: jnp.sin(x) + 1.25)(jnp.ones(3)).block_until_ready()
    assert clock.compiling > 0


def test_running_a_compiled_program_is_not_compiling() -> None:
    clock, program, x = CompileClock(), jax.jit(lambda x: jnp.cos(x) - 2.5), jnp.ones(3)
    program(x)
    with clock.running():
        program(x).block_until_ready()
    assert clock.compiling == 0


def test_the_clock_stands_still_meanwhile() -> None:
    clock = CompileClock()
    before = clock.now()
    with clock.running():
        jax.monitoring.record_event_duration_secs(EVENT, 1000.0)
    assert before - 1000.0 <= clock.now() < before


def test_spans_that_contain_others_count_once() -> None:
    clock = CompileClock()
    with clock.running():
        for duration in (1.0, 2.0, 1000.0):
            jax.monitoring.record_event_duration_secs(EVENT, duration)
    assert clock.compiling == pytest.approx(1000.0)


def test_other_events_and_those_outside_do_not_count() -> None:
    clock = CompileClock()
    with clock.running():
        jax.monitoring.record_event_duration_secs("/jax/something/else", 1.0)
    jax.monitoring.record_event_duration_secs(EVENT, 1.0)
    assert clock.compiling == 0
