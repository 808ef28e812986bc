import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gac_jax.data.pipeline import split
from gac_jax.data.sources import Clip, FileSource
from gac_jax.errors import UserError
from gac_jax.evaluation.clips import choose, gather, read_references
from gac_jax.evaluation.folder import Folder, read_rows
from tests.evaluation import fakes

CLIPS = [Clip(f"{d}/{i}", d) for d in ("music", "speech") for i in range(40)]


def test_more_clips_are_the_same_and_others() -> None:
    few, many = (choose(CLIPS, "all", 0.0, limit) for limit in (3, 12))
    assert list(few) == ["speech-000", "speech-001", "speech-002", *few][:3] + list(few)[3:]
    assert list(few)[3:] == ["music-000", "music-001", "music-002"]
    assert few.items() < many.items() and len(many) == 24
    assert all(CLIPS[index].domain == id_.split("-")[0] for id_, index in many.items())
    assert max(few.values()) > 45 and len(choose(CLIPS, "all", 0.0, 0)) == 80


def test_held_out_clips_are_those_of_training() -> None:
    chosen = choose(CLIPS, "held_out", 30.0, 0)
    assert sorted(chosen.values()) == split(CLIPS, 30.0)[1]
    with pytest.raises(UserError, match="no clip is held out: raise --validation_percent"):
        choose(CLIPS, "held_out", 0.0, 0)


def test_excerpts_are_the_start_of_clips(tmp_path: Path) -> None:
    source, folder = fakes.source(tmp_path / "in", speech=2, sound=1), Folder(tmp_path / "out")
    chosen = choose(source.clips, "all", 0.0, 0)
    references = gather(source, chosen, 0.105, folder)
    assert [r.id for r in references] == ["speech-000", "speech-001", "sound-000"]
    for r in references:
        wave, _ = soundfile.read(tmp_path / "in" / r.clip.path, dtype="float32")
        kept, rate = soundfile.read(folder.wave(r.id), dtype="float32")
        assert rate == 32_000 and np.array_equal(kept, wave[:3_360])
        assert r.seconds == len(kept) / 32_000
    texts = {r.clip.path: r.clip.text for r in references}
    assert texts == {"speech/0.wav": "text 0", "speech/1.wav": "", "sound/0.wav": ""}
    assert read_references(folder) == {r.id: r for r in references}
    row = read_rows(folder.clips)[2]
    assert row == {"id": "sound-000", "seconds": 0.1, "path": "sound/0.wav", "domain": "sound"}


def test_what_is_there_is_not_read_again(tmp_path: Path) -> None:
    source, folder = fakes.source(tmp_path / "in", speech=3), Folder(tmp_path / "out")
    first = gather(source, choose(source.clips, "all", 0.0, 1), 10.0, folder)
    Path(source[choose(source.clips, "all", 0.0, 1)["speech-000"]].audio).unlink()
    more = gather(source, choose(source.clips, "all", 0.0, 3), 10.0, folder)
    assert len(more) == 3 and more[0] == first[0]
    again = gather(source, choose(source.clips, "all", 0.0, 1), 10.0, folder)
    assert again == first and len(read_references(folder)) == 3


def test_other_clips_in_the_folder_are_noticed(tmp_path: Path) -> None:
    source, folder = fakes.source(tmp_path / "in", speech=3), Folder(tmp_path / "out")
    gather(source, {"speech-000": 0}, 10.0, folder)
    with pytest.raises(UserError, match=r"clips.jsonl: lists other clips; give --output a new"):
        gather(source, {"speech-000": 1}, 10.0, folder)


def test_unreadable_clips_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, folder = fakes.source(tmp_path / "in", sound=2), Folder(tmp_path / "out")
    Path(source[0].audio).write_text("text")
    with caplog.at_level(logging.WARNING):
        found = gather(source, {"sound-000": 0, "sound-001": 1}, 10.0, folder)
    assert [r.id for r in found] == ["sound-001"]
    assert "unreadable clip, left out: sound/0.wav" in caplog.text
    with pytest.raises(UserError, match="none of the clips can be read"):
        gather(FileSource(source.clips[:1]), {"sound-007": 0}, 10.0, folder)
