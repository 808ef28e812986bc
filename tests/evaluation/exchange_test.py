import math
from pathlib import Path

import numpy as np
import pytest

from gac_jax.bitstream import Tokens
from gac_jax.evaluation.exchange import sections
from gac_jax.evaluation.folder import Folder
from gac_jax.evaluation.summary import Contestant, Estimate, Line
from gac_jax.metrics.capacity import predicted_bits

CLIPS = ("speech-0", "speech-1")


def sent(folder: Folder, clip: str, codes: np.ndarray) -> dict:
    tokens = Tokens(codes, codes.shape[1] * 2_560, np.array([200], np.uint8), bytes(8))
    path = folder.bits(clip, "gac@0.275")
    path.parent.mkdir(parents=True)
    path.write_bytes(tokens.to_bytes())
    return {"clip": clip, "domain": "speech"}


@pytest.fixture
def ours(tmp_path: Path) -> tuple[Contestant, Line]:
    folder = Folder(tmp_path)
    settings = {"codebooks": [16_384, 256, 256], "trained_seconds": 7_200.0}
    folder.agree(systems={"gac@0.275": settings})
    rng = np.random.default_rng(0)
    alike, varied = np.zeros((2, 40), np.int32), rng.integers(256, size=(2, 40), dtype=np.int32)
    rows = [sent(folder, *pair) for pair in zip(CLIPS, (alike, varied), strict=True)]
    system = Contestant("run/gac@0.275", "gac@0.275", folder, rows, {})
    values = {"log_mel_db": Estimate(4.5)}
    line = Line("speech", system.title, 2, 0, 0.3, 1.0, 1.0, {"decoder": 11_000_000}, values)
    return system, line


def test_our_systems_are_accounted_for_by_domain(ours: tuple[Contestant, Line]) -> None:
    system, line = ours
    other = Line("speech", "opus@6", 1, 0, 6.0, 1.0, 1.0, {}, {})
    ((heading, text),) = sections([system], [other, line]).items()
    assert "speech" in heading and "log_mel_db" in heading
    row = next(row for row in text.splitlines() if "run/gac@0.275" in row)
    name, rate, predicted, size, hours, distance = map(str.strip, row.strip("|").split("|"))
    assert (name, rate, size, hours, distance) == (system.title, "300.0", "11.00", "2.0", "4.500")
    codes = [
        Tokens.from_bytes(system.folder.bits(c, "gac@0.275").read_bytes()).codes for c in CLIPS
    ]
    bits = predicted_bits((), codes, [16_384, 256]).sum()
    assert predicted == f"{12.5 * bits:.1f}" and 12.5 * bits < 270
    assert "opus" not in text and "1 points, and at least 5 are needed" in text


def test_what_is_not_known_is_a_dash(ours: tuple[Contestant, Line], tmp_path: Path) -> None:
    system, line = ours
    settings = {"codebooks": [16_384, 256], "trained_seconds": None}
    folder = Folder(tmp_path / "other")
    folder.agree(systems={"gac@0.275": settings})
    sent(folder, "speech-0", np.zeros((2, 4), np.int32))
    blank = Line("speech", "a", 1, 0, 0.3, 1.0, 1.0, {"decoder": 10}, {})
    (text,) = sections([Contestant("a", "gac@0.275", folder, system.rows, {})], [blank]).values()
    row = next(row for row in text.splitlines() if row.startswith("| a "))
    assert row.count(" - ") == 2 and not math.isnan(line.kbps)


def test_without_our_systems_there_is_no_section() -> None:
    assert sections([], [Line("speech", "opus@6", 1, 0, 6.0, 1.0, 1.0, {}, {})]) == {}
