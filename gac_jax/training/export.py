"""The finished model folder: weights, configuration and a card that says what they are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import jax
from ml_collections import ConfigDict

from gac_jax import model_folder
from gac_jax.data.pipeline import split
from gac_jax.data.sources import open_source
from gac_jax.stages.task import Params

_CARD = """# {name}

A gac_jax model: 32 kHz audio to tokens at 0.175 - 0.975 kbps and back.

| part | parameters |
|---|---|
{sizes}

Weights are stored as {storage}.

## Training

{stages}

Data: {clips} clips, {hours:.2f} h, from `{root}`; {held_out} clips were held out.

| domain | clips | hours |
|---|---|---|
{domains}

Licences of the training audio, by number of clips:

{licences}

## Use

Reconstructed audio is generated: details that the tokens do not carry are invented. Do not use
it as evidence of what was said or heard.
"""


def export(config: ConfigDict, params: Params, folder: Path) -> Path:
    """Writes the model folder of a finished run.

    Args:
      config: the run's configuration.
      params: {"encoder", "quantizer", "decoder", "spectrum"}.
      folder: where to.
    """
    params = jax.tree.map(jax.device_get, params)
    record = {
        "name": config.name,
        "encoder": config.encoder.to_dict(),
        "quantizer": config.quantizer.to_dict(),
        "decoder": config.decoder.to_dict(),
        "window": config.generation.crop_frames,
        "companding": config.generation.objective.companding,
        "sampling": {k: config.sampling[k] for k in ("steps", "solver", "guidance")},
        "steps": {name: config[name].steps for name in config.stages},
    }
    model_folder.save(folder, record, params, card(config, params), config.sampling.storage)
    return folder


def card(config: ConfigDict, params: Params) -> str:
    """The text of README.md: sizes, training, data with hours and licences."""
    clips = open_source(config.data.root).clips
    training, held_out = split(clips, config.data.validation_percent)
    used = [clips[i] for i in training]
    count, hours, licences = Counter[str](), Counter[str](), Counter[str]()
    for clip in used:
        count[clip.domain] += 1
        hours[clip.domain] += (clip.dur_s or 0.0) / 3600
        licences[clip.licence or "not stated"] += 1
    return _CARD.format(
        name=config.name,
        sizes="\n".join(f"| {part} | {_millions(tree)} |" for part, tree in params.items()),
        storage=config.sampling.storage,
        stages="\n".join(f"- {name}: {_stage_line(config[name])}" for name in config.stages),
        clips=len(used),
        hours=sum(hours.values()),
        root=Path(config.data.root).name or "the bundled clips",
        held_out=len(held_out),
        domains="\n".join(f"| {d} | {n} | {hours[d]:.2f} |" for d, n in count.most_common()),
        licences="\n".join(f"- {name}: {n}" for name, n in licences.most_common()),
    )


def _stage_line(stage: ConfigDict) -> str:
    seconds = stage.crop_frames * 0.08
    return f"{stage.steps} steps of {stage.batch_size} crops of {seconds:.2f} s"


def _millions(tree: Params) -> str:
    return f"{sum(x.size for x in jax.tree.leaves(tree)) / 1e6:.2f} M"
