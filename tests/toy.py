"""A stage that compiles at once."""

import jax
import jax.numpy as jnp

from gac_jax.stages.task import Batch, Metrics, Params, Task
from gac_jax.training.optimizer import OptimizerConfig

ROWS = 16
OPTIMIZER = OptimizerConfig(
    learning_rate=0.1,
    warmup_steps=2,
    final_fraction=0.1,
    b2=0.99,
    weight_decay=0.01,
    clip_norm=1.0,
)


class Toy(Task):
    """Noisy least squares with a memory."""

    name = "toy"

    def __init__(self, width: int = 8) -> None:
        self.width, self.traces = width, 0

    def init(self, key: jax.Array) -> Params:
        kernel = jax.random.normal(key, (self.width, 2))
        return {"layer": {"kernel": kernel, "bias": jnp.zeros((2,))}}

    def init_memory(self, params: Params) -> Params:
        return {"seen": jnp.full((2,), 0.5)}  # weakly typed, unlike what `loss` makes of it

    def loss(
        self, params: Params, frozen: Params, memory: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Params]]:
        self.traces += 1
        layer, noise = params["layer"], 0.1 * jax.random.normal(key, (ROWS, 2))
        guess = batch["wave"] @ layer["kernel"] + (layer["bias"] + frozen["offset"]["bias"])[None]
        memory = {"seen": memory["seen"] + jnp.mean(guess)}
        return jnp.mean((guess - noise) ** 2), ({"seen": memory["seen"][0]}, memory)
