"""From `config.language_model` to a reader of codes, its weights and the texts to score it on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from gac_jax.data.text import TextTargets, check_vocabulary, load_tokenizer
from gac_jax.pretrained.language_model import load_language_model
from gac_jax.stages.reading import Reader
from gac_jax.stages.task import Params


@dataclasses.dataclass(frozen=True)
class OpenedReader:
    """A reader, with what it needs from disk.

    Attributes:
      reader: the modules.
      frozen: {"language_model"}, numpy.
      targets: makes the texts of examples.
    """

    reader: Reader
    frozen: Params
    targets: TextTargets


def open_reader(config: ConfigDict) -> OpenedReader | None:
    """Loads the language model that `config` (config.language_model) names; None if it names none.

    Raises:
      UserError: a file is missing or damaged, or model, tokenizer and prompt do not fit.
    """
    if not config.path:
        return None
    path = Path(config.path)
    tokenizer = load_tokenizer(Path(config.tokenizer) if config.tokenizer else path)
    targets = TextTargets(tokenizer, config.prompt, config.max_tokens)
    model, params = load_language_model(path, config.dtype)
    check_vocabulary(tokenizer, model.vocab_size, path)
    words = np.asarray(params["embedding"], np.float32)
    reader = Reader(
        dataclasses.replace(model, remat=config.remat),
        loudness=float(np.sqrt(np.mean(np.square(words)))),
        prefix=tuple(targets.prefix.tolist()),
        stop_tokens=(targets.end,),
    )
    return OpenedReader(reader, {"language_model": params}, targets)
