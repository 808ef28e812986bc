import dataclasses
import json
import os
import pickle
import tracemalloc
from pathlib import Path

import pytest
import soundfile

from gac_jax.data.sources import (
    CLIP_FIELDS,
    DOMAINS,
    Clip,
    ClipTable,
    clip_from,
    column,
    open_source,
)
from gac_jax.errors import UserError
from tests import assets


def test_folder_lists_audio_below_it_by_name(tmp_path, write_clip):
    for name in ("b/two.flac", "a/Music/one.wav", "speech.ogg", "a/plain.WAV"):
        write_clip(name)
    (tmp_path / "notes.txt").write_text("no audio")
    source = open_source(str(tmp_path))
    assert [(clip.path, clip.domain) for clip in source.clips] == [
        ("a/Music/one.wav", "music"),
        ("a/plain.WAV", "other"),
        ("b/two.flac", "other"),
        ("speech.ogg", "speech"),
    ]
    with source[0].open() as file:
        assert file.frames == 6_400


def test_listing_opens_no_file(tmp_path):
    (tmp_path / "broken.wav").write_text("not audio")
    assert len(open_source(str(tmp_path))) == 1


def test_manifest_fields_and_types(tmp_path, write_clip):
    write_clip("sub/x.wav")
    row = dict(path="sub/x.wav", domain="speech", text="Hi, you", speaker="s", native_sr=16000)
    row |= dict(bw_hz=7800.5, dur_s=0.2, label="", extra="ignored")
    expected = Clip("sub/x.wav", "speech", text="Hi, you", speaker="s", native_sr=16000)
    expected = dataclasses.replace(expected, bw_hz=7800.5, dur_s=0.2)
    table = "\n".join([",".join(row), ",".join(f'"{value}"' for value in row.values())])
    (tmp_path / "m.csv").write_text(table)
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n")
    for name in ("m.csv", "m.jsonl"):
        clip = open_source(str(tmp_path / name))[0]
        assert {field: getattr(clip, field) for field in CLIP_FIELDS} == {
            field: getattr(expected, field) for field in CLIP_FIELDS
        }
        with clip.open() as file:  # paths are relative to the manifest
            assert file.samplerate == 32_000


def test_manifest_saved_by_a_spreadsheet_reads(tmp_path):
    table = 'path,domain,text\r\na.wav,speech,"One,\r\ntwo"\r\nb.wav,sound,\r\n'
    (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbf" + table.encode())
    clips = open_source(str(tmp_path / "m.csv")).clips
    assert [(clip.path, clip.text) for clip in clips] == [("a.wav", "One,\r\ntwo"), ("b.wav", "")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "file,domain\nx.wav,speech", "line 2: column 'path'"),
        ("m.csv", "path\nx.wav", "line 2: column 'domain'"),
        ("m.csv", "path,domain\nx.wav,voice", "line 2: domain 'voice' is none of speech"),
        ("m.csv", "path,domain,dur_s\nx.wav,speech,long", "line 2: .*'long'"),
        ("m.csv", "path,domain\n", "lists no clips"),
        ("m.jsonl", '{"path": "x.wav", "domain": "speech"}\n{"path"', "line 2: not a JSON object"),
        ("m.jsonl", '{"path": "x.wav", "domain": "speech"}\n[1]', "line 2: not a JSON object"),
        ("m.jsonl", '{"path": "x.wav", "domain": "sound", "dur_s": [1]}', "line 1: .*'list'"),
        ("m.csv", "path,domain,native_sr\nx.wav,speech,99999999999999999999", "line 2: .*too "),
        ("m.csv", "path,domain\nx.wav," + "x" * 200_000, "after line 1: field larger than"),
        ("m.csv", b"path,domain\n\xff\xfe.wav,speech", "UTF-8"),
        ("m.txt", "path,domain\nx.wav,speech", "ends in .csv or .jsonl"),
    ],
)
def test_bad_manifest_is_named_with_its_line(tmp_path, name, text, message):
    manifest = tmp_path / name
    manifest.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        open_source(str(manifest))
    assert str(manifest) in str(caught.value)


def test_folder_without_audio_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no audio")
    with pytest.raises(UserError, match="no audio files"):
        open_source(str(tmp_path))


def test_missing_root_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder or manifest"):
        open_source(str(tmp_path / "nowhere"))


def test_clip_tells_a_missing_file_from_one_that_is_no_audio(tmp_path):
    with pytest.raises(FileNotFoundError):
        Clip("x.wav", "speech", audio=str(tmp_path / "x.wav")).open()
    (tmp_path / "y.wav").write_text("not audio")
    with pytest.raises(soundfile.LibsndfileError, match="not recognised"):
        Clip("y.wav", "speech", audio=str(tmp_path / "y.wav")).open()


def test_clip_opens_encoded_bytes(write_clip):
    encoded = write_clip("x.flac").read_bytes()
    with Clip("x.flac", "speech", audio=encoded).open() as file:
        assert (file.samplerate, file.frames) == (32_000, 6_400)


def test_sources_can_go_to_another_process(corpus):
    source = open_source(str(corpus))
    assert pickle.loads(pickle.dumps(source)).clips == source.clips


def test_bundled_clips_are_one_of_each_domain():
    source = open_source("")
    assert sorted(clip.domain for clip in source.clips) == ["music", "sound", "speech"]
    for clip in source.clips:
        with clip.open() as file:
            assert (file.samplerate, file.channels) == (32_000, 1)
            assert 4 * 32_000 < file.frames < 10 * 32_000


def test_bundled_clips_are_small_and_licensed():
    folder = Path(open_source("")[0].audio).parent
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    licences = (folder / "LICENSES.md").read_text(encoding="utf-8")
    assert all(f"`{clip.path}`" in licences for clip in open_source("").clips)


def test_real_manifest_reads():
    source = open_source(str(assets.corpus()))
    assert len(source) > 1_000
    assert {clip.domain for clip in source.clips} <= set(DOMAINS)
    with source[0].open() as file:
        assert file.frames / file.samplerate == pytest.approx(source[0].dur_s, abs=0.1)


ROWS = [
    {"path": "a.wav", "domain": "speech", "speaker": 7, "dur_s": "1.5", "native_sr": 8000},
    {"path": "b.wav", "domain": "music", "text": None, "label": "", "bw_hz": 0},
    {"path": "c.wav", "domain": "speech", "speaker": "7", "extra": 1},
]


def test_table_gives_the_clips_of_its_rows() -> None:
    clips = ClipTable.of_rows(enumerate(ROWS), "in")
    expected = [
        dataclasses.replace(clip_from(row), audio=os.path.join("in", row["path"])) for row in ROWS
    ]
    assert expected[0] == Clip(
        "a.wav", "speech", speaker="7", dur_s=1.5, native_sr=8000, audio="in/a.wav"
    )
    assert list(clips) == expected and clips[1:] == expected[1:] and clips[-1] == expected[-1]
    with pytest.raises(IndexError):
        clips[3]
    for name in CLIP_FIELDS:
        assert list(column(clips, name)) == column(expected, name)
    assert clips == ClipTable.of_rows(enumerate(ROWS), "in")
    assert clips != ClipTable.of_rows(enumerate(ROWS)) and clips != ClipTable.of_rows([], "in")


def test_columns_left_out_are_unknown() -> None:
    clips = ClipTable({"path": ["a", "b"], "dur_s": [1, 2]})
    assert clips[1] == Clip("b", "", dur_s=2.0) and type(clips[1].dur_s) is float


def test_a_large_table_is_small_in_memory() -> None:
    """What a million clips take apart from their names: 8 bytes for each of 12 fields."""
    count = 5_000
    rows = (
        {"path": "p", "domain": "speech", "speaker": f"voice {i % 10}", "dur_s": f"{i}.5"}
        for i in range(count)
    )
    tracemalloc.start()
    clips = ClipTable.of_rows(enumerate(rows))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(clips) == count and size < 130 * count


def test_manifest_is_read_again_only_when_it_changes(tmp_path, monkeypatch):
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,domain\na.wav,speech\n")
    first = open_source(str(manifest)).clips
    monkeypatch.setattr(ClipTable, "of_rows", lambda *_: pytest.fail("reads again"))
    assert open_source(str(manifest)).clips is first
    monkeypatch.undo()
    manifest.write_text("path,domain\na.wav,speech\nb.wav,music\n")
    assert [clip.path for clip in open_source(str(manifest)).clips] == ["a.wav", "b.wav"]


def test_roots_can_be_joined(tmp_path, corpus, write_clip):
    write_clip("more/music/x.flac", 0.3)
    write_clip("more/y.wav")
    source = open_source(f"{tmp_path / 'more'}, {corpus},{tmp_path / 'more'}")
    manifest, folder = open_source(str(corpus)), open_source(str(tmp_path / "more"))
    parts = [*folder.clips, *manifest.clips, *folder.clips]
    assert len(source) == len(parts) == 27
    assert [source[i] for i in range(27)] == parts
    for name in CLIP_FIELDS:
        assert list(column(source.clips, name)) == column(parts, name)
    with source[26].open() as file:
        assert file.frames == 6_400
    assert pickle.loads(pickle.dumps(source))[24] == source[24]


def test_a_name_with_a_comma_is_one_root(write_clip):
    folder = write_clip("rain, wind/a.wav").parent
    assert [clip.path for clip in open_source(str(folder)).clips] == ["a.wav"]


@pytest.mark.parametrize("root", [",", "{},", ",{}", "{},,{}"])
def test_nothing_beside_a_comma_is_refused(corpus, root):
    with pytest.raises(UserError, match="names nothing before or after a comma"):
        open_source(root.replace("{}", str(corpus)))


def test_missing_part_of_several_roots_is_named(corpus, tmp_path):
    with pytest.raises(UserError, match="^nowhere: no such folder or manifest"):
        open_source(f"{corpus},nowhere")
