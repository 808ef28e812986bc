"""Gives the pitch of voices a residual codebook, in a model whose codebooks do not tell it.

    python benchmarks/pitch_codes.py --model=OLD_MINI --root=MANIFEST --output=FOLDER

OLD_MINI describes 64 ripples of partials and no pitch. Semantic codes stay. Of the residual
codebooks, those of the envelope keep their order and their codes; that of partials is made by
k-means of pitch over crops of the clips that are trained on, and what is left of the envelope
gets the last ones. In the embedding, pitch gets directions to itself, of which the decoder in
FOLDER, for generation to begin with, takes no notice yet. Prints the power that codebooks leave.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
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
from gac_jax.signal.pitch import FEATURES

_MODEL = flags.DEFINE_string("model", None, "The old model.", required=True)
_ROOT = flags.DEFINE_string("root", None, "Corpus that it was trained on.", required=True)
_PERCENT = flags.DEFINE_float("validation_percent", 8.0, "Of the corpus, which is left out.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the new model.", required=True)
_CLIPS = flags.DEFINE_integer("clips", 1600, "To learn from.", 1)

CROP = 64  # code frames
AT_ONCE = 8  # crops
ROUNDS = 60  # of k-means

Params = dict[str, Any]


def main(_: list[str]) -> None:
    """Makes the model."""
    record, params = model_folder.load(find(_MODEL.value))
    encoder = EncoderConfig(**record["encoder"])
    envelope = encoder.acoustic_features
    old = params["quantizer"]
    books = [
        np.pad(b, ((0, 0), (0, FEATURES))) for b in old["residual_codes"] if b[:, :envelope].any()
    ]
    for book in books:
        book[:, envelope:] = 0.0
    directions = unused_directions(old, FEATURES)
    record["quantizer"]["residual_dim"] += FEATURES
    config = QuantizerConfig(**record["quantizer"])
    params["quantizer"] = new = with_pitch(old, envelope, config)
    described = observe(Features(encoder), Quantizer(config), params)
    new["residual_codes"], left = fit(books, described, config)
    kernel = new["residual_out"]["kernel"]
    loud = np.std(described[:, :-FEATURES] @ kernel[:-FEATURES])
    kernel[-FEATURES:] = directions * loud / np.std(described[:, -FEATURES:])
    ignore(params["decoder"]["condition_net"]["input"], directions)
    model_folder.save(Path(_OUTPUT.value), record, params, "To be trained.\n", "int8")
    print(json.dumps({"frames": len(described), "left": left}))


def with_pitch(old: Params, envelope: int, config: QuantizerConfig) -> Params:
    """The quantiser with channels for pitch, without codebooks; semantic codes are as they were."""

    def more_rows(kernel: np.ndarray) -> np.ndarray:
        return np.pad(kernel, ((0, FEATURES), (0, 0)))

    said, explained = old["semantic_in"], old["explained"]
    output = {name: x[..., :envelope] for name, x in explained["output"].items()}
    heard = {**said["heard"], "kernel": more_rows(said["heard"]["kernel"])}
    shape = (config.num_residual, config.residual_size, config.residual_dim)
    return {
        **old,
        "semantic_in": {**said, "heard": heard},
        "explained": {**explained, "output": output},
        "residual_out": {"kernel": more_rows(old["residual_out"]["kernel"])},
        "residual_codes": np.zeros(shape, np.float32),
    }


def observe(features: Features, quantizer: Quantizer, params: Params) -> np.ndarray:
    """What residual codebooks have to describe, (F, d), of crops of the training side."""
    data = base.get_config().data
    data.validation_percent = _PERCENT.value
    source = open_source(_ROOT.value)
    clips = np.random.default_rng(0).permutation(choose(source, data, "train"))[: _CLIPS.value]
    waves = (piece.wave for piece in walk(source, clips.tolist(), CROP * FRAME_SAMPLES))
    place = quantizer.config.partials_place

    @jax.jit
    def run(wave: jax.Array, frames: jax.Array) -> jax.Array:
        both = features.apply({"params": params["encoder"]}, wave, frames)
        quantized = quantizer.apply({"params": params["quantizer"]}, *both, frames, 0 * frames)
        return quantized.residuals[0] + quantized.residuals[place]

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


def fit(
    envelopes: list[np.ndarray], described: np.ndarray, config: QuantizerConfig
) -> tuple[np.ndarray, dict[str, list[float]]]:
    """Codebooks (R, K, d), and the share of envelope, ripples and pitch that each leaves."""
    parts = np.cumsum(
        [0, config.residual_dim - config.partials_dim, config.partials_dim - FEATURES]
    )
    slices = [slice(*parts[:2]), slice(*parts[1:]), slice(parts[2], None)]
    envelope, pitch = slices[0], slices[2]
    rest, old, books = described.copy(), iter(envelopes), []
    left: dict[str, list[float]] = {"envelope": [], "ripples": [], "pitch": []}
    for place in range(config.num_residual):
        if place == config.partials_place:
            book = means(rest[:, pitch], rest * (np.arange(rest.shape[1]) >= parts[1]))
            seen = slice(parts[1], None)
        else:
            seen = envelope
            book = next(old, None)
            if book is None:
                book = means(rest[:, seen], rest * (np.arange(rest.shape[1]) < parts[1]))
        rest = rest - book[pairwise_distances_argmin(rest[:, seen], book[:, seen])]
        books.append(book.astype(np.float32))
        for name, part in zip(left, slices, strict=True):
            power = np.sum(rest[:, part] ** 2) / np.sum(described[:, part] ** 2)
            left[name].append(round(float(power), 3))
    return np.stack(books), left


def means(by: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Means (K, d) of points (F, d) in 2^8 clusters `by` some of their channels (F, c)."""
    labels = KMeans(256, max_iter=ROUNDS, random_state=0).fit(by).labels_
    return np.stack([points[labels == k].mean(axis=0) for k in range(256)])


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
