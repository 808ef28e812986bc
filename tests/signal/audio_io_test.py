import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gac_jax.errors import UserError
from gac_jax.signal import audio_io
from gac_jax.signal.audio_io import AudioReader, AudioWriter, read_audio, resample, to_mono_32k

FORMATS = ["wav", "flac", "ogg", "opus", "mp3"]
RATES = [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000, 192_000]


def tones(sample_rate: int, seconds: float) -> np.ndarray:
    time = np.arange(int(seconds * sample_rate)) / sample_rate
    return (0.3 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 1234 * time)).astype(
        np.float32
    )


def noise(rng: np.random.Generator, samples: int) -> np.ndarray:
    return (0.1 * rng.standard_normal(samples)).astype(np.float32)


def write(path: Path, wave: np.ndarray, sample_rate: int, **options: object) -> Path:
    if path.suffix == ".opus":
        options |= {"format": "OGG", "subtype": "OPUS"}
    soundfile.write(path, wave, sample_rate, **options)
    return path


def snr_db(wave: np.ndarray, reference: np.ndarray) -> float:
    return 10 * np.log10(np.mean(reference**2) / np.mean((wave - reference) ** 2))


# Reading


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", RATES)
def test_any_rate_and_channel_count_becomes_mono_32k(
    tmp_path: Path, rate: int, channels: int
) -> None:
    weights = np.linspace(0.5, 1.5, channels) if channels > 1 else np.ones(1)  # 1 on average
    path = write(tmp_path / "a.wav", tones(rate, 0.5)[:, None] * weights, rate)
    reader = AudioReader(path)
    assert reader.source_rate == rate
    np.testing.assert_allclose(reader.duration, 0.5, atol=1 / rate)
    wave = read_audio(path)
    assert wave.dtype == np.float32 and wave.ndim == 1
    assert len(wave) == round(int(0.5 * rate) * 32_000 / rate)
    inner = slice(800, 15_200)
    np.testing.assert_allclose(wave[inner], tones(32_000, 0.5)[inner], atol=1e-3)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("extension", FORMATS)
def test_any_format_is_read_at_its_place_in_time(
    tmp_path: Path, extension: str, channels: int
) -> None:
    stereo = np.repeat(tones(48_000, 1.0)[:, None], channels, axis=1)
    path = write(tmp_path / f"ä b.{extension}", stereo, 48_000)
    wave = read_audio(str(path))
    assert len(wave) == 32_000
    assert snr_db(wave[2000:-2000], tones(32_000, 1.0)[2000:-2000]) > 25


@pytest.mark.parametrize("extension", FORMATS)
def test_a_stream_equals_the_whole_file(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, extension: str
) -> None:
    # Soft, then loud: an MP3 of variable bit rate then keeps bits of a frame in the frame before.
    wave = np.concatenate([1e-4 * noise(rng, 48_000), noise(rng, 96_000)])
    options = {"bitrate_mode": "VARIABLE", "compression_level": 0.2} if extension == "mp3" else {}
    path = write(tmp_path / f"a.{extension}", wave, 48_000, **options)
    monkeypatch.setattr(audio_io, "_BLOCK", 4096)
    reader = AudioReader(path)
    blocks = list(reader)
    assert len(blocks) > 30
    whole = resample(soundfile.read(path, dtype="float32")[0], 48_000, 32_000)
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate(list(reader)), np.concatenate(blocks))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", np.tile(tones(48_000, 1.0), 60), 48_000)
    reader = AudioReader(path)
    tracemalloc.start()
    samples = sum(len(block) for block in reader)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert samples == 60 * 32_000 and peak < 2e6  # all of it takes 7.7 MB


def test_a_wav_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "piped.wav", tones(32_000, 0.5), 32_000)
    header = bytearray(path.read_bytes())
    start = header.find(b"data") + 4
    header[start : start + 4] = header[4:8] = b"\xff\xff\xff\xff"
    path.write_bytes(header)
    assert len(read_audio(path)) == 16_000


def test_a_flac_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "piped.flac", tones(32_000, 0.5), 32_000)
    header = bytearray(path.read_bytes())
    header[21] &= 0xF0  # the 36 bits of STREAMINFO that count samples
    header[22:26] = b"\0\0\0\0"
    path.write_bytes(header)
    assert AudioReader(path).duration == math.inf
    assert len(read_audio(path)) == 16_000


def test_an_mp3_without_a_length_is_read_to_its_end(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = write(tmp_path / "a.mp3", noise(rng, 96_000), 32_000)
    path.write_bytes(path.read_bytes()[5_000:])  # from the middle of a broadcast, say
    assert 32_000 < len(read_audio(path)) < 96_000


# Files that cannot be read


def fails(path: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_audio(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    assert all(word in message for word in words), message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    fails(tmp_path / "none.wav", "no such file")


def test_a_folder_is_named(tmp_path: Path) -> None:
    fails(tmp_path, "is a directory", "give the path of an audio file")


@pytest.mark.parametrize("name", ["text.wav", "text.raw", "text.mp3", "text"])
@pytest.mark.parametrize("text", ["", "this is no audio\n" * 100])
def test_text_is_not_audio(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    fails(path, "no known audio format", "give WAV")


@pytest.mark.parametrize("extension", ["wav", "flac"])
def test_a_file_without_samples_is_refused(tmp_path: Path, extension: str) -> None:
    fails(write(tmp_path / f"a.{extension}", np.zeros(0), 16_000), "empty")


def test_less_than_one_sample_at_32k_is_no_audio(tmp_path: Path) -> None:
    fails(write(tmp_path / "a.wav", np.zeros(5), 192_000), "holds no audio")


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("extension", FORMATS)
def test_a_file_cut_short_is_refused(
    tmp_path: Path, rng: np.random.Generator, extension: str, kept: float
) -> None:
    path = write(tmp_path / f"a.{extension}", noise(rng, 480_000), 48_000)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    fails(path)


def test_an_mp3_cut_short_is_refused_behind_an_id3_tag_too(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = write(tmp_path / "a.mp3", noise(rng, 96_000), 48_000)
    picture = bytes(50_000)
    tag = b"ID3\3\0\0" + bytes([0, 50_010 >> 14, 50_010 >> 7 & 127, 50_010 & 127])
    tag += b"PRIV" + len(picture).to_bytes(4, "big") + b"\0\0" + picture
    data = tag + path.read_bytes()
    path.write_bytes(data)
    assert len(read_audio(path)) == 64_000
    path.write_bytes(data[:-5000])
    fails(path, "cut short")


def test_a_damaged_flac_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write(tmp_path / "a.flac", noise(rng, 96_000), 48_000)
    data = bytearray(path.read_bytes())
    data[20_000:40_000] = bytes(20_000)
    path.write_bytes(data)
    fails(path, "damaged")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_numbers_are_placed(tmp_path: Path, value: float) -> None:
    wave = tones(16_000, 10.0)
    wave[140_000] = value
    path = write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    fails(path, "NaN or infinite", "8.2 s")  # the start of the block that holds it


# Writing


@pytest.mark.parametrize("extension", [*FORMATS, "WAV"])
def test_what_is_written_reads_back(tmp_path: Path, extension: str) -> None:
    path, wave = tmp_path / f"a.{extension}", tones(32_000, 2.0)
    with AudioWriter(path) as writer:
        for block in np.array_split(wave, 7):
            writer.write(block)
        assert not path.exists()
    assert writer.clipped == 0 and [file.name for file in tmp_path.iterdir()] == [path.name]
    info = soundfile.info(path)
    assert info.channels == 1 and info.samplerate == (48_000 if extension == "opus" else 32_000)
    restored = read_audio(path)
    assert len(restored) == len(wave)
    if extension in ("wav", "WAV", "flac"):
        np.testing.assert_allclose(restored, wave, atol=2**-15)
    assert snr_db(restored[2000:-2000], wave[2000:-2000]) > 25


def test_samples_beyond_full_scale_are_clipped_and_counted(tmp_path: Path) -> None:
    with AudioWriter(tmp_path / "a.wav") as writer:
        writer.write(np.array([0.5, 1.5, -3.0, 1.0, -1.0], np.float32))
        writer.write(np.array([1.0001], np.float32))
    assert writer.clipped == 3
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), [0.5, 1, -1, 1, -1, 1], atol=2**-15)


@pytest.mark.parametrize("extension", ["ogg", "opus", "mp3"])
def test_lossy_formats_get_clipped_samples_too(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    with AudioWriter(path) as writer:
        writer.write(10 * tones(32_000, 1.0))
    assert 20_000 < writer.clipped < 48_000  # Opus counts at 48 kHz
    # A lossy codec overshoots at corners and, in Opus, at the very end; unclipped this is near 5.
    assert np.quantile(np.abs(soundfile.read(path, dtype="float32")[0]), 0.99) < 1.5


def test_one_block_may_be_long(tmp_path: Path) -> None:
    with AudioWriter(tmp_path / "a.ogg") as writer:
        writer.write(np.zeros(3_000_000, np.float32))  # would overflow the stack of libsndfile
    assert soundfile.info(tmp_path / "a.ogg").frames == 3_000_000


def test_an_error_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), AudioWriter(path) as writer:
        writer.write(tones(32_000, 1.0))
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finite"), AudioWriter(tmp_path / "a.wav") as writer:
        writer.write(np.array([0.0, np.nan], np.float32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.m4a", ".wav, .flac, .ogg, .opus, .mp3"),
        ("a", ".wav"),
        ("none/a.wav", "a folder that exists"),
        ("folder.wav", "give a file"),
    ],
)
def test_a_name_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(UserError) as caught:
        AudioWriter(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and words in str(caught.value)


def test_a_folder_that_vanishes_is_reported(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    writer = AudioWriter(tmp_path / "gone" / "a.wav")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UserError, match="cannot write"), writer:
        pass


def test_a_name_taken_by_a_folder_meanwhile_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with pytest.raises(UserError, match="cannot write"), AudioWriter(path) as writer:
        writer.write(tones(32_000, 0.1))
        path.mkdir()
    assert [file.name for file in tmp_path.iterdir()] == ["a.wav"]


# Arrays


@pytest.mark.parametrize("rate", RATES)
def test_arrays_become_mono_32k(rate: int) -> None:
    wave = to_mono_32k(np.stack([0.5 * tones(rate, 0.5), 1.5 * tones(rate, 0.5)]), rate)
    assert wave.dtype == np.float32
    inner = slice(800, 15_200)
    np.testing.assert_allclose(wave[inner], tones(32_000, 0.5)[inner], atol=1e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_array_in_the_codecs_form_keeps_its_values(dtype: type) -> None:
    wave = tones(32_000, 0.1).astype(dtype)
    converted = to_mono_32k(wave, 32_000)
    assert converted.dtype == np.float32
    np.testing.assert_array_equal(converted, wave.astype(np.float32))
    np.testing.assert_array_equal(to_mono_32k(wave.tolist(), 32_000), converted)


@pytest.mark.parametrize(
    ("wave", "rate", "words"),
    [
        (np.zeros(100, np.int16), 32_000, "not int16"),
        (np.zeros((100, 2)), 32_000, r"\(channels, samples\), not \(100, 2\)"),
        (np.zeros((1, 2, 100)), 32_000, "not \\(1, 2, 100\\)"),
        (np.float32(0.0), 32_000, "not \\(\\)"),
        (np.zeros(0), 32_000, "no samples"),
        (np.zeros((0, 9)), 32_000, "no samples"),
        (np.zeros(5), 192_000, "no samples"),
        (np.array([0.0, np.nan]), 32_000, "NaN"),
        (np.array([np.inf, 0.0]), 32_000, "NaN"),
        (np.zeros(9), 0, "a finite number from 1,000 Hz on, not 0"),
        (np.zeros(9), 0.975, "a finite number from 1,000 Hz on, not 0.975"),
        (np.zeros(9), math.nan, "a finite number from 1,000 Hz on, not nan"),
        (np.zeros(9), math.inf, "a finite number from 1,000 Hz on, not inf"),
    ],
)
def test_arrays_that_are_no_audio_are_refused(wave: np.ndarray, rate: float, words: str) -> None:
    with pytest.raises(UserError, match=words):
        to_mono_32k(wave, rate)


def test_a_file_of_a_rate_that_no_audio_has_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tones(32_000, 0.1), 999)
    with pytest.raises(UserError, match=r"a\.wav: the sample rate must be .* not 999"):
        AudioReader(tmp_path / "a.wav")


def test_resample_keeps_duration(rng: np.random.Generator) -> None:
    assert len(resample(noise(rng, 44_100), 44_100, 32_000)) == 32_000
    assert resample(noise(rng, 100), 16_000, 32_000).shape == (200,)
