"""The programs that a configuration runs, and the shapes of what they take; nothing is made."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from gac_jax import model_folder
from gac_jax.codec import Codec
from gac_jax.models.flow_decoder import DecoderConfig
from gac_jax.rates import FRAME_RATE, FRAME_SAMPLES
from gac_jax.sharding import BATCH, shardings
from gac_jax.stages.task import Params
from gac_jax.training.optimizer import OptimizerConfig, make_optimizer
from gac_jax.training.origin import FEW_STEPS
from gac_jax.training.reader import OpenedReader, open_reader
from gac_jax.training.stages import STAGES, build_task, check_sizes, listens
from gac_jax.training.state import init_state, make_train_step

SAMPLER = "sampler"
PROGRAMS = (*STAGES, SAMPLER)


class Program(NamedTuple):
    """A function as it will run, and what it takes.

    Attributes:
      name: one of `PROGRAMS`.
      function: jitted, with the layout of its arguments and results.
      arguments: trees of ShapeDtypeStruct.
      parameters: that it trains, or that the sampler uses.
      audio: seconds that one call learns from, or makes.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    parameters: int
    audio: float


def build(name: str, config: ConfigDict, mesh: Mesh) -> Program:
    """The training step of a stage as the loop compiles it, or the sampler, over a mesh.

    Raises:
      UserError: a language model that `config` names cannot be read.
      TypeError: an unknown key in the configuration of a part.
      ValueError: an impossible value, or a batch that the mesh cannot share.
    """
    stage = config["generation" if name == SAMPLER else name]
    check_sizes(name, stage, mesh)
    audio = stage.batch_size * stage.crop_frames / FRAME_RATE
    make = _sampler if name == SAMPLER else _train_step
    function, arguments, params = make(name, config, mesh)
    return Program(name, function, arguments, _count(params), audio)


def _train_step(name: str, config: ConfigDict, mesh: Mesh) -> tuple[Any, tuple[Any, ...], Params]:
    stage, opened = config[name], None
    if name == "understanding" and listens(config):
        opened = open_reader(config.language_model)
    task = build_task(name, config, opened)
    optimizer = make_optimizer(OptimizerConfig(**stage.optimizer), stage.steps)
    state = _shapes(lambda: init_state(task, optimizer, config.seed, {}))
    frozen = _frozen(name, config, opened)
    layout, frozen_layout = shardings(mesh, state), shardings(mesh, frozen)
    step = jax.jit(
        make_train_step(task, optimizer, config.seed, stage.ema_decay),
        in_shardings=(layout, frozen_layout, NamedSharding(mesh, BATCH)),
        out_shardings=(layout, NamedSharding(mesh, P())),
        donate_argnums=0,
    )
    words = config.language_model.max_tokens if opened else 0
    return step, (state, frozen, _batch(stage, words)), state.params


def _sampler(_: str, config: ConfigDict, mesh: Mesh) -> tuple[Any, tuple[Any, ...], Params]:
    """Windows of full length, as many as training has crops, each row on its own chip."""
    codec = Codec(
        {
            **{part: config[part].to_dict() for part in ("encoder", "quantizer", "decoder")},
            "sampling": {k: config.sampling[k] for k in model_folder.SAMPLING},
            "fingerprint": "",
        },
        {},
    )
    params = {k: v for k, v in codec.abstract_params().items() if k != "encoder"}
    rows, frames = config.generation.batch_size, config.generation.crop_frames
    codes = jax.ShapeDtypeStruct((rows, codec.num_codebooks, frames), jnp.int32)
    row, seed = jax.ShapeDtypeStruct((rows,), jnp.int32), jax.ShapeDtypeStruct((), jnp.uint32)
    batch = NamedSharding(mesh, BATCH)
    function = jax.jit(
        codec.window_decoder(),
        in_shardings=(shardings(mesh, params), *4 * (batch,), NamedSharding(mesh, P())),
        out_shardings=batch,
    )
    return function, (params, codes, row, row, row, seed), params


def _frozen(name: str, config: ConfigDict, opened: OpenedReader | None) -> Params:
    """Shapes of the parameters that a stage uses and does not train."""
    if name == "understanding":
        return _shapes(lambda: opened.frozen) if opened else {}
    params = _shapes(build_task("understanding", config).init, jax.random.key(0))
    params = {part: params[part] for part in ("encoder", "quantizer")}
    if name in FEW_STEPS:
        params |= _shapes(build_task("generation", config).init, jax.random.key(0))
        band = jax.ShapeDtypeStruct((DecoderConfig(**config.decoder).bins,), jnp.float32)
        params["spectrum"] = {"mean": band, "scale": band}
    return params


def _batch(stage: ConfigDict, words: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch over all chips; see `gac_jax.stages.task.Batch`."""
    rows, samples = stage.batch_size, stage.crop_frames * FRAME_SAMPLES
    names = ("num_samples", "domain", *(("text_length", "answer_start") if words else ()))
    batch = {name: jax.ShapeDtypeStruct((rows,), jnp.int32) for name in names}
    batch["wave"] = jax.ShapeDtypeStruct((rows, samples), jnp.float32)
    if words:
        batch["text"] = jax.ShapeDtypeStruct((rows, words), jnp.int32)
    return batch


def _shapes(make: Any, *arguments: Any) -> Any:
    """What `make` would return; strongly typed, as the loop makes it."""
    found = jax.eval_shape(make, *arguments)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), found)


def _count(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
