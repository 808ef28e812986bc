from pathlib import Path

import numpy as np
import pytest

import gac_jax
from gac_jax import aot, gacx, model_folder
from gac_jax.codec import Codec
from gac_jax.errors import UserError
from tests import echo

ROOT = Path(__file__).resolve().parents[1]
SAMPLING = {"steps": 3, "solver": "euler", "guidance": 1.5, "temperature": 0.8}


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, stored as the model that ships is."""
    config, params = model_folder.load(tiny_model)
    folder = tmp_path_factory.mktemp("model") / "int8"
    model_folder.save(folder, config, params, "", "int8")
    return folder


@pytest.fixture(scope="module")
def codec(model: Path) -> Codec:
    return gac_jax.load(model)


@pytest.fixture(scope="module")
def packed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("aot") / "a.gacx"
    path.write_bytes(aot.pack(model, ["cpu", "cuda", "tpu"], **SAMPLING))
    return path


def test_audio_is_that_of_the_codec_up_to_rounding(packed: Path, codec: Codec) -> None:
    tokens = echo.tokens(60, 4, codec.fingerprint)
    assert [window.bucket for window in codec.plan(60)] == [32, 32]
    own = codec.decode(tokens, seed=3, **SAMPLING)
    assert np.abs(own).max() > 0
    found = gacx.Decoder(packed).decode(tokens, seed=3)
    np.testing.assert_allclose(found, own, atol=1e-5 * np.abs(own).max(), rtol=0)


def test_the_record_tells_how_to_call_the_program(packed: Path, codec: Codec) -> None:
    record, _, _ = gacx.read(packed)
    assert len(record.pop("jax").split(".")) >= 3
    assert record == {
        "format": 1,
        "name": "random",
        "fingerprint": codec.fingerprint.hex(),
        "window": 32,
        "codebooks": 9,
        "sampling": SAMPLING,
        "platforms": ["cpu", "cuda", "tpu"],
        "inputs": {
            "weights": "float32 by name",
            "codes": "int32[B,9,N]",
            "rate": "int32[B]",
            "frames": "int32[B]",
            "start": "int32[B]",
            "seed": "uint32[]",
        },
        "output": "float32[B,2560*N]",
    }


def test_weights_are_those_of_the_receiver_as_the_model_stores_them(packed: Path) -> None:
    _, _, weights = gacx.read(packed)
    assert {name.split(".")[0] for name in weights} == {"quantizer", "decoder", "spectrum"}
    assert weights["decoder.output.kernel"].dtype == np.int8


def test_nothing_in_the_file_tells_where_it_was_made(packed: Path, model: Path) -> None:
    data = packed.read_bytes()
    for path in (ROOT, model.parent, Path.home()):
        assert bytes(path) not in data


@pytest.mark.parametrize("platforms", [[], ["gpu"], ["cpu", "cpu"]])
def test_unknown_platforms_are_refused(model: Path, platforms: list[str]) -> None:
    with pytest.raises(UserError, match="platforms must be some of cpu, cuda, tpu, each once, not"):
        aot.pack(model, platforms)


def test_settings_out_of_range_are_refused(model: Path) -> None:
    with pytest.raises(UserError, match="guidance must be"):
        aot.pack(model, ["cpu"], guidance=float("nan"))
