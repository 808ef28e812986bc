"""From a configuration to trained stages and the model folder they end in."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gac_jax import distributed, model_folder
from gac_jax.codec import find
from gac_jax.data.pipeline import train_batches, validation_batches
from gac_jax.data.sources import DOMAINS, open_source
from gac_jax.data.summary import Summary, summarise
from gac_jax.data.tokens import TokenSource
from gac_jax.errors import UserError
from gac_jax.flow import SOLVERS
from gac_jax.models.encoder import EncoderConfig
from gac_jax.models.flow_decoder import DecoderConfig
from gac_jax.models.quantizer import QuantizerConfig
from gac_jax.pretrained.whisper import load_whisper_encoder
from gac_jax.rates import FRAME_SAMPLES
from gac_jax.sharding import make_mesh
from gac_jax.stages.adversarial import Adversarial, AdversarialConfig
from gac_jax.stages.generation import Generation, GenerationConfig, band_statistics
from gac_jax.stages.meanflow import MeanFlow, MeanFlowConfig, trainable
from gac_jax.stages.task import Params, Task
from gac_jax.stages.understanding import READ, Understanding, UnderstandingConfig
from gac_jax.training.checkpoints import latest_step
from gac_jax.training.export import export
from gac_jax.training.loop import LoopConfig, NumpyBatch, StageRun, run_stage
from gac_jax.training.optimizer import OptimizerConfig
from gac_jax.training.origin import Origin, adopt
from gac_jax.training.reader import OpenedReader, open_reader
from gac_jax.training.state import TrainState
from gac_jax.windows import MULTIPLE

STAGES = ("understanding", "generation", "meanflow", "adversarial")
MATMUL_PRECISIONS = ("default", "bfloat16", "float32")
OWN_FIELDS = ("batch_size", "crop_frames", "optimizer", "objective", "sampling_steps")
# The other fields of a stage are of the loop.
MODEL = "model"  # folder, inside the workdir, of the finished model
TOKENIZER = "tokenizer"  # folder of one that has no decoder yet


def run(config: ConfigDict, workdir: Path) -> Path:
    """Runs the stages that the configuration names and writes the model folder.

    Args:
      config: as made by `configs.base`.
      workdir: keeps checkpoints and logs of each stage and, at the end, the model in `MODEL` or,
        after understanding alone, what of it turns audio into tokens in `TOKENIZER`.

    Returns:
      The model folder.

    Raises:
      UserError: bad configuration, data, folder or checkpoint.
      Interrupted: stopped by a signal, after saving.
    """
    _check_folder(workdir)
    distributed.check_shared(workdir)
    check_choices(config)
    names = _names(config, workdir)
    config, origin = adopt(config, names[0])
    corpus = summarise(config.data)
    try:
        mesh = make_mesh(**config.mesh)
        runs = [_stage_run(name, config, workdir, mesh, origin, corpus) for name in names]
    except (TypeError, ValueError) as error:
        raise UserError(f"configuration: {error}") from error
    trained: Params = {} if not origin or "understanding" in names else origin.params
    with jax.set_mesh(mesh), jax.default_matmul_precision(config.matmul_precision):
        for stage_run in runs:
            state = run_stage(_after(stage_run, trained))
            trained = _kept(stage_run.task.name, state, trained)
    params = distributed.gather(trained)  # of all processes, before only one of them goes on
    folder = workdir / (MODEL if "decoder" in trained else TOKENIZER)
    if distributed.is_first():
        export(config, names, params, corpus, folder, origin)
    return folder


def build_task(name: str, config: ConfigDict, opened: OpenedReader | None = None) -> Task:
    """The task object of a stage, one of `STAGES`; understanding may have a reader.

    Raises:
      TypeError: an unknown key in the configuration of a part.
      ValueError: an impossible value.
    """
    encoder, quantizer = EncoderConfig(**config.encoder), QuantizerConfig(**config.quantizer)
    if name == "understanding":
        objective = config.understanding.objective.to_dict()
        objective["weights"] = tuple(objective["weights"].items())
        settings = UnderstandingConfig(**objective, domains=DOMAINS)
        return Understanding(settings, encoder, quantizer, opened.reader if opened else None)
    objective = GenerationConfig(**config.generation.objective)
    generation = Generation(objective, encoder, quantizer, DecoderConfig(**config.decoder))
    if name == "generation":
        return generation
    if name == "adversarial":
        objective = config.adversarial.objective.to_dict()
        objective["weights"] = tuple(objective["weights"].items())
        how = {"steps": config.meanflow.sampling_steps, "temperature": config.sampling.temperature}
        return Adversarial(AdversarialConfig(**objective, **how), generation)
    weights = np.broadcast_to(config.sampling.guidance, quantizer.num_residual + 1)
    guidance = tuple(weights.tolist())
    return MeanFlow(MeanFlowConfig(**config.meanflow.objective, guidance=guidance), generation)


def _check_folder(workdir: Path) -> None:
    """Finds out before the work, not after it."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(
            f"{workdir}: not a folder to write to ({error.strerror}); choose another workdir"
        ) from error


def _names(config: ConfigDict, workdir: Path) -> tuple[str, ...]:
    """The stages to run. One that is finished only hands over its weights."""
    names = tuple(config.stages)
    first = STAGES.index(names[0]) if names and names[0] in STAGES else len(STAGES)
    if not names or names != STAGES[first : first + len(names)]:
        raise UserError(f"config.stages is {names}; it takes {STAGES}, or some in a row of them")
    if config.init_from:
        return names
    for name in STAGES[:first]:
        done, steps = latest_step(os.fspath(workdir / name)), config[name].steps
        if (done or 0) < steps:
            raise UserError(
                f"{workdir}: the stage {names[0]} needs a finished {name}, which is at step "
                f"{done or 0} of {steps} here; add it to config.stages, or name a model in "
                "config.init_from"
            )
    return STAGES[:first] + names


def check_choices(config: ConfigDict) -> None:
    """Refuses words that would be ignored, or fail only after the training."""
    choices = [
        ("matmul_precision", config.matmul_precision, MATMUL_PRECISIONS),
        ("sampling.storage", config.sampling.storage, model_folder.STORAGE),
        ("sampling.solver", config.sampling.solver, SOLVERS),
        *(("data.domain_weights", name, DOMAINS) for name in config.data.domain_weights),
    ]
    for field, value, known in choices:
        if value not in known:
            raise UserError(f"config.{field}: {value!r} is none of {', '.join(known)}")


def _stage_run(
    name: str,
    config: ConfigDict,
    workdir: Path,
    mesh: Mesh,
    origin: Origin | None,
    corpus: Summary,
) -> StageRun:
    opened = _reader(name, config)
    task, stage = build_task(name, config, opened), config[name]
    extras = {
        "targets": opened.targets if opened else None,
        "tokens": _tokens(name, config, origin),
    }
    check_sizes(name, stage, mesh)
    if name == "understanding":  # a tokenizer has windows as long as the crops of generation
        _check_window("generation", config.generation)
    crop = stage.crop_frames * FRAME_SAMPLES
    loop = {k: v for k, v in stage.items() if k not in OWN_FIELDS}
    return StageRun(
        task=task,
        loop=LoopConfig(seed=config.seed, **loop),
        optimizer=_optimizer(name, stage),
        config=config.to_dict(),
        folder=os.fspath(workdir / name),
        mesh=mesh,
        frozen=opened.frozen if opened else {},
        start=_start(name, config, origin, task),
        data=str(corpus),
        train_batches=_training(config, stage.batch_size, crop, extras),
        validation_batches=_validation(config, stage.batch_size, crop, extras),
        names=partial(_clip_names, config.data.root),
    )


def _clip_names(root: str, clips: np.ndarray) -> list[str]:
    """What the user calls these clips of a data set."""
    known = open_source(root).clips
    return [known[int(index)].path for index in clips]


def check_sizes(name: str, stage: ConfigDict, mesh: Mesh) -> None:
    """Raises ValueError if a batch or crop of the stage cannot be shared or windowed."""
    share = mesh.shape["data"] * mesh.shape["fsdp"]
    if stage.batch_size % share:
        raise ValueError(f"{share} devices cannot share {name}.batch_size {stage.batch_size}")
    if name != "understanding":
        _check_window(name, stage)


def _check_window(name: str, stage: ConfigDict) -> None:
    """Crops of a decoder become the windows of the model."""
    if stage.crop_frames % MULTIPLE:
        raise ValueError(f"{name}.crop_frames {stage.crop_frames} is no multiple of {MULTIPLE}")


def _reader(name: str, config: ConfigDict) -> OpenedReader | None:
    """The language model of the stage understanding, if it has one and listens to it."""
    if name != "understanding" or not listens(config):
        return None
    opened = open_reader(config.language_model)
    if opened is None and jax.process_index() == 0:
        print(
            "understanding: config.language_model.path names no model, so that nothing is learnt "
            "from texts"
        )
    return opened


def listens(config: ConfigDict) -> bool:
    """Whether the stage understanding has a term that reads texts."""
    return any(config.understanding.objective.weights.get(name) for name in READ)


def _optimizer(name: str, stage: ConfigDict) -> OptimizerConfig:
    """The stage's, with a frozen tower held still: weight decay needs no gradient to shrink it."""
    config = OptimizerConfig(**stage.optimizer)
    if name != "understanding" or stage.objective.train_semantic_tower:
        return config
    return dataclasses.replace(config, scales=(("encoder/semantic", 0.0), *config.scales))


def _tokens(name: str, config: ConfigDict, origin: Origin | None) -> TokenSource | None:
    """Codes that the stages after understanding need not compute."""
    if name == "understanding" or not config.data.tokens:
        return None
    if not origin or "understanding" in config.stages:
        raise UserError(
            "config.data.tokens has codes of a finished encoder: name its model in "
            "config.init_from, with config.stages=('generation',)"
        )
    return TokenSource(config.data.tokens, origin.fingerprint)


def _training(
    config: ConfigDict, batch_size: int, crop: int, extras: dict[str, Any]
) -> Callable[[int], object]:
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    return partial(train_batches, config.data, batch_size, crop, config.seed, **extras, **share)


def _validation(
    config: ConfigDict, batch_size: int, crop: int, extras: dict[str, Any]
) -> Callable[[], Iterable[NumpyBatch]]:
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    count = config.data.validation_batches
    return partial(validation_batches, config.data, batch_size, crop, count, **extras, **share)


def _start(stage: str, config: ConfigDict, origin: Origin | None, task: Task) -> Params:
    """Pretrained parameters that a stage begins with."""
    if stage == "generation" and config.decoder_from:
        return {"decoder": _decoder_from(config.decoder_from, task)}
    if stage != "understanding":
        return {}
    if not config.whisper:
        return {part: origin.params[part] for part in model_folder.FINGERPRINTED} if origin else {}
    sizes, params = load_whisper_encoder(Path(config.whisper))
    wanted = {name: config.encoder[name] for name in sizes}
    if sizes != wanted:
        raise UserError(f"{config.whisper}: Whisper has {sizes}, but config.encoder is {wanted}")
    return {"encoder": {"semantic": params}}


def _decoder_from(model: str, task: Task) -> Params:
    """What of a model's decoder has a place in that of the task: same name, same shape."""
    folder = find(model)
    _, params = model_folder.load(folder)
    wanted = flatten_dict(jax.eval_shape(task.init, jax.random.key(0))["decoder"])
    given = flatten_dict(params.get("decoder", {}))
    fits = {k: v for k, v in given.items() if k in wanted and v.shape == wanted[k].shape}
    if not fits:
        raise UserError(f"config.decoder_from: nothing of the decoder of {folder} fits this one")
    return unflatten_dict(fits)


def _after(run: StageRun, trained: Params) -> StageRun:
    """The run of a stage, given what the stages before it have made."""
    run = dataclasses.replace(run, frozen={**run.frozen, **trained})
    if run.task.name == "meanflow":
        return dataclasses.replace(run, start={"decoder": trainable(trained["decoder"])})
    if run.task.name == "adversarial":
        return dataclasses.replace(run, start={"decoder": trained["decoder"]})
    return run


def _kept(stage: str, state: TrainState, trained: Params) -> Params:
    """All that there is after a stage: averaged weights and the spectrum's statistics."""
    if stage == "understanding":
        return {k: state.ema[k] for k in model_folder.FINGERPRINTED}
    if stage == "meanflow":
        return {**trained, "decoder": {**trained["decoder"], **state.ema["decoder"]}}
    if stage == "adversarial":
        return {**trained, "decoder": state.ema["decoder"]}
    mean, scale = band_statistics(state.memory)
    return {**trained, **state.ema, "spectrum": {"mean": mean, "scale": scale}}
