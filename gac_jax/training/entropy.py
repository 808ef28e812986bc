"""Fits an entropy model to a token set: the mean bits of a code become as few as it can make them.

A batch has rows of clips, one after the other, whose codes are cut at a random rate; the model
starts anew at every clip, as it does in a file. Of the semantic codes a part is foreseen in each
step, for there are 16,384 of them to compare with.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gac_jax import rates
from gac_jax.data.pipeline import split
from gac_jax.data.tokens import TokenSource
from gac_jax.entropy_coder import semantic_points
from gac_jax.errors import UserError
from gac_jax.models import entropy_model
from gac_jax.models.entropy_model import LOGITS_PER_OCTAVE, ONE, EntropyModelConfig, Weights

ROW_FRAMES = 128
HELD_OUT_ROWS = 32  # at most, that a domain is measured by
REPORT_EVERY = 50  # steps
FORESEEN = 4  # of every so many frames one has its semantic code foreseen
PEAK, WARMUP_STEPS, FINAL_FRACTION, WEIGHT_DECAY, CLIP_NORM = 4e-3, 50, 0.01, 0.01, 1.0


class Batch(NamedTuple):
    """Rows of codes.

    Attributes:
      codes: (B, 1 + R, N) int32.
      first: (B, N) bool, frames that begin a clip or a row.
      rate: (B,) int32, residual codebooks in use, 0 .. R.
    """

    codes: np.ndarray | jax.Array
    first: np.ndarray | jax.Array
    rate: np.ndarray | jax.Array


class Bits(NamedTuple):
    """What codes cost, in bits.

    Attributes:
      semantic: (B, M) of the frames that were chosen.
      residual: (B, R, N), 0 where a codebook is not in use.
    """

    semantic: jax.Array
    residual: jax.Array

    def per_frame(self) -> jax.Array:
        """() mean bits of a frame."""
        return jnp.mean(self.semantic) + jnp.mean(jnp.sum(self.residual, axis=1))


def fit_model(
    source: TokenSource,
    quantizer: dict[str, Any],
    steps: int,
    batch_size: int,
    seed: int,
    validation_percent: float,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Fits a model to the clips that are not held out, and prints what the others cost.

    Args:
      source: the tokens.
      quantizer: parameters of the quantiser that made them.
      steps: updates.
      batch_size: rows of 128 frames in each.
      seed: of weights, order and rates.
      validation_percent: of speakers, or clips where the speaker is unknown, that are held out.

    Returns:
      The model's integers, int8, and its configuration.

    Raises:
      UserError: no clip is left to learn from.
    """
    books, size, _ = quantizer["residual_codes"].shape
    dims = {"semantic_dim": quantizer["basis"].shape[1], "num_residual": books}
    config = EntropyModelConfig(residual_size=size, **dims)
    points = semantic_points(quantizer)
    training, held_out = _sides(source, validation_percent)
    if not training:
        raise UserError("no clip to learn from; change --validation_percent")
    codes = (points, quantizer["residual_codes"])
    weights = fit(source, training, *codes, config, steps, batch_size, seed, _progress(steps))
    for domain, clips in held_out.items():
        print(_described(domain, price(source, clips, points, weights)))
    return weights, dataclasses.asdict(config)


def _sides(source: TokenSource, percent: float) -> tuple[list[int], dict[str, list[int]]]:
    """Places of clips to learn from, and of held-out ones by domain."""
    training: list[int] = []
    held_out: dict[str, list[int]] = {}
    for index in range(len(source)):
        clip = source[index].clip
        if split([clip], percent)[0]:
            training.append(index)
        else:
            held_out.setdefault(clip.domain, []).append(index)
    return training, held_out


def _progress(steps: int) -> Callable[[int, jax.Array], None]:
    """Prints the bits of a frame every so often, and waits for the device no more often."""
    waiting: list[jax.Array] = []

    def report(step: int, value: jax.Array) -> None:
        waiting.append(value)
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == steps:
            print(f"step {step + 1}: {float(np.mean(waiting)):.2f} bits a frame", flush=True)
            waiting.clear()

    return report


def _described(domain: str, costs: dict[int, float]) -> str:
    told = [f"{rates.kbps(k):.3f} kbps take {cost:.3f}" for k, cost in costs.items()]
    return f"{domain}, held out: {', '.join(told) or 'less than 10.24 s, not measured'}"


def price(
    source: TokenSource, clips: Sequence[int], points: np.ndarray, weights: Weights
) -> dict[int, float]:
    """Mean kbps that codes cost at each rate of the ladder, by the first rows of clips.

    Containers are not in it, and of a last row that is not full, nothing.
    """
    length = sum(source[index].tokens.num_frames for index in clips)
    count = min(HELD_OUT_ROWS, length // ROW_FRAMES)
    if not count:
        return {}
    codes, first = zip(*itertools.islice(rows(source, clips, 0), count), strict=True)
    floats = {name: jnp.asarray(x, jnp.float32) for name, x in weights.items()}
    pay = jax.jit(functools.partial(bits, every=1))
    costs = {}
    for k in rates.LADDER:
        batch = Batch(np.stack(codes), np.stack(first), np.full(count, k, np.int32))
        frame = pay(floats, jnp.asarray(points), batch, offset=np.int32(0)).per_frame()
        costs[k] = float(frame) * rates.FRAME_RATE / 1000
    return costs


def fit(
    source: TokenSource,
    clips: Sequence[int],
    points: np.ndarray,
    residual_codes: np.ndarray,
    config: EntropyModelConfig,
    steps: int,
    batch_size: int,
    seed: int,
    report: Callable[[int, jax.Array], None],
) -> dict[str, np.ndarray]:
    """Learns a model.

    Args:
      source: the tokens.
      clips: places in it of those to learn from.
      points: (V, d) of the semantic codes, from `entropy_coder.semantic_points`.
      residual_codes: (R, 256, D) what the residual codes mean. Their embeddings begin with it: so
        what is learnt of a code holds for those beside it, and sums of embeddings are points, too.
      config: sizes.
      steps: updates.
      batch_size: rows of 128 frames in each.
      seed: of weights, order and rates.
      report: is told the step and its bits a frame.

    Returns:
      The model's integers, int8.
    """
    rate = optax.schedules.warmup_cosine_decay_schedule(
        0.0, PEAK, min(WARMUP_STEPS, steps // 2), steps, PEAK * FINAL_FRACTION
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP_NORM), optax.adamw(rate, weight_decay=WEIGHT_DECAY)
    )
    weights = entropy_model.init(config, jax.random.key(seed))
    weights["codes"] = jnp.asarray(principal(residual_codes, config.code_dim))
    state = optimizer.init(weights)

    def loss(weights: Weights, batch: Batch, offset: jax.Array) -> jax.Array:
        integers = entropy_model.rounded(weights)
        return bits(integers, jnp.asarray(points), batch, FORESEEN, offset).per_frame()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(
        weights: Weights, state: optax.OptState, batch: Batch, offset: jax.Array
    ) -> tuple[Weights, optax.OptState, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(weights, batch, offset)
        changes, state = optimizer.update(gradients, state, weights)
        return optax.apply_updates(weights, changes), state, value

    rng = np.random.default_rng(seed)
    batches = _batches(rows(source, clips, seed), batch_size, config.num_residual, rng)
    for step, batch in zip(range(steps), batches, strict=False):
        offset = np.int32(rng.integers(FORESEEN))
        weights, state, value = update(weights, state, batch, offset)
        report(step, value)
    return {k: np.asarray(v, np.int8) for k, v in entropy_model.rounded(weights).items()}


def principal(codes: np.ndarray, channels: int) -> np.ndarray:
    """The first principal components of codes (R, K, D) about zero: (R, K, channels), of power 1.

    Channels that there are none for are 0.
    """
    flat = codes.reshape(-1, codes.shape[-1]).astype(np.float64)
    found = flat @ np.linalg.svd(flat, full_matrices=False)[2][:channels].T
    found = np.pad(found, ((0, 0), (0, channels - found.shape[1])))
    scale = np.sqrt(np.mean(np.square(found)))
    return (found / scale).reshape(*codes.shape[:-1], channels).astype(np.float32)


def _batches(
    rows: Iterator[tuple[np.ndarray, np.ndarray]],
    batch_size: int,
    num_residual: int,
    rng: np.random.Generator,
) -> Iterator[Batch]:
    while True:
        codes, first = zip(*itertools.islice(rows, batch_size), strict=True)
        rate = rng.integers(0, num_residual + 1, batch_size, np.int32)
        yield Batch(np.stack(codes), np.stack(first), rate)


def rows(
    source: TokenSource, clips: Sequence[int], seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless rows of the clips in random order: codes (1 + R, N) and which frames come first."""
    rng = np.random.default_rng(seed)
    codes, first = np.zeros((len(source.about.codebook_sizes), 0), np.int32), np.zeros(0, bool)
    while True:
        for index in rng.permutation(clips).tolist():
            own = source[index].tokens.codes
            codes = np.concatenate([codes, own], axis=1)
            first = np.concatenate([first, np.arange(own.shape[1]) == 0])
            while first.size >= ROW_FRAMES:
                row, start = codes[:, :ROW_FRAMES], first[:ROW_FRAMES].copy()
                codes, first = codes[:, ROW_FRAMES:], first[ROW_FRAMES:]
                start[0] = True
                yield row, start


def bits(weights: Weights, points: jax.Array, batch: Batch, every: int, offset: jax.Array) -> Bits:
    """What codes cost.

    Args:
      weights: integers.
      points: (V, d) of the semantic codes, integers.
      batch: the codes.
      every: of so many frames, one has its semantic code paid for.
      offset: () int32 below `every`, of the first such frame.
    """
    features, keys = entropy_model.features(weights, points)
    codes = jnp.asarray(batch.codes)
    semantic, residual = codes[:, 0], codes[:, 1:]
    embedded = jax.vmap(lambda book, codes: book[codes], (0, 1), 1)(weights["codes"], residual)
    used = (jnp.arange(residual.shape[1])[None] < batch.rate[:, None]).astype(jnp.float32)
    before = jnp.cumsum(embedded, axis=1) - embedded
    said = jnp.sum(embedded * used[:, :, None, None], axis=1)
    states = _states(weights, points[semantic], said, batch)

    def chosen(x: jax.Array) -> jax.Array:
        groups = x.reshape(x.shape[0], -1, every, *x.shape[2:])
        return jax.lax.dynamic_index_in_dim(groups, offset, axis=2, keepdims=False)

    foreseen = entropy_model.semantic_logits(weights, keys, chosen(states))
    context = entropy_model.context(weights, states, features[semantic])
    costs = [
        _cost(entropy_model.residual_logits(weights, context, before[:, i], i), residual[:, i])
        for i in range(residual.shape[1])
    ]
    return Bits(_cost(foreseen, chosen(semantic)), jnp.stack(costs, axis=1) * used[:, :, None])


def _states(weights: Weights, point: jax.Array, said: jax.Array, batch: Batch) -> jax.Array:
    """State before each frame (B, N, H), given what the frames say."""
    width, kinds = weights["state"].shape[0], weights["from_place"].shape[0] + 2
    start = jax.nn.one_hot(kinds - 1, kinds)[None]
    rate = jax.nn.one_hot(batch.rate, kinds)

    def step(
        state: jax.Array, seen: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        point, said, first = seen
        kept = jnp.where(first, 0.0, 1.0)[:, None]
        given = ONE * jnp.where(first[:, None], start, rate)
        state = entropy_model.advance(weights, state * kept, point * kept, said * kept, given)
        return state, state

    def shifted(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1], 1, 0)

    zeros = jnp.zeros((point.shape[0], width))
    seen = (shifted(point), shifted(said), jnp.moveaxis(batch.first, 1, 0))
    return jnp.moveaxis(jax.lax.scan(step, zeros, seen)[1], 0, 1)


def _cost(logits: jax.Array, codes: jax.Array) -> jax.Array:
    """Bits of codes (...) under logits (..., V)."""
    scores = jax.nn.log_softmax(logits * (math.log(2) / LOGITS_PER_OCTAVE))
    return -jnp.take_along_axis(scores, codes[..., None], axis=-1)[..., 0] / math.log(2)
