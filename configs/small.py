"""Whisper-base encoder and the report's 40.7 M decoder (S).

Run: python -m gac_jax.train --config=configs/small.py --workdir=DIR --config.data.root=DATA
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """300,000 steps of 64 crops of 10.24 s, as in the report's scaling study."""
    config = base.get_config()
    config.name = "small"
    config.encoder.dtype = config.decoder.dtype = "bfloat16"
    return config
