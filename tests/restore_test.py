import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gac_jax import restore
from gac_jax.signal.audio_io import AudioWriter
from tests import echo

ROOT = Path(__file__).resolve().parents[1]
# What the package needs to train and to encode, and restoring does not.
ELSEWHERE = ("absl", "flax", "grain", "librosa", "ml_collections", "optax", "orbax", "soxr", "tqdm")
OWN = {
    "gac_jax",
    *(f"gac_jax.{name}" for name in ("atomic", "bitstream", "errors", "gacx", "rates", "restore")),
    *(f"gac_jax.{name}" for name in ("signal", "signal.loudness", "storage", "windows")),
}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return echo.write(tmp_path_factory.mktemp("gacx") / "echo.gacx")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    (tmp_path / "a.gac").write_bytes(echo.tokens(5).to_bytes())
    return tmp_path / "a.gac"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a call that fails says."""
    with pytest.raises(SystemExit) as exit_:
        restore.main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    assert (exit_.value.code, told.out, told.err.count("\n")) == (2, "", 1)
    assert told.err.startswith("error: ")
    return told.err


def test_it_runs_where_the_rest_is_not_installed(decoder: Path, clip: Path, tmp_path: Path) -> None:
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({ELSEWHERE}));"
        "from gac_jax import restore; restore.main(sys.argv[1:]);"
        "print(*(name for name in sys.modules if name.startswith('gac_jax')))"
    )
    output = tmp_path / "deep" / "a.wav"
    flags = [f"--decoder={decoder}", f"--input={clip}", f"--output={output}", "--seed=2"]
    command = [sys.executable, "-W", "error", "-c", program, *flags]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert set(result.stdout.split()) == OWN
    wave, rate = soundfile.read(output)
    assert rate == 32_000 and wave.shape == (echo.tokens(5).num_samples,)


def test_audio_is_written_as_sample_writes_it(tmp_path: Path, rng: np.random.Generator) -> None:
    wave = rng.normal(0, 0.6, 70_000).astype(np.float32)  # some of it beyond full scale
    with AudioWriter(tmp_path / "a.wav") as writer:
        writer.write(wave)
    assert restore.wav(wave) == (tmp_path / "a.wav").read_bytes()


def test_the_seed_is_heard(decoder: Path, clip: Path) -> None:
    tokens = echo.tokens(5)
    np.testing.assert_allclose(restore.restore(decoder, clip, 9), echo.expected(tokens, 9), 1e-6)


def test_mistakes_are_told_in_one_line(
    decoder: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign, wav = tmp_path / "b.gac", tmp_path / "a.wav"
    foreign.write_bytes(echo.tokens(5, fingerprint=bytes(range(8))).to_bytes())
    good = [f"--decoder={decoder}", f"--input={clip}", f"--output={wav}"]
    for change, told in {
        f"--decoder={clip}": f"{clip}: no .gacx file",
        f"--decoder={tmp_path}": f"{tmp_path}: cannot be read",
        f"--input={decoder}": f"{decoder}: not a .gac file",
        f"--input={tmp_path}/none.gac": "none.gac: cannot be read (No such file or directory)",
        f"--input={foreign}": f"{foreign}: these tokens were made by model 00010203",
        f"--output={clip}/a.wav": "cannot be written",
        "--seed=-1": "seed must be",
    }.items():
        assert told in refused(capsys, *good, change)
    assert not wav.exists()
