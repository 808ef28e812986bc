"""The container alone; whole models are in language_model_test.py."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from gac_jax.errors import UserError
from gac_jax.pretrained.gguf_file import GgufFile


@pytest.fixture
def weights(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((3, 64)).astype(np.float32)


def write(path: Path, weights: np.ndarray, kind: str = "F32") -> Path:
    gguf = pytest.importorskip("gguf", reason='pip install "gac_jax[text]"')
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("answer", 42)
    writer.add_string("name", "tiny")
    writer.add_array("list", [1, 2, 3])
    kind = gguf.GGMLQuantizationType[kind]
    writer.add_tensor("w", gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_come_back_as_python_values(tmp_path: Path, weights: np.ndarray) -> None:
    file = GgufFile(write(tmp_path / "m.gguf", weights))
    values = [file.get(key) for key in ("answer", "name", "list", "absent")]
    assert values == [42, "tiny", [1, 2, 3], None]
    assert file.get("absent", 7) == 7
    assert file.names == {"w"} and file.shape("w") == (3, 64)


@pytest.mark.parametrize(
    ("kind", "error"), [("F32", 0.0), ("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 0.02), ("Q4_1", 0.4)]
)
def test_tensors_come_back_as_float32(
    tmp_path: Path, weights: np.ndarray, kind: str, error: float
) -> None:
    values = GgufFile(write(tmp_path / "m.gguf", weights, kind)).floats("w", 3, 64)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, weights, rtol=0, atol=error)


def refused(path: Path, *tensor: object) -> str:
    with pytest.raises(UserError) as caught:
        file = GgufFile(path)
        if tensor:
            file.floats(*tensor)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    return text


def test_refuses_tensors_that_are_not_as_asked_for(tmp_path: Path, weights: np.ndarray) -> None:
    path = write(tmp_path / "m.gguf", weights)
    assert re.search("tensor v is missing; ", refused(path, "v", 3, 64))
    assert re.search(r"tensor w has shape \(3, 64\).* \(64, 3\); ", refused(path, "w", 64, 3))


def test_refuses_a_type_that_cannot_be_read(
    tmp_path: Path, weights: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "m.gguf", weights, "Q8_0")

    def dequantize(data: np.ndarray, kind: object) -> np.ndarray:
        raise NotImplementedError

    monkeypatch.setattr("gguf.quants.dequantize", dequantize)
    assert re.search("tensor w has type Q8_0, .*; use a file", refused(path, "w", 3, 64))


def test_refuses_a_missing_or_damaged_file(tmp_path: Path, weights: np.ndarray) -> None:
    assert re.search("no such file; ", refused(tmp_path / "none.gguf"))
    whole = write(tmp_path / "m.gguf", weights).read_bytes()
    path = tmp_path / "damaged.gguf"
    for damaged in (b"", b"nonsense" * 50, *(whole[:end] for end in range(8, len(whole), 16))):
        path.write_bytes(damaged)
        assert re.search("damaged GGUF file .*; get it again", refused(path))


def test_says_what_to_install(
    tmp_path: Path, weights: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "m.gguf", weights)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert refused(path).endswith('GGUF files need: pip install "gac_jax[text]"')
