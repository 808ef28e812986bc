import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gac_jax.errors import UserError
from gac_jax.evaluation.neural import Neural, pack, unpack


@pytest.mark.parametrize("bits", [1, 7, 10, 11, 16])
def test_codes_take_their_bits_and_come_back(bits: int, rng: np.random.Generator) -> None:
    codes = rng.integers(2**bits, size=(8, 13))
    data = pack(codes, bits)
    assert len(data) == -(-8 * 13 * bits // 8)
    assert np.array_equal(unpack(data, 8, bits), codes)


def test_the_highest_bit_comes_first() -> None:
    assert pack(np.array([[0b101, 0b011]]), 3) == bytes([0b10101100])


class Tensor(np.ndarray):
    """As much of PyTorch's tensor as is needed."""

    def numpy(self) -> np.ndarray:
        return np.asarray(self)

    def long(self) -> "Tensor":
        return self.astype(np.int64)

    def new_tensor(self, array: np.ndarray) -> "Tensor":
        return np.asarray(array).view(Tensor)


class Model:
    """A codec whose every code is the sign of one of 100 samples a second."""

    def __init__(self, kind: str) -> None:
        sizes = dict(codebook_size=1024, num_quantizers=8, n_codebooks=8, frame_rate=50)
        rates = dict(sampling_rate=16_000, hop_length=320, target_bandwidths=[1.0, 4.0])
        self.config = types.SimpleNamespace(model_type=kind, **sizes, **rates)
        self.asked: dict[str, Any] = {}

    def requires_grad_(self, _: bool) -> "Model":
        return self

    def num_parameters(self) -> int:
        return 7

    def parameters(self) -> Any:
        return iter([np.zeros(1, np.float32).view(Tensor)])

    def encode(self, wave: Tensor, **asked: Any) -> Any:
        self.asked = asked
        books = asked.get("n_quantizers") or asked.get("num_quantizers")
        books = books or round(asked["bandwidth"] / 0.5)
        signs = (wave.reshape(-1)[::320] > 0).astype(np.int64)
        return types.SimpleNamespace(audio_codes=np.tile(1023 * signs, (1, books, 1)).view(Tensor))

    def decode(self, audio_codes: Tensor, scales: list | None = None) -> Any:
        assert audio_codes.ndim == (4 if scales == [None] else 3)
        first = audio_codes.reshape(-1, audio_codes.shape[-1])[0]
        wave = np.repeat(first / 1023 - 0.5, 320)[None].astype(np.float32)
        return types.SimpleNamespace(audio_values=wave.view(Tensor))


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose name says what kind of codec its stand-in for transformers loads."""

    def load(folder: str, use_safetensors: bool, local_files_only: bool) -> Model:
        assert use_safetensors and local_files_only
        if "bad" in folder:
            raise OSError("no file named\nmodel.safetensors")
        return Model(Path(folder).name.partition("_")[0])

    auto = types.SimpleNamespace(from_pretrained=load)
    logging = types.SimpleNamespace(disable_progress_bar=lambda: None)
    fake = types.SimpleNamespace(AutoModel=auto, logging=logging)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    for name in ("dac_16", "encodec_24", "mimi", "bad", "llama"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "folder", "kbps", "name", "asked"),
    [
        ("dac", "dac_16", 1.5, "dac_16@1.5", {"n_quantizers": 3}),
        ("mimi", "mimi", 4.0, "mimi@4", {"num_quantizers": 8}),
        ("encodec", "encodec_24", 1.0, "encodec_24@1", {"bandwidth": 1.0}),
    ],
)
def test_rates_become_codebooks(
    checkpoint: Path, kind: str, folder: str, kbps: float, name: str, asked: dict
) -> None:
    system = Neural(kind, str(checkpoint / folder), kbps)
    wave = np.repeat([0.3, -0.3, 0.3, 0.3], 16_000).astype(np.float32)
    data = system.encode(wave)
    assert 8e-3 * len(data) / 2.0 == kbps
    decoded = system.decode(data, len(wave))
    assert decoded.shape == wave.shape
    assert np.mean((decoded > 0) == (wave > 0)) > 0.98
    assert system._model.asked == asked
    assert (system.name, system.parameters) == (name, {"model": 7})


@pytest.mark.parametrize(
    ("kind", "folder", "kbps", "told"),
    [
        ("dac", "none", 1.0, "no config.json there; descript/dac_44khz has one on the hub"),
        ("dac", "bad", 1.0, "no checkpoint that loads: no file named model.safetensors"),
        ("dac", "llama", 1.0, "holds no mono dac, but llama"),
        ("dac", "dac_16", 1.3, "its rates are 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4 kbit/s"),
        ("encodec", "encodec_24", 2.0, "its rates are 1, 4 kbit/s"),
    ],
)
def test_what_is_wrong_with_a_folder_is_told(
    checkpoint: Path, kind: str, folder: str, kbps: float, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        Neural(kind, str(checkpoint / folder), kbps)


def test_without_pytorch_it_says_what_to_install(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install torch transformers"):
        Neural("dac", str(checkpoint / "dac_16"), 1.0)


def test_the_real_library_agrees(tmp_path: Path, rng: np.random.Generator) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install torch transformers")
    config = transformers.DacConfig(
        encoder_hidden_size=4, downsampling_ratios=[4, 4], decoder_hidden_size=16,
        upsampling_ratios=[4, 4], n_codebooks=2, codebook_size=16, codebook_dim=4,
        hidden_size=16, hop_length=16, sampling_rate=16_000,
    )  # fmt: skip
    transformers.DacModel(config).save_pretrained(tmp_path / "dac")
    wave = (0.1 * rng.standard_normal(6_400)).astype(np.float32)
    system = Neural("dac", str(tmp_path / "dac"), 8.0)
    data = system.encode(wave)
    codes = unpack(data, 2, 4)
    assert codes.shape == (2, 200) and 8e-3 * len(data) / 0.2 == 8.0
    decoded = system.decode(data, 6_400)
    assert decoded.shape == wave.shape and np.isfinite(decoded).all() and decoded.any()
    assert np.array_equal(unpack(system.encode(wave), 2, 4), codes)
