"""Measures what entropy coding saves, and what it costs in time.

    python -m benchmarks.entropy_coding --tokens=TOKENS --validation_percent=8

TOKENS is a token set of the model. Held-out clips, those of each domain apart, are written at
every rate of the ladder, plain and compressed, and read again. Prints JSON lines: kbps of whole
files and of their codes alone, and seconds that it took for a second of audio.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import numpy as np
from absl import app, flags

from gac_jax import rates
from gac_jax.bitstream import Tokens
from gac_jax.codec import Codec, load
from gac_jax.data.pipeline import split
from gac_jax.data.tokens import TokenSource

_MODEL = flags.DEFINE_string("model", "mini", "A bundled model or a model folder.")
_TOKENS = flags.DEFINE_string("tokens", None, "Its token set.", required=True)
_PERCENT = flags.DEFINE_float("validation_percent", 8.0, "Of it, which is held out.", 0, 100)
_CLIPS = flags.DEFINE_integer("clips", 40, "Of each domain, at most.", 1)
_SOURCE = flags.DEFINE_string("source", "", "Only clips whose source has this in its name.")

CONTAINER = 21  # bytes of a compressed file without codes; every chunk adds 5


def main(_: list[str]) -> None:
    """Prints a line for each domain and rate."""
    codec = load(_MODEL.value)
    source = TokenSource(_TOKENS.value, codec.fingerprint)
    groups: dict[str, list[Tokens]] = {}
    for clip, tokens in (source[i] for i in range(len(source))):
        if split([clip], _PERCENT.value)[1] and _SOURCE.value in clip.source:
            groups.setdefault(clip.domain, []).append(tokens)
    seconds = np.zeros(3)  # to write, to read, of audio
    for domain, members in groups.items():
        some = np.random.default_rng(0).permutation(len(members))[: _CLIPS.value]
        for k in rates.LADDER:
            cut = [members[i].with_residuals(k) for i in some]
            plain, files, codes, spent = measure(codec, cut)
            length = sum(tokens.duration for tokens in cut)
            seconds += [*spent, length]
            kbps = {
                "codes": rates.kbps(k),
                "files": plain,
                "compressed_codes": codes,
                "compressed_files": files,
            }
            told = {name: round(value, 3) for name, value in kbps.items()}
            about = {"domain": domain, "clips": len(cut), "seconds": round(length)}
            print(json.dumps({**about, **told}), flush=True)
    write, read = seconds[:2] / seconds[2]
    print(json.dumps({"write_rtf": round(write, 4), "read_rtf": round(read, 4)}))


def measure(
    codec: Codec, clips: Sequence[Tokens]
) -> tuple[float, float, float, tuple[float, float]]:
    """Kbps of plain files, of compressed ones and of the codes in these; seconds both ways."""
    start = time.perf_counter()
    files = [codec.compress(tokens) for tokens in clips]
    middle = time.perf_counter()
    if [codec.read(data) for data in files] != list(clips):
        raise AssertionError("a compressed file holds other tokens")
    end = time.perf_counter()
    bits = 8 / sum(tokens.duration for tokens in clips) / 1000
    plain = bits * sum(len(tokens.to_bytes()) for tokens in clips)
    whole = sum(map(len, files))
    codes = whole - sum(CONTAINER + 5 * len(tokens.levels) for tokens in clips)
    return plain, bits * whole, bits * codes, (middle - start, end - middle)


if __name__ == "__main__":
    app.run(main)
