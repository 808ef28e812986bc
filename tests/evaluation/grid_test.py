from pathlib import Path

import numpy as np
import pytest

from gac_jax.evaluation.clips import Reference
from gac_jax.evaluation.folder import Folder, Ledger, read_rows
from gac_jax.evaluation.grid import measure, transmit
from gac_jax.evaluation.suite import Suite
from gac_jax.signal.audio_io import read_audio
from tests.evaluation import fakes
from tests.evaluation.fakes import Amplifier


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def references(folder: Folder) -> list[Reference]:
    return fakes.references(folder, speech=3, sound=2)


def test_every_clip_goes_through_every_system(folder: Folder, references: list[Reference]) -> None:
    systems = [Amplifier("same"), Amplifier("half", 0.5)]
    with Ledger(folder.rows) as ledger:
        transmit(systems, references, folder, ledger, workers=2)
    assert set(ledger.rows) == {(s.name, r.id) for s in systems for r in references}
    for reference in references:
        row = ledger.rows["half", reference.id]
        original, decoded = (
            read_audio(folder.wave(reference.id, x)) for x in ("reference", "half")
        )
        assert np.abs(decoded - 0.5 * original).max() < 1e-4
        assert (row["seconds"], row["domain"]) == (reference.seconds, reference.clip.domain)
        assert row["bytes"] == 4 * len(original) == folder.bits(reference.id, "half").stat().st_size
        assert row["encode_seconds"] >= 0 and row["decode_seconds"] >= 0


def test_a_clip_that_fails_is_a_row_and_tried_again(
    folder: Folder, references: list[Reference]
) -> None:
    with Ledger(folder.rows) as ledger:
        transmit([Amplifier("a", refused=[3_520])], references, folder, ledger, 1)
        failed = [row for row in ledger.rows.values() if "error" in row]
        assert sorted(row["domain"] for row in failed) == ["sound", "speech"]
        assert {row["error"] for row in failed} == {"not clips of 3520 samples"}
        assert not any(folder.wave(row["clip"], "a").exists() for row in failed)
        measure(fakes.suite(), references, folder, ledger, 1)
        mended = Amplifier("a")
        transmit([mended], references, folder, ledger, 1)
    assert mended.sent == 2
    assert not any("error" in row for row in read_rows(folder.rows))


def test_what_comes_out_as_no_number_fails(folder: Folder, references: list[Reference]) -> None:
    with Ledger(folder.rows) as ledger:
        transmit([Amplifier("a", np.nan)], references, folder, ledger, 1)
    assert {row["error"] for row in read_rows(folder.rows)} == {"samples to write must be finite"}


def test_a_stopped_run_goes_on(folder: Folder, references: list[Reference]) -> None:
    class Stopped(Amplifier):
        def encode(self, wave: np.ndarray) -> bytes:
            if self.sent == 2:
                raise KeyboardInterrupt
            return super().encode(wave)

    with Ledger(folder.rows) as ledger, pytest.raises(KeyboardInterrupt):
        transmit([Stopped("a")], references, folder, ledger, 1)
    folder.wave("sound-001", "a").touch()  # written, and the row that tells of it is not
    rest = Amplifier("a")
    with Ledger(folder.rows) as ledger:
        transmit([rest], references, folder, ledger, 1)
        assert len(ledger.rows) == 5 and rest.sent == 3
        folder.wave("speech-000", "a").unlink()
        transmit([rest], references, folder, ledger, 1)
        assert rest.sent == 4


def test_only_what_is_new_is_measured(folder: Folder, references: list[Reference]) -> None:
    suite, later = fakes.suite(), fakes.suite()
    with Ledger(folder.rows) as ledger:
        transmit([Amplifier("a", 0.5)], references[:4], folder, ledger, 1)
        measure(suite, references[:4], folder, ledger, 2)
        assert suite.of_clips["difference"].measured == 4
        assert suite.of_sets["moment"].described == 2  # a sound, and what became of it
        transmit([Amplifier("a", 0.5), Amplifier("b")], references, folder, ledger, 1)
        measure(later, references, folder, ledger, 2)
    assert later.of_clips["difference"].measured == 6
    assert later.of_sets["moment"].described == 4
    rows = {(row["system"], row["clip"]): row for row in read_rows(folder.rows)}
    assert len(rows) == 10
    for row in rows.values():
        assert row["measured"] == ["difference"] and row["errors"] == {}
        assert set(row["values"]) == {"difference", "weighted", "words"}  # NaN is left out
    assert rows["a", "sound-000"]["values"]["difference"] > 0.01
    assert rows["b", "sound-000"]["values"]["difference"] == 0.0


def test_a_new_metric_is_added_to_old_rows(folder: Folder, references: list[Reference]) -> None:
    class Other(fakes.Difference):
        def measure(self, excerpt: object) -> dict[str, float]:
            return {"other": 1.0}

    with Ledger(folder.rows) as ledger:
        transmit([Amplifier("a")], references, folder, ledger, 1)
        measure(fakes.suite(), references, folder, ledger, 1)
        suite = Suite()
        suite.add("other", Other())
        measure(suite, references, folder, ledger, 1)
    for row in read_rows(folder.rows):
        assert row["measured"] == ["difference", "other"]
        assert row["values"]["other"] == 1.0 and "difference" in row["values"]


def test_a_metric_that_fails_leaves_the_others(folder: Folder, references: list[Reference]) -> None:
    class Broken(fakes.Difference):
        def measure(self, excerpt: object) -> dict[str, float]:
            raise ZeroDivisionError

    class BrokenMoment(fakes.Moment):
        def describe(self, wave: np.ndarray) -> dict[str, np.ndarray]:
            raise ValueError("too short")

    suite = fakes.suite()
    suite.add("broken", Broken())
    suite.add("moment", BrokenMoment())
    with Ledger(folder.rows) as ledger:
        transmit([Amplifier("a")], references, folder, ledger, 1)
        measure(suite, references, folder, ledger, 1)
        assert ledger.rows["a", "speech-000"]["errors"] == {"broken": "ZeroDivisionError"}
        sound = ledger.rows["a", "sound-000"]
        assert sound["errors"] == {"broken": "ZeroDivisionError", "moment": "too short"}
        assert sound["measured"] == ["difference"]
        measure(fakes.suite(), references, folder, ledger, 1)
        assert ledger.rows["a", "sound-000"]["errors"] == {}
    assert folder.description("sound-000", "moment", "a").is_file()


def test_replaced_audio_is_described_anew(folder: Folder, references: list[Reference]) -> None:
    suite = fakes.suite()
    with Ledger(folder.rows) as ledger:
        for gain in (0.5, 0.2):
            transmit([Amplifier("a", gain)], references, folder, ledger, 1)
            measure(suite, references, folder, ledger, 1)
            power = np.load(folder.description("sound-000", "moment", "a"))["power"]
            assert power == pytest.approx(0.01 * gain**2, rel=0.1)
            folder.wave("sound-000", "a").unlink()
