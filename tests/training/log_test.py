import types
from pathlib import Path

import pytest
from tensorboardX import SummaryWriter

from gac_jax.errors import UserError
from gac_jax.training.log import Log

LOOP = types.SimpleNamespace(steps=10, log_every=1, max_skipped=2)


class Scalar:
    """A device scalar that knows whether it was read."""

    def __init__(self, value: float) -> None:
        self.value, self.was_read = value, False

    def __float__(self) -> float:
        self.was_read = True
        return float(self.value)

    def __int__(self) -> int:
        return int(float(self))


def metrics(loss: float = 1.0, skipped: int = 0) -> dict[str, Scalar]:
    return {"loss": Scalar(loss), "skipped": Scalar(skipped)}


def was_read(values: dict[str, Scalar]) -> bool:
    return any(value.was_read for value in values.values())


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], float]:
    """What goes to TensorBoard: value by name and step."""
    written: dict[tuple[str, int], float] = {}

    def add(self: object, name: str, value: float, step: int) -> None:
        written[name, step] = value

    monkeypatch.setattr(SummaryWriter, "add_scalar", add)
    return written


def test_metrics_are_read_one_step_late(tmp_path: Path) -> None:
    first, second, third = metrics(), metrics(), metrics()
    with Log(str(tmp_path), "toy", LOOP, 0) as log:
        log.step(1, first)
        assert not was_read(first)
        log.step(2, second)
        assert was_read(first) and not was_read(second)
        log.step(3, third)
        assert was_read(second) and not was_read(third)
        log.flush()
        assert was_read(third)


def test_a_line_and_points_every_so_often(
    tmp_path: Path, points: dict[tuple[str, int], float], capsys: pytest.CaptureFixture[str]
) -> None:
    loop = types.SimpleNamespace(steps=10, log_every=2, max_skipped=2)
    with Log(str(tmp_path), "toy", loop, 4) as log:
        for step in range(5, 10):
            log.step(step, metrics(loss=step / 8))
        log.flush()
        log.flush()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  seconds_per_step ")[0] for line in lines] == [
        "train step 6: loss 0.75  skipped 0",
        "train step 8: loss 1  skipped 0",
    ]
    assert {k: v for k, v in points.items() if k[0] == "train/loss"} == {
        ("train/loss", 6): 0.75,
        ("train/loss", 8): 1.0,
    }
    assert points["train/seconds_per_step", 8] > 0


def test_values_that_are_no_numbers_are_left_out(
    tmp_path: Path, points: dict[tuple[str, int], float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Log(str(tmp_path), "toy", LOOP, 0) as log:
        log.write(3, "validation", {"loss": 0.5, "loss_t0": float("nan"), "norm": float("inf")})
        log.write(3, "validation", {"loss_t0": float("nan")})
        log.write(3, "validation", {})
    assert capsys.readouterr().out == "validation step 3: loss 0.5\n"
    assert points == {("validation/loss", 3): 0.5}


def test_points_reach_the_folder(tmp_path: Path) -> None:
    with Log(str(tmp_path), "toy", LOOP, 0) as log:
        log.write(1, "train", {"loss": 0.5})
    (file,) = (tmp_path / "logs").iterdir()
    assert b"train/loss" in file.read_bytes()


def test_a_resumed_run_hides_what_was_logged_beyond_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    monkeypatch.setattr(SummaryWriter, "__init__", lambda *_, **options: found.update(options))
    monkeypatch.setattr(SummaryWriter, "close", lambda _: None)
    with Log(str(tmp_path), "toy", LOOP, 4):
        assert found == {"purge_step": 5}


def test_too_many_updates_in_a_row_that_are_not_finite_end_the_run(tmp_path: Path) -> None:
    with Log(str(tmp_path), "toy", LOOP, 0) as log:
        for step in range(1, 4):
            log.step(step, metrics(skipped=min(step, 2)))
        log.step(4, metrics(skipped=3))
        with pytest.raises(UserError, match="^3 updates in a row were not finite, .* at step 4;"):
            log.flush()
