import json

import pytest

from gac_jax import report
from gac_jax.report import Row

ROWS = [Row("a.wav", 10.0, 1000, 0.5, 2.0, 0), Row("long/name.flac", 30.0, 2000, 0.1, 1.0, 7)]


def test_kbps_counts_every_byte_of_the_file() -> None:
    assert ROWS[0].kbps == pytest.approx(0.8)


def test_total_weighs_by_playing_time() -> None:
    total = report.total(ROWS)
    assert (total.seconds, total.bytes, total.clipped) == (40.0, 3000, 7)
    assert total.kbps == pytest.approx(0.6)
    assert total.encode_rtf == pytest.approx((0.5 * 10 + 0.1 * 30) / 40)
    assert total.decode_rtf == pytest.approx((2.0 * 10 + 1.0 * 30) / 40)


def test_table_is_aligned_and_ends_with_the_total() -> None:
    lines = report.table(ROWS).splitlines()
    assert lines[0].split() == " ".join(report.COLUMNS).split()
    assert lines[2].split() == ["long/name.flac", "30.00", "2000", "0.533", "0.100", "1.000"]
    assert lines[3].split() == ["total", "40.00", "3000", "0.600", "0.200", "1.250"]
    assert len({len(line) for line in lines}) == 1


def test_what_was_not_done_has_no_factor() -> None:
    rows = [Row("a.gac", 10.0, 1000, None, 2.0, 0)]
    assert report.total(rows).encode_rtf is None
    assert [line.split()[4] for line in report.table(rows).splitlines()[1:]] == ["-", "-"]


def test_notes_tell_start_up_and_clipping() -> None:
    notes = report.notes(ROWS, loading=1.25, compiling=20.5).splitlines()
    assert "(1.2 s)" in notes[0] and "(20.5 s)" in notes[0]
    assert notes[1:] == ["long/name.flac: 7 samples clipped"]


def test_json_holds_the_same_figures() -> None:
    record = json.loads(report.to_json(ROWS, model="mini", failed={"x": "broken"}))
    assert record["model"] == "mini" and record["failed"] == {"x": "broken"}
    assert [Row(**{k: v for k, v in f.items() if k != "kbps"}) for f in record["files"]] == ROWS
    assert record["files"][0]["kbps"] == ROWS[0].kbps
    assert record["total"]["bytes"] == 3000
    assert json.loads(report.to_json([]))["total"] is None
