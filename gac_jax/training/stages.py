"""From a configuration to trained stages and the model folder they end in."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gac_jax import model_folder
from gac_jax.data.pipeline import train_batches, validation_batches
from gac_jax.errors import UserError
from gac_jax.models.encoder import EncoderConfig
from gac_jax.models.flow_decoder import DecoderConfig
from gac_jax.models.quantizer import QuantizerConfig
from gac_jax.pretrained.whisper import load_whisper_encoder
from gac_jax.rates import FRAME_SAMPLES
from gac_jax.sharding import make_mesh
from gac_jax.stages.generation import Generation, GenerationConfig, bin_scale
from gac_jax.stages.task import Params, Task
from gac_jax.stages.understanding import Understanding, UnderstandingConfig
from gac_jax.training.export import export
from gac_jax.training.loop import LoopConfig, NumpyBatch, StageRun, run_stage
from gac_jax.training.optimizer import OptimizerConfig
from gac_jax.training.state import TrainState

MODEL = "model"  # folder, inside the workdir, of the finished model


def run(config: ConfigDict, workdir: Path) -> Path:
    """Runs the stages that the configuration names and writes the model folder.

    Args:
      config: as made by `configs.base`.
      workdir: keeps checkpoints and logs of each stage and, at the end, the model.

    Returns:
      The model folder.

    Raises:
      UserError: bad configuration, data or checkpoint.
    """
    try:
        mesh = make_mesh(**config.mesh)
        tasks = [build_task(name, config) for name in config.stages]
    except (TypeError, ValueError) as error:
        raise UserError(f"configuration: {error}") from error
    trained: Params = {}
    with jax.set_mesh(mesh):
        for task in tasks:
            state = run_stage(_stage_run(task, config, workdir, mesh, trained))
            trained = {**trained, **_kept(task.name, state)}
    return export(config, trained, workdir / MODEL)


def build_task(name: str, config: ConfigDict) -> Task:
    """The task object of a stage.

    Raises:
      UserError: unknown stage.
      TypeError: an unknown key in the configuration of a part.
      ValueError: an impossible value.
    """
    encoder, quantizer = EncoderConfig(**config.encoder), QuantizerConfig(**config.quantizer)
    if name == "understanding":
        objective = config.understanding.objective.to_dict()
        objective["weights"] = tuple(objective["weights"].items())
        return Understanding(UnderstandingConfig(**objective), encoder, quantizer)
    if name == "generation":
        objective = GenerationConfig(**config.generation.objective)
        return Generation(objective, encoder, quantizer, DecoderConfig(**config.decoder))
    raise UserError(f"unknown stage {name!r} in config.stages; known: understanding, generation")


def _stage_run(
    task: Task, config: ConfigDict, workdir: Path, mesh: Mesh, trained: Params
) -> StageRun:
    stage = config[task.name]
    crop = stage.crop_frames * FRAME_SAMPLES
    names = {field.name for field in dataclasses.fields(LoopConfig)} - {"seed"}
    return StageRun(
        task=task,
        loop=LoopConfig(seed=config.seed, **{name: stage[name] for name in names}),
        optimizer=OptimizerConfig(**stage.optimizer),
        config=config.to_dict(),
        folder=os.fspath(workdir / task.name),
        mesh=mesh,
        frozen=trained,
        start=_start(task.name, config),
        train_batches=_training(config, stage.batch_size, crop),
        validation_batches=_validation(config, stage.batch_size, crop),
    )


def _training(config: ConfigDict, batch_size: int, crop: int) -> Callable[[int], object]:
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    return partial(train_batches, config.data, batch_size, crop, config.seed, **share)


def _validation(
    config: ConfigDict, batch_size: int, crop: int
) -> Callable[[], Iterable[NumpyBatch]]:
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    count = config.data.validation_batches
    return partial(validation_batches, config.data, batch_size, crop, count, **share)


def _start(stage: str, config: ConfigDict) -> Params:
    """Pretrained parameters that a stage begins with."""
    if stage != "understanding" or not config.whisper:
        return {}
    sizes, params = load_whisper_encoder(Path(config.whisper))
    wanted = {name: config.encoder[name] for name in sizes}
    if sizes != wanted:
        raise UserError(f"{config.whisper}: Whisper has {sizes}, but config.encoder is {wanted}")
    return {"encoder": {"semantic": params}}


def _kept(stage: str, state: TrainState) -> Params:
    """What the model keeps of a finished stage: averaged weights and the spectrum's scale."""
    if stage == "understanding":
        return {k: state.ema[k] for k in model_folder.FINGERPRINTED}
    return {**state.ema, "spectrum": {"scale": bin_scale(state.memory)}}
