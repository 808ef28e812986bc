"""How far decoded audio is from the original, by domain and rate, on held-out clips.

    python benchmarks/quality.py --root=MANIFEST --model=mini --clips=20

Takes clips that training with the same --validation_percent never saw, the first seconds of
each, and prints one JSON line per domain and rate, then a table:

  log_mel_db   mean |difference| of 128-band log-mel spectra (25 Hz to 16 kHz, 20 ms frames), in
               dB, after both are floored 60 dB below the original's loudest cell
  stoi         short-time objective intelligibility of speech (Taal et al., 2011), if `pystoi`
               is installed
  kbps         measured from file bytes
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from absl import app, flags

import gac_jax
from gac_jax.data.pipeline import split
from gac_jax.data.sources import open_source
from gac_jax.metrics.signal import log_mel_distance
from gac_jax.rates import LADDER, SAMPLE_RATE, kbps
from gac_jax.signal.audio_io import to_mono_32k

_ROOT = flags.DEFINE_string("root", "", "Folder, manifest or tfds:NAME:SPLIT.")
_MODEL = flags.DEFINE_string("model", "mini", "Bundled model or model folder.")
_CLIPS = flags.DEFINE_integer("clips", 20, "Clips of each domain.", 1)
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Of each clip, from its start.", 1.0)
_STEPS = flags.DEFINE_integer("steps", None, "Solver steps; by default the model's.")
_GUIDANCE = flags.DEFINE_float("guidance", None, "Guidance weight; by default the model's.")
_VALIDATION = flags.DEFINE_float("validation_percent", 3.0, "Held out, as in training; 0: all.")


def main(_: list[str]) -> None:
    """Measures and prints."""
    codec = gac_jax.load(_MODEL.value)
    scores: dict[tuple[str, float], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for domain, wave in held_out():
        whole = codec.encode(wave)
        for k in LADDER:
            tokens = whole.with_residuals(k)
            decoded = codec.decode(tokens, steps=_STEPS.value, guidance=_GUIDANCE.value)
            row = scores[domain, kbps(k)]
            row["log_mel_db"].append(log_mel_distance(wave, decoded))
            row["kbps"].append(8e-3 * len(tokens.to_bytes()) / tokens.duration)
            if domain == "speech" and (score := stoi_of(wave, decoded)) is not None:
                row["stoi"].append(score)
    _report(scores)


def held_out() -> Iterator[tuple[str, np.ndarray]]:
    """Domain and first seconds, 32 kHz mono, of some held-out clips of each domain."""
    source = open_source(_ROOT.value)
    training, held_out = split(source.clips, _VALIDATION.value)
    left: dict[str, int] = defaultdict(lambda: _CLIPS.value)
    for index in held_out if _VALIDATION.value else training:
        clip = source[index]
        if left[clip.domain]:
            with clip.open() as file:
                samples = file.read(int(_SECONDS.value * file.samplerate), always_2d=True)
                rate = file.samplerate
            if samples.shape[0] >= rate:  # STOI needs about half a second of speech
                left[clip.domain] -= 1
                yield clip.domain, to_mono_32k(samples.T.astype(np.float32), rate)


def stoi_of(reference: np.ndarray, decoded: np.ndarray) -> float | None:
    """STOI of two waves at 32 kHz, None without `pystoi`."""
    try:
        from pystoi import stoi
    except ImportError:
        return None
    return float(stoi(reference, decoded, SAMPLE_RATE))


def _report(scores: dict[tuple[str, float], dict[str, list[float]]]) -> None:
    head = ["domain", "kbps", "measured", "log-mel dB", "STOI", "clips"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for (domain, rate), row in sorted(scores.items()):
        mean = {name: float(np.mean(values)) for name, values in row.items()}
        count = len(row["log_mel_db"])
        print(json.dumps({"domain": domain, "nominal": rate, "clips": count, **mean}))
        stoi = f"{mean['stoi']:.3f}" if "stoi" in mean else "-"
        lines.append(
            f"| {domain} | {rate:.3f} | {mean['kbps']:.3f} | {mean['log_mel_db']:.2f} | {stoi} "
            f"| {count} |"
        )
    print("\n".join(lines), file=sys.stderr)


if __name__ == "__main__":
    app.run(main)
