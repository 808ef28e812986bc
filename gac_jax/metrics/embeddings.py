"""Fréchet distance, KL divergence and Inception Score, on what a network makes of each clip.

Two networks, each with columns of its own, for their numbers cannot be compared:

- PaSST (Koutini et al., 2022), a classifier trained on AudioSet: the report's FAD, KL and IS for
  sound and music. 768 dimensions and 527 classes of the first 10 s at 32 kHz, zeros after the
  clip's end, as av-benchmark takes them.
- The encoder of Whisper tiny that the bundled model starts from: the substitute that is always
  there. It has no classes, so that KL and IS take soft clusters of the original clips in their
  place. They depend on the clips and on the number of clusters: compare them between systems on
  the same clips, and with nothing else.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from scipy.cluster.vq import kmeans
from scipy.spatial.distance import cdist

from gac_jax import codec, model_folder
from gac_jax.errors import UserError
from gac_jax.metrics.distribution import (
    frechet,
    frechet_infinity,
    inception_score,
    kl_divergence,
)
from gac_jax.metrics.judges import package, weights
from gac_jax.metrics.metric import AUDIO, Column
from gac_jax.models.encoder import EncoderConfig, WhisperEncoder
from gac_jax.rates import SAMPLE_RATE
from gac_jax.signal.mel import decimate2, whisper_log_mel

PASST_SAMPLES = 10 * SAMPLE_RATE
PASST_CLASSES = 527
PASST_ARCHITECTURE = "passt_s_swa_p16_128_ap476"
PASST_PUBLISHED = (
    "passt-s-f128-p16-s10-ap.476-swa.pt of release v0.0.1-audioset of kkoutini/PaSST on GitHub, "
    "in --passt"
)
CLUSTERS = 5  # that stand for classes where there are none
WHISPER_WINDOW = 327_680  # samples, 10.24 s; longer clips are described in pieces

Descriptions = Sequence[Mapping[str, np.ndarray]]
Tagger = Callable[[np.ndarray], np.ndarray]  # (320000,) at 32 kHz to (527 logits + 768,)


class Passt:
    """What the report measures sound and music by."""

    columns = (
        Column("fd_passt", "FD (PaSST)", False, 1),
        Column("fd_inf_passt", "FD∞ (PaSST)", False, 1),
        Column("kl_passt", "KL (PaSST)", False),
        Column("is_passt", "IS (PaSST)", True),
    )
    domains = AUDIO

    def __init__(self, tagger: Tagger) -> None:
        """Takes the network; `load` is the usual way in."""
        self._tagger = tagger

    @classmethod
    def load(cls, path: str) -> Self:
        """Loads the weights, as tensors alone.

        Args:
          path: of the file; "" if there is none.

        Raises:
          Unavailable: the package hear21passt or the file is missing.
          UserError: the file is not there, or holds something else.
        """
        return cls(_passt_tagger(weights(path, PASST_PUBLISHED)))

    def describe(self, wave: np.ndarray) -> dict[str, np.ndarray]:
        """Logits (527,) and embedding (768,) of the first 10 s of (S,) at 32 kHz."""
        clip = np.zeros(PASST_SAMPLES, np.float32)
        clip[: len(wave)] = wave[:PASST_SAMPLES]
        logits, embedding = np.split(self._tagger(clip), [PASST_CLASSES])
        return {"logits": logits, "embedding": embedding}

    def compare(self, references: Descriptions, decoded: Descriptions) -> dict[str, float]:
        """All four numbers; NaN where there are too few clips."""
        embeddings = _stacked(references, "embedding"), _stacked(decoded, "embedding")
        logits = _stacked(references, "logits"), _stacked(decoded, "logits")
        return {
            "fd_passt": frechet(*embeddings),
            "fd_inf_passt": frechet_infinity(*embeddings),
            "kl_passt": kl_divergence(*logits),
            "is_passt": inception_score(logits[1]),
        }


class WhisperFeatures:
    """Fréchet distance on the semantic tower of a gac model: Whisper tiny where that is `mini`.

    It hears up to 8 kHz, and speech better than anything else. A clip is brought to unit RMS, so
    loudness does not count, and described by mean and standard deviation of each channel over time.
    The codec that this tower belongs to hears a clip through the same ears: compare codecs by it
    with that in mind. Of 16 clips of sound and 16 of music, Opus at 24 kbps was at 8 and 3, at 6
    kbps at 52 and 57, Codec2 at 3200 and 700C at 71, 86 and 68, 99, and white noise at 151 and 88:
    what ruins music entirely is no longer told apart.
    """

    columns = (
        Column("fd_whisper", "FD (Whisper features)", False),
        Column("fd_inf_whisper", "FD∞ (Whisper features)", False),
        Column("kl_whisper", "KL (Whisper clusters)", False),
        Column("is_whisper", "IS (Whisper clusters)", True),
    )
    domains = AUDIO

    def __init__(self, config: EncoderConfig, params: Any) -> None:
        """Takes the tower; `load` is the usual way in."""
        self._tower, self._params = WhisperEncoder(config), params
        self._num_mels = config.num_mels
        self._run = jax.jit(self._features)

    @classmethod
    def load(cls, model: str | Path = "mini") -> Self:
        """Opens a model.

        Args:
          model: name of a model that ships with the package, or a model folder.

        Raises:
          UserError: no such model, or its files are damaged.
        """
        config, params = model_folder.load(codec.find(model))
        return cls(EncoderConfig(**config["encoder"]), params["encoder"]["semantic"])

    def describe(self, wave: np.ndarray) -> dict[str, np.ndarray]:
        """Mean and standard deviation over time, (2 D,), of (S,) at 32 kHz."""
        loudness = math.sqrt(float(np.mean(np.square(wave, dtype=np.float64))))
        wave = wave / np.float32(loudness or 1.0)
        pieces = np.split(wave, range(WHISPER_WINDOW, len(wave), WHISPER_WINDOW))
        features = np.concatenate([self._describe_piece(piece) for piece in pieces])
        return {"embedding": np.concatenate([features.mean(axis=0), features.std(axis=0)])}

    def compare(self, references: Descriptions, decoded: Descriptions) -> dict[str, float]:
        """All four numbers; NaN where there are too few clips."""
        embeddings = _stacked(references, "embedding"), _stacked(decoded, "embedding")
        numbers = {
            "fd_whisper": frechet(*embeddings),
            "fd_inf_whisper": frechet_infinity(*embeddings),
        }
        if len(references) < 2 * CLUSTERS:
            return {**numbers, "kl_whisper": math.nan, "is_whisper": math.nan}
        logits = cluster_logits(*embeddings)
        return {
            **numbers,
            "kl_whisper": kl_divergence(*logits),
            "is_whisper": inception_score(logits[1]),
        }

    def _describe_piece(self, wave: np.ndarray) -> np.ndarray:
        """Features (T, D) at 50 Hz."""
        frames = -(-len(wave) * 50 // SAMPLE_RATE)
        padded = np.pad(wave, (0, WHISPER_WINDOW - len(wave)))
        return np.asarray(self._run(self._params, padded, frames))[:frames]

    def _features(self, params: Any, wave: jax.Array, frames: jax.Array) -> jax.Array:
        mel = whisper_log_mel(decimate2(wave[None]), self._num_mels)
        valid = jnp.arange(mel.shape[2] // 2)[None] < frames
        return self._tower.apply({"params": params}, mel, valid)[0]


def cluster_logits(reference: np.ndarray, decoded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes for sets that have none: clusters of the original clips, by k-means.

    The logit of a cluster is minus the squared distance to its centre, in units of the originals'
    mean squared distance to their nearest one: a mixture of equal Gaussians, but for their number
    of dimensions, which would make every clip sure of its cluster.

    Args:
      reference: (n, D) embeddings, n at least `CLUSTERS`; the first begin the clusters.
      decoded: (m, D).

    Returns:
      Logits (n, C) and (m, C), C at most `CLUSTERS`.
    """
    centres, _ = kmeans(reference, reference[:CLUSTERS])
    squared = [cdist(x, centres, "sqeuclidean") for x in (reference, decoded)]
    scale = max(np.mean(np.min(squared[0], axis=1)), np.finfo(float).tiny)  # of equal clips, 0
    return -squared[0] / scale, -squared[1] / scale


def _stacked(descriptions: Descriptions, name: str) -> np.ndarray:
    return np.stack([description[name] for description in descriptions])


def _passt_tagger(file: Path) -> Tagger:
    """PaSST as `hear21passt.base.get_basic_model(mode="all")` builds it, with weights of a file.

    That function would download them.
    """
    install = "pip install hear21passt"
    torch = package("torch", install)
    networks = package("hear21passt.models.passt", install)
    preprocess = package("hear21passt.models.preprocess", install)
    wrapper = package("hear21passt.wrapper", install)

    def tag(wave: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(wave)[None])[0].numpy()

    # Building the network prints all of it, and its first run prints shapes.
    with contextlib.redirect_stdout(io.StringIO()):
        network = networks.get_model(arch=PASST_ARCHITECTURE, pretrained=False)
        try:
            network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        except Exception as error:  # whatever a file of any kind makes torch raise
            raise UserError(f"{file}: holds no weights of {PASST_ARCHITECTURE}") from error
        mel = preprocess.AugmentMelSTFT(
            n_mels=128, sr=SAMPLE_RATE, win_length=800, hopsize=320, n_fft=1024, freqm=48,
            timem=192, htk=False, fmin=0.0, fmax=None, norm=1, fmin_aug_range=10,
            fmax_aug_range=2000,
        )  # fmt: skip
        model = wrapper.PasstBasicWrapper(mel=mel, net=network, mode="all").eval()
        tag(np.zeros(PASST_SAMPLES, np.float32))
    return tag
