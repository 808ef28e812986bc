"""Both stages on the bundled clips at a size that trains in seconds, for the commands' tests."""

import dataclasses

from ml_collections import ConfigDict

from configs import tiny as two_minutes
from tests import tiny


def get_config() -> ConfigDict:
    """Four steps of eight crops in each stage."""
    config = two_minutes.get_config()
    config.name = "smallest"
    config.encoder = ConfigDict(dataclasses.asdict(tiny.ENCODER))
    config.quantizer = ConfigDict(dataclasses.asdict(tiny.QUANTIZER))
    config.decoder = ConfigDict(dataclasses.asdict(tiny.DECODER))
    config.data.update(validation_percent=35.0, validation_batches=1, num_threads=2)
    stages = (config.understanding, config.generation, config.meanflow, config.adversarial)
    for stage in stages:
        stage.update(steps=4, batch_size=8, crop_frames=4)
        stage.update(log_every=1, eval_every=2, save_every=100)
    for stage in stages[1:]:
        stage.crop_frames = 16  # the model's windows, which are no shorter
    config.adversarial.objective.critic_widths = (8, 16)
    config.sampling.steps = 2
    return config
