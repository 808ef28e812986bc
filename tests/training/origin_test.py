import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from gac_jax import model_folder
from gac_jax.codec import Codec
from gac_jax.errors import UserError
from gac_jax.training.origin import adopt
from tests import tiny
from tests.config import get_config


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> ConfigDict:
    """A configuration with other sizes than those of the model it starts from."""
    shutil.copytree(tiny_model, tmp_path / "old")
    config = get_config()
    config.init_from = str(tmp_path / "old")
    config.encoder.update(width=24, unheard_of=1)
    config.decoder.width = 48
    return config


def test_without_a_model_nothing_changes() -> None:
    config = get_config()
    assert adopt(config, "understanding") == (config, None)


def test_the_encoder_of_a_model_takes_the_place_of_the_configured_one(config: ConfigDict) -> None:
    before = config.to_dict()
    adopted, origin = adopt(config, "understanding")
    record, params = model_folder.load(Path(config.init_from))
    for part in ("encoder", "quantizer"):
        assert adopted[part].to_dict() == record[part]
    assert adopted.decoder == config.decoder
    assert config.to_dict() == before
    assert origin is not None and origin.name == "random"
    jax.tree.map(
        np.testing.assert_array_equal,
        origin.params,
        {part: params[part] for part in ("encoder", "quantizer")},
    )
    stored = model_folder.read_frozen(Path(config.init_from))
    jax.tree.map(np.testing.assert_array_equal, origin.stored, stored)


def test_the_last_stage_takes_over_the_decoder_as_well(config: ConfigDict) -> None:
    adopted, origin = adopt(config, "meanflow")
    record, params = model_folder.load(Path(config.init_from))
    assert adopted.decoder.to_dict() == record["decoder"]
    assert origin is not None
    jax.tree.map(np.testing.assert_array_equal, origin.params, params)


def test_generation_starts_from_a_tokenizer_and_meanflow_does_not(config: ConfigDict) -> None:
    folder = Path(config.init_from)
    record, params = model_folder.load(folder)
    alone = {k: v for k, v in record.items() if k not in ("decoder", "sampling")}
    parts = {part: params[part] for part in model_folder.FINGERPRINTED}
    model_folder.save(folder, alone, parts, "", "float32")
    _, origin = adopt(config, "generation")
    assert origin is not None and origin.params.keys() == set(model_folder.FINGERPRINTED)
    with pytest.raises(UserError, match="^'random' only encodes"):
        adopt(config, "meanflow")


def test_a_decoder_goes_through_meanflow_once_and_before_adversarial(config: ConfigDict) -> None:
    with pytest.raises(UserError, match="has not been through meanflow"):
        adopt(config, "adversarial")
    folder = Path(config.init_from)
    record, params = model_folder.load(folder)
    record["decoder"]["interval"] = True
    shapes = Codec(record, {}).abstract_params()
    params["decoder"] = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes["decoder"])
    model_folder.save(folder, record, params, "", "float32")
    with pytest.raises(UserError, match="has been through meanflow"):
        adopt(config, "meanflow")
    adopted, origin = adopt(config, "adversarial")
    assert adopted.decoder.interval and origin is not None and "decoder" in origin.params


def test_two_sources_of_an_encoder_are_refused(config: ConfigDict) -> None:
    config.whisper = "somewhere"
    with pytest.raises(UserError, match="config.init_from and config.whisper"):
        adopt(config, "understanding")


def change(folder: Path, **fields: Any) -> None:
    record = json.loads((folder / "config.json").read_text())
    record = {k: v for k, v in {**record, **fields}.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such model"),
        (
            lambda folder: (folder / "weights.safetensors").unlink(),
            "weights.safetensors is missing",
        ),
        (lambda folder: change(folder, encoder=None), "does not describe a model"),
        (lambda folder: change(folder, encoder={"widht": 3}), "does not describe a model"),
        (
            lambda folder: change(
                folder, quantizer={"width": 8, "residual_dim": 40, "partials_dim": 24}
            ),
            "weights do not fit config.json",
        ),
    ],
)
def test_a_model_that_is_none_is_refused(
    config: ConfigDict, damage: Callable[[Path], None], message: str
) -> None:
    damage(Path(config.init_from))
    with pytest.raises(UserError, match=f"^{config.init_from}.*{message}"):
        adopt(config, "understanding")


def test_an_entropy_model_goes_along_as_it_is_stored(config: ConfigDict) -> None:
    folder = Path(config.init_from)
    tiny.add_entropy_model(folder, folder)
    _, origin = adopt(config, "meanflow")
    assert origin is not None and "entropy_model" not in origin.params
    assert origin.entropy_model == model_folder.load(folder)[0]["entropy_model"]
    assert origin.stored["entropy_model.input"].dtype == np.int8
