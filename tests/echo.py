"""A .gacx file whose program tells what it was given, and compiles in no time."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import export

from gac_jax import gacx
from gac_jax.bitstream import Tokens
from gac_jax.rates import FRAME_SAMPLES

WINDOW = 32
WEIGHTS = {
    "unit": np.array([[2]], np.int8),
    "unit:scale": np.array([[0.5]], np.float32),
    "bias": np.zeros(3, ml_dtypes.bfloat16),
}
UNIT_LEVEL = 240  # a loudness of 0 dB, gain 1


def program(
    weights: dict[str, jax.Array],
    codes: jax.Array,
    rate: jax.Array,
    frames: jax.Array,
    start: jax.Array,
    seed: jax.Array,
) -> jax.Array:
    """Each frame's first and last code, its place counted from the start, k and the seed."""
    index = jnp.arange(codes.shape[2])[None]
    place = start[:, None] + 4 * index
    told = codes[:, 0] + 0.25 * codes[:, -1] + place + 0.5 * rate[:, None]
    told = told * weights["unit"] + weights["bias"][:1][None] + seed.astype(jnp.float32)
    told = jnp.where(index < frames[:, None], told, 1e9)  # nobody is to hear the padding
    return jnp.repeat(told, FRAME_SAMPLES, axis=1)


def expected(tokens: Tokens, seed: int = 0) -> np.ndarray:
    """The audio of up to 128 frames at unit level, which is made up for within 12 dB."""
    codes = tokens.codes
    last = codes[8] if len(codes) == 9 else 0
    told = codes[0] + 0.25 * last + 4 * np.arange(codes.shape[1]) + 0.5 * (len(codes) - 1) + seed
    wave = np.repeat(told, FRAME_SAMPLES)[: tokens.num_samples]
    return wave / np.clip(np.sqrt(np.mean(np.square(wave))), 10 ** (-12 / 20), 10 ** (12 / 20))


def write(path: Path, **changes: Any) -> Path:
    """Writes the file; changes are to its record."""
    batch, frames = export.symbolic_shape("B, N")
    numbers = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in [(batch, 9, frames)]]
    numbers += [jax.ShapeDtypeStruct((batch,), jnp.int32)] * 3
    weights = {
        "unit": jax.ShapeDtypeStruct((1, 1), jnp.float32),
        "bias": jax.ShapeDtypeStruct((3,), jnp.float32),
    }
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    with jax.numpy_dtype_promotion("standard"):
        exported = export.export(jax.jit(program))(weights, *numbers, seed)
    record = {
        "name": "echo",
        "fingerprint": bytes(8).hex(),
        "window": WINDOW,
        "codebooks": 9,
        "platforms": ["cpu"],
        "jax": jax.__version__,
        **changes,
    }
    path.write_bytes(gacx.to_bytes(record, bytes(exported.serialize()), WEIGHTS))
    return path


def tokens(frames: int, residuals: int = 8, fingerprint: bytes = bytes(8)) -> Tokens:
    """Random codes at unit level; the last frame is not whole."""
    rng = np.random.default_rng(frames)
    sizes = np.array([64] + [16] * residuals)[:, None]
    codes = rng.integers(0, sizes, (1 + residuals, frames)).astype(np.int32)
    levels = np.full(-(-frames // 128), UNIT_LEVEL, np.uint8)
    return Tokens(codes, frames * FRAME_SAMPLES - 100, levels, fingerprint)


def rewritten(path: Path, **changes: Any) -> Path:
    """Changes the record of a file, and leaves its checksum as it is."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"]["gacx"] = json.dumps(
        {**json.loads(header["__metadata__"]["gacx"]), **changes}
    )
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    return path
