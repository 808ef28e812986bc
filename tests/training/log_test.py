import errno
import types
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from gac_jax.errors import UserError
from gac_jax.training.log import Log, numbered

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

    def write(self: object, event: Event) -> None:
        for value in event.summary.value:
            written[value.tag, event.step] = value.simple_value

    monkeypatch.setattr(EventsWriter, "write_event", write)
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


def test_only_the_first_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Log(str(tmp_path), "toy", LOOP, 0) as log:
        for step in range(1, 4):
            log.step(step, metrics(skipped=step % 2), np.array([1]))
        log.write(3, "validation", {"loss": 0.5})
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_hides_what_was_logged_beyond_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    monkeypatch.setattr(EventsWriter, "write_event", lambda _, event: events.append(event))
    with Log(str(tmp_path), "toy", LOOP, 4):
        (start,) = (event for event in events if event.HasField("session_log"))
        assert (start.step, start.session_log.status) == (5, SessionLog.START)


def test_what_is_written_can_be_read_at_once(tmp_path: Path) -> None:
    with Log(str(tmp_path), "toy", LOOP, 0) as log:
        (file,) = (tmp_path / "logs").iterdir()
        log.write(1, "train", {"loss": 0.5})
        assert b"train/loss" in file.read_bytes()


class Full:
    """A file on a disk that is full from some byte on."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, data: bytes) -> None:
        self.room -= len(data)
        self.flush()

    def flush(self) -> None:
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    close = flush


@pytest.mark.parametrize("room", [0, 300])
def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr("tensorboardX.record_writer.open_file", lambda _: Full(room))
    told = f"^{tmp_path}/logs: the log cannot be written .No space left on device.; .* run again"
    with pytest.raises(UserError, match=told), Log(str(tmp_path), "toy", LOOP, 0) as log:
        for step in range(1, 40):  # far more than a queue would take
            log.write(step, "train", {"loss": 0.5})


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(UserError, match=f"^{tmp_path}/logs: the log cannot be written"):
        Log(str(tmp_path), "toy", LOOP, 0)


def test_too_many_updates_in_a_row_that_are_not_finite_end_the_run(tmp_path: Path) -> None:
    with Log(str(tmp_path), "toy", LOOP, 0) as log:
        for step in range(1, 4):
            log.step(step, metrics(skipped=min(step, 2)))
        log.step(4, metrics(skipped=3))
        with pytest.raises(UserError, match="^3 updates in a row were not finite, .* at step 4;"):
            log.flush()


def log_of(folder: Path, names: Callable[[np.ndarray], list[str]] = numbered) -> Log:
    return Log(
        str(folder), "toy", types.SimpleNamespace(**{**vars(LOOP), "log_every": 99}), 0, names
    )


def test_an_update_that_is_left_out_is_told_with_its_clips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with log_of(tmp_path, lambda clips: [f"{n}.wav" for n in clips]) as log:
        for step, skipped in enumerate([0, 1, 2, 0, 1], 1):
            log.step(step, metrics(skipped=skipped), np.array([step, 7, 7]))
        log.flush()
    assert capsys.readouterr().out.splitlines() == [
        "train step 2: update left out, it is not finite (2.wav, 7.wav); 1 in a row, 1 since the "
        "start",
        "train step 3: update left out, it is not finite (3.wav, 7.wav); 2 in a row, 2 since the "
        "start",
        "train step 5: update left out, it is not finite (5.wav, 7.wav); 1 in a row, 3 since the "
        "start",
    ]


def test_the_end_names_the_clips_of_the_last_step(tmp_path: Path) -> None:
    told = r"^3 updates in a row were not finite, the last at step 9 \(clip 4, clip 5\); lower"
    with log_of(tmp_path) as log, pytest.raises(UserError, match=told):
        log.step(9, metrics(skipped=3), np.array([4, 5]))
        log.step(10, metrics(skipped=4), np.array([6]))


def test_a_large_batch_is_not_told_at_length(tmp_path: Path) -> None:
    with log_of(tmp_path) as log, pytest.raises(UserError, match="clip 19 and 44 more.;"):
        log.step(9, metrics(skipped=3), np.arange(64))
        log.flush()
