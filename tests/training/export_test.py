from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from gac_jax import model_folder
from gac_jax.data.summary import Summary
from gac_jax.training.export import card, export
from gac_jax.training.origin import Origin
from tests.config import get_config

BOTH = ("understanding", "generation")
CORPUS = Summary(
    {"speech": 1200, "music": 3}, {"speech": 27_000.0, "music": 90.0}, {"CC0": 1203}, 7
)
PARAMS: dict[str, Any] = {
    "encoder": {"dense": {"kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)}},
    "quantizer": {"basis": np.ones((2, 2), np.float32)},
    "decoder": {"out": {"kernel": np.full((3, 5), 0.3, np.float32)}},
    "spectrum": {name: np.ones((640,), np.float32) for name in ("mean", "scale")},
}


def an_origin(folder: Path) -> Origin:
    """The encoder of another model, stored as int8."""
    config = get_config()
    config.name, config.sampling.storage = "older", "int8"
    export(config, BOTH, PARAMS, CORPUS, folder, None)
    params = model_folder.load(folder)[1]
    taken = {part: params[part] for part in model_folder.FINGERPRINTED}
    stored = model_folder.read_frozen(folder)
    return Origin("older", bytes(8), taken, stored, {"understanding": 3})


def test_the_folder_has_what_a_codec_needs(tmp_path: Path) -> None:
    config = get_config()
    assert export(config, BOTH, PARAMS, CORPUS, tmp_path / "model", None) == tmp_path / "model"
    record, params = model_folder.load(tmp_path / "model")
    for part in ("encoder", "quantizer", "decoder"):
        assert record[part] == config[part].to_dict()
    assert record["sampling"] == {
        "steps": 2,
        "solver": "euler",
        "guidance": 1.5,
        "temperature": 1.0,
        "contrast": 1.0,
    }
    assert record["name"] == "smallest"
    assert record["steps"] == {"understanding": 4, "generation": 4}
    np.testing.assert_array_equal(params["spectrum"]["scale"], PARAMS["spectrum"]["scale"])
    text = (tmp_path / "model" / "README.md").read_text()
    assert text == card(config, BOTH, PARAMS, CORPUS, None)


@pytest.mark.parametrize("last", ["meanflow", "adversarial"])
def test_a_decoder_of_few_steps_is_used_as_one(tmp_path: Path, last: str) -> None:
    config, stages = get_config(), (*BOTH, last)
    export(config, stages, PARAMS, CORPUS, tmp_path / "model", None)
    record, _ = model_folder.load(tmp_path / "model")
    assert record["decoder"] == {**config.decoder.to_dict(), "interval": True}
    few = {"steps": 2, "solver": "meanflow", "guidance": 1.0, "temperature": 1.0}
    few["contrast"] = 1.0
    assert record["sampling"] == few and record["steps"][last] == 4


def test_a_tokenizer_computes_codes_as_the_decoder_will_hear_them(tmp_path: Path) -> None:
    config, params = get_config(), {part: PARAMS[part] for part in model_folder.FINGERPRINTED}
    config.generation.crop_frames = 32
    export(config, ("understanding",), params, CORPUS, tmp_path / "tokenizer", None)
    export(config, BOTH, PARAMS, CORPUS, tmp_path / "model", None)
    alone, whole = (model_folder.load(tmp_path / name)[0] for name in ("tokenizer", "model"))
    assert alone.keys() == whole.keys() - {"decoder", "sampling"}
    assert (alone["window"], alone["steps"]) == (32, {"understanding": 4})
    assert alone["window"] == whole["window"] and alone["fingerprint"] == whole["fingerprint"]
    text = (tmp_path / "tokenizer" / "README.md").read_text()
    assert "0.975 kbps; it has no decoder yet." in text


def test_the_storage_is_heard(tmp_path: Path) -> None:
    config = get_config()
    config.sampling.storage = "bfloat16"
    export(config, BOTH, PARAMS, CORPUS, tmp_path / "model", None)
    kernel = model_folder.load(tmp_path / "model")[1]["decoder"]["out"]["kernel"]
    assert kernel[0, 0] == pytest.approx(0.3, rel=2**-8) and kernel[0, 0] != np.float32(0.3)


def test_a_frozen_encoder_keeps_its_fingerprint(tmp_path: Path) -> None:
    origin = an_origin(tmp_path / "old")
    params = {**PARAMS, **origin.params}
    export(get_config(), ("generation",), params, CORPUS, tmp_path / "new", origin)
    records = [model_folder.load(tmp_path / name)[0] for name in ("old", "new")]
    assert records[0]["fingerprint"] == records[1]["fingerprint"]
    assert records[1]["steps"] == {"understanding": 3, "generation": 4}


def test_an_encoder_that_was_trained_on_gets_its_own(tmp_path: Path) -> None:
    origin = an_origin(tmp_path / "old")
    export(get_config(), BOTH, PARAMS, CORPUS, tmp_path / "new", origin)
    records = [model_folder.load(tmp_path / name)[0] for name in ("old", "new")]
    assert records[0]["fingerprint"] != records[1]["fingerprint"]


def lines(config: ConfigDict, **changes: Any) -> list[str]:
    given = {"stages": BOTH, "params": PARAMS, "corpus": CORPUS, "origin": None, **changes}
    return card(config, **given).splitlines()


def test_the_card_says_what_the_model_is(tmp_path: Path) -> None:
    config = get_config()
    config.data.root = "/home/me/recordings/manifest.csv"
    config.understanding.steps = 120_000
    told = lines(config)
    for line in (
        "# smallest",
        "| encoder | 12 |",
        "| spectrum | 1,280 |",
        "Weights are stored as float32.",
        "- understanding: 120,000 steps of 8 crops of 0.32 s",
        "- generation: 4 steps of 8 crops of 1.28 s",
        f"Data: {CORPUS} from `manifest.csv`; 7 clips were held out.",
        "| speech | 1,200 | 7.5 h |",
        "| music | 3 | 1.5 min |",
        "- CC0: 1,203",
    ):
        assert line in told


def test_the_card_admits_what_is_not_known() -> None:
    told = lines(get_config(), corpus=Summary({"other": 9}, None, {"not stated": 9}, 0))
    assert "| other | 9 | hours not known |" in told
    assert "- not stated: 9" in told
    assert any(
        line.startswith("Data: 9 clips, hours not known (9 other) from the ") for line in told
    )


def test_the_card_names_other_models(tmp_path: Path) -> None:
    config, origin = get_config(), an_origin(tmp_path / "old")
    whose = "encoder and quantizer {} those of the model older"
    assert f"- {whose.format('are')}" in lines(config, stages=("generation",), origin=origin)
    assert f"- {whose.format('started from')}" in lines(config, origin=origin)
    assert not any("older" in line for line in lines(config))
    config.whisper = "/models/whisper-tiny"
    assert "- the semantic tower of the encoder started from whisper-tiny" in lines(config)


def test_an_entropy_model_stays_with_its_codes(tmp_path: Path) -> None:
    origin = an_origin(tmp_path / "old")
    stored = {**origin.stored, "entropy_model.input": np.array([[3, -4]], np.int8)}
    origin = origin._replace(stored=stored, entropy_model={"width": 2})
    export(get_config(), ("generation",), PARAMS, CORPUS, tmp_path / "new", origin)
    record, params = model_folder.load(tmp_path / "new")
    assert record["entropy_model"] == {"width": 2}
    assert params["entropy_model"]["input"].tolist() == [[3, -4]]
    export(get_config(), BOTH, PARAMS, CORPUS, tmp_path / "other", origin)  # codes of its own
    assert "entropy_model" not in model_folder.load(tmp_path / "other")[0]
