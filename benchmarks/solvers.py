"""What solver, time grid and number of network evaluations do to decoded audio.

    python benchmarks/solvers.py --root=MANIFEST --model=RUN --few=FEW --clips=4 --seconds=4

Decodes the same codes of held-out clips, with the same noise, in every way of --solvers, --warps
and --evaluations, and prints one JSON line for each way and domain, then a table:

  log_mel_db   distance from the original, as in quality.py
  stft         multi-resolution STFT distance from the original
  stoi         of speech, if `pystoi` is installed
  path_db      log-mel distance from what --reference Euler steps make of the same noise: how far
               the solver is from the end of the path
  liveliness   how much the log-mel changes from frame to frame, as a share of what the original's
               does: too few steps blur (below 1), what is not learnt roughens (above 1)

Distances from the original alone flatter few steps: what blurs towards the mean is near everything.
--few names a model that the stage meanflow has made of --model, whose solver `meanflow` joins in.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple
from unittest import mock

import numpy as np
from absl import app, flags

import gac_jax
from benchmarks.quality import held_out, stoi_of
from gac_jax import flow
from gac_jax.codec import Codec
from gac_jax.metrics.signal import log_mel_distance, stft_distance
from gac_jax.rates import SPECTRUM_HOP, residuals_for
from gac_jax.signal.mel import log_mel_32k

_FEW = flags.DEFINE_string("few", "", "Model of few steps, made of --model.")
_KBPS = flags.DEFINE_list("kbps", ["0.975"], "Rates.")
_SOLVERS = flags.DEFINE_list("solvers", ["euler", "heun"], "Solvers of --model.")
_WARPS = flags.DEFINE_list("warps", ["-1", "0"], "Time grids: -1 is sway sampling, 0 is uniform.")
_EVALUATIONS = flags.DEFINE_list("evaluations", ["1", "2", "4", "8", "16", "32"], "Of the network.")
_REFERENCE = flags.DEFINE_integer("reference", 64, "Euler steps that count as the end of the path.")
_TEMPERATURE = flags.DEFINE_float("temperature", None, "By default the model's.")


class Way(NamedTuple):
    """One way to decode."""

    solver: str
    warp: float
    evaluations: int

    def decode(self, codec: Codec, tokens: gac_jax.Tokens) -> np.ndarray:
        """Heun evaluates twice a step, but for the last, of which only the first one counts."""
        steps = self.evaluations // 2 if self.solver == "heun" else self.evaluations
        grid = partial(flow.time_grid, warp=self.warp)
        with mock.patch.object(flow, "time_grid", grid):
            return codec.decode(
                tokens, steps=steps, solver=self.solver, temperature=_TEMPERATURE.value
            )


def main(_: list[str]) -> None:
    """Measures and prints."""
    codec = gac_jax.load(flags.FLAGS.model)
    few = gac_jax.load(_FEW.value) if _FEW.value else None
    scores: dict[tuple[Way, str, str], dict[str, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for domain, wave in held_out():
        whole = codec.encode(wave)
        for rate in _KBPS.value:
            tokens = whole.with_residuals(residuals_for(float(rate)))
            end = Way("euler", -1.0, _REFERENCE.value).decode(codec, tokens)
            for way in ways(few is not None):
                decoded = way.decode(few if few and way.solver == "meanflow" else codec, tokens)
                row = scores[way, rate, domain]
                row["log_mel_db"].append(log_mel_distance(wave, decoded))
                row["stft"].append(stft_distance(wave, decoded))
                row["path_db"].append(log_mel_distance(end, decoded))
                row["liveliness"].append(change(decoded) / change(wave))
                if domain == "speech" and (score := stoi_of(wave, decoded)) is not None:
                    row["stoi"].append(score)
    report(scores)


def ways(few: bool) -> Iterator[Way]:
    """All that are asked for."""
    for solver in (*_SOLVERS.value, *(("meanflow",) if few else ())):
        for warp in map(float, _WARPS.value if solver != "meanflow" else ("-1",)):
            for evaluations in map(int, _EVALUATIONS.value):
                if solver != "heun" or evaluations > 1:
                    yield Way(solver, warp, evaluations)


def change(wave: np.ndarray) -> float:
    """RMS change of the log-mel from one frame to the next, where it is not next to silence."""
    mel = np.asarray(log_mel_32k(wave[None, : wave.size // SPECTRUM_HOP * SPECTRUM_HOP]))[0]
    loud = mel > mel.max() - 6.9  # 60 dB of power
    steps = np.diff(mel)[loud[:, 1:] & loud[:, :-1]]
    return float(np.sqrt(np.mean(np.square(steps))))


def report(scores: dict[tuple[Way, str, str], dict[str, list[float]]]) -> None:
    """JSON lines, then a table with a row for each way."""
    names = ("log_mel_db", "stft", "path_db", "liveliness", "stoi")
    print("| solver | warp | evaluations | kbps | domain | " + " | ".join(names), file=sys.stderr)
    print("|---" * (5 + len(names)) + "|", file=sys.stderr)
    for (way, rate, domain), row in scores.items():
        mean = {name: round(float(np.mean(values)), 4) for name, values in row.items()}
        clips = len(row["log_mel_db"])
        print(json.dumps({**way._asdict(), "kbps": rate, "domain": domain, "clips": clips, **mean}))
        cells = (*way, rate, domain, *(mean.get(name, "-") for name in names))
        print("| " + " | ".join(map(str, cells)) + " |", file=sys.stderr)


if __name__ == "__main__":
    app.run(main)
