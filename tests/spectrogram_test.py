from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from gac_jax import spectrogram
from gac_jax.rates import SAMPLE_RATE


def tone(hertz: float, seconds: float = 1.0, level: float = 1.0) -> np.ndarray:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (level * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def images(figure: Figure) -> list[Any]:
    return [axis.images[0] for axis in figure.axes[:2]]


@pytest.mark.parametrize("hertz", spectrogram.TICKS[:-1])
def test_a_tone_lies_at_its_tick(hertz: float) -> None:
    figure = spectrogram.draw(tone(hertz), tone(hertz), 0.275, 1.0)
    band = int(np.argmax(images(figure)[0].get_array()[:, 50]))
    tick = figure.axes[0].get_yticks()[spectrogram.TICKS.index(hertz)]
    assert abs(band + 0.5 - tick) <= 1  # the image puts band m between m and m + 1


def test_levels_are_decibels_of_full_scale() -> None:
    loud, soft = (spectrogram.log_mel(tone(1000, level=a)).max() for a in (1.0, 0.01))
    assert loud == pytest.approx(0.0, abs=1.0)
    assert soft == pytest.approx(loud - 40, abs=1e-2)


def test_the_time_axis_is_seconds() -> None:
    wave = np.zeros(2 * SAMPLE_RATE, np.float32)
    wave[SAMPLE_RATE // 2] = 1.0
    image = images(spectrogram.draw(wave, wave, 0.275, 2.0))[0]
    (left, right, _, _), columns = image.get_extent(), image.get_array().shape[1]
    peaks = np.flatnonzero(image.get_array()[100] > image.get_array()[100].max() - 1)
    assert (peaks.mean() + 0.5) / columns * (right - left) == pytest.approx(0.5, abs=0.011)


def test_both_panels_share_one_scale() -> None:
    figure = spectrogram.draw(tone(500, level=0.1), tone(500), 0.275, 1.0)
    scales = {image.get_clim() for image in images(figure)}
    assert len(scales) == 1
    (low, high), *_ = scales
    assert high == images(figure)[1].get_array().max() and high - low == spectrogram.DYNAMIC_RANGE


def test_titles_give_the_rate_and_whether_the_clip_is_cut() -> None:
    def titles(seconds: float) -> list[str]:
        figure = spectrogram.draw(tone(500), tone(500), 0.975, seconds)
        return [axis.get_title() for axis in figure.axes[:2]]

    assert titles(30.0) == ["original", "reconstruction at 0.975 kbps"]
    assert titles(30.1) == [
        "original, first 30 s",
        "reconstruction at 0.975 kbps, first 30 s",
    ]


def test_long_audio_is_cut() -> None:
    image = images(spectrogram.draw(tone(500, 40.0), tone(500), 0.275, 40.0))[0]
    assert image.get_extent()[1] == pytest.approx(30.0, abs=0.02)


@pytest.mark.parametrize("samples", [1, 2048, SAMPLE_RATE])
def test_png_of_silence_of_any_length(samples: int, tmp_path: Any) -> None:
    silence = np.zeros(samples, np.float32)
    (tmp_path / "picture.png").write_bytes(spectrogram.png(silence, silence, 0.175, 0.1))
    height, width, channels = matplotlib.image.imread(tmp_path / "picture.png").shape
    assert width > 2 * height > 800 and channels == 4
