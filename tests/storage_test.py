import numpy as np
import pytest

from gac_jax.storage import STORAGE, from_storage, to_storage

ERRORS = {"float32": 0, "bfloat16": 2**-8, "int8": 1 / 254}  # of the largest in its column


@pytest.fixture
def tensors(rng: np.random.Generator) -> dict[str, np.ndarray]:
    kernel = rng.standard_normal((2, 16, 5)) * 10.0 ** np.arange(-2, 3)
    return {"a.kernel": kernel.astype(np.float32), "a.bias": np.arange(5, dtype=np.float32)}


@pytest.mark.parametrize("storage", STORAGE)
def test_tensors_come_back_as_float32(tensors: dict[str, np.ndarray], storage: str) -> None:
    restored = from_storage(to_storage(tensors, storage))
    assert restored.keys() == tensors.keys()
    for name, array in restored.items():
        assert array.dtype == np.float32 and array.shape == tensors[name].shape
        peak = np.abs(tensors[name]).max(axis=-2, keepdims=True) if array.ndim > 1 else 4
        assert (np.abs(array - tensors[name]) <= 1.001 * ERRORS[storage] * peak).all()


def test_only_matrices_are_stored_as_int8(tensors: dict[str, np.ndarray]) -> None:
    stored = to_storage({**tensors, "b.scale": np.ones((4, 5)), "b.zero": np.zeros((4, 5))}, "int8")
    assert {name: array.dtype.name for name, array in stored.items()} == {
        "a.kernel": "int8",
        "a.kernel:scale": "float32",
        "a.bias": "float32",
        "b.scale": "float32",
        "b.zero": "int8",
        "b.zero:scale": "float32",
    }
    assert stored["a.kernel:scale"].shape == (2, 1, 5)
    assert not from_storage(stored)["b.zero"].any()


def test_transposed_arrays_are_stored_by_value() -> None:
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3).T
    stored = to_storage({"kernel": kernel}, "float32")["kernel"]
    assert stored.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(stored, kernel)
