"""The 1.8 B flagship: Whisper-large-v3-size encoder (637 M) and an 1152 M decoder.

Run: python -m gac_jax.train --config=configs/xl.py --workdir=DIR --config.data.root=DATA
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Parameters split over all devices; activations recomputed in the backward pass."""
    config = base.get_config()
    config.name = "xl"
    config.mesh.update(data=1, fsdp=-1)
    config.encoder.update(
        width=1280, depth=32, num_heads=20, num_mels=128, dtype="bfloat16", remat=True
    )
    config.decoder.update(width=1536, depth=26, dtype="bfloat16", remat=True)
    return config
