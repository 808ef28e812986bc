"""Entropy coding of tokens: the same codes in fewer bits, as the entropy model foresees them.

Sender and receiver walk through the frames alike. At every code the model says how likely each
value is, a range coder spends the bits, and the model sees the code. All of it is done in integers,
so that both walks are the same on any machine.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gac_jax.compressed import DIGEST_BYTES
from gac_jax.errors import UserError
from gac_jax.model_folder import ENTROPY_MODEL
from gac_jax.models import entropy_model
from gac_jax.models.entropy_model import LOGITS_PER_OCTAVE, ONE, EntropyModelConfig
from gac_jax.range_coder import RangeDecoder, RangeEncoder

_TOP_BITS = 24  # frequency of the likeliest code
Codes = npt.NDArray[np.int32]
Pick = Callable[[np.ndarray, int, int], int]  # logits, codebook, frame -> code


def shapes(record: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the entropy model's weights that a model's config.json calls for, if any."""
    config = record.get(ENTROPY_MODEL)
    return {} if config is None else entropy_model.shapes(EntropyModelConfig(**config))


def of_model(record: dict[str, Any], params: dict[str, Any]) -> EntropyCoder:
    """The entropy coder of a loaded model.

    Raises:
      UserError: it has no entropy model.
    """
    if ENTROPY_MODEL not in record:
        raise UserError(
            f"'{record['name']}' has no entropy model to compress with, or to read what is "
            "compressed: python -m gac_jax.fit_entropy_model makes one"
        )
    points = semantic_points(params["quantizer"])
    return EntropyCoder(EntropyModelConfig(**record[ENTROPY_MODEL]), params[ENTROPY_MODEL], points)


def semantic_points(quantizer: dict[str, Any]) -> npt.NDArray[np.float32]:
    """The points (V, d) of the semantic codes of a quantiser's parameters, as whole numbers.

    Double precision leaves no doubt about how to round them; if it did, digests would differ.
    """
    basis, kernel = quantizer["basis"], quantizer["basis_map"]["kernel"]
    points = np.asarray(basis, np.float64) @ np.asarray(kernel, np.float64)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return entropy_model.integer_points(points)


class EntropyCoder:
    """An entropy model ready to code with.

    Attributes:
      digest: 2 bytes that name the model; what one model wrote no other can read.
    """

    def __init__(
        self, config: EntropyModelConfig, weights: dict[str, Any], points: npt.NDArray[np.float32]
    ) -> None:
        """Prepares the model.

        Args:
          config: its sizes.
          weights: integers, as `entropy_model.rounded` makes them.
          points: (V, d) of the semantic codes, from `semantic_points`.
        """
        self._config = config
        self._weights = {k: np.asarray(v, np.float32) for k, v in weights.items()}
        self._points = points
        self._features, self._keys = entropy_model.features(self._weights, self._points)
        digest = hashlib.sha256(self._points.astype("<i4").tobytes())
        for name in sorted(self._weights):
            digest.update(self._weights[name].astype("<i4").tobytes())
        self.digest = digest.digest()[:DIGEST_BYTES]

    def encode(self, chunks: Iterable[Codes], num_residuals: int) -> Iterator[bytes]:
        """Bytes of each chunk of codes (1 + k, n); the model goes on from one to the next."""
        walk = _Walk(self._config, self._weights, self._points, self._features, self._keys)
        for codes in chunks:
            encoder = RangeEncoder()
            walk.frames(codes.shape[1], num_residuals, functools.partial(_put, encoder, codes))
            yield encoder.finish()

    def decode(
        self, chunks: Iterable[tuple[bytes, int]], num_residuals: int
    ) -> Iterator[tuple[Codes, bytes]]:
        """Codes (1 + k, n) of each chunk of bytes, given with its number of frames n.

        Bytes that nobody wrote give codes, too. With the codes comes what `encode` makes of them,
        to compare.
        """
        walk = _Walk(self._config, self._weights, self._points, self._features, self._keys)
        for data, frames in chunks:
            again = RangeEncoder()
            pick = functools.partial(_take, RangeDecoder(data), again)
            yield walk.frames(frames, num_residuals, pick), again.finish()


class _Walk:
    """The model on its way through a clip."""

    def __init__(
        self,
        config: EntropyModelConfig,
        weights: dict[str, np.ndarray],
        points: np.ndarray,
        features: np.ndarray,
        keys: np.ndarray,
    ) -> None:
        self._weights, self._points, self._features = weights, points, features
        self._keys, self._books = keys, config.num_residual
        self._point = np.zeros(config.semantic_dim, np.float32)
        self._said = np.zeros(config.code_dim, np.float32)
        self._state = np.zeros(config.width, np.float32)
        self._begun = False

    def frames(self, count: int, num_residuals: int, pick: Pick) -> Codes:
        """Goes through `count` frames, whose codes `pick` finds or knows; returns those."""
        weights = self._weights
        codes = np.empty((1 + num_residuals, count), np.int32)
        for frame in range(count):
            rate = np.zeros(self._books + 2, np.float32)
            rate[num_residuals if self._begun else -1] = ONE
            given = (self._state, self._point, self._said, rate)
            self._state = entropy_model.advance(weights, *given)
            logits = entropy_model.semantic_logits(weights, self._keys, self._state)
            codes[0, frame] = semantic = pick(logits, 0, frame)
            self._point, self._said = self._points[semantic], np.zeros_like(self._said)
            context = entropy_model.context(weights, self._state, self._features[semantic])
            for place in range(num_residuals):
                logits = entropy_model.residual_logits(weights, context, self._said, place)
                codes[1 + place, frame] = code = pick(logits, 1 + place, frame)
                self._said = self._said + weights["codes"][place, code]
            self._begun = True
        return codes


def frequencies(logits: np.ndarray) -> npt.NDArray[np.int64]:
    """How often each code is to be expected, at least once: 2^24 times 2^(logit - largest)."""
    below = (np.max(logits) - logits).astype(np.int64)
    octaves, rest = below // LOGITS_PER_OCTAVE, below % LOGITS_PER_OCTAVE
    return (_within_octave()[rest] >> np.minimum(octaves, _TOP_BITS + 1)) + 1


@functools.cache
def _within_octave() -> npt.NDArray[np.int64]:
    """2^(24 - i / 32), rounded down: roots of whole numbers are the same on every machine."""
    steps = LOGITS_PER_OCTAVE.bit_length() - 1  # square roots that make a 32nd root

    def root(number: int) -> int:
        return functools.reduce(lambda x, _: math.isqrt(x), range(steps), number)

    exponents = (_TOP_BITS * LOGITS_PER_OCTAVE - i for i in range(LOGITS_PER_OCTAVE))
    return np.array([root(1 << exponent) for exponent in exponents], np.int64)


def _put(encoder: RangeEncoder, codes: Codes, logits: np.ndarray, book: int, frame: int) -> int:
    code, all_of_them = int(codes[book, frame]), frequencies(logits)
    start, total = int(all_of_them[:code].sum()), int(all_of_them.sum())
    encoder.put(start, int(all_of_them[code]), total)
    return code


def _take(
    decoder: RangeDecoder, again: RangeEncoder, logits: np.ndarray, book: int, frame: int
) -> int:
    del book, frame
    all_of_them = frequencies(logits)
    ends = np.cumsum(all_of_them)
    total = int(ends[-1])
    code = int(np.searchsorted(ends, decoder.target(total), side="right"))
    frequency = int(all_of_them[code])
    decoder.take(int(ends[code]) - frequency, frequency, total)
    again.put(int(ends[code]) - frequency, frequency, total)
    return code
