"""The critic: tells spectra of audio from those that a decoder has made.

Strided convolutions over time and frequency, whose outputs are scores of patches, with four layers
of 460 ms and 46 bands (PatchGAN; Isola et al., 2017). It serves training alone and is in no model
folder.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from gac_jax.models.layers import by_rows, dense
from gac_jax.signal.log_spectrum import BANDS

# Of every convolution, in time and frequency. A kernel is a multiple of the stride, so that every
# part of a spectrum is seen equally often: others make decoders draw lines where kernels overlap.
KERNEL, STRIDE = 4, 2


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """Size of a critic.

    Attributes:
      widths: channels of each convolution, of which each halves time and frequency.
      dtype: compute dtype of matmuls.
    """

    widths: tuple[int, ...]
    dtype: str = "float32"


class Critic(nn.Module):
    """Spectra, and what was to be expected of them, to scores."""

    config: CriticConfig

    @nn.compact
    def __call__(self, spectrum: jax.Array, expected: jax.Array) -> list[jax.Array]:
        """Judges spectra.

        Args:
          spectrum: (B, T, 640) standardised log magnitudes.
          expected: (B, T, 640), their mean given the codes: what sounds real may still be wrong.

        Returns:
          The output of each convolution, (B, T', F', C) each, and last the scores (B, T', F', 1).
        """
        dtype = jnp.dtype(self.config.dtype)
        grids = [x.reshape(x.shape[0], -1, BANDS) for x in (spectrum, expected)]
        # Bands are not equally wide, and a filter that is the same everywhere could not know.
        place = jnp.broadcast_to(jnp.linspace(-1.0, 1.0, BANDS), grids[0].shape)
        x = by_rows(jnp.stack([*grids, place], axis=-1).astype(dtype))
        outputs = []
        for i, width in enumerate(self.config.widths):
            # Smooth: at a kink, what a mesh rounds otherwise would change a gradient by a leap.
            x = nn.silu(dense(width, dtype=dtype, name=f"layer_{i}")(_patches(x)))
            outputs.append(x)
        return [*outputs, dense(1, name="score")(x.astype(jnp.float32))]


def _patches(x: jax.Array) -> jax.Array:
    """(B, T, F, C) to (B, T / 2, F / 2, 16 C), what a kernel sees.

    Products of plain matrices are left to do: the backward pass of XLA's convolutions on CPU is
    many times slower.
    """
    reach = (KERNEL - STRIDE) // 2
    times, bands = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    shifts = [(i, j) for i in range(KERNEL) for j in range(KERNEL)]
    return jnp.concatenate(
        [x[:, i : i + times : STRIDE, j : j + bands : STRIDE] for i, j in shifts], axis=-1
    )
