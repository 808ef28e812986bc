import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax.signal.log_spectrum import BANDS, LINEAR_BANDS
from gac_jax.signal.pitch import REFERENCE, Pitch, hertz
from gac_jax.signal.voicing import UNSURE, voiced


@pytest.fixture
def level(rng: np.random.Generator) -> jnp.ndarray:
    """Noise under a sloping envelope, 8 spectra."""
    slope = np.linspace(1.0, -3.0, BANDS)
    return jnp.asarray((0.3 * rng.standard_normal((1, 8, BANDS)) + slope).reshape(1, 4, -1), "f4")


ALL = jnp.ones((1, 8), bool)


def pitch_of(hz: float, strength: float) -> Pitch:
    return Pitch(jnp.full((1, 8), strength), jnp.full((1, 8), np.log2(hz / REFERENCE)))


def bins(level: jnp.ndarray) -> np.ndarray:
    return np.asarray(level).reshape(8, BANDS)[:, :LINEAR_BANDS]


def test_without_a_voice_nothing_changes(level: jnp.ndarray) -> None:
    np.testing.assert_allclose(voiced(level, pitch_of(200.0, 0.0), ALL), level, atol=1e-5)


@pytest.mark.parametrize("hz", [100.0, 200.0])
def test_partials_stand_out(level: jnp.ndarray, hz: float) -> None:
    new = bins(voiced(level, pitch_of(hz, 1.0), ALL))
    low = hertz() < 2000
    on, between = (low & (hertz() % hz == x) for x in (0.0, hz / 2))
    assert new[:, on].mean() > new[:, between].mean() + 1.0
    old = bins(level)
    assert abs(old[:, on].mean() - old[:, between].mean()) < 0.3


def test_a_weak_voice_has_weak_partials(level: jnp.ndarray) -> None:
    on, between = (hertz() % 200.0 == x for x in (0.0, 100.0))

    def contrast(strength: float) -> float:
        new = bins(voiced(level, pitch_of(200.0, strength), ALL))
        return float(new[:, on].mean() - new[:, between].mean())

    assert contrast(0.0) == pytest.approx(contrast(UNSURE), abs=1e-4)
    assert contrast(UNSURE) < contrast(0.75) < contrast(1.0)


def test_regions_keep_their_power(level: jnp.ndarray) -> None:
    """Partials are not louder than what they replace: in 400 Hz, within half a decibel."""
    old, new = (np.exp(2 * bins(x)) for x in (level, voiced(level, pitch_of(120.0, 1.0), ALL)))
    old, new = (x.reshape(8, 10, 16).sum(axis=-1) for x in (old, new))
    assert abs(10 * np.log10(new.sum() / old.sum())) < 0.5
    assert np.abs(10 * np.log10(new.mean(axis=0) / old.mean(axis=0))).max() < 1.0


def test_above_4_khz_nothing_changes(level: jnp.ndarray) -> None:
    old, new = (
        np.asarray(x).reshape(8, BANDS)[:, LINEAR_BANDS:]
        for x in (level, voiced(level, pitch_of(150.0, 1.0), ALL))
    )
    np.testing.assert_array_equal(old, new)


def test_clear_voices_are_steadied(rng: np.random.Generator) -> None:
    """What flickers from one spectrum to the next does so less, and what is steady stays."""
    steady = np.tile(rng.standard_normal(2 * BANDS), (1, 4, 1)).astype("f4")
    flicker = np.tile(np.repeat([0.5, -0.5], BANDS), (1, 4, 1)).astype("f4")

    def ups_and_downs(strength: float) -> float:
        new = bins(voiced(jnp.asarray(steady + flicker), pitch_of(150.0, strength), ALL))
        return float(np.abs(new[2:-2:2] - new[3:-1:2]).mean())

    assert ups_and_downs(1.0) < 0.1 < 0.9 < ups_and_downs(0.0)


def test_padding_is_not_heeded(level: jnp.ndarray) -> None:
    valid = ALL.at[:, 6:].set(False)
    louder = level.at[:, 3:].add(5.0)
    old, new = (bins(voiced(x, pitch_of(150.0, 1.0), valid))[:6] for x in (level, louder))
    np.testing.assert_array_equal(old, new)
