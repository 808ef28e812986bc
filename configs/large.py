"""Whisper-medium encoder and the report's 493 M decoder (L).

Run: python -m gac_jax.train --config=configs/large.py --workdir=DIR --config.data.root=DATA
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """300,000 steps of 64 crops of 10.24 s, as in the report's scaling study.

    Activations are recomputed in the backward pass: kept, they do not fit the 16 GB of a v5e chip.
    """
    config = base.get_config()
    config.name = "large"
    config.encoder.update(width=1024, depth=24, num_heads=16, dtype="bfloat16", remat=True)
    config.decoder.update(width=1024, depth=25, dtype="bfloat16", remat=True)
    return config
