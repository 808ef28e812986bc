import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import gac_jax
from gac_jax import model_folder
from gac_jax.bitstream import Tokens
from gac_jax.codec import Codec
from gac_jax.errors import UserError
from gac_jax.rates import FRAME_SAMPLES, kbps
from gac_jax.reconstruction import Reconstruction
from gac_jax.signal.log_spectrum import log_spectrum, partials
from gac_jax.signal.mel import log_mel_32k
from gac_jax.signal.pitch import track

WINDOW = 32  # of the tiny model
EXAMPLES = Path(gac_jax.__file__).parent / "examples"


@pytest.fixture(scope="module")
def codec(tiny_model: Path) -> Codec:
    return gac_jax.load(tiny_model)


@pytest.fixture(scope="module")
def many(tiny_model: Path) -> Codec:
    """The same model, four windows at a time."""
    return gac_jax.load(tiny_model, batch_size=4)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


def test_every_length_up_to_two_frames_comes_back(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths are settled around the networks, which would take minutes for all of them."""

    def encode(params: object, waves: np.ndarray, frames: np.ndarray) -> np.ndarray:
        return np.zeros((waves.shape[0], codec.num_codebooks, waves.shape[1] // FRAME_SAMPLES))

    def decode(params: object, codes: np.ndarray, *_: object, **__: object) -> np.ndarray:
        return np.ones((codes.shape[0], codes.shape[2] * FRAME_SAMPLES), np.float32)

    monkeypatch.setattr(codec, "_encode_windows", lambda *a: encode(*a).astype(np.int32))
    monkeypatch.setattr(codec, "_decode_windows", decode)
    wave = noise(5_121)
    for samples in range(1, 5_122):
        decoded = codec.decode(codec.encode(wave[:samples]))
        assert decoded.shape == (samples,) and decoded.all()


@pytest.mark.parametrize("samples", [1, 2, 319, 640, 2_559, 2_560, 2_561, 5_119, 5_121])
def test_short_clips_come_back(codec: Codec, samples: int) -> None:
    decoded = codec.decode(codec.encode(noise(samples)), steps=1)
    assert decoded.shape == (samples,) and np.isfinite(decoded).all()


def test_random_long_lengths_come_back(codec: Codec, rng: np.random.Generator) -> None:
    for samples in rng.integers(5_122, 6 * WINDOW * FRAME_SAMPLES, 4):
        tokens = codec.encode(noise(samples))
        assert tokens.num_frames == -(-samples // FRAME_SAMPLES)
        assert codec.decode(tokens, steps=1).shape == (samples,)


def test_codes_do_not_depend_on_neighbours_in_a_batch(codec: Codec, many: Codec) -> None:
    waves = [noise(n, n) for n in (700, 30_000, 70_000, 100_000, 400_000)]
    alone = [codec.encode(w) for w in waves]
    assert codec.encode_batch(waves) == alone
    assert many.encode_batch(waves) == [many.encode(w) for w in waves]
    for a, b in zip(codec.decode_batch(alone), alone, strict=True):
        np.testing.assert_array_equal(a, codec.decode(b))
    for a, b in zip(many.decode_batch(alone), alone, strict=True):
        np.testing.assert_array_equal(a, many.decode(b))


def test_batches_are_filled_across_clips(many: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four clips of two long windows and a short one each: three batches of four, not eight."""
    encode, batches = many._encode_windows, []

    def counted(params: object, waves: np.ndarray, frames: np.ndarray) -> np.ndarray:
        batches.append(frames.tolist())
        return encode(params, waves, frames)

    monkeypatch.setattr(many, "_encode_windows", counted)
    waves = [noise((WINDOW + 28 + 6) * FRAME_SAMPLES, seed) for seed in range(4)]
    many.encode_batch(waves)
    assert batches == [[WINDOW] * 4, [WINDOW] * 4, [10] * 4]


def test_same_tokens_and_seed_give_the_same_audio(codec: Codec, tiny_model: Path) -> None:
    tokens = codec.encode(noise(100_000))
    again = gac_jax.load(tiny_model)
    np.testing.assert_array_equal(codec.decode(tokens, seed=7), again.decode(tokens, seed=7))
    assert not np.array_equal(codec.decode(tokens, seed=7), codec.decode(tokens, seed=8))


def test_blocks_follow_each_other_to_the_whole(codec: Codec) -> None:
    tokens = codec.encode(noise(12 * WINDOW * FRAME_SAMPLES + 123))
    blocks = list(codec.decode_blocks(tokens))
    assert len(blocks) > 3
    np.testing.assert_array_equal(np.concatenate(blocks), codec.decode(tokens))


def test_a_file_encodes_as_its_samples_do(codec: Codec, tmp_path: Path) -> None:
    wave = noise(150_000)
    soundfile.write(tmp_path / "a.wav", wave, 32_000, subtype="FLOAT")
    assert codec.encode_file(tmp_path / "a.wav") == codec.encode(wave)


def test_a_lower_rate_is_a_prefix(codec: Codec) -> None:
    whole = codec.encode(noise(50_000), kbps=0.975)
    for k in range(9):
        assert codec.encode(noise(50_000), kbps=kbps(k)) == whole.with_residuals(k)


def test_each_knob_changes_the_audio(codec: Codec) -> None:
    tokens = codec.encode(noise(50_000))
    base = codec.decode(tokens)
    for changed in ({"steps": 3}, {"solver": "heun"}, {"guidance": 2.0}, {"temperature": 0.5}):
        assert not np.allclose(base, codec.decode(tokens, **changed)), changed
    assert not np.allclose(base, codec.decode(tokens.with_residuals(0)))


def test_the_contrast_of_a_model_changes_the_audio(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = codec.encode(noise(50_000))
    base = codec.decode(tokens)
    monkeypatch.setitem(codec.config["sampling"], "contrast", 3.0)
    assert not np.allclose(base, codec.decode(tokens))


@pytest.mark.parametrize("kbps", [0.175, 0.975])
def test_a_low_temperature_is_not_quieter(kbps: float) -> None:
    """With the model that ships, which by itself is several dB quieter."""
    mini = gac_jax.load("mini")
    wave, _ = soundfile.read(EXAMPLES / "speech.flac", dtype="float32")
    decoded = mini.decode(mini.encode(wave, kbps=kbps), temperature=0.5)
    assert abs(20 * np.log10(np.std(decoded) / np.std(wave))) < 0.3  # steps of levels: 0.5 dB


def test_loudness_comes_back_and_silence_stays_silent(codec: Codec) -> None:
    quiet, loud = (codec.decode(codec.encode(g * noise(60_000)), steps=1) for g in (0.01, 1.0))
    np.testing.assert_allclose(20 * np.log10(np.std(loud) / np.std(quiet)), 40, atol=0.6)
    assert not codec.decode(codec.encode(np.zeros(60_000, np.float32))).any()


def test_stereo_and_other_rates_become_mono_at_32_khz(codec: Codec) -> None:
    wave = noise(44_100)
    tokens = codec.encode(np.stack([wave, wave]), 44_100)
    assert tokens == codec.encode(wave, 44_100)
    assert tokens.num_samples == 32_000


def test_windows_agree_where_they_meet() -> None:
    """No audible seam: the level at seams is that of anywhere else, within 1 dB.

    With the model that ships: from the magnitudes of random weights, which differ from window to
    window, follow phases that do.
    """
    mini = gac_jax.load("mini")
    tokens = mini.encode(noise(20 * WINDOW * FRAME_SAMPLES))
    wave = mini.decode(tokens, steps=4)
    seams = [(w.start + w.overlap // 2) * FRAME_SAMPLES for w in mini.plan(tokens.num_frames)[1:]]
    assert len(seams) >= 20
    reach = FRAME_SAMPLES // 4
    power = [np.mean(np.square(wave[s - reach : s + reach])) for s in seams]
    assert abs(10 * np.log10(np.mean(power) / np.mean(np.square(wave)))) < 1.0
    steps = np.abs(np.diff(wave))
    assert max(steps[s - reach : s + reach].max() for s in seams) <= steps.max()


def test_windows_sound_like_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the model that ships: within 0.5 dB in log-mel, where another seed is 2 dB away."""
    mini = gac_jax.load("mini")
    monkeypatch.setitem(mini.config["sampling"], "temperature", 0.6)  # enough that seeds matter
    wave, _ = soundfile.read(EXAMPLES / "speech.flac", dtype="float32")
    tokens = mini.encode(wave)
    pieces = mini.decode(tokens)
    other_seed = mini.decode(tokens, seed=1)
    assert len(mini.plan(tokens.num_frames)) == 2
    monkeypatch.setitem(mini.config, "window", 64)
    assert len(mini.plan(tokens.num_frames)) == 1
    whole = mini.decode(tokens)
    assert log_mel_distance(whole, pieces) < 0.5
    assert log_mel_distance(whole, other_seed) > 2.0


def test_voices_keep_their_pitch() -> None:
    """With the model that ships: from the rate on whose codes tell it, partials are clear."""
    mini = gac_jax.load("mini")
    wave, _ = soundfile.read(EXAMPLES / "speech.flac", dtype="float32")
    wave = wave[: wave.size // FRAME_SAMPLES * FRAME_SAMPLES]

    def pitch(wave: np.ndarray) -> list[np.ndarray]:
        level = partials(log_spectrum(jnp.asarray(wave / np.std(wave))[None]))
        return [np.asarray(x)[0] for x in track(level, jnp.ones(level.shape[:2], bool))]

    strength, octaves = pitch(wave)
    clear = strength > 0.5
    assert clear.mean() > 0.3
    told, told_octaves = pitch(mini.decode(mini.encode(wave, kbps=0.575)))
    assert (told[clear] > 0.5).mean() > 0.8
    assert np.median(np.abs(told_octaves - octaves)[clear]) < 0.05
    untold, _ = pitch(mini.decode(mini.encode(wave, kbps=0.375)))
    assert (untold[clear] > 0.5).mean() < 0.1


def test_what_was_lost_tells_no_pitch(codec: Codec) -> None:
    codes = jnp.asarray(codec.encode(noise(12 * FRAME_SAMPLES)).codes)[None]
    rate = jnp.asarray([8], jnp.int32)
    run = jax.jit(lambda codes: codec._pitch(codec._params, codes, rate).strength)
    assert run(codes).any()
    strength = run(codes.at[:, 0, 4:8].set(-1))
    assert not strength[:, 4 * 8 + 4 : 8 * 8 - 4].any() and strength.any()


def log_mel_distance(a: np.ndarray, b: np.ndarray) -> float:
    pair = np.stack([x[: x.size // 640 * 640] for x in (a, b)])
    first, second = np.asarray(log_mel_32k(pair)) * 10 / np.log(10)
    return float(np.mean(np.abs(first - second)))


def test_the_codec_describes_itself(codec: Codec) -> None:
    assert codec.sample_rate == 32_000 and codec.frame_rate == 12.5
    assert codec.num_codebooks == len(codec.codebook_sizes) == 9
    assert codec.frame_samples * codec.frame_rate == codec.sample_rate
    assert set(codec.num_parameters) == {"encoder", "quantizer", "decoder", "spectrum"}


def test_tokens_of_another_model_are_refused(codec: Codec) -> None:
    own = codec.encode(noise(10_000))
    foreign = Tokens(own.codes, own.num_samples, own.levels, bytes(range(8)))
    with pytest.raises(UserError, match="made by model 0001020304050607"):
        codec.decode(foreign)
    with pytest.raises(UserError, match="made by model"):
        codec.decode_batch([own, foreign])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"steps": 0}, "steps must be"),
        ({"steps": 1_001}, "steps must be"),
        ({"solver": "rk4"}, "solver must be euler, heun, meanflow"),
        ({"guidance": -1.0}, "guidance must be"),
        ({"guidance": float("nan")}, "guidance must be"),
        ({"temperature": -0.1}, "temperature must be"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**32}, "seed must be"),
    ],
)
def test_settings_out_of_range_are_refused(codec: Codec, settings: dict, told: str) -> None:
    with pytest.raises(UserError, match=told):
        codec.decode(codec.encode(noise(100)), **settings)


@pytest.mark.parametrize(
    ("wave", "told"),
    [
        (np.zeros(0, np.float32), "no samples"),
        (np.full(100, np.nan, np.float32), "finite|NaN"),
        (np.full(100, np.inf, np.float32), "finite|NaN"),
    ],
)
def test_audio_that_is_none_is_refused(codec: Codec, wave: np.ndarray, told: str) -> None:
    with pytest.raises(UserError, match=told):
        codec.encode(wave)


def test_an_unknown_rate_or_model_is_refused(codec: Codec, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0.175"):
        codec.encode(noise(100), kbps=0.5)
    with pytest.raises(UserError, match="no such model"):
        gac_jax.load("nonsense")
    with pytest.raises(UserError, match=r"config\.json is missing"):
        gac_jax.load(tmp_path)


def test_each_rate_has_its_own_guidance(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [1.0, 1.5, *6 * [1.0], 3.0]
    monkeypatch.setitem(codec.config, "sampling", {**codec.config["sampling"], "guidance": weights})
    tokens = codec.encode(noise(10_000))
    for part in (tokens, tokens.with_residuals(1)):
        weight = weights[part.num_residuals]
        np.testing.assert_array_equal(codec.decode(part), codec.decode(part, guidance=weight))


def test_lost_frames_are_filled_in_without_their_codes(codec: Codec) -> None:
    tokens = codec.encode(noise(12 * FRAME_SAMPLES))
    lost = np.zeros(12, bool)
    lost[4:7] = True
    codes = tokens.codes.copy()
    codes[:, lost] = 0
    other = dataclasses.replace(tokens, codes=codes)
    wave = codec.decode(tokens, lost=lost)
    np.testing.assert_array_equal(wave, codec.decode(other, lost=lost))
    assert np.isfinite(wave).all() and (wave != codec.decode(tokens)).any()
    np.testing.assert_array_equal(codec.decode(tokens, lost=~lost & lost), codec.decode(tokens))
    assert np.isfinite(codec.decode(tokens, lost=lost | True)).all()
    with pytest.raises(UserError, match="lost must tell of 12 frames"):
        codec.decode(tokens, lost=lost[1:])


def test_without_a_decoder_it_only_encodes(codec: Codec, tiny_model: Path, tmp_path: Path) -> None:
    record, params = model_folder.load(tiny_model)
    alone = {k: v for k, v in record.items() if k not in ("decoder", "sampling")}
    parts = {part: params[part] for part in model_folder.FINGERPRINTED}
    model_folder.save(tmp_path / "tokenizer", alone, parts, "", "float32")
    tokenizer = gac_jax.load(tmp_path / "tokenizer")
    assert tokenizer.num_parameters.keys() == {"encoder", "quantizer"}
    tokens = tokenizer.encode(noise(50_000))
    assert tokens.to_bytes() == codec.encode(noise(50_000)).to_bytes()
    refused = "^'random' only encodes: its decoder has yet to be trained, by the stage generation$"
    for decode in (tokenizer.decode, lambda tokens: tokenizer.decode_batch([tokens])):
        with pytest.raises(UserError, match=refused):
            decode(tokens)
    Reconstruction(tokenizer, "encode", None, {})
    with pytest.raises(UserError, match=refused):  # before anything is encoded
        Reconstruction(tokenizer, "roundtrip", None, {})


def test_compressed_tokens_come_back(codec: Codec, compressing_model: Path) -> None:
    able = gac_jax.load(compressing_model)
    assert able.fingerprint == codec.fingerprint and "entropy_model" in able.num_parameters
    for kbps_ in (0.175, 0.975):
        tokens = able.encode(noise(150 * FRAME_SAMPLES), kbps=kbps_)
        data = able.compress(tokens)
        assert data != tokens.to_bytes() and able.read(data) == tokens
        assert able.read(tokens.to_bytes()) == tokens and codec.read(tokens.to_bytes()) == tokens
    with pytest.raises(UserError, match=r"Codec\.read"):
        Tokens.from_bytes(data)
    for do in (lambda: codec.compress(tokens), lambda: codec.read(data)):
        with pytest.raises(UserError, match="'random' has no entropy model .*fit_entropy_model"):
            do()
    stranger = dataclasses.replace(tokens, fingerprint=bytes(8))
    for do in (lambda: able.compress(stranger), lambda: able.read(data[:4] + bytes(8) + data[12:])):
        with pytest.raises(UserError):
            do()


def test_the_bundled_model_sends_fewer_bits() -> None:
    """In each of the bundled clips, at the rate that they are sent with unasked."""
    codec = gac_jax.load()
    for name in ("speech", "sound", "music"):
        tokens = codec.encode_file(EXAMPLES / f"{name}.flac", 0.275)
        data = codec.compress(tokens)
        assert codec.read(data) == tokens
        assert len(data) < 0.9 * len(tokens.to_bytes())
