import csv
import io
import math
from pathlib import Path

import matplotlib.image
import pytest
import scipy.stats

from gac_jax.errors import UserError
from gac_jax.evaluation import assessors
from gac_jax.evaluation.assessors import Rating, Score

HEADER = "session_test_id,assessor,session_uuid,trial_id,rating_stimulus,rating_score,rating_time"


def rated(who: str, stimulus: str, scores: list[float], domain: str = "speech") -> list[Rating]:
    return [Rating(who, domain, str(i), stimulus, s) for i, s in enumerate(scores)]


def attentive(assessor: str) -> list[Rating]:
    """Who hears everything right on 20 items."""
    stimuli = {"reference": 100.0, "anchor70": 50.0, "anchor35": 20.0}
    return [r for name, score in stimuli.items() for r in rated(assessor, name, [score] * 20)]


def write(folder: Path, *lines: str, header: str = HEADER) -> Path:
    path = folder / "mushra.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def test_ratings_of_webmushra_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "gac,Ann,u1,training,reference,3,1000",
        "gac,Ann,u1,speech:speech-000,gac@0.275,61,1000",
        '"gac","Ann",u2,"sound:sound-001","reference","100","2000"',
    )
    assert assessors.read(path) == [
        Rating("Ann u1", "speech", "speech-000", "gac@0.275", 61.0),
        Rating("Ann u2", "sound", "sound-001", "reference", 100.0),
    ]


@pytest.mark.parametrize(
    ("line", "header", "message"),
    [
        ("gac,Ann,u,trial1,reference,100,1", HEADER, "line 2: page 'trial1' is none that"),
        ("gac,Ann,u,speech:a,reference,101,1", HEADER, "line 2: score '101' is not within 0"),
        ("gac,Ann,u,speech:a,reference,,1", HEADER, "line 2: score '' is not within 0"),
        ("gac,Ann,u,speech:a,reference,nan,1", HEADER, "line 2: score 'nan' is not within 0"),
        ("gac,Ann,u,training,reference,5,1", HEADER, "holds no ratings"),
        ("1,2", "a,b", "has no column trial_id; give webMUSHRA's mushra.csv"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, line: str, header: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        assessors.read(write(tmp_path, line, header=header))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.csv: cannot be read"):
        assessors.read(tmp_path / "none.csv")


def test_post_screening_by_the_reference() -> None:
    """Three of 20 items are 15 %, which is not more than 15 %; four are."""
    at_limit = rated("Bo", "reference", [89.0] * 3 + [90.0] * 17)
    beyond = rated("Cy", "reference", [89.0] * 4 + [90.0] * 16)
    found = assessors.post_screen([*attentive("Ann"), *at_limit, *beyond])
    assert found == {"Cy": "hidden reference below 90 on 20% of items"}


def test_post_screening_by_the_middle_anchor() -> None:
    at_limit = rated("Bo", "anchor70", [91.0] * 3 + [90.0] * 17)
    beyond = rated("Cy", "anchor70", [91.0] * 4 + [90.0] * 16)
    low = rated("Di", "anchor35", [100.0] * 20)  # the standard does not ask for this one
    found = assessors.post_screen([*attentive("Ann"), *at_limit, *beyond, *low])
    assert found == {"Cy": "7 kHz anchor above 90 on 20% of items"}


def test_means_and_intervals_by_hand() -> None:
    """60 and 80 have standard error 10, and t is 12.706 for one degree of freedom."""
    ratings = [*rated("Ann", "gac", [60.0]), *rated("Bo", "gac", [80.0])]
    score = assessors.scores(ratings)[0]
    assert (score.mean, score.ratings, score.assessors) == (70.0, 2, 2)
    assert score.margin == pytest.approx(127.062, abs=1e-3)


def test_intervals_agree_with_scipy() -> None:
    values = [12.0, 55.0, 61.0, 40.0, 90.0]
    score = assessors.scores(rated("Ann", "gac", values))[0]
    low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (score.mean - score.margin, score.mean + score.margin) == pytest.approx((low, high))


def test_scores_by_domain_and_of_all() -> None:
    ratings = [
        *rated("Ann", "a", [30.0, 50.0], "sound"),
        *rated("Ann", "b", [70.0], "sound"),
        *rated("Ann", "b", [80.0, 90.0], "speech"),
    ]
    found = {(s.stimulus, s.domain): s.mean for s in assessors.scores(ratings)}
    assert list(found) == [
        ("b", "all"),
        ("b", "sound"),
        ("b", "speech"),
        ("a", "all"),
        ("a", "sound"),
    ]
    assert found["b", "all"] == 80.0 and found["a", "sound"] == 40.0


def cells() -> list[Score]:
    return [
        Score("gac", "all", 81.4, 2.25, 24, 3),
        Score("gac", "speech", 84.9, 1.5, 12, 3),
        Score("opus", "all", 40.0, math.nan, 1, 1),
    ]


def test_the_report_is_table_2() -> None:
    report = assessors.report(cells(), {"Cy": "because"}, 4)
    rows = [[c.strip() for c in r.strip("|").split("|")] for r in report.splitlines() if "|" in r]
    assert rows[0] == ["system", "speech", "all"]
    assert rows[2:] == [["gac", "84.9 ± 1.5", "81.4 ± 2.2"], ["opus", "-", "40.0 ± -"]]
    assert "3 of 4 assessors are in the table; left out:\n\n- Cy: because\n" in report
    assert "3 of 3 assessors are in the table.\n" in assessors.report(cells(), {}, 3)


def test_csv_has_every_number() -> None:
    first, *_ = csv.DictReader(io.StringIO(assessors.to_csv(cells()).decode()))
    assert first == {
        "stimulus": "gac", "domain": "all", "mean": "81.4", "margin": "2.25",
        "ratings": "24", "assessors": "3",
    }  # fmt: skip


def test_the_figure_has_a_panel_for_each_domain() -> None:
    speech, everything = assessors.draw(cells()).axes
    assert [axis.get_title() for axis in (speech, everything)] == ["speech", "all"]
    assert [label.get_text() for label in everything.get_xticklabels()] == ["gac", "opus"]
    points, _, bars = everything.containers[0]
    assert list(points.get_ydata()) == [81.4, 40.0]
    assert bars[0].get_segments()[0][:, 1].tolist() == pytest.approx([79.15, 83.65])


def test_pictures_are_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(assessors.picture(cells(), "png"))
    assert matplotlib.image.imread(tmp_path / "a.png").shape[2] == 4
    assert b"<svg" in assessors.picture(cells(), "svg")
