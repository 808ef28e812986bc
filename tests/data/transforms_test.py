import dataclasses
import logging
from importlib import resources

import numpy as np
import pytest
import soundfile

from gac_jax.data import transforms
from gac_jax.data.sources import Clip, FileSource
from gac_jax.data.transforms import (
    QUIET_RMS,
    OtherRecordingError,
    RandomCrop,
    read_coded_crop,
    read_crop,
)
from gac_jax.rates import FRAME_SAMPLES
from gac_jax.signal.audio_io import read_audio, resample
from gac_jax.signal.loudness import normalise
from tests.token_sets import codes_of, outcome_of, write_set

ROUNDING = 2**-16 + 1e-6  # half a step of 16 bits, and what float32 leaves of the resampler
EXAMPLES = resources.files("gac_jax") / "examples"


def clip_of(path, domain="sound"):
    return Clip(path.name, domain, audio=str(path))


def crop_of(path, num_samples, gain_jitter_db=0.0, seed=0):
    crop = RandomCrop(FileSource([clip_of(path)]), num_samples, gain_jitter_db)
    return crop.random_map(0, np.random.default_rng(seed))


def text_of(clip, num_samples, targets, seed=0):
    """What is asked about a crop and must be answered, () if nothing."""
    crop = RandomCrop(FileSource([clip]), num_samples, targets=targets)
    example = crop.random_map(0, np.random.default_rng(seed))
    start, stop = example["answer_start"], example["text_length"]
    parts = (example["text"][:start], example["text"][start:stop])
    return tuple(targets.tokenizer.decode(part) for part in parts) if stop else ()


def rms_db(wave):
    return 10 * np.log10(np.mean(np.square(wave)))


def test_example_is_complete_and_typed(write_clip):
    path = write_clip("a.wav", seconds=0.2)
    example = RandomCrop(FileSource([clip_of(path)] * 3), 1_000).random_map(
        2, np.random.default_rng(0)
    )
    assert {name: (value.shape, value.dtype.name) for name, value in example.items()} == {
        "wave": ((1_000,), "float32"),
        "num_samples": ((), "int32"),
        "domain": ((), "int32"),
        "clip": ((), "int32"),
    }
    assert (example["num_samples"], example["domain"], example["clip"]) == (1_000, 1, 2)


def test_text_leaves_the_rest_of_an_example_alone(write_clip, targets):
    clip = dataclasses.replace(clip_of(write_clip("a.wav", 0.2)), text="RAIN", label="a dog")
    for num_samples in (1_000, 10_000):  # a piece, and the whole
        with_text, without = (
            RandomCrop(FileSource([clip]), num_samples, 6.0, each).random_map(
                0, np.random.default_rng(1)
            )
            for each in (targets, None)
        )
        assert with_text.keys() - without.keys() == {"text", "text_length", "answer_start"}
        for name, value in without.items():
            np.testing.assert_array_equal(with_text[name], value)


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_transcript_belongs_to_whole_clips_only(write_clip, targets, rate):
    path = write_clip("a.wav", 0.25, rate)
    clip = dataclasses.replace(clip_of(path, "speech"), text="THE RAIN")
    spoken = ("\nTranscribe the speech.\nassistant\n", "the rain")
    assert text_of(clip, 8_000, targets) == spoken  # just as long as the crop
    assert text_of(clip, 7_990, targets) == ()
    labelled = dataclasses.replace(clip, label="a dog")
    piece = [text_of(labelled, 7_990, targets, seed)[1] for seed in range(20)]
    whole = [text_of(labelled, 8_000, targets, seed)[1] for seed in range(20)]
    assert set(piece) == {"a dog"} and set(whole) == {"a dog", "the rain"}


def test_clip_that_cannot_be_read_says_nothing(tmp_path, targets):
    clip = Clip("gone", "sound", text="rain", label="rain", audio=str(tmp_path / "gone.wav"))
    assert text_of(clip, 1_000, targets) == ()


def test_short_clip_comes_first_and_zeros_follow(write_clip):
    path = write_clip("a.wav", seconds=0.1)
    example = crop_of(path, 5_000)
    audio, _ = soundfile.read(path, dtype="float32")
    assert example["num_samples"] == 3_200
    np.testing.assert_allclose(example["wave"][:3_200], audio / np.std(audio), rtol=1e-2)
    assert not example["wave"][3_200:].any()


def test_crop_is_of_unit_rms_within_the_jitter(write_clip):
    path = write_clip("a.wav", seconds=0.5)
    assert rms_db(crop_of(path, 1_000)["wave"]) == pytest.approx(0, abs=1e-3)
    levels = [rms_db(crop_of(path, 1_000, 6.0, seed)["wave"]) for seed in range(50)]
    assert -6 < min(levels) < -5 and 5 < max(levels) < 6


def test_padding_does_not_count_for_the_level(write_clip):
    example = crop_of(write_clip("a.wav", seconds=0.1), 32_000)
    assert rms_db(example["wave"][:3_200]) == pytest.approx(0, abs=1e-3)


def test_pause_stays_quieter_than_speech(tmp_path):
    level = 4 / 2**15
    soundfile.write(tmp_path / "quiet.wav", np.full(4_000, level), 32_000)
    below = 20 * np.log10(level / QUIET_RMS)
    wave = crop_of(tmp_path / "quiet.wav", 1_000)["wave"]
    assert rms_db(wave) == pytest.approx(below, abs=0.01) and below < -18


def test_digital_silence_is_audio(tmp_path):
    soundfile.write(tmp_path / "zero.wav", np.zeros(4_000), 32_000)
    example = crop_of(tmp_path / "zero.wav", 1_000)
    assert example["num_samples"] == 1_000 and not example["wave"].any()


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3"])
@pytest.mark.parametrize("rate", [48_000, 44_100, 16_000])
def test_crop_is_a_piece_of_the_whole(write_clip, suffix, rate):
    if (suffix, rate) == ("opus", 44_100):
        rate = 24_000  # Opus knows no 44.1 kHz
    clip = clip_of(write_clip(f"a.{suffix}", 1.0, rate, 2))
    whole, places = read_audio(clip.audio), set()
    for seed in range(5):
        crop = read_crop(clip, 8_000, np.random.default_rng(seed))
        place = np.correlate(whole, crop, "valid").argmax()
        np.testing.assert_allclose(crop, whole[place : place + 8_000], atol=ROUNDING)
        places.add(int(place))
    assert {place % 2 for place in places} == {0, 1}  # wherever samples of the file lie
    assert len(places) == 5


def test_speech_in_opus_is_what_it_is_in_the_whole(tmp_path):
    """After a seek its decoder would not forget that it began elsewhere, and be off by 5e-3."""
    speech, rate = soundfile.read(EXAMPLES / "speech.flac", dtype="float32")
    options = {"format": "OGG", "subtype": "OPUS", "compression_level": 0.95}
    soundfile.write(tmp_path / "a.opus", resample(speech, rate, 48_000), 48_000, **options)
    whole = read_audio(tmp_path / "a.opus")
    for seed in range(20):
        crop = read_crop(clip_of(tmp_path / "a.opus"), 16_000, np.random.default_rng(seed))
        place = np.random.default_rng(seed).integers(len(whole) - 16_000 + 1)
        np.testing.assert_allclose(crop, whole[place : place + 16_000], atol=ROUNDING)


def test_far_into_opus_is_not_decoded_from_the_start(write_clip, monkeypatch):
    clip = clip_of(write_clip("a.opus", 2.0, 48_000))
    whole, read = read_audio(clip.audio), []

    def watched(file, frames, **options):
        read.append(frames)
        return real(file, frames, **options)

    real = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", watched)
    monkeypatch.setattr(transforms, "OPUS_LEAD_SECONDS", 1.0)
    for seed in range(10):
        crop = read_crop(clip, 8_000, np.random.default_rng(seed))
        place = np.correlate(whole, crop, "valid").argmax()
        np.testing.assert_allclose(crop, whole[place : place + 8_000], atol=ROUNDING)
    assert min(read) < 14_000 < max(read) < 14_000 + 48_000


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000, 96_000])
def test_resampler_does_not_ring_at_the_ends_of_a_crop(tmp_path, rate):
    time = np.arange(2 * rate) / rate
    soundfile.write(tmp_path / "dc.wav", np.full_like(time, 0.5), rate, subtype="FLOAT")
    whole = read_audio(tmp_path / "dc.wav")
    assert np.abs(whole[:100] - 0.5).max() > 1e-2  # at the ends of the recording it does
    for seed in range(5):
        crop = read_crop(clip_of(tmp_path / "dc.wav"), 3_200, np.random.default_rng(seed))
        np.testing.assert_allclose(crop, 0.5, atol=1e-4)


def test_crop_starts_anywhere(tmp_path):
    ramp = np.arange(10_000) / 20_000
    soundfile.write(tmp_path / "ramp.wav", ramp, 32_000, subtype="FLOAT")
    clip = clip_of(tmp_path / "ramp.wav")
    rng = np.random.default_rng(0)
    starts = np.array([read_crop(clip, 2_000, rng)[0] * 20_000 for _ in range(400)])
    assert starts.min() < 200 and starts.max() > 7_800
    assert np.histogram(starts, 4, (0, 8_000))[0].min() > 70


def test_channels_are_averaged(tmp_path):
    stereo = np.stack([np.full(4_000, 0.5), np.full(4_000, -0.1)], axis=1)
    soundfile.write(tmp_path / "s.wav", stereo, 32_000, subtype="FLOAT")
    crop = read_crop(clip_of(tmp_path / "s.wav"), 1_000, np.random.default_rng(0))
    np.testing.assert_allclose(crop, 0.2, atol=ROUNDING)


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_length_of_a_short_clip_is_that_of_the_whole(write_clip, rate):
    path = write_clip("a.wav", 0.1234, rate)
    crop = read_crop(clip_of(path), 32_000, np.random.default_rng(0))
    np.testing.assert_allclose(crop, read_audio(path), atol=ROUNDING)


def unreadable(tmp_path, kind):
    path = tmp_path / f"{kind}.wav"
    if kind == "corrupt":
        path.write_bytes(b"RIFF" + bytes(100))
    elif kind == "empty":
        soundfile.write(path, np.zeros(0), 32_000)
    elif kind == "raw":
        path = path.with_suffix(".raw")
        path.write_bytes(bytes(100))
    elif kind == "nan":
        soundfile.write(path, np.full(2_000, np.nan), 32_000, subtype="FLOAT")
    return path


@pytest.mark.parametrize("kind", ["corrupt", "missing", "empty", "nan", "raw"])
def test_unreadable_clip_is_silence_and_named_once(tmp_path, caplog, kind):
    path = unreadable(tmp_path, kind)
    source = FileSource([Clip(f"{tmp_path.name}/{kind}", "speech", audio=str(path))])
    with caplog.at_level(logging.WARNING, logger="absl"):
        examples = [
            RandomCrop(source, 1_000).random_map(0, np.random.default_rng(seed))
            for seed in range(3)
        ]
    assert all(example["num_samples"] == 0 for example in examples)
    assert not any(example["wave"].any() for example in examples)
    assert [f"{tmp_path.name}/{kind}" in message for message in caplog.messages] == [True]


def test_damaged_record_of_a_data_set_is_silence_too(write_clip, caplog):
    class Damaged(FileSource):
        def __getitem__(self, index):
            raise RuntimeError("chunk data hash mismatch")

    source = Damaged([clip_of(write_clip("damaged record.wav", 0.2))])
    with caplog.at_level(logging.WARNING, logger="absl"):
        example = RandomCrop(source, 1_000).random_map(0, np.random.default_rng(0))
    assert example["num_samples"] == 0 and example["domain"] == 1
    assert "damaged record.wav" in caplog.text and "hash mismatch" in caplog.text


def coded(path, folder, num_samples, seed=0, **options):
    source = FileSource([clip_of(path)])
    crop = RandomCrop(source, num_samples, tokens=write_set(source, folder), **options)
    return crop.random_map(0, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("suffix", "rate"),
    [
        ("wav", 48_000),
        ("wav", 11_025),
        ("flac", 44_100),
        ("ogg", 22_050),
        ("opus", 48_000),
        ("mp3", 16_000),
    ],
)
def test_crop_and_codes_are_the_same_piece(write_clip, suffix, rate):
    clip = clip_of(write_clip(f"a.{suffix}", 1.0, rate))
    whole, tokens = read_audio(clip.audio), outcome_of(clip).tokens
    firsts = set()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        crop = read_coded_crop(clip, tokens, 5 * FRAME_SAMPLES, rng)
        first = int(crop.codes[0, 0])
        start, stop = first * FRAME_SAMPLES, (first + 5) * FRAME_SAMPLES
        np.testing.assert_array_equal(crop.codes, codes_of(13)[:, first : first + 5])
        piece = whole[start:stop]
        gain = normalise(np.ones_like(piece), tokens.levels, start)
        assert crop.wave.shape == piece.shape and not crop.whole
        np.testing.assert_allclose(crop.wave / gain, piece, atol=ROUNDING)
        firsts.add(first)
    assert len(firsts) > 3 and max(firsts) == 8  # the last crop holds the frame that ends early


def test_coded_example_is_complete_and_typed(write_clip, tmp_path):
    example = coded(write_clip("a.wav", 0.5), tmp_path / "set", 2 * FRAME_SAMPLES)
    assert {name: (value.shape, value.dtype.name) for name, value in example.items()} == {
        "wave": ((2 * FRAME_SAMPLES,), "float32"),
        "num_samples": ((), "int32"),
        "domain": ((), "int32"),
        "clip": ((), "int32"),
        "codes": ((9, 2), "int32"),
    }


def test_codes_of_a_short_clip_come_first_and_zeros_follow(write_clip, tmp_path):
    example = coded(write_clip("a.wav", 0.1), tmp_path / "set", 4 * FRAME_SAMPLES)
    assert example["num_samples"] == 3_200 and not example["wave"][3_200:].any()
    np.testing.assert_array_equal(example["codes"][:, :2], codes_of(2))
    assert not example["codes"][:, 2:].any()


def test_coded_crop_is_as_loud_as_its_clip_makes_it(tmp_path):
    """A crop of the quiet half stays quiet, since its codes say so; and no jitter hides it."""
    wave = np.concatenate([np.full(FRAME_SAMPLES * 4, 0.5), np.full(FRAME_SAMPLES * 4, 0.005)])
    soundfile.write(tmp_path / "a.wav", wave, 32_000, subtype="FLOAT")
    levels = []
    for seed in range(20):
        example = coded(
            tmp_path / "a.wav", tmp_path / "set", FRAME_SAMPLES, seed, gain_jitter_db=6.0
        )
        levels.append((int(example["codes"][0, 0]) < 4, round(rms_db(example["wave"]), 1)))
    loud, quiet = (sorted({level for early, level in levels if early == side}) for side in (1, 0))
    assert len(loud) == len(quiet) == 1
    assert loud[0] - quiet[0] == pytest.approx(40, abs=0.2) and abs(loud[0] - 3) < 0.3


def test_crops_of_broken_frames_are_refused(write_clip, tmp_path):
    with pytest.raises(ValueError, match="crops of 1000 samples"):
        coded(write_clip("a.wav", 0.5), tmp_path / "set", 1_000)


def test_codes_of_another_recording_are_an_error(write_clip, tmp_path):
    source = FileSource([clip_of(write_clip("a.wav", 0.5))])
    tokens = write_set(source, tmp_path / "set")
    crop = RandomCrop(source, FRAME_SAMPLES, tokens=tokens)
    write_clip("a.wav", 0.6)  # within what headers get wrong
    assert crop.random_map(0, np.random.default_rng(0))["num_samples"] == FRAME_SAMPLES
    write_clip("a.wav", 0.7)
    with pytest.raises(OtherRecordingError, match=r"a.wav: is 0.70 s long, .* codes are of 0.50 s"):
        crop.random_map(0, np.random.default_rng(0))


def test_clip_that_was_dropped_or_broke_later_is_silence(write_clip, tmp_path, caplog):
    paths = [write_clip(f"{name}.wav", 0.5) for name in ("dropped before", "broken since")]
    source = FileSource([clip_of(path) for path in paths])
    tokens = write_set(source, tmp_path / "set", dropped="dropped before.wav")
    paths[1].write_bytes(b"RIFF" + bytes(100))
    crop = RandomCrop(source, FRAME_SAMPLES, tokens=tokens)
    with caplog.at_level(logging.WARNING, logger="absl"):
        examples = [crop.random_map(index, np.random.default_rng(0)) for index in (0, 1)]
    for example in examples:
        assert example["num_samples"] == 0
        assert not example["wave"].any() and not example["codes"].any()
    assert "dropped before.wav: no codes" in caplog.text and "broken since.wav" in caplog.text
