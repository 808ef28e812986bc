import pytest

from gac_jax import rates
from gac_jax.errors import UserError

NINE = [0.175, 0.275, 0.375, 0.475, 0.575, 0.675, 0.775, 0.875, 0.975]


def test_the_ladder_gives_the_published_rates() -> None:
    assert [rates.kbps(k) for k in rates.LADDER] == [0.175, 0.275, 0.375, 0.575, 0.975]
    assert [rates.kbps(k) for k in range(9)] == NINE


@pytest.mark.parametrize("k", range(9))
def test_residuals_for_inverts_kbps(k: int) -> None:
    assert rates.residuals_for(rates.kbps(k)) == k
    assert rates.residuals_for(NINE[k]) == k


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.1751, 1.075, -0.175, float("nan"), 175.0])
def test_a_rate_off_the_ladder_is_refused_with_the_nine_choices(rate: float) -> None:
    with pytest.raises(UserError) as caught:
        rates.residuals_for(rate)
    message = str(caught.value)
    assert str(rate) in message and all(str(choice) in message for choice in NINE)
    assert "\n" not in message


@pytest.mark.parametrize("k", [-1, 9])
def test_kbps_refuses_a_codebook_count_off_the_ladder(k: int) -> None:
    with pytest.raises(ValueError, match=str(k)):
        rates.kbps(k)


@pytest.mark.parametrize(
    ("samples", "frames"), [(0, 0), (1, 1), (2559, 1), (2560, 1), (2561, 2), (32_000 * 60, 750)]
)
def test_frames_cover_the_samples(samples: int, frames: int) -> None:
    assert rates.num_frames(samples) == frames


def test_a_negative_length_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="-1"):
        rates.num_frames(-1)


def test_spectra_tile_a_code_frame() -> None:
    assert rates.SPECTRUM_HOP * rates.SPECTRA_PER_FRAME == rates.FRAME_SAMPLES
    assert rates.FRAME_RATE * rates.FRAME_SAMPLES == rates.SAMPLE_RATE
