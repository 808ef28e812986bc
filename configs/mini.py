"""The model that ships: Whisper-tiny encoder, 12 M decoder, trained on two CPU cores.

Run: python -m gac_jax.train --config=configs/mini.py --workdir=DIR
--config.data.root=MANIFEST --config.whisper=WHISPER_TINY_FOLDER

docs/training.md, section 7, has the whole command, and section 5 what a language model adds.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """Sized so that int8 weights stay below 25 MB; steps for ninety minutes of two CPU cores."""
    config = base.get_config()
    config.name = "mini"
    config.encoder.update(width=384, depth=4, num_heads=6)
    # Recomputed, because memory traffic is dearer than products.
    config.decoder.update(width=256, depth=8, condition_depth=2, remat=True)
    # Short rows: the language model takes three quarters of a step as it is.
    config.language_model.update(prompt="chatml", max_tokens=28, remat=True)
    config.matmul_precision = "bfloat16"  # two to three times as fast on recent processors
    config.quantizer.temperature = 0.12
    # Guidance measured no better; full noise costs words, see docs/decisions.md.
    config.sampling.update(steps=8, guidance=1.0, temperature=0.36, contrast=2.0, storage="int8")
    stage = config.understanding
    stage.update(steps=350, batch_size=16, crop_frames=32, ema_decay=0.97)
    stage.update(log_every=25, eval_every=175, save_every=175)
    stage.optimizer.update(name="muon", learning_rate=3e-3, warmup_steps=30, final_fraction=0.03)
    stage.objective.update(warmup_steps=40, text_after=250)
    # Texts count where a language model is named; how it sounds must not pay for them.
    stage.objective.weights.update(text=0.1, alignment=0.05, feature=0.1, info=0.05)
    stage.objective.train_semantic_tower = False  # what Whisper knows, short runs can only blur
    stage.objective.rate_weights = (0.35, 0.2, 0.15, 0.15, 0.15)
    stage = config.generation
    stage.update(steps=1700, batch_size=16, crop_frames=32, ema_decay=0.97)
    stage.update(log_every=25, eval_every=850, save_every=100)
    stage.optimizer.update(name="muon", learning_rate=3e-3, warmup_steps=30, final_fraction=0.03)
    stage.objective.rate_weights = (0.2, 0.2, 0.15, 0.15, 0.3)
    stage.objective.scale_steps = 50
    stage = config.meanflow
    stage.update(steps=600, batch_size=8, crop_frames=32, ema_decay=0.98)
    stage.update(log_every=25, eval_every=300, save_every=100)
    stage.optimizer.update(name="muon", learning_rate=1e-3, warmup_steps=20, final_fraction=0.03)
    stage.objective.rate_weights = (0.2, 0.2, 0.15, 0.15, 0.3)
    stage = config.adversarial
    stage.update(steps=420, batch_size=8, crop_frames=32, ema_decay=0.98)
    stage.update(log_every=25, eval_every=140, save_every=100)
    stage.optimizer.update(name="muon", learning_rate=5e-4, warmup_steps=50, final_fraction=0.03)
    stage.objective.rate_weights = (0.15, 0.3, 0.15, 0.15, 0.25)
    return config
