"""The model that ships: Whisper-tiny encoder, 11 M decoder, trained on two CPU cores.

Run: python -m gac_jax.train --config=configs/mini.py --workdir=DIR
--config.data.root=MANIFEST --config.whisper=WHISPER_TINY_FOLDER
--config.language_model.path=SMOLLM2_135M

The weights in the package took a detour, see docs/training.md, section 7.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Sized so that int8 weights stay below 25 MB; steps for some two hours of two CPU cores."""
    config = base.get_config()
    config.name = "mini"
    config.encoder.update(width=384, depth=4, num_heads=6)
    config.decoder.update(width=256, depth=8, remat=True)  # memory traffic is dearer than products
    # Short rows: the language model takes three quarters of a step as it is.
    config.language_model.update(prompt="chatml", max_tokens=28, remat=True)
    config.matmul_precision = "bfloat16"  # two to three times as fast on recent processors
    config.quantizer.temperature = 0.12
    # Guidance measured no better; full noise costs words, see docs/decisions.md.
    config.sampling.update(steps=8, guidance=1.0, temperature=0.6, storage="int8")
    stage = config.understanding
    stage.update(steps=920, batch_size=24, crop_frames=36, ema_decay=0.99)
    stage.update(log_every=25, eval_every=200, save_every=200)
    stage.optimizer.update(learning_rate=2e-3, warmup_steps=50)
    stage.objective.update(warmup_steps=150, text_after=700)
    stage.objective.train_semantic_tower = False  # what Whisper knows, 900 steps can only blur
    stage.objective.weights.info = 0.25  # short runs must spread over the codes soon
    stage = config.generation
    stage.update(steps=1_700, batch_size=16, crop_frames=32, ema_decay=0.995)
    stage.update(log_every=50, eval_every=1_000, save_every=200)
    stage.optimizer.update(name="muon", learning_rate=3e-3, warmup_steps=60, final_fraction=0.03)
    stage.objective.rate_weights = (0.12, 0.15, 0.15, 0.2, 0.38)
    return config
