"""A model's decoder compiled ahead of time into one file, which `gac_jax.gacx` runs.

The program is the function that `Codec.decode` compiles for a window of any batch size and number
of frames, lowered to StableHLO for several platforms at once, with the settings of the solver built
in. The weights are those that decoding needs, stored as the model folder stores them: an int8
model stays small.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax import export
from safetensors.numpy import load_file

from gac_jax import codec, gacx
from gac_jax.errors import UserError
from gac_jax.storage import from_storage

PLATFORMS = ("cpu", "cuda", "tpu")
_SENDERS = ("encoder.", "entropy_model.")  # parts that decoding codes takes no notice of


def pack(
    model: str | Path,
    platforms: Sequence[str],
    steps: int | None = None,
    solver: str | None = None,
    guidance: float | None = None,
    temperature: float | None = None,
) -> bytes:
    """Compiles a model's decoder.

    Args:
      model: see `gac_jax.load`.
      platforms: of `PLATFORMS`; none of them need be at hand.
      steps: solver steps; None takes the model's default, here and below.
      solver: 'euler', 'heun', or 'meanflow' of models trained for it.
      guidance: classifier-free guidance weight, 1 for none.
      temperature: deviation of the noise, 0 .. 2.

    Returns:
      A .gacx file. Its record has the model's name, fingerprint, window (code frames) and number
      of codebooks, the settings of the solver, the platforms, the version of JAX, and the
      program's inputs and output with their shapes.

    Raises:
      UserError: no such model or platform, damaged files, or settings out of range.
    """
    _check(platforms)
    folder = codec.find(model)
    sender = codec.load(folder)
    given = {
        "steps": steps,
        "solver": solver,
        "guidance": guidance,
        "temperature": temperature,
    }
    chosen: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    stored = load_file(folder / "weights.safetensors")
    weights = {name: array for name, array in stored.items() if not name.startswith(_SENDERS)}
    decode = sender.window_decoder(**chosen)

    def program(weights: dict[str, jax.Array], *inputs: jax.Array) -> jax.Array:
        return decode(unflatten_dict(weights, sep="."), *inputs)

    inputs = _inputs(sender.num_codebooks)
    lower = export.export(jax.jit(program), platforms=platforms)
    with _no_locations():
        exported = lower(jax.eval_shape(from_storage, weights), *inputs.values())
    record = {
        "name": sender.config["name"],
        "fingerprint": sender.fingerprint.hex(),
        "window": sender.config["window"],
        "codebooks": sender.num_codebooks,
        "sampling": {**sender.config["sampling"], **chosen},
        "platforms": list(platforms),
        "jax": ".".join(map(str, jax.__version_info__)),
        "inputs": {"weights": "float32 by name", **{k: _name(v) for k, v in inputs.items()}},
        "output": _name(exported.out_avals[0]),
    }
    return gacx.to_bytes(record, bytes(exported.serialize()), weights)


def _check(platforms: Sequence[str]) -> None:
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms or len(set(platforms)) < len(platforms):
        raise UserError(
            f"platforms must be some of {', '.join(PLATFORMS)}, each once, "
            f"not {', '.join(platforms) or 'none'}"
        )


@contextlib.contextmanager
def _no_locations() -> Iterator[None]:
    """Has lowered programs not name the source files of this machine."""
    option = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, option)
    jax.config.update(option, 0)
    try:
        yield
    finally:
        jax.config.update(option, before)


def _inputs(codebooks: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What the program takes after the weights, in order; B and N may be of any size."""
    batch, frames = export.symbolic_shape("B, N")
    integers = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    return {
        "codes": integers((batch, codebooks, frames)),
        "rate": integers((batch,)),
        "frames": integers((batch,)),
        "start": integers((batch,)),
        "seed": jax.ShapeDtypeStruct((), jnp.uint32),
    }


def _name(value: Any) -> str:
    """Such as int32[B,9,N]."""
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"
