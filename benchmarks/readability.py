"""How well a new adapter learns to read texts from the codes of a finished encoder.

    python benchmarks/readability.py --config=configs/mini.py --workdir=RUN --clips=3000 \
        --config.data.root=MANIFEST --config.language_model.path=SMOLLM2.gguf

Encoder and quantiser of RUN stay as they are, and its own adapter is not used: encoders trained
with and without texts get the same chance. A fresh adapter learns by alignment on clips that the
run trained on, at one rate; then the language model reads the held-out clips. Prints one JSON line:

  alignment    nats per token of held-out answers, placed among the frames (`Reader.align`)
  right, wrong nats per token of held-out answers, read by the language model given the clip's own
               codes and another's
  information  their difference in nats per clip
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from ml_collections import config_flags

from gac_jax.data.sources import open_source
from gac_jax.data.text import TASKS
from gac_jax.data.walk import choose
from gac_jax.rates import FRAME_SAMPLES
from gac_jax.sharding import make_mesh, shardings
from gac_jax.stages.understanding import Understanding, neighbour
from gac_jax.training.averages import load_averages
from gac_jax.training.probe import Listener
from gac_jax.training.reader import open_reader
from gac_jax.training.stages import build_task

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file of the run.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; only read.", required=True)
_CLIPS = flags.DEFINE_integer("clips", 3_000, "Clips to learn from, and at most to test on.", 1)
_RATE = flags.DEFINE_integer("rate", 0, "Residual codebooks that are read.", 0)
_STEPS = flags.DEFINE_integer("steps", 600, "Updates of the adapter.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the adapter and the order of clips.")

ROWS = 32
LEARNING_RATE = 2e-3


def main(_: list[str]) -> None:
    """Trains the adapter and measures."""
    config = _CONFIG.value
    opened = open_reader(config.language_model)
    assert opened, "name a language model in config.language_model.path"
    task = build_task("understanding", config, opened)
    mesh = make_mesh(**config.mesh)
    with jax.set_mesh(mesh), jax.default_matmul_precision(config.matmul_precision):
        shapes = jax.eval_shape(task.init, jax.random.key(0))
        like = {
            part: jax.tree.map(
                lambda x, y: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=y),
                shapes[part],
                shardings(mesh, {part: shapes[part]})[part],
            )
            for part in ("encoder", "quantizer")
        }
        trained = load_averages(os.fspath(Path(_WORKDIR.value) / "understanding"), like)
        parts = (task, trained.params, opened, mesh)
        seen, held_out = _texts(*parts, "train"), _texts(*parts, "held_out")
        frozen = jax.tree.map(jnp.asarray, opened.frozen)
        adapter = _learn(task, frozen, seen)
        found = _measure(task, adapter, frozen, held_out)
    count = len(held_out["frames"])
    print(json.dumps({"step": trained.step, "rate": _RATE.value, "clips": count, **found}))


def _texts(task: Understanding, params: dict, opened: object, mesh: object, split: str) -> dict:
    """Embedded codes and texts of the clips that have any, stacked."""
    config = _CONFIG.value
    listener = Listener(task, params, opened, mesh, ROWS)
    source = open_source(config.data.root)
    texts = [i for i in choose(source, config.data, split, 0) if source[i].text or source[i].label]
    chosen = np.random.default_rng(0).permutation(texts)[: _CLIPS.value]
    listener.listen(source, chosen.tolist(), config.understanding.crop_frames * FRAME_SAMPLES)
    rows = [q.arrays for q in listener.questions]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    batch["domain"] = np.array([TASKS.index(q.task) for q in listener.questions], np.int32)
    embed = jax.jit(lambda q, c, r: task.quantizer.apply({"params": q}, c, r, method="embed"))
    rate = jnp.full(len(rows), _RATE.value, jnp.int32)
    batch["embedding"] = np.asarray(embed(params["quantizer"], batch.pop("codes"), rate))
    return batch


def _learn(task: Understanding, frozen: dict, rows: dict) -> dict:
    """A fresh adapter, trained by alignment."""
    adapter = task.reader.adapter.init(jax.random.key(_SEED.value), rows["embedding"][:1])["params"]
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, 30, _STEPS.value)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99))

    @jax.jit
    def step(adapter: dict, state: optax.OptState, batch: dict) -> tuple:
        def loss(adapter: dict) -> jax.Array:
            heard = (batch["embedding"], batch["frames"])
            nats, tokens = task.reader.align(adapter, frozen, *heard, batch)
            return jnp.sum(nats) / jnp.maximum(jnp.sum(tokens), 1.0)

        updates, state = optimizer.update(jax.grad(loss)(adapter), state, adapter)
        return optax.apply_updates(adapter, updates), state

    state, rng = optimizer.init(adapter), np.random.default_rng(_SEED.value)
    for _ in range(_STEPS.value):
        chosen = rng.choice(len(rows["frames"]), ROWS)
        adapter, state = step(adapter, state, {k: v[chosen] for k, v in rows.items()})
    return adapter


def _measure(task: Understanding, adapter: dict, frozen: dict, rows: dict) -> dict[str, float]:
    @jax.jit
    def nats(batch: dict) -> tuple[jax.Array, ...]:
        other = neighbour(batch["domain"])
        heard, alien = (
            (batch["embedding"][i], batch["frames"][i]) for i in (jnp.arange(ROWS), other)
        )
        aligned = task.reader.align(adapter, frozen, *heard, batch)
        right, tokens = task.reader.score(adapter, frozen, *heard, batch)
        wrong, _ = task.reader.score(adapter, frozen, *alien, batch)
        return *map(jnp.sum, aligned), jnp.sum(right), jnp.sum(wrong), jnp.sum(tokens)

    count = len(rows["frames"]) // ROWS * ROWS
    parts = [{k: v[i : i + ROWS] for k, v in rows.items()} for i in range(0, count, ROWS)]
    aligned, words, right, wrong, tokens = np.sum([nats(part) for part in parts], axis=0)
    return {
        "alignment": float(aligned / words),
        "right": float(right / tokens),
        "wrong": float(wrong / tokens),
        "information": float((wrong - right) / count),
    }


if __name__ == "__main__":
    app.run(main)
