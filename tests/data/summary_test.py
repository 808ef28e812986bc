from collections.abc import Callable
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from gac_jax.data import summary
from gac_jax.data.summary import duration, summarise
from gac_jax.errors import UserError

WEIGHTS = {"speech": 0.4, "sound": 0.3, "music": 0.3, "other": 0.3}


def settings(root: str | Path, weights: dict[str, float] = WEIGHTS, percent: float = 0.0):
    return ConfigDict({"root": str(root), "domain_weights": weights, "validation_percent": percent})


def test_a_manifest_says_it_all(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "MAX_OPENED", 0)  # nothing need be opened
    found = summarise(settings(corpus))
    assert list(found.clips.items()) == [("speech", 12), ("sound", 6), ("music", 5)]
    assert found.seconds == pytest.approx({"speech": 2.58, "sound": 0.75, "music": 0.55})
    assert found.licences == {"not stated": 23}
    assert str(found) == "23 clips, 3.88 s (12 speech, 6 sound, 5 music)"
    assert found.length("sound") == "0.75 s"


def test_the_files_of_a_folder_are_opened_for_their_length(
    tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    write_clip("speech/a.wav", 0.5)
    write_clip("speech/b.flac", 1.0, rate=44_100, channels=2)
    write_clip("music/c.opus", 2.0, rate=48_000)
    (tmp_path / "music" / "broken.wav").write_text("no audio")
    found = summarise(settings(tmp_path))
    assert found.seconds == pytest.approx({"speech": 1.5, "music": 2.0}, abs=0.02)
    assert found.clips == {"speech": 2, "music": 2}


def test_too_many_files_are_not_opened(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "MAX_OPENED", 22)
    found = summarise(settings(corpus.parent))
    assert found.seconds is None
    assert str(found) == "23 clips, hours not known (12 speech, 6 sound, 5 music)"
    assert found.length("music") == "hours not known"


def test_only_what_is_drawn_counts(corpus: Path) -> None:
    found = summarise(settings(corpus, {"speech": 1.0, "sound": 0.0}))
    assert found.clips == {"speech": 12} and set(found.seconds or ()) == {"speech"}


def test_held_out_clips_are_told_apart(corpus: Path) -> None:
    found = summarise(settings(corpus, percent=40.0))
    assert 0 < found.held_out < 23
    assert sum(found.clips.values()) + found.held_out == 23


def test_licences_are_counted(tmp_path: Path) -> None:
    lines = ["path,domain,licence,dur_s", "a,music,CC0,1", "b,music,CC0,1", "c,other,,1"]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    found = summarise(settings(tmp_path / "table.csv"))
    assert list(found.licences.items()) == [("CC0", 2), ("not stated", 1)]


def test_the_bundled_clips_carry_their_licence() -> None:
    found = summarise(settings(""))
    assert found.licences == {"CC BY-SA 3.0": 3}
    assert str(found) == "3 clips, 17.3 s (1 music, 1 sound, 1 speech)"


def test_a_missing_root_is_named() -> None:
    with pytest.raises(UserError, match="^/nowhere: no such folder or manifest"):
        summarise(settings("/nowhere"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.004, "0.004 s"),
        (17.28, "17.3 s"),
        (60.0, "1.0 min"),
        (3599.0, "60.0 min"),
        (28_440.0, "7.9 h"),
        (4.5e8, "125,000.0 h"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text
