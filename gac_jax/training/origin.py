"""A finished model of which another run takes over the first parts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from gac_jax import model_folder
from gac_jax.codec import Codec, find
from gac_jax.errors import UserError
from gac_jax.stages.task import Params

FEW_STEPS = frozenset({"meanflow", "adversarial"})  # stages that begin with a decoder


class Origin(NamedTuple):
    """What is taken over.

    Attributes:
      name: of the model.
      fingerprint: of its codes.
      params: {"encoder", "quantizer"}, and for `FEW_STEPS` {"decoder", "spectrum"}; float32.
      stored: encoder, quantizer and entropy model as stored, to be stored again if they stay.
      steps: of the stages that made what is taken over.
      entropy_model: configuration of the entropy model, if there is one.
    """

    name: str
    fingerprint: bytes
    params: Params
    stored: dict[str, np.ndarray]
    steps: dict[str, int]
    entropy_model: dict[str, Any] | None = None


def adopt(config: ConfigDict, first: str) -> tuple[ConfigDict, Origin | None]:
    """Reads the model that `config.init_from` names, if it names one.

    Args:
      config: of the run.
      first: the stage that the run begins with.

    Returns:
      The configuration, with the sections of that model that are taken over; the model.

    Raises:
      UserError: no such model, or it is damaged, or has no decoder for one of `FEW_STEPS` to begin
        with, or one that has been through meanflow, which only adversarial takes; `config.whisper`
        is set as well.
    """
    if not config.init_from:
        return config, None
    if config.whisper:
        raise UserError("config.init_from and config.whisper both bring an encoder; set only one")
    folder = find(config.init_from)
    record, params = model_folder.load(folder)
    config = config.copy_and_resolve_references()
    try:
        codec = Codec(record, {})
        if first in FEW_STEPS:
            codec.require_decoder()
        expected = codec.abstract_params()
        for part in (*model_folder.FINGERPRINTED, *(("decoder",) if first in FEW_STEPS else ())):
            config[part] = ConfigDict(record[part])
        name, fingerprint = str(record["name"]), bytes.fromhex(record["fingerprint"])
        steps = dict(record.get("steps", {}))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: config.json does not describe a model ({error})") from error
    model_folder.check(folder, params, expected)
    params.pop(model_folder.ENTROPY_MODEL, None)  # goes along as it is stored
    if first not in FEW_STEPS:
        params = {part: params[part] for part in model_folder.FINGERPRINTED}
        steps = {name: count for name, count in steps.items() if name == "understanding"}
    few = bool(config.decoder.get("interval"))
    if few and first == "meanflow":
        raise UserError(f"{folder}: has been through meanflow; name the model that it was made of")
    if not few and first == "adversarial":
        raise UserError(f"{folder}: has not been through meanflow, which comes before adversarial")
    stored = model_folder.read_frozen(folder)
    coder = record.get(model_folder.ENTROPY_MODEL)
    return config, Origin(name, fingerprint, params, stored, steps, coder)
