from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gac_jax import codec, reconstruction, spectrogram
from gac_jax.bitstream import Tokens
from gac_jax.codec import Codec
from gac_jax.jobs import Job, plan
from gac_jax.rates import SAMPLE_RATE
from gac_jax.reconstruction import Reconstruction, groups, read_gac, write_wave
from gac_jax.report import Row

SAMPLING = {"seed": 0, "steps": 1, "solver": "euler", "guidance": 1.0}


@pytest.fixture(scope="module")
def single(tiny_model: Path) -> Codec:
    return codec.load(tiny_model)


@pytest.fixture(scope="module")
def triple(tiny_model: Path) -> Codec:
    return codec.load(tiny_model, batch_size=3)


@pytest.fixture
def clips(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Clips of 1.0, 1.5, 2.0 and 2.5 s, all of one window shape."""
    for index, samples in enumerate((32_000, 48_000, 64_000, 80_000)):
        soundfile.write(tmp_path / f"{index}.wav", 0.1 * rng.standard_normal(samples), SAMPLE_RATE)
    return tmp_path


def job(name: str) -> Job:
    return Job(Path(name), Path(name), Path("out", name))


def run(
    codec: Codec,
    folder: Path,
    output: str,
    mode: str = "roundtrip",
    kbps: float | None = 0.275,
) -> tuple[list[Row], dict[str, str]]:
    work = plan(str(folder), str(folder / output), mode, True)
    return Reconstruction(codec, mode, kbps, SAMPLING).run(work)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rows_tell_what_is_in_the_files(single: Codec, clips: Path) -> None:
    rows, failures = run(single, clips, "out")
    assert failures == {}
    assert [(row.file, row.seconds) for row in rows] == [
        ("0.wav", 1.0), ("1.wav", 1.5), ("2.wav", 2.0), ("3.wav", 2.5),
    ]  # fmt: skip
    for row, samples in zip(rows, (32_000, 48_000, 64_000, 80_000), strict=True):
        files = [clips / "out" / row.file.replace(".wav", s) for s in (".gac", ".wav", ".png")]
        assert row.bytes == files[0].stat().st_size
        assert row.kbps == row.bytes * 8 / row.seconds / 1000
        info = soundfile.info(files[1])
        assert (info.frames, info.samplerate, info.subtype) == (samples, SAMPLE_RATE, "PCM_16")
        assert files[2].read_bytes().startswith(b"\x89PNG")
        assert row.encode_rtf is not None and row.encode_rtf > 0
        assert row.decode_rtf is not None and row.decode_rtf > 0
    assert len(contents(clips / "out")) == 12


def test_files_are_those_of_the_python_interface(single: Codec, clips: Path) -> None:
    run(single, clips, "out", kbps=0.475)
    tokens = single.encode_file(clips / "1.wav", 0.475)
    assert Tokens.from_bytes(read_gac(clips / "out" / "1.gac")) == tokens
    written, _ = soundfile.read(clips / "out" / "1.wav", dtype="float32")
    decoded = np.clip(single.decode(tokens, **SAMPLING), -1, 1)
    np.testing.assert_allclose(written, decoded, atol=2**-15)


def test_batches_change_nothing(triple: Codec, clips: Path) -> None:
    run(triple, clips, "together")
    for name in ("0.wav", "3.wav"):
        work = plan(str(clips / name), str(clips / "alone"), "roundtrip", False)
        Reconstruction(triple, "roundtrip", 0.275, SAMPLING).run(work)
    alone, together = contents(clips / "alone"), contents(clips / "together")
    assert alone == {name: together[name] for name in alone}


def test_pictures_show_what_was_read_and_what_was_written(
    single: Codec, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[np.ndarray, np.ndarray]] = []

    def png(original: np.ndarray, reconstruction: np.ndarray, kbps: float, seconds: float) -> bytes:
        assert (kbps, seconds) == (0.275, original.size / SAMPLE_RATE)
        shown.append((original, reconstruction))
        return b""

    monkeypatch.setattr(spectrogram, "png", png)
    run(single, clips, "out")
    for index, pair in enumerate(shown):
        for wave, folder in zip(pair, (clips, clips / "out"), strict=True):
            stored, _ = soundfile.read(folder / f"{index}.wav")
            np.testing.assert_allclose(np.clip(wave, -1, 1), stored, atol=2**-15)


def test_rows_keep_the_order_of_the_files(
    triple: Codec, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {"0.wav": 2, "1.wav": 0, "2.wav": 3, "3.wav": 1}  # done as 1, 3, 0, 2
    monkeypatch.setattr(Reconstruction, "_shape", lambda _, job: shapes[job.name.name])
    rows, _ = run(triple, clips, "out", mode="encode")
    assert [row.file for row in rows] == list(shapes)


def test_one_bad_file_does_not_spoil_its_batch(triple: Codec, clips: Path) -> None:
    (clips / "1.wav").write_text("this is a letter, not audio")
    rows, failures = run(triple, clips, "out", mode="encode")
    assert [row.file for row in rows] == ["0.wav", "2.wav", "3.wav"]
    assert list(failures) == [str(clips / "1.wav")]
    assert "audio" in failures[str(clips / "1.wav")]
    assert sorted(contents(clips / "out")) == ["0.gac", "2.gac", "3.gac"]


def test_a_batch_that_breaks_while_it_is_computed_is_done_one_by_one(
    triple: Codec, clips: Path
) -> None:
    wave, _ = soundfile.read(clips / "2.wav")
    wave[60_000] = np.nan
    soundfile.write(clips / "2.wav", wave, SAMPLE_RATE, subtype="FLOAT")
    rows, failures = run(triple, clips, "out", mode="encode")
    assert [row.file for row in rows] == ["0.wav", "1.wav", "3.wav"]
    assert "2.wav holds NaN" in failures[str(clips / "2.wav")]


def test_errors_name_the_file(single: Codec, clips: Path) -> None:
    run(single, clips, "out", mode="encode")
    good = (clips / "out" / "0.gac").read_bytes()
    other = Tokens.from_bytes(read_gac(clips / "out" / "1.gac"))
    (clips / "out" / "0.gac").write_bytes(good[:-1])
    stranger = Tokens(other.codes, other.num_samples, other.levels, b"stranger")
    (clips / "out" / "1.gac").write_bytes(stranger.to_bytes())
    rows, failures = run(single, clips / "out", "wav", mode="decode")
    assert [row.file for row in rows] == ["2.gac", "3.gac"]
    first, second = failures.values()
    assert first.startswith(f"{clips}/out/0.gac: truncated")
    assert second.startswith(f"{clips}/out/1.gac: these tokens were made by model ")
    assert sorted(contents(clips / "out" / "wav")) == ["2.wav", "3.wav"]


def test_decoding_at_a_lower_rate_uses_part_of_the_file(single: Codec, clips: Path) -> None:
    run(single, clips, "high", mode="encode", kbps=0.975)
    run(single, clips, "low", mode="encode", kbps=0.175)
    rows, _ = run(single, clips / "high", "wav", mode="decode", kbps=0.175)
    assert rows[0].bytes == (clips / "low" / "0.gac").stat().st_size
    run(single, clips / "low", "wav", mode="decode", kbps=None)
    assert contents(clips / "high" / "wav") == contents(clips / "low" / "wav")
    _, failures = run(single, clips / "low", "wav", mode="decode", kbps=0.275)
    assert "cannot keep 1 residual codebooks" in failures[str(clips / "low" / "0.gac")]


def test_groups_are_clips_of_one_window_shape() -> None:
    shapes = {"a": 32, "b": 0, "c": 64, "d": 32, "e": 32, "f": 64, "g": 0}
    jobs = [job(name) for name in shapes]

    def names(size: int) -> list[str]:
        found = groups(jobs, lambda job: shapes[job.name.name], size)
        return ["".join(str(job.name) for job in group) for group in found]

    assert names(1) == list("abcdefg")
    assert names(2) == ["b", "g", "ad", "e", "cf"]
    assert names(9) == ["b", "g", "ade", "cf"]


def test_a_film_is_not_read_to_its_end(tmp_path: Path) -> None:
    film = tmp_path / "film.gac"
    with film.open("wb") as file:
        file.truncate(2**40)  # more than memory, in no blocks on the disk
    assert read_gac(film) == bytes(3)


def test_only_the_start_of_long_audio_is_remembered(tmp_path: Path) -> None:
    seconds = spectrogram.SHOWN_SECONDS + 3
    blocks = (np.full(SAMPLE_RATE, second / 100, np.float32) for second in range(seconds))
    decoded = write_wave(tmp_path / "new" / "long.wav", blocks)
    assert soundfile.info(tmp_path / "new" / "long.wav").frames == seconds * SAMPLE_RATE
    assert decoded.head.size == spectrogram.SHOWN_SECONDS * SAMPLE_RATE
    assert decoded.head[-1] == np.float32((spectrogram.SHOWN_SECONDS - 1) / 100)


def test_clipping_is_counted(tmp_path: Path) -> None:
    wave = np.array([0.5, 1.5, -2.0, 1.0], np.float32)
    assert write_wave(tmp_path / "loud.wav", [wave]).clipped == 2


def test_what_breaks_while_it_is_decoded_leaves_nothing(tmp_path: Path) -> None:
    def blocks() -> Iterator[np.ndarray]:
        yield np.zeros(100, np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_wave(tmp_path / "half.wav", blocks())
    assert list(tmp_path.iterdir()) == []


def test_the_bar_ends_full_also_after_failures(
    single: Codec, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bar(reconstruction.tqdm):
        ends: list[float] = []

        def close(self) -> None:
            Bar.ends.append(self.n / self.total)
            super().close()

    monkeypatch.setattr(reconstruction, "tqdm", Bar)
    (clips / "3.wav").write_text("text")
    run(single, clips, "out")
    assert set(Bar.ends) == {1.0}
