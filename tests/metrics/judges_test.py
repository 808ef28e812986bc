import importlib
from pathlib import Path

import numpy as np
import pytest

from gac_jax.errors import UserError
from gac_jax.metrics.judges import at_rate, package, weights
from gac_jax.metrics.metric import Unavailable


def test_a_package_is_imported_with_its_module() -> None:
    assert package("importlib.resources") is importlib.import_module("importlib.resources")


def test_a_missing_package_is_named_with_the_remedy() -> None:
    with pytest.raises(Unavailable) as caught:
        package("no_such_judge.inside")
    assert str(caught.value) == 'needs the package no_such_judge; pip install "gac_jax[eval]"'
    with pytest.raises(Unavailable, match=r"no_such_judge; apt install judge$"):
        package("no_such_judge", "apt install judge")


def test_weights_that_nobody_named_are_a_dash_and_wrong_ones_an_error(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"^needs judge\.bin of its authors$"):
        weights("", "judge.bin of its authors")
    missing = tmp_path / "judge.bin"
    with pytest.raises(UserError, match=rf"^{missing}: does not exist; needed is judge\.bin"):
        weights(str(missing), "judge.bin of its authors")
    missing.write_bytes(b"")
    assert weights(str(missing), "judge.bin of its authors") == missing


@pytest.mark.parametrize("rate", [16_000, 32_000, 48_000])
def test_a_tone_stays_that_tone_at_another_rate(rate: int) -> None:
    tone = [np.sin(2 * np.pi * 440 * np.arange(r) / r).astype(np.float32) for r in (32_000, rate)]
    resampled = at_rate(tone[0] / 2, rate)
    assert resampled.dtype == np.float32 and resampled.shape == (rate,)
    np.testing.assert_allclose(resampled[500:-500], tone[1][500:-500] / 2, atol=1e-3)


def test_what_is_too_loud_is_clipped(rng: np.random.Generator) -> None:
    loud = at_rate(3 * rng.standard_normal(3200).astype(np.float32), 16_000)
    assert (loud.min(), loud.max()) == (-1, 1)
