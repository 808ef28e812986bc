"""Peak memory of a round trip of one hour of audio, against that of ten minutes.

    python benchmarks/memory.py --model=mini

Runs the sample command in processes of their own on noise of both lengths, with one solver step
(memory does not depend on the number), and prints one JSON line with both peaks and their ratio,
which is to stay within 0.9 .. 1.1, and the measured rate of the ten minutes.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from absl import app, flags

from gac_jax.rates import SAMPLE_RATE

_MODEL = flags.DEFINE_string("model", "mini", "Bundled model or model folder.")
_KBPS = flags.DEFINE_float("kbps", 0.275, "Rate.")
_MINUTES = flags.DEFINE_list("minutes", ["10", "60"], "Lengths to compare, shortest first.")


def main(_: list[str]) -> None:
    """Measures the lengths in order: the peak of all children only ever rises."""
    peaks, rates = [], []
    with tempfile.TemporaryDirectory() as folder:
        for minutes in map(float, _MINUTES.value):
            audio = Path(folder, f"{minutes:g}min.flac")
            _write_noise(audio, minutes)
            rates.append(_round_trip(audio, Path(folder, "out")))
            peaks.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    print(
        json.dumps(
            {
                "minutes": [float(m) for m in _MINUTES.value],
                "peak_mib": peaks,
                "ratio": peaks[-1] / peaks[0],
                "measured_kbps": rates,
            }
        )
    )


def _write_noise(path: Path, minutes: float) -> None:
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1, "PCM_16") as file:
        for second in range(round(minutes * 60)):
            level = 0.05 + 0.04 * np.sin(second)
            file.write(level * rng.standard_normal(SAMPLE_RATE))


def _round_trip(audio: Path, output: Path) -> float:
    """Returns kbit/s measured from the .gac file's bytes."""
    command = [sys.executable, "-m", "gac_jax.sample", f"--input={audio}", f"--output={output}"]
    settings = [f"--model={_MODEL.value}", f"--kbps={_KBPS.value}", "--steps=1", "--guidance=1"]
    subprocess.run([*command, *settings], check=True, stdout=sys.stderr)
    size = output.joinpath(audio.stem + ".gac").stat().st_size
    return 8e-3 * size / soundfile.info(audio).duration


if __name__ == "__main__":
    app.run(main)
