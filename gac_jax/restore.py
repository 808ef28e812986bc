"""Turn a .gac file to audio: `python -m gac_jax.restore --decoder=D --input=GAC --output=WAV`.

D is a .gacx file, which `python -m gac_jax.export` writes. This needs JAX, NumPy, safetensors and
soundfile, and of this package no module that needs more. The clip is in memory as a whole.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from gac_jax import atomic
from gac_jax.bitstream import Tokens
from gac_jax.errors import UserError
from gac_jax.gacx import Decoder
from gac_jax.rates import SAMPLE_RATE


def main(arguments: Sequence[str] | None = None) -> None:
    """Does what the command line asks for; if that cannot be done, one line and exit code 2."""
    parser = argparse.ArgumentParser("gac_jax.restore", description=__doc__)
    parser.add_argument("--decoder", type=Path, required=True, help="a .gacx file")
    parser.add_argument("--input", type=Path, required=True, help="a .gac file")
    parser.add_argument("--output", type=Path, required=True, help="the .wav file, replaced")
    parser.add_argument("--seed", type=int, default=0, help="of the noise; same seed, same audio")
    given = parser.parse_args(arguments)
    try:
        atomic.write(given.output, wav(restore(given.decoder, given.input, given.seed)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def restore(decoder: Path, clip: Path, seed: int) -> np.ndarray:
    """Decodes a .gac file to (num_samples,) float32 at 32 kHz.

    Raises:
      UserError: a file that is missing, damaged or does not fit the other; names it.
    """
    program = Decoder(decoder)
    try:
        return program.decode(Tokens.from_bytes(clip.read_bytes()), seed)
    except OSError as error:
        raise UserError(f"{clip}: cannot be read ({error.strerror}); give a .gac file") from error
    except UserError as error:
        raise UserError(f"{clip}: {error}") from error


def wav(wave: np.ndarray) -> bytes:
    """A mono 16-bit WAV file of (S,) samples at 32 kHz; what is beyond full scale is clipped."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(wave, -1, 1), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


if __name__ == "__main__":
    main()
