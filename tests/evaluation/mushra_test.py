import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from gac_jax.errors import UserError
from gac_jax.evaluation import mushra
from gac_jax.metrics.signal import loudness
from gac_jax.rates import SAMPLE_RATE

DOMAINS = ("speech", "sound")


def tone(hertz: float, seconds: float = 1.0, level: float = 0.5) -> np.ndarray:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (level * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def decibels(wave: np.ndarray) -> float:
    return float(20 * np.log10(np.sqrt(np.mean(np.square(wave[4000:-4000]))) * np.sqrt(2)))


@pytest.fixture
def evaluation(tmp_path: Path, rng: np.random.Generator) -> Path:
    """What gac_jax.evaluate leaves of two clips of 0.6 s in each of two domains."""
    folder = tmp_path / "evaluation"
    rows = []
    for domain in DOMAINS:
        for number in range(2):
            id_ = f"{domain}-{number:03d}"
            rows.append({"id": id_, "path": f"{id_}.flac", "domain": domain, "seconds": 0.6})
            wave = 0.1 * rng.standard_normal(round(0.6 * SAMPLE_RATE))
            for system, gain in (("reference", 1.0), ("gac@0.275", 0.2), ("opus@6", 2.0)):
                path = folder / "clips" / id_ / f"{system}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, gain * wave, SAMPLE_RATE)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "clips.jsonl").write_text(text, encoding="utf-8")
    return folder


def export(evaluation: Path, output: Path, limit: int = 0) -> dict[str, Any]:
    path = mushra.export(mushra.plan(evaluation, [], limit), output, 0.5)
    assert path == output / "configs" / "gac.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("edge", mushra.ANCHORS.values())
def test_anchors_meet_the_standard(edge: float) -> None:
    """For 3.5 kHz BS.1534-3 asks for 0.1 dB, 25 dB at 4 kHz and 50 dB at 4.5 kHz."""
    for hertz in (20, 1000, edge - 300, edge):
        assert abs(decibels(mushra.low_pass(tone(hertz, level=1.0), edge))) < 0.02
    for hertz in (edge + 500, edge + 1000, 15_000):
        assert decibels(mushra.low_pass(tone(hertz, level=1.0), edge)) < -59
    wave = tone(440)
    anchor = mushra.low_pass(wave, edge)
    assert anchor.shape == wave.shape and anchor.dtype == np.float32
    np.testing.assert_allclose(anchor[4000:-4000], wave[4000:-4000], atol=1e-3)  # no delay


def test_stimuli_are_equally_loud() -> None:
    waves = {"reference": tone(440, level=0.01), "a": tone(5000, level=0.8), "b": tone(9000)}
    made = mushra.stimuli(waves)
    assert list(made) == ["reference", "a", "b", "anchor35", "anchor70"]
    for name in ("reference", "a", "b", "anchor35"):
        assert loudness(made[name]) == pytest.approx(mushra.LOUDNESS, abs=0.01)


def test_a_page_that_would_clip_is_softer_as_a_whole() -> None:
    click = np.zeros(SAMPLE_RATE, np.float32)
    click[::8000] = 0.5
    made = mushra.stimuli({"reference": tone(440), "a": click})
    assert max(np.abs(wave).max() for wave in made.values()) == pytest.approx(mushra.PEAK)
    assert loudness(made["a"]) == pytest.approx(loudness(made["reference"]), abs=0.01)
    assert loudness(made["reference"]) < mushra.LOUDNESS - 3


def test_silence_stays_silent(rng: np.random.Generator) -> None:
    faint = (1e-5 * rng.standard_normal(SAMPLE_RATE)).astype(np.float32)
    np.testing.assert_array_equal(mushra.stimuli({"reference": tone(440), "a": faint})["a"], faint)
    nothing = np.zeros(SAMPLE_RATE, np.float32)
    assert not any(x.any() for x in mushra.stimuli({"reference": nothing}).values())


def test_a_clip_that_is_cut_is_faded_out() -> None:
    wave = np.ones(SAMPLE_RATE, np.float32)
    cut = mushra._cut(wave, 16_000)
    assert len(cut) == 16_000 and cut[0] == 1 and cut[-321] == 1 and cut[-1] == 0
    assert mushra._cut(wave, SAMPLE_RATE) is wave


def test_the_test_has_pages_by_domain_in_random_order(evaluation: Path, tmp_path: Path) -> None:
    test = export(evaluation, tmp_path / "out")
    kinds = [page["type"] for page in test["pages"] if isinstance(page, dict)]
    assert kinds == ["generic", "volume", "mushra", "finish"]
    assert test["pages"][2]["id"] == "training"
    order, *blocks = test["pages"][3]
    assert order == "random" and [block[0] for block in blocks] == ["random", "random"]
    ids = [[page["id"] for page in block[1:]] for block in blocks]
    assert ids == [
        ["sound:sound-000", "sound:sound-001"],
        ["speech:speech-000", "speech:speech-001"],
    ]
    finish = test["pages"][-1]
    assert finish["writeResults"] and finish["questionnaire"][0]["name"] == "assessor"


def test_every_file_of_a_page_is_there(evaluation: Path, tmp_path: Path) -> None:
    test = export(evaluation, tmp_path / "out")
    page = test["pages"][3][1][1]
    assert set(page["stimuli"]) == {"gac@0.275", "opus@6", "anchor35", "anchor70"}
    assert not page["showConditionNames"] and page["randomize"]
    assert not page["createAnchor35"] and not page["createAnchor70"]  # ours are there already
    waves = {}
    for name, path in {"reference": page["reference"], **page["stimuli"]}.items():
        waves[name], rate = soundfile.read(tmp_path / "out" / path, dtype="float32")
        assert rate == SAMPLE_RATE and waves[name].shape == (SAMPLE_RATE // 2,)
    # All systems differ from the reference by their level only.
    np.testing.assert_allclose(waves["gac@0.275"], waves["reference"], atol=5e-4)
    np.testing.assert_allclose(waves["opus@6"], waves["reference"], atol=5e-4)
    assert np.abs(waves["anchor35"] - waves["reference"]).max() > 0.01
    assert test["pages"][1]["stimulus"] == test["pages"][3][1][1]["reference"]


def test_the_configuration_suits_the_parser_of_webmushra(evaluation: Path, tmp_path: Path) -> None:
    """yamljs takes neither "- - random" nor JSON on several lines."""
    export(evaluation, tmp_path)
    lines = (tmp_path / "configs" / "gac.yaml").read_text(encoding="utf-8").splitlines()
    assert "    -" in lines and not any("- -" in line for line in lines)
    pages = [line.strip().removeprefix("- ") for line in lines if "{" in line]
    assert len(pages) == 8 and all(json.loads(page)["type"] for page in pages)


def test_clips_and_systems_can_be_chosen(evaluation: Path) -> None:
    plan = mushra.plan(evaluation, ["opus@6"], 1)
    assert [clip.id for clip in plan.clips] == ["sound-000", "speech-000"]
    assert plan.systems == ["opus@6"]
    assert mushra.plan(evaluation, [], 0).systems == ["gac@0.275", "opus@6"]


def test_what_is_missing_is_named(evaluation: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"clips.jsonl: does not exist; give the --output of"):
        mushra.plan(tmp_path, [], 0)
    with pytest.raises(UserError, match=r"dac@6.wav: does not exist; .* leave the system out"):
        mushra.plan(evaluation, ["dac@6"], 0)
    with pytest.raises(UserError, match="10 systems, and a page has 1 to 9 beside"):
        mushra.plan(evaluation, [str(i) for i in range(10)], 0)
    soundfile.write(evaluation / "clips" / "sound-000" / "opus@6.wav", np.zeros(99), SAMPLE_RATE)
    with pytest.raises(UserError, match=r"opus@6.wav: is not as long as its reference"):
        export(evaluation, tmp_path / "out")
    assert not (tmp_path / "out" / "configs" / "gac.yaml").exists()
