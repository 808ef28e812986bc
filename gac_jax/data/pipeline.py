"""Streams of training and validation batches.

Batch i is a function of the seed and of i alone: not of the number of processes, of the number of
reader threads, nor of the step at which a run resumes. For that, clips are shuffled, mixed and
cropped as one global stream, of which each process takes its rows of every batch, and the position
in the stream is the step.
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

from gac_jax.data.sources import DOMAINS, Clip, column, open_source
from gac_jax.data.text import TextTargets, check_answers
from gac_jax.data.tokens import TokenSource
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
    tokens: TokenSource | None = None,
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
      tokens: codes of all clips, see `RandomCrop`; without it, batches have none.

    Returns:
      Iterator, to be closed, of: wave (B / process_count, S) float32, and num_samples, domain and
      clip, each (B / process_count,) int32; with targets also text (B / process_count, L),
      text_length and answer_start, int32; with tokens also codes (B / process_count, K, S / 2560)
      int32. See `RandomCrop`.

    Raises:
      UserError: if the root cannot be read, no clip is left to train on, there are targets and no
        clip has a label, or a text that a crop can hold, or clips are not among the tokens.
      ValueError: if the batch cannot be shared evenly, or there are tokens and a crop is not a
        number of whole code frames.
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
    _check_tokens(tokens, source.clips, domains)
    crop = RandomCrop(source, crop_samples, data.gain_jitter_db, targets, tokens)
    seconds = column(source.clips, "dur_s")
    slots = {
        name: _by_length(seconds, members, crop_samples / SAMPLE_RATE)
        for name, members in domains.items()
    }
    examples = _examples(slots, data.domain_weights, crop, seed)
    batches = _share(examples, batch_size, process_index, process_count)
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
    tokens: TokenSource | None = None,
) -> Iterator[Batch]:
    """Yields the same crops and texts of held-out clips at every call, with no gain jitter.

    Arguments are those of `train_batches`. There are no batches if no clip is held out.

    Raises:
      UserError: if the root cannot be read, or clips are not among the tokens.
    """
    source = open_source(data.root)
    _, held_out = split(source.clips, data.validation_percent)
    domains = _by_domain(source.clips, held_out, data.domain_weights)
    if not domains:
        return
    _check_tokens(tokens, source.clips, domains)
    crop = RandomCrop(source, crop_samples, targets=targets, tokens=tokens)
    examples = _examples(domains, data.domain_weights, crop, VALIDATION_SEED)
    examples = examples[: num_batches * batch_size]
    batches = _share(examples, batch_size, process_index, process_count)
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
    names = zip(column(clips, "speaker"), column(clips, "path"), strict=True)
    for index, (speaker, path) in enumerate(names):
        is_held_out = _fraction(speaker or path) < validation_percent / 100
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
    names = column(clips, "domain")
    for index in indices:
        if names[index] in domains:
            domains[names[index]].append(index)
    return {name: members for name, members in domains.items() if members}


def _by_length(seconds: Sequence[float], indices: Sequence[int], crop_s: float) -> list[int]:
    """Lists a clip once for every crop that it is long, so that every second counts alike."""
    return [i for i in indices for _ in range(max(1, round(seconds[i] / crop_s)))]


def _check_tokens(
    tokens: TokenSource | None, clips: Sequence[Clip], domains: Mapping[str, Sequence[int]]
) -> None:
    """Raises UserError if a clip that will be drawn has no codes."""
    if tokens is not None:
        paths = column(clips, "path")
        tokens.check(paths[i] for i in itertools.chain.from_iterable(domains.values()))


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


class _Rows:
    """Numbers, in the global stream, of the examples in one process's rows of each batch.

    The rows of a process lie together, as they do in the global array that is made of them: noise
    is drawn by row, so that in another order the losses would be others.
    """

    def __init__(self, total: int, batch_size: int, process_index: int, process_count: int) -> None:
        self._total, self._batch_size = total // process_count, batch_size
        self._rows = batch_size // process_count
        self._first = process_index * self._rows

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: int) -> int:
        batch, row = divmod(index, self._rows)
        return batch * self._batch_size + self._first + row


def _share(
    examples: grain.MapDataset, batch_size: int, process_index: int, process_count: int
) -> grain.MapDataset:
    """One process's share of the batches; nothing of the rest is read."""
    rows = _Rows(len(examples), batch_size, process_index, process_count)
    own = grain.MapDataset.source(rows).map(examples.__getitem__)
    return own.batch(batch_size // process_count)


def _read_options(data: ConfigDict) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=data.num_threads, prefetch_buffer_size=data.num_threads)
