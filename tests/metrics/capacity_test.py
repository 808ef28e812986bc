import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from gac_jax import codec
from gac_jax.metrics.capacity import (
    ASSUMPTIONS,
    Point,
    Predictor,
    fit,
    model_size,
    predicted_bits,
    report,
)

ETA, SLOPE, HOURS = 0.5, 0.002, 100


def point(rate: float, millions: float, error: float = 0.0, **changes: float) -> Point:
    """A system that obeys Eq. 3 but for an error of its distance."""
    seconds, parameters = 3600.0 * HOURS, round(millions * 1e6)
    distance = 9.0 - SLOPE * (rate + ETA * parameters / seconds) + error
    made = Point(f"{millions} M at {rate}", rate, math.nan, parameters, seconds, distance)
    return dataclasses.replace(made, **changes)


def grid() -> list[Point]:
    return [point(rate, millions) for rate in (175, 275, 975) for millions in (11, 40, 140)]


def test_two_codes_by_hand() -> None:
    """The first 0 costs one bit. Of the second, the three guesses say 1/2, 3/4 and, in a new
    context, 3/4 again: 2/3 on average. The third comes after a 0: 1/2, 5/6 and (1 + 5/6) / 2.
    """
    assert Predictor(2).cost(np.array([0])) == pytest.approx(1.0)
    assert Predictor(2).cost(np.array([0, 0])) == pytest.approx(1 + math.log2(3 / 2))
    products = [1 / 2**3, (1 / 2) * (3 / 4) * (5 / 6), (1 / 2) * (3 / 4) * (11 / 12)]
    assert Predictor(2).cost(np.array([0, 0, 0])) == pytest.approx(-math.log2(sum(products) / 3))


def test_probabilities_of_all_codes_add_up_to_one(rng: np.random.Generator) -> None:
    past = rng.integers(0, 4, 20)

    def next_cost(code: int) -> float:
        return Predictor(6).cost(np.append(past, code)) - Predictor(6).cost(past)

    assert sum(2 ** -next_cost(code) for code in range(6)) == pytest.approx(1.0)


def test_random_codes_cost_no_more_than_plain_ones(rng: np.random.Generator) -> None:
    codes = rng.integers(0, 256, 3000)
    assert 8 * 3000 - 20 < Predictor(256).cost(codes) <= 8 * 3000 + math.log2(3) + 1e-6


def test_skewed_codes_cost_their_entropy(rng: np.random.Generator) -> None:
    shares = np.array([0.7, 0.2, 0.1])
    codes = rng.choice(3, 4000, p=shares)
    assert Predictor(16_384).cost(codes) / 4000 == pytest.approx(
        -np.sum(shares * np.log2(shares)), abs=0.05
    )


def test_what_follows_from_the_last_code_costs_next_to_nothing() -> None:
    """64 codes in a fixed order: order 0 knows nothing of the next, order 1 all."""
    assert Predictor(64).cost(np.tile(np.arange(64), 30)) / (30 * 64) < 0.7


def test_held_out_codes_are_cheaper_once_others_were_seen(rng: np.random.Generator) -> None:
    walk = np.cumsum(rng.integers(0, 2, 3000)) % 32
    clips = np.stack([walk, rng.integers(0, 8, 3000)])
    seen, held_out = np.split(clips, [2500], axis=1)
    bits = predicted_bits([seen], [held_out[:, :200], held_out[:, 200:]], (32, 8))
    assert bits.shape == (2,)
    assert bits[0] == pytest.approx(1.0, abs=0.1) and bits[1] == pytest.approx(3.0, abs=0.1)
    assert predicted_bits([], [held_out], (32, 8))[0] > 1.2 * bits[0]
    assert np.isnan(predicted_bits([seen], [], (32, 8))).all()


def test_eta_is_found_where_eq_3_holds() -> None:
    found = fit(grid())
    assert found.eta == pytest.approx(ETA) and found.slope == pytest.approx(SLOPE)
    assert found.low == pytest.approx(ETA) and found.high == pytest.approx(ETA)
    assert found.explained == pytest.approx(1.0) and found.reason == ""


def test_the_range_shows_what_one_point_does() -> None:
    points = [*grid(), point(575, 140, error=-0.2)]
    found = fit(points)
    assert found.low < found.eta < found.high
    assert found.low == pytest.approx(fit(grid()).eta) and found.explained < 0.999


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([], "0 points"),
        (grid()[:4], "4 points, and at least 5 are needed"),
        ([point(rate, 11) for rate in (175, 275, 375, 575, 975)], "do not vary apart"),
        ([point(175, size) for size in (1, 11, 40, 140, 500)], "do not vary apart"),
        ([point(rate, 11) for rate in (175, 275, 375, 575)] + [point(975, 40)], "vary apart"),
        ([*grid(), point(375, 11, seconds=math.nan)], "a number of 11 M at 375 is not known"),
        ([dataclasses.replace(p, distance=p.rate) for p in grid()], "does not lower"),
        ([dataclasses.replace(p, distance=1.0) for p in grid()], "does not lower"),
    ],
)
def test_too_little_to_go_by_is_refused(points: list[Point], reason: str) -> None:
    found = fit(points)
    assert reason in found.reason and math.isnan(found.eta) and math.isnan(found.high)
    assert found.reason in report(points) and ASSUMPTIONS in report(points)


def test_the_report_has_points_numbers_and_assumptions() -> None:
    points = [dataclasses.replace(p, predicted=0.9 * p.rate) for p in grid()]
    lines = report(points).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    assert cells[0][-1] == "distance"
    assert ["40 M at 275", "275.0", "247.5", "40.00", "100.0", f"{points[4].distance:.3f}"] in cells
    expected = "Eta = 0.5 bits a parameter (0.5 to 0.5): a million parameters stand for 1.39 bit/s"
    assert expected in report(points)
    assert ASSUMPTIONS in report(points)
    assert "| -" in report(grid())  # nothing predicted


def test_sizes_and_training_of_a_model(tiny_model: Path, tmp_path: Path) -> None:
    parameters, unknown = model_size(tiny_model)
    assert parameters > 1000 and math.isnan(unknown)
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    card = "# x\n\n- understanding: 7 steps of 1 crops of 1.00 s\n"
    (folder / "README.md").write_text(card + "- generation: 1,700 steps of 16 crops of 2.56 s\n")
    assert model_size(folder) == (parameters, pytest.approx(1700 * 16 * 2.56))


def test_the_card_of_the_bundled_model_says_what_it_saw() -> None:
    assert math.isfinite(model_size(codec.find("mini"))[1])
