"""Token sets made without a model: every code tells which frame of its clip it belongs to."""

from pathlib import Path

import numpy as np

from gac_jax.bitstream import Tokens
from gac_jax.data import tokens
from gac_jax.data.sources import Clip, Source
from gac_jax.data.tokens import About, Outcome, TokenSource
from gac_jax.rates import num_frames
from gac_jax.signal.audio_io import read_audio
from gac_jax.signal.loudness import block_levels

FINGERPRINT = bytes(range(8))
SIZES = (2**14, *[256] * 8)


def about(clips: int, shards: int = 1, **changes: object) -> About:
    fields = {
        "fingerprint": FINGERPRINT.hex(),
        "batch_size": 1,
        "corpus": "digest",
        "clips": clips,
        "shards": shards,
        "model": "none",
        "codebook_sizes": SIZES,
    }
    return About(**{**fields, **changes})


def codes_of(frames: int) -> np.ndarray:
    """Semantic codes count frames, residual codes go on from there."""
    return (np.arange(frames) + np.arange(9)[:, None]) % 256


def tokens_of(wave: np.ndarray) -> Tokens:
    levels, samples = block_levels([wave])
    return Tokens(codes_of(num_frames(samples)), samples, levels, FINGERPRINT)


def outcome_of(clip: Clip) -> Outcome:
    return Outcome(clip, tokens_of(read_audio(str(clip.audio))), "")


def write_set(source: Source, folder: Path, shards: int = 1, dropped: str = "") -> TokenSource:
    """Writes a set of all clips but the one with the path `dropped`."""
    made_of = about(len(source), shards)
    tokens.begin(folder, made_of)
    for shard in range(shards):
        clips = [source[i] for i in made_of.part(shard)]
        outcomes = [
            Outcome(clip, None, "damaged") if clip.path == dropped else outcome_of(clip)
            for clip in clips
        ]
        tokens.write_shard(folder, made_of, shard, outcomes)
    return TokenSource(folder)
