"""Measures what the codes of an encoder carry that stage 1 has trained, or is still training."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from gac_jax.data.sources import DOMAINS, Clip, Source, open_source
from gac_jax.data.text import TASKS, TextTargets, answer_of
from gac_jax.data.walk import Piece, choose, walk
from gac_jax.errors import UserError
from gac_jax.metrics.codebooks import count_codes, usage
from gac_jax.metrics.findings import Findings
from gac_jax.metrics.reading import Reading, error_counter, partners
from gac_jax.rates import FRAME_SAMPLES
from gac_jax.sharding import make_mesh, shard_batch, shardings
from gac_jax.stages.task import Batch, Params
from gac_jax.stages.understanding import Understanding, frames_of
from gac_jax.training.averages import load_averages
from gac_jax.training.loop import NumpyBatch
from gac_jax.training.origin import adopt
from gac_jax.training.reader import OpenedReader, open_reader
from gac_jax.training.stages import build_task, check_choices, check_sizes, listens

STAGE = "understanding"
SILENT = {
    "weights": "No texts were measured: config.understanding.objective.weights.text and alignment "
    "are 0, so that the encoder was trained without a language model.",
    "path": "No texts were measured: config.language_model.path names no language model.",
    "text": "No texts were measured: no clip has a label, or a text and the length of a crop.",
}
# What changes the figures of one and the same checkpoint, besides its weights.
TELLING = (
    "matmul_precision",
    "data.root",
    "data.validation_percent",
    "encoder",
    "quantizer",
    *(f"language_model.{name}" for name in ("path", "tokenizer", "prompt", "max_tokens", "dtype")),
    "understanding.crop_frames",
)
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Selection:
    """What to measure.

    Attributes:
      split: one of `gac_jax.data.walk.SPLITS`.
      clips: most clips to take; 0 is all.
      rates: residual codebooks with which texts are read, each of `gac_jax.rates.LADDER`.
    """

    split: str = "held_out"
    clips: int = 0
    rates: tuple[int, ...] = (0, 8)


@dataclasses.dataclass(frozen=True)
class Coded:
    """A piece of a clip as codes.

    Attributes:
      piece: its audio.
      codes: (K, N) int32.
      frames: code frames that count.
    """

    piece: Piece
    codes: np.ndarray
    frames: int


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked about the start of a clip.

    Attributes:
      clip: the clip.
      task: one of `gac_jax.data.text.TASKS`.
      truth: the text that it has for it.
      arrays: text, text_length and answer_start as `TextTargets.of` gives them, codes and frames.
    """

    clip: Clip
    task: str
    truth: str
    arrays: NumpyBatch


def probe(config: ConfigDict, workdir: Path, selection: Selection) -> Findings:
    """Measures the newest checkpoint of the stage understanding; only reads it.

    Args:
      config: the run's own.
      workdir: of the run.
      selection: what to measure.

    Raises:
      UserError: bad configuration, data, language model or checkpoint.
    """
    check_choices(config)
    config, _ = adopt(config, "understanding")
    source = open_source(config.data.root)
    indices = choose(source, config.data, selection.split, selection.clips)
    opened, note = _reader(config)
    try:
        mesh = make_mesh(**config.mesh)
        check_sizes(STAGE, config[STAGE], mesh)
        task = build_task(STAGE, config, opened)
    except (TypeError, ValueError) as error:
        raise UserError(f"configuration: {error}") from error
    assert isinstance(task, Understanding)
    with jax.set_mesh(mesh), jax.default_matmul_precision(config.matmul_precision):
        trained = load_averages(os.fspath(workdir / STAGE), _needed(task, mesh))
        listener = Listener(task, trained.params, opened, mesh, config[STAGE].batch_size)
        crop = config[STAGE].crop_frames * FRAME_SAMPLES
        listener.listen(source, indices, crop)
        if not listener.heard:
            raise UserError(f"{config.data.root}: none of the clips can be read; see the log")
        readings = listener.read(selection.rates)
    facts = {
        "config": config.name,
        "workdir": os.fspath(workdir),
        "data": config.data.root,
        "step": trained.step,
        "split": selection.split,
        "clips": dict(Counter(source.clips[i].domain for i in listener.heard)),
        "crop_frames": config[STAGE].crop_frames,
        "not_as_in_training": differences(config.to_dict(), trained.config),
    }
    if not (note or readings):
        note = SILENT["text"]
    return Findings(facts, usage(listener.counts, DOMAINS), readings, note)


def differences(config: dict[str, Any], trained: dict[str, Any]) -> list[str]:
    """Fields in `TELLING` that are not as in training, each with both values, in words."""
    now, then = (flatten_dict(x, sep=".") for x in (config, trained))
    known = (
        name
        for name in sorted({*now, *then})
        if f"{name}.".startswith(tuple(f"{part}." for part in TELLING))
    )
    return [
        f"config.{name} is {now.get(name)!r}, was {then.get(name)!r}"
        for name in known
        if now.get(name) != then.get(name)
    ]


class Listener:
    """Turns clips into codes, and has the language model read them.

    Attributes:
      counts: of the codes of all pieces so far, see `count_codes`.
      heard: clips so far, by place in their source.
      questions: about the starts of clips so far; none without a language model.
    """

    def __init__(
        self,
        task: Understanding,
        params: Params,
        opened: OpenedReader | None,
        mesh: Mesh,
        rows: int,
    ) -> None:
        """Prepares the programs.

        Args:
          task: the stage.
          params: {"encoder", "quantizer"}, and "adapter" if there is a language model.
          opened: the language model.
          mesh: devices.
          rows: B, rows computed at once.
        """
        self._task, self._params, self._mesh, self._rows = task, params, mesh, rows
        self._targets = opened.targets if opened else None
        frozen = opened.frozen if opened else {}
        self._frozen = jax.device_put(frozen, shardings(mesh, frozen))
        self._encode = jax.jit(partial(encode, task))
        length = self._targets.max_tokens - _shortest(self._targets) if self._targets else 0
        self._ask = jax.jit(partial(ask, task, max_tokens=length))
        config = task.quantizer.config
        self._sizes = [config.semantic_size] + config.num_residual * [config.residual_size]
        self.counts = [np.zeros((len(DOMAINS), size), np.int64) for size in self._sizes]
        self.heard: list[int] = []
        self.questions: list[Question] = []

    def listen(self, source: Source, indices: Sequence[int], num_samples: int) -> None:
        """Counts the codes of whole clips, and prepares the questions about them.

        Args:
          source: the clips.
          indices: places in the source.
          num_samples: length of a piece at 32 kHz.
        """
        progress = tqdm(total=len(indices), desc="encoding clips", leave=False, disable=None)
        with progress:
            for coded in self._coded(walk(source, indices, num_samples), num_samples):
                clip = source.clips[coded.piece.clip]
                domain = np.array([DOMAINS.index(clip.domain)])
                frames = np.array([coded.frames])
                new = count_codes(coded.codes[None], frames, domain, self._sizes, len(DOMAINS))
                self.counts = [a + b for a, b in zip(self.counts, new, strict=True)]
                if coded.piece.is_first:
                    self.heard.append(coded.piece.clip)
                    self.questions += self._questions(source[coded.piece.clip], coded)
                    progress.update()

    def read(self, rates: Sequence[int]) -> list[Reading]:
        """Asks all questions at each rate, with the clip's own codes and with another's."""
        groups = [(question.clip.domain, question.task) for question in self.questions]
        pairs = list(enumerate(partners(groups)))
        total = len(rates) * len(pairs)
        readings = []
        with tqdm(total=total, desc="reading texts", leave=False, disable=None) as progress:
            for rate in rates:
                for some in _batches(pairs, self._rows):
                    readings += self._readings(some, rate)
                    progress.update(len(some))
        return readings

    def _coded(self, pieces: Iterable[Piece], num_samples: int) -> Iterator[Coded]:
        for some in _batches(pieces, self._rows):
            waves = [np.pad(p.wave, (0, num_samples - len(p.wave))) for p in some]
            lengths = [len(p.wave) for p in some]
            batch = {"wave": np.array(waves), "num_samples": np.array(lengths, np.int32)}
            padded = shard_batch(self._mesh, _padded(batch, self._rows))
            codes, frames = jax.device_get(self._encode(self._params, padded))
            yield from map(Coded, some, codes, frames.tolist())

    def _questions(self, clip: Clip, coded: Coded) -> Iterator[Question]:
        """One for each task to which the clip has an answer."""
        clips = {
            "transcribe": dataclasses.replace(clip, label=""),
            "describe": dataclasses.replace(clip, text=""),
        }
        rng = np.random.default_rng(0)  # not drawn from: there is one task at a time
        for task in TASKS if self._targets else ():
            assert self._targets
            only = clips[task], coded.piece.is_whole, rng
            if answer := answer_of(*only):
                text = self._targets.of(*only)
                codes = {"codes": coded.codes, "frames": np.asarray(coded.frames, np.int32)}
                yield Question(clip, task, answer[1], {**text, **codes})

    def _readings(self, pairs: Sequence[tuple[int, int]], rate: int) -> list[Reading]:
        own = [self.questions[i].arrays for i, _ in pairs]
        others = [self.questions[j].arrays for _, j in pairs]
        batch = {name: np.stack([arrays[name] for arrays in own]) for name in own[0]}
        for name in ("codes", "frames"):
            batch[f"other_{name}"] = np.stack([arrays[name] for arrays in others])
        padded = shard_batch(self._mesh, _padded(batch, self._rows))
        found = self._ask(self._params, self._frozen, padded, np.int32(rate))
        rows = zip(pairs, *jax.device_get(found), strict=False)  # padding comes last
        return [
            Reading(
                path=self.questions[i].clip.path,
                domain=self.questions[i].clip.domain,
                lang=self.questions[i].clip.lang,
                task=self.questions[i].task,
                rate=rate,
                truth=self.questions[i].truth,
                answer=self._words(ids.tolist()),
                tokens=int(tokens),
                right=float(right),
                wrong=float("nan") if i == j else float(wrong),
            )
            for (i, j), right, wrong, tokens, ids in rows
        ]

    def _words(self, ids: list[int]) -> str:
        """What an answer says before it ends."""
        assert self._targets
        end = self._targets.end
        return self._targets.tokenizer.decode(ids[: ids.index(end)] if end in ids else ids)


def encode(task: Understanding, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Codes (B, 1 + R, N) and code frames that count (B,), both int32, of a batch."""
    frames = frames_of(batch)
    quantizer = {"params": params["quantizer"]}
    with jax.default_matmul_precision("float32"):  # the codes that a sender would send
        features = task.features.apply({"params": params["encoder"]}, batch["wave"], frames)
        return task.quantizer.apply(quantizer, *features, frames, method="codes"), frames


def ask(
    task: Understanding,
    params: Params,
    frozen: Params,
    batch: Batch,
    rate: jax.Array,
    max_tokens: int,
) -> tuple[jax.Array, ...]:
    """Nats of each text given its clip's codes, and given another's; its tokens; an answer.

    Args:
      task: the stage, with a reader.
      params: {"quantizer", "adapter"}.
      frozen: {"language_model"}.
      batch: text, text_length and answer_start; codes and frames, and other_codes and other_frames.
      rate: () int32, residual codebooks in use.
      max_tokens: most tokens of an answer.

    Returns:
      Three of (B,) float32, and (B, max_tokens) int32.
    """
    assert task.reader
    adapter, frames, others = params["adapter"], batch["frames"], batch["other_frames"]

    def embed(codes: jax.Array) -> jax.Array:
        quantizer = {"params": params["quantizer"]}
        return task.quantizer.apply(quantizer, codes, jnp.full_like(frames, rate), method="embed")

    codes = embed(batch["codes"])
    right, tokens = task.reader.score(adapter, frozen, codes, frames, batch)
    wrong, _ = task.reader.score(adapter, frozen, embed(batch["other_codes"]), others, batch)
    answer = task.reader.answer(adapter, frozen, codes, frames, batch, max_tokens)
    return right, wrong, tokens, answer


def _reader(config: ConfigDict) -> tuple[OpenedReader | None, str]:
    """The language model that the encoder was trained with; without one, a line that says why."""
    if not listens(config):
        return None, SILENT["weights"]
    opened = open_reader(config.language_model)
    if opened is None:
        return None, SILENT["path"]
    error_counter()  # a package that is missing is told now, not after the work
    return opened, ""


def _needed(task: Understanding, mesh: Mesh) -> Params:
    """Shapes and layout of the weights that probing takes."""
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    parts = ("encoder", "quantizer", "adapter")
    shapes = {part: shapes[part] for part in parts if part in shapes}

    def with_layout(x: jax.ShapeDtypeStruct, layout: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout)

    return jax.tree.map(with_layout, shapes, shardings(mesh, shapes))


def _shortest(targets: TextTargets) -> int:
    return min(len(targets.suffix(task)) for task in TASKS)


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while some := list(islice(remaining, size)):
        yield some


def _padded(batch: NumpyBatch, rows: int) -> NumpyBatch:
    """Appends empty rows."""
    return {
        name: np.pad(x, [(0, rows - len(x))] + [(0, 0)] * (x.ndim - 1)) for name, x in batch.items()
    }
