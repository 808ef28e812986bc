"""Turn a corpus into tokens: `python -m gac_jax.tokenize --root=MY_AUDIO --out=TOKENS`.

Writes the codes of every clip to shards, see `gac_jax.data.tokens`, for training a decoder without
its encoder (`--config.data.tokens`) or a language model of audio. The same command goes on where
it was stopped. On many machines, or on many devices of one, give each process its number:
`--process_index=3 --process_count=8`.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from gac_jax import cli, jobs
from gac_jax.errors import UserError

SHOWN = 5  # dropped clips that are named on the terminal; the index names them all

_MODEL = flags.DEFINE_string("model", "mini", "A bundled model or a model folder.")
_ROOT = flags.DEFINE_string(
    "root", "", "Folder, manifest (.csv, .jsonl) or tfds:NAME:SPLIT; by default the bundled clips."
)
flags.DEFINE_alias("manifest", "root")
_OUT = flags.DEFINE_string("out", None, "Folder for the tokens.", required=True)
_SHARDS = flags.DEFINE_integer("shards", 0, "Files; 0 is one for every thousand clips.", 0)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Windows computed at once.", 1, 4096)
_PROCESS_INDEX = flags.DEFINE_integer("process_index", 0, "Number of this process, from 0.", 0)
_PROCESS_COUNT = flags.DEFINE_integer("process_count", 1, "Processes that share the work.", 1)


def main() -> None:
    """Tokenises what the flags ask for."""
    index, count = _PROCESS_INDEX.value, _PROCESS_COUNT.value
    if index >= count:
        raise UserError(f"--process_index={index}: must be less than --process_count={count}")
    folder = Path(_OUT.value)
    jobs.check_outputs([folder / "tokens.json"], overwrite=True)
    cli.use_compilation_cache()
    from gac_jax.codec import load
    from gac_jax.data.sources import open_source
    from gac_jax.data.tokens import missing_shards, read_about
    from gac_jax.tokenization import tokenize

    source = open_source(_ROOT.value)
    codec = load(_MODEL.value, _BATCH_SIZE.value)
    totals = tokenize(codec, source, folder, _SHARDS.value, index, count)
    about = read_about(folder)
    left = len(missing_shards(folder, about))
    print(f"{folder}: {totals}; {about.shards - left} of {about.shards} shards are there")
    for path, problem in list(totals.problems.items())[:SHOWN]:
        print(f"  dropped {path}: {problem}")


if __name__ == "__main__":
    cli.run(main)
