"""Whether decoded speech has the voice of the original: similarity of speaker embeddings.

| column | embedding |
|---|---|
| sim | of an ONNX model in the manner of WeSpeaker (Wang et al., 2023): 80 mel bands in |
| sim_resemblyzer | of Resemblyzer, a GE2E network (Wan et al., 2018): a mere substitute |

Both are cosines, -1 to 1, mean over clips. WeSpeaker's command line prints (cosine + 1) / 2: a SIM
of 0.82 there is 0.64 here. The report does not say which it means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np

from gac_jax.errors import UserError
from gac_jax.metrics.judges import at_rate, package, weights
from gac_jax.metrics.metric import SPEECH, Column, Excerpt

RATE = 16_000
SHORTEST = RATE // 4  # samples: a quarter of a second says little of a voice
PUBLISHED = (
    "an ONNX speaker model, such as voxceleb_resnet34_LM.onnx of the list docs/pretrained.md of "
    "wenet-e2e/wespeaker on GitHub, in --speaker"
)


class SpeakerSimilarity:
    """Cosine of the embeddings of original and decoded speech."""

    domains = SPEECH

    def __init__(self, embed: Callable[[np.ndarray], np.ndarray], column: Column) -> None:
        """Takes a network.

        Args:
          embed: (S,) float32 at 16 kHz to (E,).
          column: the name it goes by.
        """
        self._embed, self.columns = embed, (column,)

    @classmethod
    def load_wespeaker(cls, path: str) -> Self:
        """Loads an ONNX model that takes mel features (1, T, 80) and gives an embedding (1, E).

        Args:
          path: of the file; "" if there is none.

        Raises:
          Unavailable: a package or the file is missing.
          UserError: the file is not such a model.
        """
        file = weights(path, PUBLISHED)
        runtime, fbank = package("onnxruntime"), package("kaldi_native_fbank")
        try:
            session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            (features,) = session.get_inputs()
        except Exception as error:  # onnxruntime has an exception for every kind of bad file
            raise UserError(f"{path}: no ONNX model of one input; needed is {PUBLISHED}") from error

        def embed(wave: np.ndarray) -> np.ndarray:
            bands = mel_features(fbank, wave)[None]
            return np.asarray(session.run(None, {features.name: bands})[-1][0])

        return cls(embed, Column("sim", "SIM", True, 3))

    @classmethod
    def load_resemblyzer(cls) -> Self:
        """Loads Resemblyzer with the weights that its package brings.

        Raises:
          Unavailable: the package is not installed.
        """
        resemblyzer = package("resemblyzer", "pip install resemblyzer (it brings PyTorch)")
        encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)

        def embed(wave: np.ndarray) -> np.ndarray:
            return np.asarray(encoder.embed_utterance(resemblyzer.preprocess_wav(wave)))

        return cls(embed, Column("sim_resemblyzer", "SIM (Resemblyzer)", True, 3))

    def measure(self, excerpt: Excerpt) -> dict[str, float]:
        """The cosine of one clip."""
        waves = [at_rate(wave, RATE) for wave in (excerpt.reference, excerpt.decoded)]
        if waves[0].size < SHORTEST or not all(wave.any() for wave in waves):
            return {}
        one, other = (np.asarray(self._embed(wave), np.float64) for wave in waves)
        norms = float(np.linalg.norm(one) * np.linalg.norm(other))
        return {self.columns[0].name: float(one @ other) / norms} if norms else {}


def mel_features(fbank: Any, wave: np.ndarray) -> np.ndarray:
    """Kaldi's log-mel features as WeSpeaker is trained on: 25 ms Hamming windows every 10 ms.

    Args:
      fbank: the package kaldi_native_fbank.
      wave: (S,) float32 at 16 kHz.

    Returns:
      (T, 80) float32 with the mean over time removed from each band.
    """
    options = fbank.FbankOptions()
    options.frame_opts.samp_freq = RATE
    options.frame_opts.window_type = "hamming"
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = 80
    stream = fbank.OnlineFbank(options)
    stream.accept_waveform(RATE, (32768 * wave).tolist())  # Kaldi counts in steps of 16 bits
    stream.input_finished()
    bands = np.stack([stream.get_frame(t) for t in range(stream.num_frames_ready)])
    return bands - bands.mean(axis=0)
