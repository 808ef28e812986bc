"""Neural codecs whose authors publish checkpoints, run by the library `transformers`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gac_jax.errors import UserError
from gac_jax.rates import SAMPLE_RATE
from gac_jax.signal.audio_io import resample

# By kind: what its encoder calls the setting of the rate, and where checkpoints are published.
KINDS = {
    "encodec": ("bandwidth", "facebook/encodec_24khz"),
    "dac": ("n_quantizers", "descript/dac_44khz"),
    "mimi": ("num_quantizers", "kyutai/mimi"),
}


class Neural:
    """A checkpoint at a rate; see `gac_jax.evaluation.systems.System`.

    What is sent are codes of as many bits as their codebook needs, without gaps or header.
    """

    concurrent = False

    def __init__(self, kind: str, folder: str, kbps: float) -> None:
        """Loads a checkpoint.

        Args:
          kind: a key of `KINDS`.
          folder: config.json and model.safetensors as on the Hugging Face hub.
          kbps: rate.

        Raises:
          UserError: transformers is not installed, or the folder holds no mono codec of this kind
            and rate.
        """
        setting, published = KINDS[kind]
        self._model, config = _load(kind, folder, published)
        frame_rate, sizes = _layout(kind, config)
        self._bits = math.ceil(math.log2(sizes[0]))
        ladder = {
            count * frame_rate * self._bits / 1000: count for count in range(1, len(sizes) + 1)
        }
        if kind == "encodec":  # trained for these alone
            ladder = {rate: count for rate, count in ladder.items() if _in(rate, config)}
        rate = min(ladder, key=lambda known: abs(known - kbps))
        if abs(rate - kbps) > 0.02 * kbps:
            known = ", ".join(f"{rate:.4g}" for rate in sorted(ladder))
            raise UserError(f"{kind}:{folder}@{kbps:g}: its rates are {known} kbit/s")
        self._books = ladder[rate]
        self._option = {setting: rate if kind == "encodec" else self._books}
        self._rate: int = config.sampling_rate
        self.name = f"{_label(kind, folder)}@{kbps:g}"
        self.parameters: Mapping[str, int] = {"model": self._model.num_parameters()}
        self.settings = {"kind": kind, "parameters": self.parameters["model"]}

    def encode(self, wave: np.ndarray) -> bytes:
        """Codes, book by book, as bits."""
        samples = self._tensor(resample(wave, SAMPLE_RATE, self._rate)[None, None])
        codes = self._model.encode(samples, **self._option).audio_codes
        return pack(codes.numpy().reshape(self._books, -1), self._bits)

    def decode(self, data: bytes, num_samples: int) -> np.ndarray:
        """What the model makes of them."""
        codes = unpack(data, self._books, self._bits)
        samples = self._decoded(self._tensor(codes[None]).long())
        wave = resample(samples.numpy().reshape(-1), self._rate, SAMPLE_RATE)[:num_samples]
        return np.pad(wave, (0, num_samples - len(wave)))

    def _decoded(self, codes: Any) -> Any:
        if "bandwidth" in self._option:  # EnCodec: codes by chunk, of which there is one
            return self._model.decode(codes[None], [None]).audio_values
        return self._model.decode(audio_codes=codes).audio_values

    def _tensor(self, array: np.ndarray) -> Any:
        """A tensor as the weights are; so PyTorch itself need not be imported."""
        return next(self._model.parameters()).new_tensor(array)


def pack(codes: np.ndarray, bits: int) -> bytes:
    """Writes codes, integers of any shape in C order, with `bits` bits each, the highest first."""
    places = np.arange(bits - 1, -1, -1)
    return np.packbits((codes.reshape(-1, 1) >> places & 1).astype(np.uint8)).tobytes()


def unpack(data: bytes, books: int, bits: int) -> np.ndarray:
    """Reads (books, N) int64 codes that `pack` wrote; fewer than a frame of bits are padding."""
    stream = np.unpackbits(np.frombuffer(data, np.uint8))
    frames = len(stream) // (books * bits)
    digits = stream[: frames * books * bits].reshape(books, frames, bits).astype(np.int64)
    return digits @ (1 << np.arange(bits - 1, -1, -1))


def _load(kind: str, folder: str, published: str) -> tuple[Any, Any]:
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{kind}:{folder}: no config.json there; {published} has one on the hub")
    try:
        from transformers import AutoModel, logging
    except ImportError as error:
        raise UserError(f"{kind} needs PyTorch: pip install torch transformers") from error
    logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{kind}:{folder}: no checkpoint that loads: {reason}") from error
    config = model.config
    if config.model_type != kind or getattr(config, "audio_channels", 1) != 1:
        raise UserError(f"{kind}:{folder}: holds no mono {kind}, but {config.model_type}")
    return model.requires_grad_(False), config


def _layout(kind: str, config: Any) -> tuple[float, list[int]]:
    """Frames a second, and codes of each book."""
    if kind == "dac":
        return config.sampling_rate / config.hop_length, [config.codebook_size] * config.n_codebooks
    return config.frame_rate, [config.codebook_size] * config.num_quantizers


def _in(rate: float, config: Any) -> bool:
    return any(abs(rate - known) < 1e-6 for known in config.target_bandwidths)


def _label(kind: str, folder: str) -> str:
    name = Path(folder).resolve().name
    return name if name.startswith(kind) else f"{kind}-{name}"
