"""The loop's promises, shown on a task that compiles at once."""

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax.errors import UserError
from gac_jax.sharding import make_mesh
from gac_jax.stages.task import Params
from gac_jax.training import loop
from gac_jax.training.loop import LoopConfig, StageRun, run_stage
from gac_jax.training.state import TrainState
from gac_jax.training.stop import Interrupted
from tests.toy import OPTIMIZER, ROWS, Toy

pytestmark = pytest.mark.usefixtures("standard_promotion")

STEPS = 7
WIDTH = 8
NEVER = 1000


class Stream:
    """Batches that are a function of their number, from a first one on."""

    def __init__(self, first: int, number_taken: Callable[[int], None] = lambda _: None) -> None:
        self.next, self.taken, self.is_closed = first, number_taken, False

    def __next__(self) -> dict[str, np.ndarray]:
        number, self.next = self.next, self.next + 1
        self.taken(number)
        return batch(number)

    def close(self) -> None:
        self.is_closed = True


def batch(number: int) -> dict[str, np.ndarray]:
    wave = np.random.default_rng(number).standard_normal((ROWS, WIDTH))
    return {"wave": wave.astype(np.float32)}


def stage_run(folder: Path, stream: Callable[[int], Any] = Stream, **changes: Any) -> StageRun:
    intervals = {"log_every": 1, "eval_every": NEVER, "save_every": NEVER, "keep": 2}
    fields = {field.name for field in dataclasses.fields(LoopConfig)}
    settings = {"steps": STEPS, "seed": 3, "ema_decay": 0.9, "max_skipped": 2, **intervals}
    settings |= {name: value for name, value in changes.items() if name in fields}
    run = StageRun(
        task=Toy(WIDTH),
        loop=LoopConfig(**settings),
        optimizer=OPTIMIZER,
        config={"name": "toy"},
        folder=str(folder),
        mesh=make_mesh(data=2, fsdp=4),
        frozen={"offset": {"bias": np.ones((2,), np.float32)}},
        start={},
        data="9 clips",
        train_batches=stream,
        validation_batches=lambda: (),
    )
    rest = {name: value for name, value in changes.items() if name not in fields}
    return dataclasses.replace(run, **rest)


@pytest.fixture(autouse=True)
def written(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], dict[str, float]]:
    """All that is logged: values by group and step; each is logged once."""
    lines: dict[tuple[str, int], dict[str, float]] = {}

    class Recorder(loop.Log):
        def write(self, step: int, group: str, values: dict[str, float]) -> None:
            assert (group, step) not in lines
            lines[group, step] = {k: v for k, v in values.items() if k != "seconds_per_step"}

    monkeypatch.setattr(loop, "Log", Recorder)
    return lines


def assert_same(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


def unbroken(folder: Path, written: dict, **changes: Any) -> tuple[TrainState, dict]:
    """A run without a break, and what it logged."""
    state = run_stage(stage_run(folder / "unbroken", **changes))
    logged = dict(written)
    written.clear()
    return state, logged


def test_a_stage_trains(tmp_path: Path, written: dict) -> None:
    state = run_stage(stage_run(tmp_path, steps=60))
    assert int(state.step) == 60
    assert written["train", 60]["loss"] < 0.3 * written["train", 1]["loss"]
    assert [key for key, values in written.items() if values] == [
        ("train", step) for step in range(1, 61)
    ]


@pytest.mark.parametrize(
    ("stop_at", "number"), [(1, signal.SIGTERM), (3, signal.SIGINT), (STEPS, signal.SIGTERM)]
)
def test_stopped_and_resumed_is_unbroken(
    tmp_path: Path, written: dict, stop_at: int, number: signal.Signals
) -> None:
    expected, logged = unbroken(tmp_path, written)
    streams: list[Stream] = []

    def stream(first: int) -> Stream:
        def raise_signal(index: int) -> None:
            if first == 0 and index == stop_at - 1:
                signal.raise_signal(number)

        streams.append(Stream(first, raise_signal))
        return streams[-1]

    run = stage_run(tmp_path / "broken", stream)
    with pytest.raises(Interrupted, match=f"^toy: stopped at step {stop_at}; run again") as stop:
        run_stage(run)
    assert stop.value.number == number
    state = run_stage(run)
    assert_same(state, expected)
    assert written == logged
    assert [s.next for s in streams] == ([stop_at, STEPS] if stop_at < STEPS else [STEPS])
    assert all(s.is_closed for s in streams)


def test_a_crash_goes_back_to_the_last_checkpoint(tmp_path: Path, written: dict) -> None:
    expected, logged = unbroken(tmp_path, written, eval_every=2)

    def stream(first: int) -> Stream:
        def crash(index: int) -> None:
            if first == 0 and index == 5:
                raise ZeroDivisionError

        return Stream(first, crash)

    run = stage_run(tmp_path / "broken", stream, save_every=2, eval_every=2)
    with pytest.raises(ZeroDivisionError):
        run_stage(run)
    after = {key: value for key, value in written.items() if key[1] > 4}
    assert set(after) <= {("train", 5)}
    written.pop(("train", 5), None)
    assert_same(run_stage(run), expected)
    assert written == logged


def test_a_finished_stage_is_only_read(tmp_path: Path, written: dict) -> None:
    run = stage_run(tmp_path)
    expected = run_stage(run)
    written.clear()

    def stream(first: int) -> Stream:
        raise AssertionError("nothing is left to train")

    assert_same(run_stage(dataclasses.replace(run, train_batches=stream)), expected)
    assert written == {}


def test_training_goes_on_when_more_steps_are_asked_for(tmp_path: Path) -> None:
    run_stage(stage_run(tmp_path, steps=3))
    assert int(run_stage(stage_run(tmp_path, steps=5)).step) == 5


def with_nan(*numbers: int) -> Callable[[int], Iterator[dict[str, np.ndarray]]]:
    """A stream that is not finite at some places; a generator has close(), too."""

    def stream(first: int) -> Iterator[dict[str, np.ndarray]]:
        for number in range(first, NEVER):
            yield {"wave": batch(number)["wave"] * (np.nan if number in numbers else 1.0)}

    return stream


def test_updates_that_are_not_finite_are_left_out(tmp_path: Path, written: dict) -> None:
    state = run_stage(stage_run(tmp_path, with_nan(2, 3, 5)))
    assert [written["train", step]["skipped"] for step in range(1, 8)] == [0, 0, 1, 2, 0, 1, 0]
    assert int(state.opt_state[1][0].count) == STEPS - 3
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_too_many_in_a_row_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="^3 updates in a row were not finite, the last at step 5;"):
        run_stage(stage_run(tmp_path, with_nan(2, 3, 4)))


def test_too_many_at_the_end_count_too(tmp_path: Path, written: dict) -> None:
    run = stage_run(tmp_path, with_nan(4, 5, 6))
    with pytest.raises(UserError, match="at step 7;"):
        run_stage(run)
    written.clear()
    with pytest.raises(UserError, match="at step 7;"):
        run_stage(run)  # not taken for a finished stage


def validated(run: StageRun, params: Params, memory: Params) -> float:
    """The validation loss by hand."""
    losses = []
    for index, held_out in enumerate(run.validation_batches()):
        key = jax.random.fold_in(jax.random.key(run.loop.seed + 1), index)
        losses.append(float(run.task.loss(params, run.frozen, memory, held_out, key)[0]))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("steps", [4, STEPS])
def test_validation_is_of_the_average_with_the_same_noise(
    tmp_path: Path, written: dict, steps: int
) -> None:
    held_out = [batch(100), batch(101)]
    run = stage_run(tmp_path, steps=steps, validation_batches=lambda: iter(held_out))
    state = run_stage(run)
    found = written["validation", steps]["loss"]
    assert found == pytest.approx(validated(run, state.ema, state.memory), rel=1e-5)
    assert found != pytest.approx(validated(run, state.params, state.memory), rel=1e-3)


def test_validation_leaves_the_run_alone(tmp_path: Path, written: dict) -> None:
    expected, _ = unbroken(tmp_path, written)
    often = {"eval_every": 1, "validation_batches": lambda: iter([batch(100)])}
    assert_same(run_stage(stage_run(tmp_path, **often)), expected)
    assert [step for group, step in written if group == "validation"] == list(range(1, STEPS + 1))


def test_values_missing_from_a_validation_batch_are_passed_over(
    tmp_path: Path, written: dict
) -> None:
    blank = {"wave": np.full((ROWS, WIDTH), np.nan, np.float32)}
    found = []
    for batches in ([batch(100)], [batch(100), blank], [blank], []):
        folder, options = tmp_path / str(len(found)), {"steps": 1, "log_every": NEVER}
        run_stage(stage_run(folder, validation_batches=lambda b=batches: iter(b), **options))
        found.append(written.pop(("validation", 1)))
    assert np.isfinite(found[0]["loss"]) and found[1] == found[0]
    assert np.isnan(found[2]["loss"]) and found[3] == {}


def test_the_step_is_compiled_once(tmp_path: Path) -> None:
    run = stage_run(tmp_path)
    run_stage(dataclasses.replace(run, loop=dataclasses.replace(run.loop, steps=3)))
    assert run.task.traces == 1
    run_stage(run)
    assert run.task.traces == 2


def test_the_state_is_split_over_the_mesh(tmp_path: Path) -> None:
    run_stage(stage_run(tmp_path, steps=2))
    for state in (run_stage(stage_run(tmp_path, steps=2)), run_stage(stage_run(tmp_path))):
        kernel = state.params["layer"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape) == (WIDTH // 4, 2)


def test_metrics_stay_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the loop hands to the log is not read by the loop itself."""
    kinds = set()
    monkeypatch.setattr(
        loop.Log, "step", lambda _, step, metrics, clips: kinds.update(map(type, metrics.values()))
    )
    run_stage(stage_run(tmp_path))
    assert kinds == {type(jnp.zeros(()))}


def test_it_says_what_it_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for steps in (3, STEPS, STEPS):
        run_stage(stage_run(tmp_path, steps=steps))
    what = "toy: 0.00 M parameters to train; 9 clips; 8 cpu devices (data 2, fsdp 4, tensor 1); "
    assert capsys.readouterr().out.splitlines() == [
        what + "starts at step 0 of 3",
        what + "resumes at step 3 of 7",
        what + "finished at step 7 of 7",
    ]


@pytest.mark.parametrize("name", ["steps", "log_every", "eval_every", "save_every", "keep"])
def test_lengths_and_intervals_are_at_least_1(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        stage_run(tmp_path, **{name: 0})


def test_nothing_is_left_in_the_way(tmp_path: Path) -> None:
    run_stage(stage_run(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "logs"]
