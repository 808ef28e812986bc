"""Compile a decoder ahead of time: `python -m gac_jax.export --model=M --output=M.gacx`.

Writes one file with the decoder's weights and its program for every platform asked for, none of
which need be at hand. `python -m gac_jax.restore` makes audio with it, without the model's code.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from gac_jax import atomic, cli, jobs

_MODEL = flags.DEFINE_string("model", "mini", "A bundled model or a model folder.")
_OUTPUT = flags.DEFINE_string("output", "decoder.gacx", "File to write.")
_PLATFORMS = flags.DEFINE_list("platforms", ["cpu", "cuda", "tpu"], "What it is to run on.")
_STEPS = flags.DEFINE_integer("steps", None, "Solver steps; by default the model's.", 1, 1000)
_SOLVER = flags.DEFINE_enum(
    "solver",
    None,
    ["euler", "heun", "meanflow"],
    "By default the model's; heun costs double, and meanflow takes a model trained for it.",
)
_GUIDANCE = flags.DEFINE_float(
    "guidance", None, "Guidance weight, 0 to 20; 1 is none; by default the model's."
)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", None, "Deviation of the noise, 0 to 2; by default the model's."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the file if it exists.")


@flags.validator("guidance", "must be 0 .. 20")
def _guidance_is_in_range(value: float | None) -> bool:
    return value is None or 0 <= value <= 20  # absl's own bounds let NaN pass


@flags.validator("temperature", "must be 0 .. 2")
def _temperature_is_in_range(value: float | None) -> bool:
    return value is None or 0 <= value <= 2


def main() -> None:
    """Does what the flags ask for."""
    path = Path(_OUTPUT.value)
    jobs.check_outputs([path], _OVERWRITE.value)
    from gac_jax import aot

    settings = (_STEPS.value, _SOLVER.value, _GUIDANCE.value, _TEMPERATURE.value)
    data = aot.pack(_MODEL.value, _PLATFORMS.value, *settings)
    atomic.write(path, data)
    print(f"{path}: {len(data) / 1e6:.1f} MB for {', '.join(_PLATFORMS.value)}")


if __name__ == "__main__":
    cli.run(main)
