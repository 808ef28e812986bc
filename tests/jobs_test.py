import os
from pathlib import Path

import pytest

from gac_jax import jobs
from gac_jax.errors import UserError
from gac_jax.jobs import Job, plan


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(found: list[Job]) -> list[str]:
    return [job.name.as_posix() for job in found]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    touch(root, "b.WAV", "a.flac", "x/c.mp3", "x/y/d.opus", "notes.txt", "x/e.gac")
    touch(root, ".hidden.wav", ".trash/f.wav", "x/._a.flac")
    return root


def test_a_folder_is_searched_in_depth_and_its_tree_is_kept(tree: Path, tmp_path: Path) -> None:
    found = plan(str(tree), str(tmp_path / "out"), "roundtrip", False)
    assert names(found) == ["a.flac", "b.WAV", "x/c.mp3", "x/y/d.opus"]
    assert [job.source for job in found] == [tree / name for name in names(found)]
    assert found[3].output(".png") == tmp_path / "out" / "x" / "y" / "d.png"


def test_decoding_reads_gac_files(tree: Path, tmp_path: Path) -> None:
    assert names(plan(str(tree), str(tmp_path / "out"), "decode", False)) == ["x/e.gac"]


def test_a_single_file_is_taken_whatever_its_name(tree: Path, tmp_path: Path) -> None:
    (job,) = plan(str(tree / "notes.txt"), str(tmp_path / "out"), "encode", False)
    assert (job.name, job.output(".gac")) == (Path("notes.txt"), tmp_path / "out" / "notes.gac")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ["a.flac", "b.WAV"]),
        ("x/*.mp3", ["c.mp3"]),
        ("*/*.mp3", ["x/c.mp3"]),
        ("**/*", ["a.flac", "b.WAV", "x/c.mp3", "x/y/d.opus"]),
        ("[ab].*", ["a.flac", "b.WAV"]),
    ],
)
def test_a_glob_keeps_the_tree_below_its_fixed_part(
    tree: Path, tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    assert names(plan(f"{tree}/{pattern}", str(tmp_path / "out"), "encode", False)) == expected


def test_globs_and_folders_relative_to_here(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert names(plan("*.flac", "out", "encode", False)) == ["a.flac"]
    assert names(plan("./x", "out", "encode", False)) == ["c.mp3", "y/d.opus"]
    assert plan("a.flac", "out", "encode", False)[0].output(".gac") == Path("out/a.gac")


def test_home_is_understood(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree))
    (job,) = plan("~/a.flac", "~/out", "encode", False)
    assert (job.source, job.target) == (tree / "a.flac", tree / "out" / "a")


def test_names_with_dots_and_brackets_stay_whole(tmp_path: Path) -> None:
    touch(tmp_path, "take 1.5 [old].wav")
    (job,) = plan(str(tmp_path / "take 1.5 [old].wav"), str(tmp_path / "out"), "encode", False)
    assert job.output(".gac") == tmp_path / "out" / "take 1.5 [old].gac"


def test_what_was_decoded_into_the_input_is_not_an_input(tree: Path) -> None:
    touch(tree, "out/a.wav", "out/a.gac")
    assert "out/a.wav" not in names(plan(str(tree), str(tree / "out"), "roundtrip", True))
    assert "out/a.gac" in names(plan(str(tree), str(tree / "out"), "decode", True))


@pytest.mark.parametrize(
    ("pattern", "mode", "message"),
    [
        ("nowhere", "encode", "nowhere: no such file or folder"),
        ("", "encode", "--input=: no such file or folder"),
        ("empty", "encode", r"empty: no audio files in this folder; .* reads \.aif, "),
        ("empty", "decode", r"empty: no \.gac files in this folder"),
        ("*.wav", "encode", r"\*\.wav: no audio files match"),
    ],
)
def test_nothing_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, mode: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        plan(pattern, "out", mode, False)


def test_two_inputs_never_share_an_output(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.wav", "in/a.flac", "in/x/a.wav")
    with pytest.raises(UserError, match=r"a\.flac and .*a\.wav would share an output; rename"):
        plan(str(tmp_path / "in"), str(tmp_path / "out"), "encode", True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_overwritten(tmp_path: Path, overwrite: bool) -> None:
    touch(tmp_path, "in/a.wav")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for output in ("in", "link", "in/../in"):
        with pytest.raises(UserError, match=r"a\.wav: is an input too"):
            plan(str(tmp_path / "in"), str(tmp_path / output), "roundtrip", overwrite)


def test_the_first_output_that_exists_is_named(tree: Path, tmp_path: Path) -> None:
    touch(tmp_path / "out", "b.wav", "x/c.gac")
    with pytest.raises(UserError, match=r"out/b\.wav: exists; pass --overwrite"):
        plan(str(tree), str(tmp_path / "out"), "roundtrip", False)
    assert len(plan(str(tree), str(tmp_path / "out"), "roundtrip", True)) == 4
    assert sorted(os.listdir(tmp_path / "out")) == ["b.wav", "x"]  # planning writes nothing


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("in/notes.txt", "--output must be a folder"),
        ("in/notes.txt/deeper", r"notes\.txt: is not a folder"),
        ("new.wav", "--output must be a folder"),
        ("out", r"out/a\.gac: is a folder"),
    ],
)
def test_unusable_outputs(tree: Path, tmp_path: Path, output: str, message: str) -> None:
    (tmp_path / "out" / "a.gac").mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        plan(str(tree), str(tmp_path / output), "encode", True)


def test_no_permission_is_noticed_before_work_starts(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(UserError, match="no permission to write here"):
        plan(str(tree), str(tmp_path / "out"), "encode", False)


def test_every_mode_has_outputs_that_no_other_mode_reads_back() -> None:
    assert set(jobs.OUTPUTS["roundtrip"]) >= {*jobs.OUTPUTS["encode"], *jobs.OUTPUTS["decode"]}
