"""Measure what an encoder's codes carry: `python -m gac_jax.probe --config=CONFIG --workdir=DIR`.

Takes the newest checkpoint of the stage understanding in DIR, which may still be training, and the
--config flags of that run. Prints how evenly the codebooks are used, what the language model of
the run learns from the codes about texts, and how well it answers. Writes the same to --output:
report.md, probe.json, and answers.jsonl with every text and answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from gac_jax import atomic, cli, jobs
from gac_jax.errors import UserError
from gac_jax.rates import LADDER

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file of the run.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; only read.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the results.", required=True)
_CLIPS = flags.DEFINE_integer("clips", 0, "Most clips, evenly of each domain; 0 is all.", 0)
_SPLIT = flags.DEFINE_enum(
    "split", "held_out", ["held_out", "train"], "Clips that training left out, or took."
)
_RATES = flags.DEFINE_list("rates", ["0", "8"], "Residual codebooks with which texts are read.")
flags.mark_flag_as_required("config")


def main() -> None:
    """Measures what the flags ask for."""
    rates, folder = parse_rates(_RATES.value), Path(_OUTPUT.value)
    report, numbers, answers = paths = [
        folder / name for name in ("report.md", "probe.json", "answers.jsonl")
    ]
    jobs.check_outputs(paths, overwrite=True)
    cli.use_compilation_cache()
    from gac_jax.training.probe import Selection, probe

    selection = Selection(_SPLIT.value, _CLIPS.value, rates)
    findings = probe(_CONFIG.value, Path(_WORKDIR.value), selection)
    text = findings.report()
    print(text, end="")
    atomic.write(report, text.encode())
    atomic.write(numbers, findings.json())
    atomic.write(answers, findings.answers())


def parse_rates(words: Sequence[str]) -> tuple[int, ...]:
    """Rates of the ladder, each once.

    Raises:
      UserError: one that is none, or no rate at all.
    """
    known = {str(rate): rate for rate in LADDER}
    for word in words or [""]:
        if word not in known:
            raise UserError(f"--rates: {word!r} is none of {', '.join(known)} residual codebooks")
    return tuple(dict.fromkeys(known[word] for word in words))


if __name__ == "__main__":
    cli.run(main)
