"""Compare codecs: `python -m gac_jax.evaluate --input=MY_AUDIO --systems=gac@0.275,opus@6`.

Sends clips through every system, measures what comes out, and writes to --output: metrics.jsonl
(a row for each system and clip), table.md and table.csv, the figures of quality against rate, and
report.html to look at and listen to. Stopped in any way, the same command goes on where it was;
with more systems, clips or metrics it adds them. docs/evaluation.md says what is measured.
"""

from __future__ import annotations

import os
from pathlib import Path

from absl import flags

from gac_jax import cli, jobs
from gac_jax.errors import UserError

_MANIFEST = flags.DEFINE_string("manifest", None, "Table of clips (.csv, .jsonl), or tfds:NAME.")
_INPUT = flags.DEFINE_string("input", None, "Folder of clips; without either, the bundled ones.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the results.", required=True)
_SYSTEMS = flags.DEFINE_list(
    "systems", ["gac@0.175", "gac@0.275", "gac@0.375", "gac@0.575", "gac@0.975"],
    "gac@KBPS, gac:FOLDER@KBPS, opus@KBPS, codec2@MODE, mp3@KBPS, aac@KBPS, encodec:FOLDER@KBPS, "
    "dac:FOLDER@KBPS, mimi:FOLDER@KBPS, identity, noise, "
    "cmd:NAME:ENCODE {in} {bits}:DECODE {bits} {out}.",
)  # fmt: skip
_MODEL = flags.DEFINE_string("model", "mini", "Of gac@KBPS: a bundled model or a model folder.")
_STEPS = flags.DEFINE_integer("steps", None, "Solver steps; by default the model's.", 1, 1000)
_SEED = flags.DEFINE_integer("seed", 0, "Of the noise of gac.", 0, 2**32 - 1)
_CLIPS = flags.DEFINE_integer("clips", 10, "Most clips of each domain, at random; 0 is all.", 0)
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Most of a clip, from its start.", 0.5)
_SPLIT = flags.DEFINE_enum(
    "split", "all", ["all", "held_out"], "Clips to choose from: all, or those training left out."
)
_VALIDATION = flags.DEFINE_float("validation_percent", 3.0, "Left out, as in training.", 0, 100)
_METRICS = flags.DEFINE_list("metrics", ["all"], "Names of metrics; a wrong one lists them.")
_RECOGNISER = flags.DEFINE_string("recogniser", "", "Folder: Whisper for CTranslate2, for WER.")
_SPEAKER = flags.DEFINE_string("speaker", "", "File: ONNX speaker model, for SIM.")
_NISQA = flags.DEFINE_string("nisqa", "", "File: nisqa.tar, for NISQA.")
_PASST = flags.DEFINE_string("passt", "", "File: weights of PaSST, for FD, KL and IS.")
_AESTHETICS = flags.DEFINE_string("aesthetics", "", "File: checkpoint of Audiobox-Aesthetics.")
_WORKERS = flags.DEFINE_integer(
    "workers", os.cpu_count() or 1, "Clips at a time, where it helps.", 1
)
_SHOWN = flags.DEFINE_integer("shown", 2, "Clips of each domain to hear in report.html.", 0)
_WITH = flags.DEFINE_list("with", [], "Outputs of runs on the same clips, to show too.")


def main() -> None:
    """Does what the flags ask for."""
    if _MANIFEST.value and _INPUT.value:
        raise UserError("--manifest and --input: give one of them")
    output = Path(_OUTPUT.value)
    jobs.check_outputs([output / "report.html"], overwrite=True)
    others = [Path(path) for path in _WITH.value]
    cli.use_compilation_cache()
    from gac_jax.data.sources import open_source
    from gac_jax.evaluation import suite
    from gac_jax.evaluation.clips import choose
    from gac_jax.evaluation.folder import Folder
    from gac_jax.evaluation.run import Evaluation, run
    from gac_jax.evaluation.systems import open_systems
    from gac_jax.evaluation.tables import markdown

    source = open_source(_MANIFEST.value or _INPUT.value or "")
    chosen = choose(source.clips, _SPLIT.value, _VALIDATION.value, _CLIPS.value)
    sampling = {"seed": _SEED.value, "steps": _STEPS.value}
    files = {
        "recogniser": _RECOGNISER.value,
        "speaker": _SPEAKER.value,
        "nisqa": _NISQA.value,
        "passt": _PASST.value,
        "aesthetics": _AESTHETICS.value,
    }
    evaluation = Evaluation(
        source=source,
        chosen=chosen,
        seconds=_SECONDS.value,
        systems=open_systems(_SYSTEMS.value, _MODEL.value, sampling),
        suite=suite.load(_METRICS.value, files),
        folder=Folder(output),
        others=[Folder(path) for path in others],
        workers=_WORKERS.value,
        shown=_SHOWN.value,
    )
    lines = run(evaluation)
    print(markdown(evaluation.suite, lines), end="")


if __name__ == "__main__":
    cli.run(main)
