"""Both stages on the bundled clips in under three minutes on two CPU cores: for trying and tests.

Run: python -m gac_jax.train --config=configs/tiny.py --workdir=/tmp/tiny
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """A few million parameters, a few hundred steps."""
    config = base.get_config()
    config.name = "tiny"
    config.data.validation_percent = 0.0  # three clips leave nothing to hold out
    config.encoder.update(width=128, depth=2, num_heads=2, acoustic_width=96, acoustic_depth=2)
    config.decoder.update(width=128, depth=6)
    config.matmul_precision = "bfloat16"
    for stage in (config.understanding, config.generation, config.meanflow, config.adversarial):
        stage.update(batch_size=8, crop_frames=16, ema_decay=0.99)
        stage.update(log_every=20, eval_every=1_000, save_every=100)
        stage.optimizer.update(learning_rate=1e-3, warmup_steps=20)
    config.understanding.steps = 120
    config.understanding.objective.warmup_steps = 20
    # No language model: nothing to load.
    config.understanding.objective.weights.update(text=0.0, alignment=0.0)
    config.generation.steps = 240
    config.generation.objective.scale_steps = 50
    config.meanflow.steps = 60
    config.meanflow.optimizer.learning_rate = 3e-4
    config.adversarial.steps = 60
    config.adversarial.optimizer.learning_rate = 3e-4
    return config
