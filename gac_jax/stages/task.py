"""What the training loop asks of a stage."""

from __future__ import annotations

from typing import Any, Protocol

import jax

Params = Any  # nested dict of arrays
# wave (B, S) f32, num_samples (B,) i32, domain (B,) i32; with a language model also text (B, L),
# text_length (B,) and answer_start (B,), all i32
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]  # scalars


class Task(Protocol):
    """A stage: pure functions of arrays, so that the loop may jit and shard them.

    A stage that derives from it need not say what it does not do differently.
    """

    name: str

    def init(self, key: jax.Array) -> Params:
        """Fresh trainable parameters."""
        ...

    def init_memory(self, params: Params) -> Params:
        """What the stage carries from step to step besides parameters; by default nothing."""
        del params
        return {}

    def loss(
        self, params: Params, frozen: Params, memory: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[Metrics, Params]]:
        """Loss to minimise, with metrics to log and the memory after this batch."""
        ...

    def refresh(self, params: Params, memory: Params) -> Params:
        """Parameters after an update, with those set that follow the memory; by default none."""
        del memory
        return params

    def evaluate(
        self, params: Params, frozen: Params, memory: Params, batch: Batch, key: jax.Array
    ) -> Metrics:
        """Metrics of one held-out batch, NaN where it has none of a kind; by default the loss."""
        loss, (metrics, _) = self.loss(params, frozen, memory, batch, key)
        return {"loss": loss, **metrics}
