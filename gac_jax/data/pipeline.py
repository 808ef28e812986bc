"""Streams of training and validation batches.

Batch i is a function of the seed and of i alone: not of the number of processes, of the number of
reader threads, nor of the step at which a run resumes. For that, clips are shuffled, mixed and
cropped as one global stream, of which each process takes every n-th example, and the position in
the stream is the step.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence

import grain
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from gac_jax.data.sources import DOMAINS, Clip, open_source
from gac_jax.data.text import TextTargets, check_answers
from gac_jax.data.transforms import RandomCrop
from gac_jax.errors import UserError
from gac_jax.rates import SAMPLE_RATE

Batch = dict[str, np.ndarray]
VALIDATION_SEED = 0  # the same crops in every run, so that runs compare


def train_batches(
    data: ConfigDict,
    batch_size: int,
    crop_samples: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    targets: TextTargets | None = None,
) -> grain.DatasetIterator:
    """Endless batches of random crops of the clips that are not held out.

    Args:
      data: root, domain_weights, validation_percent, gain_jitter_db and num_threads.
      batch_size: B, examples in a batch over all processes.
      crop_samples: S, samples of a crop at 32 kHz.
      seed: of the order of clips, the places of crops and their gains.
      start_step: number of the first batch.
      process_index: which share of each batch to return.
      process_count: number of shares.
      targets: makes the texts that belong to the crops; without it, batches have none.

    Returns:
      Iterator, to be closed, of: wave (B / process_count, S) float32, and num_samples, domain and
      clip, each (B / process_count,) int32; with targets also text (B / process_count, L),
      text_length and answer_start, int32. See `RandomCrop`.

    Raises:
      UserError: if the root cannot be read, no clip is left to train on, or there are targets and
        no clip has a label, or a text that a crop can hold.
      ValueError: if the batch cannot be shared evenly.
    """
    if batch_size % process_count:
        raise ValueError(f"a batch of {batch_size} cannot be shared by {process_count} processes")
    source = open_source(data.root)
    training, held_out = split(source.clips, data.validation_percent)
    domains = _by_domain(source.clips, training, data.domain_weights)
    if not domains:
        raise UserError(
            f"{data.root or 'bundled clips'}: no clip to train on; "
            "change data.domain_weights or data.validation_percent"
        )
    counts = ", ".join(f"{len(members)} {name}" for name, members in domains.items())
    logging.info("clips to train on: %s; held out: %d", counts, len(held_out))
    if targets is not None:
        indices = itertools.chain.from_iterable(domains.values())
        clips = (source[index] for index in indices)
        check_answers(clips, crop_samples / SAMPLE_RATE, data.root)
    crop = RandomCrop(source, crop_samples, data.gain_jitter_db, targets)
    examples = _examples(domains, data.domain_weights, crop, seed)
    batches = examples[process_index::process_count].batch(batch_size // process_count)
    iterator = iter(batches.to_iter_dataset(_read_options(data)))
    iterator.set_state({"next_index": start_step})
    return iterator


def validation_batches(
    data: ConfigDict,
    batch_size: int,
    crop_samples: int,
    num_batches: int,
    process_index: int = 0,
    process_count: int = 1,
    targets: TextTargets | None = None,
) -> Iterator[Batch]:
    """Yields the same crops and texts of held-out clips at every call, with no gain jitter.

    Arguments are those of `train_batches`. There are no batches if no clip is held out.

    Raises:
      UserError: if the root cannot be read.
    """
    source = open_source(data.root)
    _, held_out = split(source.clips, data.validation_percent)
    domains = _by_domain(source.clips, held_out, data.domain_weights)
    if not domains:
        return
    crop = RandomCrop(source, crop_samples, targets=targets)
    examples = _examples(domains, data.domain_weights, crop, VALIDATION_SEED)
    share = examples[: num_batches * batch_size][process_index::process_count]
    batches = share.batch(batch_size // process_count)
    with contextlib.closing(iter(batches.to_iter_dataset(_read_options(data)))) as iterator:
        yield from iterator


def split(clips: Sequence[Clip], validation_percent: float) -> tuple[list[int], list[int]]:
    """Divides clips into those to train on and those held out.

    A clip's side depends on its speaker's name, or on its path if that is unknown, and on nothing
    else: no speaker is on both sides, and clips that join or leave a corpus move no other.

    Returns:
      Indices of the training clips and of the held-out clips.
    """
    training: list[int] = []
    held_out: list[int] = []
    for index, clip in enumerate(clips):
        is_held_out = _fraction(clip.speaker or clip.path) < validation_percent / 100
        (held_out if is_held_out else training).append(index)
    return training, held_out


def _fraction(name: str) -> float:
    """Maps a name to [0, 1), evenly and the same on every machine."""
    digest = hashlib.blake2b(name.encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def _by_domain(
    clips: Sequence[Clip], indices: Sequence[int], weights: Mapping[str, float]
) -> dict[str, list[int]]:
    """Groups indices by domain; a domain without clips or without weight is left out."""
    domains: dict[str, list[int]] = {name: [] for name in DOMAINS if weights.get(name, 0) > 0}
    for index in indices:
        if clips[index].domain in domains:
            domains[clips[index].domain].append(index)
    return {name: members for name, members in domains.items() if members}


def _examples(
    domains: Mapping[str, Sequence[int]], weights: Mapping[str, float], crop: RandomCrop, seed: int
) -> grain.MapDataset:
    """Endless crops, every domain in its share, each clip once before any comes again."""
    streams = [
        grain.MapDataset.source(members).seed(seed + DOMAINS.index(name)).shuffle().repeat()
        for name, members in domains.items()
    ]
    mixed = grain.MapDataset.mix(streams, [weights[name] for name in domains])
    return mixed.seed(seed).random_map(crop)


def _read_options(data: ConfigDict) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=data.num_threads, prefetch_buffer_size=data.num_threads)
