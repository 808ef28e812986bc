"""A finished model whose encoder and quantiser another run takes over."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from gac_jax import model_folder
from gac_jax.codec import Codec, find
from gac_jax.errors import UserError
from gac_jax.stages.task import Params


class Origin(NamedTuple):
    """What is taken over.

    Attributes:
      name: of the model.
      fingerprint: of its codes.
      params: {"encoder", "quantizer"}, float32.
      stored: the same as stored, to be stored again if they stay as they are.
    """

    name: str
    fingerprint: bytes
    params: Params
    stored: dict[str, np.ndarray]


def adopt(config: ConfigDict) -> tuple[ConfigDict, Origin | None]:
    """Reads the model that `config.init_from` names, if it names one.

    Returns:
      The configuration, with the sections encoder and quantizer of that model; the model.

    Raises:
      UserError: no such model, or it is damaged; `config.whisper` is set as well.
    """
    if not config.init_from:
        return config, None
    if config.whisper:
        raise UserError("config.init_from and config.whisper both bring an encoder; set only one")
    folder = find(config.init_from)
    record, params = model_folder.load(folder)
    config = config.copy_and_resolve_references()
    try:
        expected = Codec(record, {}).abstract_params()
        for part in model_folder.FINGERPRINTED:
            config[part] = ConfigDict(record[part])
        name, fingerprint = str(record["name"]), bytes.fromhex(record["fingerprint"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: config.json does not describe a model ({error})") from error
    model_folder.check(folder, params, expected)
    taken = {part: params[part] for part in model_folder.FINGERPRINTED}
    return config, Origin(name, fingerprint, taken, model_folder.read_frozen(folder))
