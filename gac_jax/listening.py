"""Listening tests: `export` makes one from what gac_jax.evaluate decoded, `analyse` evaluates it.

python -m gac_jax.listening export --systems_dir=EVALUATION --output=DIR
  writes a MUSHRA test for webMUSHRA (audiolabs/webMUSHRA on GitHub) to DIR/configs, to be copied
  into webMUSHRA and opened with ?config=gac.yaml; it collects ratings in results/gac/mushra.csv.
python -m gac_jax.listening analyse mushra.csv --output=DIR
  writes listening.md, .csv, .png and .svg to DIR: mean scores with 95 % intervals by domain, after
  the post-screening of ITU-R BS.1534-3.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from absl import flags

from gac_jax import atomic, cli, jobs
from gac_jax.errors import UserError

COMMANDS = ("export", "analyse")

_COMMAND = flags.DEFINE_enum("command", None, COMMANDS, "What to do; the first word says it too.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the results.", required=True)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace results that exist.")
_SYSTEMS_DIR = flags.DEFINE_string("systems_dir", None, "export: --output of gac_jax.evaluate.")
_SYSTEMS = flags.DEFINE_list("systems", [], "export: systems to rate; by default all, at most 9.")
_CLIPS = flags.DEFINE_integer("clips", 4, "export: most clips of each domain; 0 is all.", 0)
_SECONDS = flags.DEFINE_float("seconds", 10.0, "export: most of a clip to play.", 1.0, 12.0)
_RESULTS = flags.DEFINE_string("results", None, "analyse: ratings; the second word says it too.")


def main() -> None:
    """Does what the flags ask for."""
    if _COMMAND.value == "export":
        _export(Path(_given(_SYSTEMS_DIR)), Path(_OUTPUT.value))
    elif _COMMAND.value == "analyse":
        _analyse(Path(_given(_RESULTS)), Path(_OUTPUT.value))
    else:
        raise UserError(f"say what to do: {' or '.join(COMMANDS)} (--help tells more)")


def as_flags(argv: Sequence[str]) -> list[str]:
    """Turns the words before the first flag into flags, so that the rest is as in other commands.

    Args:
      argv: of the program, its name first.
    """
    program, *rest = argv
    words = list(takewhile(lambda word: not word.startswith("-"), rest))
    named = [f"--{name}={word}" for name, word in zip(("command", "results"), words, strict=False)]
    return [program, *named, *rest[len(named) :]]


def _export(systems_dir: Path, output: Path) -> None:
    from gac_jax.evaluation import mushra

    jobs.check_outputs([output / "configs" / f"{mushra.NAME}.yaml"], _OVERWRITE.value)
    plan = mushra.plan(systems_dir, _SYSTEMS.value, _CLIPS.value)
    path = mushra.export(plan, output, _SECONDS.value)
    print(f"{path}: {len(plan.clips)} pages of {', '.join(plan.systems)}")


def _analyse(results: Path, output: Path) -> None:
    from gac_jax.evaluation import assessors

    paths = {kind: output / f"listening.{kind}" for kind in ("md", "csv", "png", "svg")}
    jobs.check_outputs(paths.values(), _OVERWRITE.value, [results])
    ratings = assessors.read(results)
    left_out = assessors.post_screen(ratings)
    kept = [rating for rating in ratings if rating.assessor not in left_out]
    if not kept:
        raise UserError(f"{results}: post-screening leaves out all assessors")
    found = assessors.scores(kept)
    text = assessors.report(found, left_out, len({rating.assessor for rating in ratings}))
    print(text, end="")
    atomic.write(paths["md"], text.encode())
    atomic.write(paths["csv"], assessors.to_csv(found))
    for kind in ("png", "svg"):
        atomic.write(paths[kind], assessors.picture(found, kind))


def _given(flag: flags.FlagHolder[str | None]) -> str:
    if not flag.value:
        raise UserError(f"--{flag.name}: give it with {_COMMAND.value}")
    return flag.value


if __name__ == "__main__":
    sys.argv = as_flags(sys.argv)
    cli.run(main)
