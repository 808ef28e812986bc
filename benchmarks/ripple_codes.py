"""Gives partials of voices residual codebooks of their own, in a model that has none.

    python benchmarks/ripple_codes.py --model=OLD_MINI --root=MANIFEST --output=FOLDER

Residual codes of a feature whose cepstrum varies more than its ripples describe the cepstrum alone
(docs/decisions.md). At each of --places, a codebook is put among the residual ones that is zero in
the cepstrum, and by k-means over crops of the clips that are trained on describes the ripples; the
old ones that come last make room. Rates below the first place keep their codes. In the embedding,
ripples get directions to themselves, of which the decoder in FOLDER, for generation to begin
with, takes no notice yet. Prints how much of the ripples' power each further codebook leaves.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from scipy.linalg import null_space
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin

from configs import base
from gac_jax import model_folder
from gac_jax.codec import find
from gac_jax.data.sources import open_source
from gac_jax.data.walk import choose, walk
from gac_jax.models.encoder import EncoderConfig, Features
from gac_jax.models.quantizer import Quantizer, QuantizerConfig
from gac_jax.rates import FRAME_SAMPLES

_MODEL = flags.DEFINE_string("model", None, "The old model.", required=True)
_ROOT = flags.DEFINE_string("root", None, "Corpus that it was trained on.", required=True)
_PERCENT = flags.DEFINE_float("validation_percent", 8.0, "Of the corpus, which is left out.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the new model.", required=True)
_PLACES = flags.DEFINE_multi_integer(
    "places", [3, 7], "Of a ripple codebook, counted from 1.", lower_bound=1, upper_bound=8
)
_CLIPS = flags.DEFINE_integer("clips", 1600, "To learn from.", 1)

CROP = 64  # code frames
AT_ONCE = 8  # crops
ROUNDS = 30  # of k-means

Params = dict[str, Any]


def main(_: list[str]) -> None:
    """Makes the model."""
    record, params = model_folder.load(find(_MODEL.value))
    encoder = EncoderConfig(**record["encoder"])
    features, quantizer = Features(encoder), Quantizer(QuantizerConfig(**record["quantizer"]))
    residual = observe(features, quantizer, params)
    old = params["quantizer"]
    places = [place - 1 for place in _PLACES.value]
    ripples = slice(encoder.acoustic_features, None)
    books, described, left = with_ripples(old["residual_codes"], residual, places, ripples)
    directions = unused_directions(old, encoder.ripple_features)
    kernel = np.array(old["residual_out"]["kernel"])
    scale = np.std(described @ kernel) / np.std(described[:, ripples])  # as loud as the rest
    kernel[ripples] += scale * directions
    new = {**old, "residual_codes": books, "residual_out": {"kernel": kernel}}
    ignore(params["decoder"]["condition_net"]["input"], directions)
    params = {**params, "quantizer": new}
    model_folder.save(Path(_OUTPUT.value), record, params, "To be trained.\n", "int8")
    print(json.dumps({"frames": len(residual), "ripples_left": left}))


def observe(features: Features, quantizer: Quantizer, params: Params) -> np.ndarray:
    """What residual codebooks have to describe, (F, d), of crops of the training side."""
    data = base.get_config().data
    data.validation_percent = _PERCENT.value
    source = open_source(_ROOT.value)
    clips = np.random.default_rng(0).permutation(choose(source, data, "train"))[: _CLIPS.value]
    waves = (piece.wave for piece in walk(source, clips.tolist(), CROP * FRAME_SAMPLES))

    @jax.jit
    def run(wave: jax.Array, frames: jax.Array) -> jax.Array:
        both = features.apply({"params": params["encoder"]}, wave, frames)
        quantized = quantizer.apply({"params": params["quantizer"]}, *both, frames, 0 * frames)
        return quantized.residuals[0]

    return np.concatenate(
        [
            np.asarray(run(wave, frames))[np.arange(CROP)[None] < frames[:, None]]
            for wave, frames in _batches(waves)
        ]
    )


def _batches(waves: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    while group := list(itertools.islice(waves, AT_ONCE)):
        batch = np.zeros((AT_ONCE, CROP * FRAME_SAMPLES), np.float32)
        frames = np.zeros((AT_ONCE,), np.int32)
        for row, wave in enumerate(group):
            batch[row, : len(wave)], frames[row] = wave, -(-len(wave) // FRAME_SAMPLES)
        yield batch, frames


def with_ripples(
    old: np.ndarray, residual: np.ndarray, places: Sequence[int], ripples: slice
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Codebooks (R, K, d); what they describe of the residual (F, d); ripples' power left by each.

    Old codebooks after the first of ripples leave these alone.
    """
    books: list[np.ndarray] = []
    rest, others, left = residual, iter(old), []
    for place in range(len(old)):
        if place in places:
            book = np.zeros_like(old[0])
            means = KMeans(len(book), max_iter=ROUNDS, random_state=0).fit(rest[:, ripples])
            book[:, ripples] = means.cluster_centers_
        else:
            book = np.array(next(others))
            book[:, ripples] *= place < min(places)
        rest = rest - book[pairwise_distances_argmin(rest, book)]
        books.append(book)
        power = np.mean(rest[:, ripples] ** 2) / np.mean(residual[:, ripples] ** 2)
        left.append(round(float(power), 3))
    return np.stack(books), residual - rest, left


def unused_directions(quantizer: Params, count: int) -> np.ndarray:
    """Unit vectors (count, width) at right angles to all embeddings that there have been."""
    out = quantizer["semantic_out"]
    rows = (quantizer["residual_out"]["kernel"], out["kernel"], out["bias"][None])
    return null_space(np.concatenate(rows)).T[:count]


def ignore(layer: Params, directions: np.ndarray) -> None:
    """Makes a dense layer blind to directions (n, width) of its input."""
    layer["kernel"] = layer["kernel"] - directions.T @ (directions @ layer["kernel"])


if __name__ == "__main__":
    app.run(main)
