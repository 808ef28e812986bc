import signal
from collections.abc import Iterator

import jax
import pytest

from gac_jax.sharding import make_mesh
from gac_jax.training.stop import Interrupted, StopSignal

SIGNALS = (signal.SIGTERM, signal.SIGINT)
caught: list[int] = []


def stop_signal() -> StopSignal:
    return StopSignal(make_mesh(data=4, fsdp=2))


@pytest.fixture(autouse=True)
def outer_handler() -> Iterator[None]:
    """What handles signals where no `StopSignal` does."""
    caught.clear()
    before = {s: signal.signal(s, lambda number, _: caught.append(number)) for s in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_does_nothing_else(number: signal.Signals) -> None:
    stop = stop_signal()
    with pytest.raises(Interrupted), stop:
        assert stop.received == stop.agreed() == 0
        signal.raise_signal(number)
        assert stop.received == stop.agreed() == number
        raise Interrupted("stopped", stop.received)
    assert caught == []


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_acts_as_ever(number: signal.Signals) -> None:
    with stop_signal() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(number)
        assert (stop.received, caught) == (signal.SIGTERM, [number])


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_act_as_ever_afterwards(number: signal.Signals) -> None:
    with pytest.raises(ZeroDivisionError), stop_signal():
        raise ZeroDivisionError
    signal.raise_signal(number)
    assert caught == [number]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_is_not_heeded_acts_afterwards(number: signal.Signals) -> None:
    with stop_signal():
        signal.raise_signal(number)
        assert caught == []
    assert caught == [number]


def test_many_processes_know_a_step_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """That they know of each other's, tests/multihost_test.py shows."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with stop_signal() as stop:
        answers = [stop.agreed(), stop.agreed()]
        signal.raise_signal(signal.SIGTERM)
        answers += [stop.agreed() for _ in range(3)]
    assert answers == [0, 0, 0, signal.SIGTERM, signal.SIGTERM]


def test_an_interruption_says_what_and_why() -> None:
    error = Interrupted("stopped at step 3", signal.SIGTERM)
    assert (str(error), error.number) == ("stopped at step 3", 15)
