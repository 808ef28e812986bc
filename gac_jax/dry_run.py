"""What training or sampling would take on chips that are not at hand.

`python -m gac_jax.dry_run --config=configs/xl.py --topology=v5p:4x4x4` compiles the training steps
and the sampler for that slice and prints memory, operations, collectives and the least time of a
step. Nothing is computed and no weights are made. For TPUs it takes libtpu (pip install -e
".[tpu]"); without it, and for GPUs, the CPU's compiler stands in, and the report says what that
leaves open. Exit code 1: something does not fit.
"""

from __future__ import annotations

import json
import sys

from absl import flags
from ml_collections import config_flags

from gac_jax import cli
from gac_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, see configs/.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Chips: v5e:4x4, v5p:4x4x4 (TPU slices), h100:8 or cpu:8.", required=True
)
_NUM_SLICES = flags.DEFINE_integer(
    "num_slices", 1, "TPU slices of that topology, joined by the data center's network.", 1
)
_STAGE = flags.DEFINE_enum(
    "stage",
    "all",
    ["all", "understanding", "generation", "meanflow", "adversarial", "sampler"],
    "What to compile; all is the stages of the config, and the sampler.",
)
_JSON = flags.DEFINE_boolean("json", False, "Print one JSON object instead of text.")
flags.mark_flag_as_required("config")


def main() -> None:
    """Reports what the flags ask for."""
    import jax  # late: flags and --help work without it

    jax.config.update("jax_platforms", "cpu")  # accelerators at hand stay free
    from gac_jax.scaling import chips
    from gac_jax.scaling.forecast import forecast
    from gac_jax.scaling.programs import SAMPLER
    from gac_jax.scaling.report import lines, record
    from gac_jax.sharding import make_mesh

    config, topology = _CONFIG.value, chips.parse(_TOPOLOGY.value, _NUM_SLICES.value)
    names = (*config.stages, SAMPLER) if _STAGE.value == "all" else (_STAGE.value,)
    try:
        mesh = make_mesh(**config.mesh, devices=chips.devices(topology))
        found = [forecast(name, config, mesh, topology) for name in names]
    except (TypeError, ValueError) as error:
        raise UserError(f"configuration: {error}") from error
    if _JSON.value:
        print(json.dumps(record(config.name, topology, mesh, found), indent=1))
    else:
        print(*lines(config.name, topology, mesh, found), sep="\n")
    if any(one.fits is False for one in found):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
