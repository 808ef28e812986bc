"""The model that ships: Whisper-tiny encoder, 11 M decoder, trained on two CPU cores.

Run: python -m gac_jax.train --config=configs/mini.py --workdir=DIR
--config.data.root=MANIFEST --config.whisper=WHISPER_TINY_FOLDER
--config.language_model.path=SMOLLM2_135M

The weights in the package are of an earlier form of this, without the language model; their card
says which steps they took.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Sized so that int8 weights stay below 25 MB; steps for some 90 minutes of two CPU cores."""
    config = base.get_config()
    config.name = "mini"
    config.encoder.update(width=384, depth=4, num_heads=6)
    config.decoder.update(width=256, depth=8, remat=True)  # memory traffic is dearer than products
    # Short rows, so that the language model takes little more than the rest of a step.
    config.language_model.update(prompt="plain", max_tokens=36, remat=True)
    config.matmul_precision = "bfloat16"  # three times as fast on some processors
    config.sampling.update(steps=8, storage="int8")  # 16 steps measured no better
    stage = config.understanding
    stage.update(steps=1_200, batch_size=12, crop_frames=32, ema_decay=0.99)
    stage.update(log_every=25, eval_every=200, save_every=200)
    stage.optimizer.update(learning_rate=1e-3, warmup_steps=50)
    stage.objective.warmup_steps = 50
    stage.objective.weights.info = 0.2  # short runs must spread over the codes soon
    stage = config.generation
    stage.update(steps=1_700, batch_size=16, crop_frames=32, ema_decay=0.998)
    stage.update(log_every=50, eval_every=1_000, save_every=500)
    stage.optimizer.update(learning_rate=1e-3, warmup_steps=100)
    return config
