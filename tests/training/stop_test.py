import signal
from collections.abc import Iterator

import pytest

from gac_jax.training.stop import Interrupted, StopSignal

SIGNALS = (signal.SIGTERM, signal.SIGINT)
caught: list[int] = []


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
    with StopSignal() as stop:
        assert stop.received == 0
        signal.raise_signal(number)
        assert stop.received == number
    assert caught == []


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_acts_as_ever(number: signal.Signals) -> None:
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(number)
        assert (stop.received, caught) == (signal.SIGTERM, [number])


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_act_as_ever_afterwards(number: signal.Signals) -> None:
    with pytest.raises(ZeroDivisionError), StopSignal():
        raise ZeroDivisionError
    signal.raise_signal(number)
    assert caught == [number]


def test_an_interruption_says_what_and_why() -> None:
    error = Interrupted("stopped at step 3", signal.SIGTERM)
    assert (str(error), error.number) == ("stopped at step 3", 15)
