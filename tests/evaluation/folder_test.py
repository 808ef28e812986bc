import json
import os
from pathlib import Path

import pytest

from gac_jax.errors import UserError
from gac_jax.evaluation.folder import Folder, Ledger, read_rows, write_rows


def row(system: str, clip: str, **values: object) -> dict:
    return {"system": system, "clip": clip, **values}


def test_rows_are_there_as_soon_as_they_are_added(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    with Ledger(path) as ledger:
        ledger.add(row("a", "1", x=1))
        ledger.add(row("ä", "1"))
        assert read_rows(path) == [row("a", "1", x=1), row("ä", "1")]
        ledger.add(row("a", "1", x=2))
        assert len(read_rows(path)) == 3
        assert Ledger(path).rows == {("a", "1"): row("a", "1", x=2), ("ä", "1"): row("ä", "1")}
    assert read_rows(path) == [row("a", "1", x=2), row("ä", "1")]


def test_what_was_stopped_in_the_middle_of_a_line_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [row("a", "1"), row("a", "2")])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with Ledger(path) as ledger:
            complete = whole[:length].count(b"\n")
            assert len(ledger.rows) == complete
            ledger.add(row("a", "3"))
        assert len(read_rows(path)) == complete + 1


def test_other_damage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"system": "a", "clip": "1"}\n{"syst\n{}\n')
    with pytest.raises(UserError, match=r"rows.jsonl line 2: damaged; give --output a new folder"):
        read_rows(path)
    assert read_rows(tmp_path / "none.jsonl") == []


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    with Ledger(tmp_path / "rows.jsonl") as ledger:
        with pytest.raises(ValueError, match="JSON"):
            ledger.add(row("a", "1", x=float("nan")))
        ledger.add(row("a", "2"))
    assert read_rows(tmp_path / "rows.jsonl") == [row("a", "2")]


def test_settings_may_be_added_and_not_changed(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "out")
    assert folder.read_settings() == {}
    folder.agree(systems={"a": {"steps": 4}}, clips={"seconds": 8.0})
    folder.agree(systems={"b": {}, "a": {"steps": 4}}, clips={"seconds": 8.0})
    kept = {"systems": {"a": {"steps": 4}, "b": {}}, "clips": {"seconds": 8.0}}
    assert folder.read_settings() == kept
    told = r'systems a was {"steps": 4} and is now {"steps": 8}: give --output a new folder'
    with pytest.raises(UserError, match=told):
        folder.agree(systems={"c": {}, "a": {"steps": 8}})
    assert json.loads(folder.settings.read_text()) == kept


def test_descriptions_are_forgotten_with_their_audio(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.wave("1").parent.mkdir(parents=True)
    for name in ("a", "b", "reference"):
        folder.description("1", "fd", name).touch()
        folder.wave("1", name).touch()
    folder.forget("1", "a")
    left = {"a.wav", "b.wav", "b.fd.npz", "reference.wav", "reference.fd.npz"}
    assert set(os.listdir(tmp_path / "clips" / "1")) == left
