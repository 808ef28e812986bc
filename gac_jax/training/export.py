"""The finished model folder: weights, configuration and a card that says what they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from gac_jax import model_folder
from gac_jax.data.summary import Summary
from gac_jax.rates import FRAME_RATE
from gac_jax.stages.task import Params
from gac_jax.training.origin import FEW_STEPS, Origin

_CARD = """# {name}

A gac_jax model: 32 kHz audio to tokens at 0.175 - 0.975 kbps{back}.

| part | parameters |
|---|---|
{sizes}

Weights are stored as {storage}.

## Training

{stages}

Data: {corpus} from {root}; {held_out} clips were held out.

| domain | clips | length |
|---|---|---|
{domains}

Licences of the training audio, by number of clips:

{licences}

## Use

Reconstructed audio is generated: details that the tokens do not carry are invented. Do not use
it as evidence of what was said or heard.
"""


def export(
    config: ConfigDict,
    stages: Sequence[str],
    params: Params,
    corpus: Summary,
    folder: Path,
    origin: Origin | None,
) -> Path:
    """Writes the model folder of a finished run.

    Args:
      config: the run's configuration.
      stages: names of the stages that made the parameters.
      params: {"encoder", "quantizer"}, and after the stage generation {"decoder", "spectrum"}.
      corpus: what they were trained on.
      folder: where to.
      origin: model that encoder and quantiser were taken from.

    Returns:
      `folder`.
    """
    frozen = origin.stored if origin and "understanding" not in stages else None
    steps = {name: config[name].steps for name in stages}
    last = stages[-1] if "decoder" in params else "generation"  # codes are to be those it trains on
    record: dict[str, Any] = {
        "name": config.name,
        "encoder": config.encoder.to_dict(),
        "quantizer": config.quantizer.to_dict(),
        "window": config[last].crop_frames,  # longer audio is computed in windows of this
        "steps": steps if origin is None or frozen is None else {**origin.steps, **steps},
    }
    if origin and frozen and origin.entropy_model:
        record[model_folder.ENTROPY_MODEL] = origin.entropy_model
    if "decoder" in params:
        record["decoder"] = config.decoder.to_dict()
        record["sampling"] = {k: config.sampling[k] for k in model_folder.SAMPLING}
    if FEW_STEPS.intersection(stages):  # their guidance is learnt
        few = {"solver": "meanflow", "steps": config.meanflow.sampling_steps, "guidance": 1.0}
        record["decoder"]["interval"], record["sampling"] = True, {**record["sampling"], **few}
    text, storage = card(config, stages, params, corpus, origin), config.sampling.storage
    model_folder.save(folder, record, jax.device_get(params), text, storage, frozen)
    return folder


def card(
    config: ConfigDict,
    stages: Sequence[str],
    params: Params,
    corpus: Summary,
    origin: Origin | None,
) -> str:
    """The text of README.md: sizes, training, data with hours and licences."""
    return _CARD.format(
        name=config.name,
        back=" and back" if "decoder" in params else "; it has no decoder yet",
        sizes="\n".join(f"| {part} | {_count(tree)} |" for part, tree in params.items()),
        storage=config.sampling.storage,
        stages="\n".join(f"- {line}" for line in _training(config, stages, origin)),
        corpus=corpus,
        root=f"`{Path(config.data.root).name}`" if config.data.root else "the bundled examples",
        held_out=corpus.held_out,
        domains="\n".join(f"| {d} | {n:,} | {corpus.length(d)} |" for d, n in corpus.clips.items()),
        licences="\n".join(f"- {name}: {n:,}" for name, n in corpus.licences.items()),
    )


def _training(config: ConfigDict, stages: Sequence[str], origin: Origin | None) -> Iterator[str]:
    """What the weights come from: other models, then stages."""
    if origin:
        relation = "started from" if "understanding" in stages else "are"
        yield f"encoder and quantizer {relation} those of the model {origin.name}"
        if stages[0] in FEW_STEPS:
            yield f"the decoder started from that of the model {origin.name}"
    if config.whisper:
        yield f"the semantic tower of the encoder started from {Path(config.whisper).name}"
    if config.decoder_from:
        yield f"the decoder started from that of {Path(config.decoder_from).name}"
    for name in stages:
        stage = config[name]
        crops = f"{stage.batch_size} crops of {stage.crop_frames / FRAME_RATE:.2f} s"
        yield f"{name}: {stage.steps:,} steps of {crops}"


def _count(tree: Params) -> str:
    return f"{sum(x.size for x in jax.tree.leaves(tree)):,}"
