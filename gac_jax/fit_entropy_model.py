"""Foresee a model's codes: `python -m gac_jax.fit_entropy_model --tokens=TOKENS --out=NEW`.

TOKENS is what `python -m gac_jax.tokenize` wrote with the same model. NEW becomes that model with
an entropy model, with which `python -m gac_jax.sample --compress` writes smaller files. Prints what
held-out codes cost. It takes minutes, and starts from the beginning if it is stopped.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from gac_jax import cli
from gac_jax.errors import UserError

_MODEL = flags.DEFINE_string("model", "mini", "A bundled model or a model folder.")
_TOKENS = flags.DEFINE_string("tokens", None, "Its token set to learn from.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder for the model, a new one.", required=True)
_STEPS = flags.DEFINE_integer("steps", 3_000, "Updates.", 1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Rows of 10.24 s in an update.", 1, 65_536)
_SEED = flags.DEFINE_integer("seed", 0, "Of weights and order.", 0, 2**31 - 1)
_PERCENT = flags.DEFINE_float(
    "validation_percent", 3.0, "Of speakers, or clips, that are left out to measure by.", 0, 100
)


def main() -> None:
    """Fits what the flags ask for."""
    target = Path(_OUT.value)
    if target.exists():
        raise UserError(f"{target}: exists; name a new folder")
    cli.use_compilation_cache()
    from gac_jax import model_folder
    from gac_jax.codec import find, load
    from gac_jax.data.tokens import TokenSource
    from gac_jax.training import entropy

    folder = find(_MODEL.value)
    codec = load(folder)
    source = TokenSource(_TOKENS.value, codec.fingerprint)
    weights, config = entropy.fit_model(
        source,
        model_folder.load(folder)[1]["quantizer"],
        steps=_STEPS.value,
        batch_size=_BATCH_SIZE.value,
        seed=_SEED.value,
        validation_percent=_PERCENT.value,
    )
    model_folder.with_entropy_model(folder, target, config, weights)
    print(f"{target}: '{codec.config['name']}' with an entropy model")


if __name__ == "__main__":
    cli.run(main)
