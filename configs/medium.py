"""Whisper-small encoder and the report's 140 M decoder (M).

Run: python -m gac_jax.train --config=configs/medium.py --workdir=DIR --config.data.root=DATA
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """300,000 steps of 64 crops of 10.24 s, as in the report's scaling study."""
    config = base.get_config()
    config.name = "medium"
    config.encoder.update(width=768, depth=12, num_heads=12, dtype="bfloat16")
    config.decoder.update(width=768, depth=12, dtype="bfloat16")
    return config
