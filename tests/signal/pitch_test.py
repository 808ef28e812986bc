from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.fft import dct

from gac_jax.rates import SAMPLE_RATE
from gac_jax.signal import pitch
from gac_jax.signal.log_spectrum import log_spectrum, partials
from gac_jax.signal.pitch import Pitch, combs, from_features, hertz, to_features

SPECTRA = 128


def level(wave: np.ndarray) -> jnp.ndarray:
    unit = wave / np.sqrt(np.mean(wave**2))
    return partials(log_spectrum(jnp.asarray(unit[None], jnp.float32)))


def track(level: jnp.ndarray) -> Pitch:
    return pitch.track(level, jnp.ones(level.shape[:2], bool))


def voice(hertz: np.ndarray) -> np.ndarray:
    """Partials of falling amplitude up to 4 kHz, of a pitch given for each sample."""
    phase = 2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE
    orders = np.arange(1, int(4000 / hertz.max()))
    return np.sum([np.sin(k * phase) / k for k in orders], axis=0)


def samples() -> np.ndarray:
    return np.arange(SPECTRA * 320)


@pytest.mark.parametrize("hz", [80.0, 110.0, 163.0, 220.0, 300.0])
def test_the_pitch_of_a_steady_voice_is_found(hz: float) -> None:
    found = track(level(voice(np.full(SPECTRA * 320, hz))))
    middle = slice(4, -4)
    assert np.all(np.asarray(found.strength)[0, middle] > 0.8)
    octaves = np.asarray(found.octaves)[0, middle]
    np.testing.assert_allclose(pitch.REFERENCE * 2**octaves, hz, rtol=0.015)


def test_a_glide_is_followed() -> None:
    hz = 100.0 * 2 ** (0.7 * samples() / len(samples()))
    found = track(level(voice(hz)))
    octaves, expected = np.asarray(found.octaves)[0], np.log2(hz[160::320] / pitch.REFERENCE)
    assert np.abs(octaves - expected)[4:-4].max() < 0.03


def test_noise_and_silence_have_no_voice(rng: np.random.Generator) -> None:
    noise = track(level(rng.standard_normal(SPECTRA * 320)))
    assert float(jnp.mean(noise.strength)) < 0.02
    silence = track(partials(log_spectrum(jnp.zeros((1, SPECTRA * 320)))))
    assert not silence.strength.any()


def test_a_voice_that_ends_is_noticed(rng: np.random.Generator) -> None:
    wave = voice(np.full(SPECTRA * 320, 140.0))
    wave[64 * 320 :] = rng.standard_normal(64 * 320)
    strength = np.asarray(track(level(wave)).strength)[0]
    assert strength[4:60].min() > 0.7 and strength[68:].max() < 0.1


def test_what_is_beyond_a_clip_changes_nothing() -> None:
    wave = voice(np.full(SPECTRA * 320, 140.0)).astype(np.float32)
    longer = level(np.pad(wave, (0, 40 * 320)))
    valid = jnp.arange(longer.shape[1])[None] < SPECTRA
    alone, padded = pitch.track(longer[:, :SPECTRA], valid[:, :SPECTRA]), pitch.track(longer, valid)
    np.testing.assert_allclose(alone.strength, padded.strength[:, :SPECTRA], atol=1e-5)
    assert alone.strength[0, -2] > 0.5 and not padded.strength[:, SPECTRA:].any()


def test_the_path_is_the_best_of_all() -> None:
    rng = np.random.default_rng(3)
    scores = rng.standard_normal((32, 5, 3)).astype(np.float32)
    costs = rng.random((3, 3)).astype(np.float32)

    def total(row: np.ndarray, path: tuple[int, ...]) -> float:
        moves = sum(costs[a, b] for a, b in zip(path, path[1:], strict=False))
        end = costs[path[-1], -1]
        return float(sum(row[i, k] for i, k in enumerate(path)) - moves - end)

    found = np.asarray(pitch._viterbi(jnp.asarray(scores), costs))
    for row, path in zip(scores, found, strict=True):
        assert tuple(path) == max(product(range(3), repeat=5), key=lambda p: total(row, p))


def test_features_are_undone_where_a_voice_is_steady() -> None:
    strength = jnp.ones((1, 32))
    octaves = jnp.asarray(0.3 * np.sin(np.arange(32) / 10)[None], jnp.float32)
    features = to_features(Pitch(strength, octaves), 8)
    assert features.shape == (1, 4, pitch.FEATURES)
    back = from_features(features)
    np.testing.assert_allclose(back.strength, strength, atol=1e-6)
    np.testing.assert_allclose(back.octaves[:, 4:-4], octaves[:, 4:-4], atol=0.01)


def test_pitch_counts_as_much_as_it_is_heard() -> None:
    """Where there is no voice, features are 0 whatever the path says."""
    features = to_features(Pitch(jnp.zeros((1, 8)), jnp.full((1, 8), 0.7)), 8)
    assert not features.any()
    assert not from_features(features).strength.any()


def test_combs_have_partials_and_no_envelope() -> None:
    rows = combs()
    assert np.abs(dct(rows, norm="ortho")[:, :24]).max() < 1e-9
    steps = round(np.log2(200.0 / pitch.LOWEST) * pitch.STEPS_PER_OCTAVE)
    comb = rows[steps]
    on, between = (np.isin(hertz() % 200.0, [x]) for x in (0.0, 100.0))
    assert comb[on].min() > comb[between].max() + 1.0
