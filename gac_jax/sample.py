"""Compress audio and restore it: `python -m gac_jax.sample --input=MY_AUDIO`.

For every input NAME, writes NAME.gac (the tokens), NAME.wav (what they decode to) and NAME.png
(spectrograms of both) to --output, and prints rates and speeds. Without --input it takes the
clips that come with the package.
"""

from __future__ import annotations

import time
from pathlib import Path

from absl import flags

from gac_jax import atomic, cli, jobs, rates, report

_INPUT = flags.DEFINE_string(
    "input", str(Path(__file__).parent / "examples"), "File, folder (read in depth) or glob."
)
_OUTPUT = flags.DEFINE_string("output", "gac_out", "Folder for the results, in the input's tree.")
_MODE = flags.DEFINE_enum(
    "mode", "roundtrip", list(jobs.OUTPUTS),
    "encode: audio to .gac. decode: .gac to .wav. roundtrip: both, and a picture.",
)  # fmt: skip
_KBPS = flags.DEFINE_float(
    "kbps", None, "0.175 to 0.975 in steps of 0.1; by default 0.275 or, to decode, the file's rate."
)
_MODEL = flags.DEFINE_string("model", "mini", "A bundled model or a model folder.")
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
_SEED = flags.DEFINE_integer("seed", 0, "Of the noise; same seed, same audio.", 0, 2**32 - 1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Windows computed at once.", 1, 4096)
_COMPRESS = flags.DEFINE_bool(
    "compress", False, "Write smaller .gac files, which only the model they are of can read."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace results that exist.")
_JSON = flags.DEFINE_string("json", None, "File for the figures of the table.")


@flags.validator("guidance", "must be 0 .. 20")
def _guidance_is_in_range(value: float | None) -> bool:
    return value is None or 0 <= value <= 20  # absl's own bounds let NaN pass


@flags.validator("temperature", "must be 0 .. 2")
def _temperature_is_in_range(value: float | None) -> bool:
    return value is None or 0 <= value <= 2


def main() -> None:
    """Does what the flags ask for."""
    if _KBPS.value is not None:
        rates.residuals_for(_KBPS.value)
    work = jobs.plan(_INPUT.value, _OUTPUT.value, _MODE.value, _OVERWRITE.value)
    jobs.check_outputs([Path(_JSON.value)] if _JSON.value else [], _OVERWRITE.value)
    cli.use_compilation_cache()
    from gac_jax.codec import load
    from gac_jax.reconstruction import Reconstruction

    start = time.perf_counter()
    codec = load(_MODEL.value, _BATCH_SIZE.value)
    loading = time.perf_counter() - start
    sampling: dict[str, object] = dict(
        seed=_SEED.value,
        steps=_STEPS.value,
        solver=_SOLVER.value,
        guidance=_GUIDANCE.value,
        temperature=_TEMPERATURE.value,
    )
    reconstruction = Reconstruction(codec, _MODE.value, _KBPS.value, sampling, _COMPRESS.value)
    rows, failures = reconstruction.run(work)
    startup = {"loading": loading, "compiling": reconstruction.clock.compiling}
    if rows:
        print(report.table(rows), report.notes(rows, **startup), sep="\n")
    if _JSON.value:
        facts = {"model": codec.config["name"], "mode": _MODE.value, **startup}
        atomic.write(Path(_JSON.value), report.to_json(rows, failed=failures, **facts))
    if failures:
        cli.fail(*failures.values())


if __name__ == "__main__":
    cli.run(main)
