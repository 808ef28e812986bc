import os
from pathlib import Path

import pytest

from gac_jax import atomic
from gac_jax.errors import UserError


def test_writes_into_a_new_folder_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    for data in (b"first", b"second"):
        atomic.write(path, data)
        assert path.read_bytes() == data
        assert os.listdir(path.parent) == ["file"]


def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    atomic.write(path, b"old")

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", disk_full)
    with pytest.raises(UserError, match=r"file: cannot be written \(No space left on device\)"):
        atomic.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        atomic.write(tmp_path / "file" / "child", b"")


def test_a_file_that_another_writes_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with atomic.replacing(path) as draft:
        draft.write_bytes(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    with pytest.raises(ZeroDivisionError), atomic.replacing(path) as draft:
        draft.write_bytes(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"whole"
    assert os.listdir(path.parent) == ["file"]
