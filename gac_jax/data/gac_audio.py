"""Packed data sets: 32 kHz mono 16-bit FLAC in a few large array_record files, as TFDS reads them.

A crop of 2.56 s costs a sixth of the processor time of one from 48 kHz Opus files (2.6 against
15.8 ms, benchmarks/pipeline.py). Neither writing (`gac_jax.data.pack`) nor reading needs
TensorFlow.
"""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from gac_jax.data.sources import CLIP_FIELDS, NUMBER_FIELDS, Clip, ClipTable
from gac_jax.errors import UserError

NAME, VERSION, SPLIT = "gac_audio", "1.0.0", "train"
# What a source must know of every clip at start-up, to balance domains, hold out speakers and say
# what a model was trained on. It is kept in the data set's metadata, so that no record has to be
# read for it.
INDEX_FIELDS = ("path", "domain", "speaker", "licence", "dur_s")


@functools.cache
def features() -> tfds.features.FeaturesDict:
    """What a record holds: the encoded audio and `CLIP_FIELDS`."""
    kinds = {int: np.int64, float: np.float32}  # a record holds no doubles
    numbers = {name: kinds[kind] for name, kind in NUMBER_FIELDS.items()}
    texts = {name: tfds.features.Text() for name in CLIP_FIELDS if name not in numbers}
    # Not tfds.features.Audio, which needs TensorFlow; a string tensor comes back as bytes.
    audio = tfds.features.Tensor(shape=(), dtype=np.str_)
    return tfds.features.FeaturesDict({"audio": audio, **texts, **numbers})


def encode_record(clip: Clip) -> bytes:
    """Makes the record of a clip whose audio is bytes; equal clips make equal records."""
    facts = {name: getattr(clip, name) for name in ("audio", *CLIP_FIELDS)}
    serializer = ExampleSerializer(features().get_serialized_info())
    example = serializer.get_tf_example(features().encode_example(facts))
    return example.SerializeToString(deterministic=True)


def decode_record(record: bytes) -> Clip:
    """Inverse of `encode_record`.

    Raises:
      ValueError: if it is no such record.
    """
    try:
        facts: dict[str, Any] = features().deserialize_example_np(record)
        texts = {name: facts[name].decode() for name in CLIP_FIELDS if name not in NUMBER_FIELDS}
    except (AttributeError, DecodeError, KeyError) as error:  # a field that is None, or missing
        raise ValueError("not a record of gac_audio") from error
    return Clip(**{**facts, **texts})


class PackedSource:
    """Clips in array_record files.

    Attributes:
      clips: `INDEX_FIELDS` at least.
    """

    def __init__(self, records: grain.sources.ArrayRecordDataSource, clips: ClipTable) -> None:
        self._records = records
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        """Fetches a clip.

        Raises:
          RuntimeError: if the file is damaged at this place.
        """
        return decode_record(self._records[index])


def open_tfds(name: str) -> PackedSource:
    """Opens "NAME_OR_FOLDER:SPLIT".

    Raises:
      UserError: if there is no such data set or split, or `gac_jax.data.pack` did not write it.
    """
    place, _, split = name.rpartition(":")
    try:
        info = _builder_of(place).info
    except (OSError, ValueError) as error:  # no such file, no such name
        raise UserError(
            f"tfds:{name}: no data set '{place}'; write tfds:NAME_OR_FOLDER:SPLIT with the folder "
            "that holds dataset_info.json, or pack one with gac_jax.data.pack"
        ) from error
    if any(field not in info.metadata for field in INDEX_FIELDS):
        raise UserError(f"tfds:{name}: not packed by gac_jax.data.pack; pack its audio files")
    if split not in info.splits:
        raise UserError(f"tfds:{name}: no split '{split}', only {', '.join(info.splits)}")
    files = [each for each in info.splits[split].file_instructions if each.take]
    clips = ClipTable({field: info.metadata[field] for field in INDEX_FIELDS})
    return PackedSource(grain.sources.ArrayRecordDataSource(files), clips)


def _builder_of(place: str) -> tfds.core.DatasetBuilder:
    """Opens a data set by its folder, or by its name where TFDS keeps data sets by default."""
    if os.path.isdir(place):
        return tfds.builder_from_directory(place)
    return tfds.core.read_only_builder.builder_from_files(place)


def open_array_records(pattern: str) -> PackedSource:
    """Opens the files of packed data sets by a glob pattern, without their metadata.

    What the metadata would say is found by reading every record once: a gigabyte takes seconds,
    so that large data sets are better opened by their folder.

    Raises:
      UserError: if no file matches, or one is damaged or holds other records.
    """
    paths = sorted(glob.glob(pattern))
    if not paths:
        raise UserError(f"array_record:{pattern}: no file matches; quote it, and check the folder")
    clips = ClipTable.of_rows(row for path in paths for row in _rows(path))
    if not clips:
        raise UserError(f"array_record:{pattern}: the files hold no clips")
    return PackedSource(grain.sources.ArrayRecordDataSource(paths), clips)


def _rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        records = grain.sources.ArrayRecordDataSource(path)
        for index in range(len(records)):
            clip = decode_record(records[index])
            yield index, {name: getattr(clip, name) for name in CLIP_FIELDS}
    except (RuntimeError, ValueError) as error:  # array_record has no error of its own
        raise UserError(f"{path}: no file of a packed data set, or damaged ({error})") from error
