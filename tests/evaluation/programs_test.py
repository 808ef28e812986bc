import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gac_jax.errors import UserError
from gac_jax.evaluation.programs import CODEC2, Program, aac, codec2, external, mp3, opus
from gac_jax.rates import SAMPLE_RATE
from tests.metrics.excerpts import speech

COPY = "cp {in} {bits}", "cp {bits} {out}"


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def late_by(decoded: np.ndarray, wave: np.ndarray, hop: int = 32) -> float:
    """Milliseconds by which the envelope of one comes after that of the other."""
    ends = len(wave) // hop * hop
    a, b = (np.abs(x[:ends]).reshape(-1, hop).mean(1) for x in (wave, decoded))
    a, b = (np.convolve(np.log(x + 1e-3), np.hanning(9), "same") for x in (a, b))
    lags = np.correlate(b - b.mean(), a - a.mean(), "full")
    return float(1000 * hop / SAMPLE_RATE * (np.argmax(lags) - len(a) + 1))


def test_files_go_there_and_back(rng: np.random.Generator) -> None:
    wave = (0.5 * rng.standard_normal(3_201)).astype(np.float32)
    system = external("cmd:copy:cp {in} {bits}:cp {bits} {out}")
    data = system.encode(wave)
    assert data[:4] == b"RIFF" and len(data) == 44 + 2 * 3_201
    decoded = system.decode(data, len(wave))
    assert np.abs(decoded - np.clip(wave, -1, 1)).max() < 1e-4
    assert system.name == "copy"
    assert system.settings == {"encoding": COPY[0], "decoding": COPY[1]}


def test_delay_is_cut_off_and_the_length_kept(rng: np.random.Generator) -> None:
    wave = (0.1 * rng.standard_normal(3_200)).astype(np.float32)
    system = Program("late", *COPY, delay=200)
    decoded = system.decode(Program("copy", *COPY).encode(wave), len(wave))
    assert np.abs(decoded[:3_000] - wave[200:]).max() < 1e-4
    assert decoded.shape == wave.shape and not decoded[3_000:].any()


def test_delay_counts_at_the_rate_of_the_program() -> None:
    wave = speech(0.5)
    data = Program("slow", *COPY, rate=8_000).encode(wave)
    assert len(data) == 44 + 2 * len(wave) // 4
    plain, late = (
        Program("slow", *COPY, rate=8_000, delay=n).decode(data, len(wave)) for n in (0, 50)
    )
    assert np.array_equal(late[:-200], plain[200:])


def test_raw_files_have_no_header(rng: np.random.Generator) -> None:
    wave = (0.1 * rng.standard_normal(640)).astype(np.float32)
    system = Program("raw", *COPY, raw=True)
    data = system.encode(wave)
    assert len(data) == 2 * 640
    assert np.abs(system.decode(data, 640) - wave).max() < 1e-4


def test_what_comes_out_may_be_stereo_at_any_rate(tmp_path: Path) -> None:
    audio = tmp_path / "stereo.wav"
    soundfile.write(audio, np.stack([np.full(4_800, 0.2), np.full(4_800, 0.4)], 1), 48_000)
    system = Program("x", COPY[0], f"cp {audio} {{out}}")
    decoded = system.decode(b"", 3_200)
    assert decoded.shape == (3_200,)
    assert decoded[1_000:2_000] == pytest.approx(0.3, abs=1e-3)


def test_a_program_that_fails_is_quoted() -> None:
    code = "import sys; print('first', file=sys.stderr); sys.exit('too quiet')"
    system = Program("x", f'{sys.executable} -c "{code}"', COPY[1])
    with pytest.raises(UserError, match=r"python\S* ended with code 1: too quiet$"):
        system.encode(np.zeros(9, np.float32))
    with pytest.raises(UserError, match="cp wrote no audio"):
        Program("x", *COPY).decode(b"text", 9)


def test_a_missing_program_is_told_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    for make, told in (
        (lambda: opus("6"), "opusenc is missing: install the Debian package opus-tools"),
        (lambda: codec2("450"), "c2enc is missing: install the Debian package codec2"),
        (lambda: mp3("32"), "ffmpeg is missing: install the Debian package ffmpeg"),
        (lambda: aac("32"), "ffmpeg is missing: install the Debian package ffmpeg"),
        (lambda: Program("x", *COPY), "x: the program cp is missing"),
    ):
        with pytest.raises(UserError, match=told):
            make()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cmd:x:cp {in} {bits}", "not of the form"),
        ("cmd::cp {in} {bits}:cp {bits} {out}", "not of the form"),
        ("cmd:x:cp {in}:cp {bits} {out}", "not of the form"),
        ("cmd:x:cp {in} {bits}:cp {bits}", "not of the form"),
        ("cmd:x:cp '{in} {bits}:cp {bits} {out}", "No closing quotation"),
        ("cmd:x:no-such-program {in} {bits}:cp {bits} {out}", "no-such-program is missing"),
    ],
)
def test_templates_must_name_their_files(text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        external(text)


@pytest.mark.parametrize(
    ("make", "rate"), [(opus, "5"), (opus, "x"), (opus, "nan"), (mp3, "900"), (aac, "1")]
)
def test_rates_out_of_range_are_refused(make: object, rate: str) -> None:
    with pytest.raises(UserError, match=rf"@{rate}: give a rate of"):
        make(rate)  # type: ignore[operator]  # the functions differ in what they return
    with pytest.raises(UserError, match=r"codec2@500: the modes are 3200, .*, 450"):
        codec2("500")


@pytest.mark.parametrize("mode", CODEC2)
def test_codec2_sends_the_bits_of_its_mode_and_comes_in_time(mode: str) -> None:
    needs("c2enc")
    wave, system = speech(4.0), codec2(mode)
    data = system.encode(wave)
    frame_bits, frame_samples, delay = CODEC2[mode]
    frames = -(-(len(wave) // 4 + delay) // frame_samples)
    assert len(data) == -(-frames * frame_bits // 8)
    nominal = float(mode.removesuffix("C"))
    assert 8 * len(data) / 4.0 == pytest.approx(nominal, rel=0.02)
    decoded = system.decode(data, len(wave))
    assert decoded.shape == wave.shape and decoded[-3_200:].any()
    assert abs(late_by(decoded, wave)) <= 12  # a third of a frame; uncorrected it is 20 to 30


@pytest.mark.parametrize("kbps", ["6", "24"])
def test_opus_keeps_its_rate_and_time(kbps: str) -> None:
    needs("opusenc")
    wave, system = speech(4.0), opus(kbps)
    data = system.encode(wave)
    assert 8e-3 * len(data) / 4.0 == pytest.approx(float(kbps), rel=0.25)
    assert abs(late_by(system.decode(data, len(wave)), wave)) <= 2


@pytest.mark.parametrize("make", [mp3, aac])
@pytest.mark.parametrize("kbps", ["16", "48"])
def test_ffmpeg_is_in_step_to_the_sample(make: object, kbps: str) -> None:
    needs("ffmpeg")
    wave = speech(2.0)
    system = make(kbps)  # type: ignore[operator]  # the functions differ in what they return
    decoded = system.decode(system.encode(wave), len(wave))
    assert decoded.shape == wave.shape
    assert np.corrcoef(decoded, wave)[0, 1] > 0.98
