import xml.etree.ElementTree as ET

import pytest

from gac_jax.evaluation.figures import by_size, by_system, draw, png, quality, svg
from gac_jax.evaluation.suite import Suite
from gac_jax.evaluation.summary import Estimate, Line
from gac_jax.metrics.metric import ALL, Column


class Metric:
    domains = ALL

    def __init__(self, *columns: Column) -> None:
        self.columns = columns

    def measure(self, excerpt: object) -> dict[str, float]:
        return {}


@pytest.fixture
def suite() -> Suite:
    made = Suite()
    made.add("one", Metric(Column("up", "Up", True)))
    made.add("two", Metric(Column("down", "Down", False), Column("either", "Either", None)))
    return made


def line(system: str, kbps: float = 1.0, clips: int = 1, **values: float) -> Line:
    parameters = {"decoder": 11_000_000} if system.startswith("gac") else {}
    if system.startswith("gac-large"):
        parameters = {"decoder": 493_000_000}
    estimates = {name: Estimate(value) for name, value in values.items()}
    return Line("speech", system, clips, 0, kbps, 0.1, 0.1, parameters, estimates)


def test_quality_by_hand(suite: Suite) -> None:
    lines = [
        line("a", up=1.0, down=4.0, either=9.0),
        line("b", up=3.0, down=0.0, either=1.0),
        line("c", up=2.0, down=1.0, either=5.0),
    ]
    values, used = quality(suite, lines)
    assert values == {"a": 0.0, "b": 1.0, "c": (0.5 + 0.75) / 2}
    assert used == ["Up", "Down"]


def test_columns_of_one_metric_share_its_weight() -> None:
    suite = Suite()
    suite.add("one", Metric(Column("up", "Up", True)))
    suite.add("two", Metric(*(Column(f"x{i}", f"X{i}", True) for i in range(3))))
    lines = [line("a", up=1.0, x0=0.0, x1=0.0, x2=0.0), line("b", up=0.0, x0=1.0, x1=1.0, x2=1.0)]
    assert quality(suite, lines)[0] == {"a": 0.5, "b": 0.5}


def test_only_what_all_systems_have_counts(suite: Suite) -> None:
    lines = [line("a", up=1.0, down=0.0), line("b", up=2.0), line("c", clips=0)]
    assert quality(suite, lines) == ({"a": 0.0, "b": 1.0}, ["Up"])
    assert quality(suite, [line("a", up=1.0), line("b", up=1.0)]) == ({}, [])
    assert quality(suite, []) == ({}, [])


LINES = [
    line("identity", 512, up=9.0),
    line("gac@0.175", 0.175, up=1.0),
    line("gac@0.275", 0.275, up=3.0),
    line("gac-large@0.275", 0.275, up=5.0),
    line("opus@6", 6.0, up=4.0),
    line("plain", 2.0, up=0.0),
]


def test_figure_1_has_a_curve_for_each_family(suite: Suite) -> None:
    (axis,) = by_system(suite, LINES).axes
    labels = [points.get_label() for points in axis.collections]
    assert labels == ["gac (11.0 M)", "gac-large (493.0 M)", "opus", "plain"]  # and no identity
    points = axis.collections[0].get_offsets()
    assert points.tolist() == [[0.175, pytest.approx(1 / 9)], [0.275, pytest.approx(1 / 3)]]
    areas = [points.get_sizes()[0] for points in axis.collections]
    assert areas[1] > areas[0] > areas[2] == areas[3]
    assert axis.get_xscale() == "log" and axis.get_title() == "speech"


def test_figure_3_has_a_curve_for_each_decoder(suite: Suite) -> None:
    figure = by_size(suite, LINES)
    assert figure is not None
    curves = {curve.get_label(): curve.get_xydata().tolist() for curve in figure.axes[0].lines}
    assert list(curves) == ["11.0 M decoder (gac)", "493.0 M decoder (gac-large)"]
    assert curves["493.0 M decoder (gac-large)"] == [[0.275, pytest.approx(5 / 9)]]
    assert by_size(suite, LINES[4:]) is None
    names = [name for name, *_ in draw(suite, LINES[4:])]
    assert names == ["figure1"]


def test_captions_name_the_columns(suite: Suite) -> None:
    captions = [caption for *_, caption in draw(suite, LINES)]
    assert len(captions) == 2 and captions[0].endswith("speech: Up.")


def test_files_are_images_and_repeat(suite: Suite) -> None:
    once, again = (svg(by_system(suite, LINES)) for _ in range(2))
    assert once == again and ET.fromstring(once).tag.endswith("svg")
    assert png(by_system(suite, LINES)).startswith(b"\x89PNG")
