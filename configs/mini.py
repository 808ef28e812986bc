"""The model that ships: Whisper-tiny encoder, 11 M decoder, trained on two CPU cores.

Run: python -m gac_jax.train --config=configs/mini.py --workdir=DIR
--config.data.root=MANIFEST --config.whisper=WHISPER_TINY_FOLDER
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Sized so that int8 weights stay below 25 MB; steps for two hours of two CPU cores."""
    config = base.get_config()
    config.name = "mini"
    config.encoder.update(width=384, depth=4, num_heads=6)
    config.decoder.update(width=256, depth=8)
    config.sampling.update(steps=8, storage="int8")  # 16 steps measured no better
    stage = config.understanding
    stage.update(steps=700, batch_size=16, crop_frames=32, ema_decay=0.995)
    stage.update(log_every=50, eval_every=1_000, save_every=500)
    stage.optimizer.update(learning_rate=1e-3, warmup_steps=50)
    stage.objective.train_semantic_tower = False  # its 680,000 hours outweigh our 8
    stage = config.generation
    stage.update(steps=1_700, batch_size=16, crop_frames=32, ema_decay=0.998)
    stage.update(log_every=50, eval_every=1_000, save_every=500)
    stage.optimizer.update(learning_rate=1e-3, warmup_steps=100)
    return config
