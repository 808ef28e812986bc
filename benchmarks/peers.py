"""How fast EnCodec, DAC and Mimi run here, on the clip and the cores that speed.py used.

    python benchmarks/peers.py --ours=ours.jsonl

Needs torch, transformers and soundfile, nothing of this package: an environment of its own will do.
The networks have random weights, on which speed does not depend, in the sizes that their authors
published. Prints a JSON line for each codec, first the best matrix product of PyTorch, and tables
on stderr: with --ours also the time that decoding by ours takes over that by theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from transformers import (
    DacConfig,
    DacModel,
    EncodecConfig,
    EncodecModel,
    MimiConfig,
    MimiModel,
)

CLIP = Path(__file__).parents[1] / "gac_jax" / "examples" / "speech.flac"
CLIP_RATE = 32_000
SIZES = (512, 1024, 2048, 4096)


class Peer(NamedTuple):
    """A codec at a rate.

    Attributes:
      model: with random weights.
      rate: samples a second.
      kbps: of its codes at this setting.
      setting: what sets the rate, as keyword arguments of its encoder.
    """

    model: Any
    rate: int
    kbps: float
    setting: dict[str, Any]


# What the default configurations of transformers 5.23 are was compared with the authors' own
# code: EncodecConfig and MimiConfig are the published 24 kHz models; DacConfig has the strides of
# the 44.1 kHz model under a sampling rate of 16 kHz, and is neither.
PEERS: dict[str, Callable[[], Peer]] = {
    "encodec_24khz": lambda: Peer(EncodecModel(EncodecConfig()), 24_000, 6.0, {"bandwidth": 6.0}),
    "mimi": lambda: Peer(MimiModel(MimiConfig()), 24_000, 1.1, {"num_quantizers": 8}),
    "dac_16khz": lambda: Peer(
        DacModel(
            DacConfig(
                downsampling_ratios=[2, 4, 5, 8],
                upsampling_ratios=[8, 5, 4, 2],
                n_codebooks=12,
                sampling_rate=16_000,
                hop_length=320,
            )
        ),
        16_000,
        6.0,
        {},
    ),
    "dac_44khz": lambda: Peer(DacModel(DacConfig(sampling_rate=44_100)), 44_100, 7.75, {}),
}


def main() -> None:
    """Measures and prints."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    print(json.dumps(_ceiling(options)), flush=True)
    rows = []
    for name in options.peers.split(","):
        rows.append(_measure(name, PEERS[name](), options.seconds, options.repeats))
        print(json.dumps(rows[-1]), flush=True)
    print(_table(rows), file=sys.stderr)
    if options.ours:
        lines = Path(options.ours).read_text(encoding="utf-8").splitlines()
        ours = [row for row in map(json.loads, lines) if row["what"] == "decode"]
        print(_table(ratios(ours, rows)), file=sys.stderr)


def ratios(ours: list[dict[str, Any]], peers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Decoding time of ours over a peer's, for each clip alone; below 1 ours is faster."""
    return [
        {
            "ours": f"{row['size']}, {row['steps']} steps, guidance {row['guidance']:g}, "
            f"{row['precision']}",
            **{peer["peer"]: row["rtf"] / peer["decode_rtf"] for peer in peers},
        }
        for row in ours
        if row["batch"] == 1
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default=",".join(PEERS), help="Names with commas between.")
    parser.add_argument("--seconds", type=float, default=10.24, help="Of audio in the clip.")
    parser.add_argument("--repeats", type=int, default=5, help="Runs; the fastest counts.")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--ours", help="What speed.py printed on the same machine.")
    return parser.parse_args()


def _measure(name: str, peer: Peer, seconds: float, repeats: int) -> dict[str, Any]:
    wave, _ = soundfile.read(CLIP, dtype="float32")
    # Played faster or slower, not resampled: speed depends on the number of samples alone.
    wave = np.resize(wave, round(seconds * peer.rate))
    model, samples = peer.model.eval(), torch.from_numpy(wave)[None, None]
    codes = model.encode(samples, **peer.setting).audio_codes
    more: tuple[Any, ...] = ([None],) if "bandwidth" in peer.setting else ()
    encoded = best(lambda: model.encode(samples, **peer.setting), repeats)

    def decode() -> torch.Tensor:
        if more:  # EnCodec's scales, of which a mono model has none
            return model.decode(codes, *more).audio_values
        return model.decode(audio_codes=codes).audio_values

    decoded = best(decode, repeats)
    assert abs(decode().numel() - wave.size) < peer.rate / 10, name
    return {
        "what": "peer",
        "peer": name,
        "parameters": sum(x.numel() for x in model.parameters()),
        "kbps": peer.kbps,
        "encode_rtf": encoded / seconds,
        "decode_rtf": decoded / seconds,
    }


def _ceiling(options: argparse.Namespace) -> dict[str, Any]:
    def rate(size: int) -> float:
        matrix = torch.randn(size, size)
        return 2.0 * size**3 / best(lambda: matrix @ matrix, options.repeats)

    flops, size = max((rate(size), size) for size in SIZES)
    return {
        "what": "ceiling",
        "precision": "float32",
        "gflop_per_s": flops / 1e9,
        "size": size,
        "cores": options.threads,
        "torch": torch.__version__,
    }


def best(run: Callable[[], Any], repeats: int) -> float:
    """Least seconds of several runs after one to warm up, as for ours."""
    run()
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        spent.append(time.perf_counter() - start)
    return min(spent)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0])] if rows else []
    lines += [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in r.values()] for r in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
