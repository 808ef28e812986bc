import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gac_jax import model_folder
from gac_jax.errors import UserError

CONFIG = {"name": "test", "encoder": {"width": 8, "depth": 3}, "quantizer": {}, "decoder": {}}


@pytest.fixture
def params(rng: np.random.Generator) -> dict[str, Any]:
    def normals(*shape: int) -> np.ndarray:
        # Channels of very different size, as trained networks have.
        spread = 10.0 ** rng.uniform(
            -3, 1, (*shape[:-2], 1, shape[-1]) if len(shape) > 1 else shape
        )
        return (rng.standard_normal(shape) * spread).astype(np.float32)

    return {
        "encoder": {
            "conv": {"kernel": normals(3, 8, 16), "bias": normals(16)},
            "blocks": {
                "query": {"kernel": normals(4, 16, 12), "bias": np.exp(normals(4, 12))},
                "norm": {"scale": np.exp(normals(4, 12))},
            },
        },
        "quantizer": {"basis": normals(64, 8), "residual_codes": normals(2, 16, 8)},
        "decoder": {"output": {"kernel": np.zeros((8, 5), np.float32)}},
        "spectrum": {"scale": normals(5)},
    }


def save(folder: Path, params: Any, storage: str = "float32", **changes: Any) -> bytes:
    return model_folder.save(folder, {**CONFIG, **changes}, params, "# card\n", storage)


def flat(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


@pytest.mark.parametrize("storage", model_folder.STORAGE)
def test_what_is_saved_is_loaded(tmp_path: Path, params: Any, storage: str) -> None:
    fingerprint = save(tmp_path / "deep" / "model", params, storage)
    config, loaded = model_folder.load(tmp_path / "deep" / "model")
    assert {k: config[k] for k in CONFIG} == CONFIG
    assert config["fingerprint"] == fingerprint.hex() and len(fingerprint) == 8
    assert (tmp_path / "deep" / "model" / "README.md").read_text() == "# card\n"
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for name, leaf in flat(loaded).items():
        assert leaf.dtype == np.float32 and leaf.shape == flat(params)[name].shape


def test_float32_is_exact(tmp_path: Path, params: Any) -> None:
    save(tmp_path / "model", params)
    jax.tree.map(np.testing.assert_array_equal, model_folder.load(tmp_path / "model")[1], params)


def test_arrays_of_jax_and_transposed_ones_are_saved_by_value(tmp_path: Path, params: Any) -> None:
    kernel = params["encoder"]["conv"]["kernel"].T
    odd = {"encoder": {"a": {"kernel": kernel}}, "quantizer": {"b": {"bias": jnp.arange(3.0)}}}
    save(tmp_path / "model", odd)
    jax.tree.map(np.testing.assert_array_equal, model_folder.load(tmp_path / "model")[1], odd)


def test_bfloat16_rounds_to_8_bits(tmp_path: Path, params: Any) -> None:
    save(tmp_path / "model", params, "bfloat16")
    for name, leaf in flat(model_folder.load(tmp_path / "model")[1]).items():
        np.testing.assert_allclose(leaf, flat(params)[name], rtol=2.0**-8)


def test_int8_rounds_matrices_by_output_channel_and_keeps_vectors(
    tmp_path: Path, params: Any
) -> None:
    save(tmp_path / "model", params, "int8")
    for name, leaf in flat(model_folder.load(tmp_path / "model")[1]).items():
        original = flat(params)[name]
        if name.endswith((".bias", ".scale")):
            np.testing.assert_array_equal(leaf, original)
        else:
            peak = np.abs(original).max(axis=-2, keepdims=True)
            assert (np.abs(leaf - original) <= peak / 254 * 1.001).all()


def test_storage_has_the_size_it_promises(tmp_path: Path) -> None:
    params = {"encoder": {"a": {"kernel": np.ones((512, 256), np.float32)}}}
    for storage, size in zip(model_folder.STORAGE, (4, 2, 1), strict=True):
        save(tmp_path / storage, params, storage)
        stored = (tmp_path / storage / "weights.safetensors").stat().st_size
        assert size * 512 * 256 <= stored < size * 512 * 256 + 2_000


def test_an_unknown_storage_is_refused(tmp_path: Path, params: Any) -> None:
    with pytest.raises(ValueError, match="int4"):
        save(tmp_path / "model", params, "int4")
    assert not list(tmp_path.iterdir())


def changed(params: Any, part: str) -> Any:
    first, rest = jax.tree.flatten(params[part])
    return {**params, part: jax.tree.unflatten(rest, [first[0] + 1e-3, *first[1:]])}


def test_the_fingerprint_is_that_of_encoder_and_quantizer(tmp_path: Path, params: Any) -> None:
    first = save(tmp_path / "model", params)
    assert save(tmp_path / "same", params, decoder={"width": 1}, name="other") == first
    assert save(tmp_path / "decoder", changed(params, "decoder")) == first
    assert save(tmp_path / "spectrum", changed(params, "spectrum")) == first
    others = [
        save(tmp_path / "encoder", changed(params, "encoder")),
        save(tmp_path / "quantizer", changed(params, "quantizer")),
        save(tmp_path / "wider", params, encoder={"width": 9, "depth": 3}),
        save(tmp_path / "warmer", params, quantizer={"temperature": 1.0}),
        save(tmp_path / "int8", params, "int8"),
    ]
    assert len({first, *others}) == 6


def test_the_order_of_keys_does_not_reach_the_fingerprint(tmp_path: Path, params: Any) -> None:
    backwards = dict(reversed(params.items()))
    first = save(tmp_path / "model", params)
    assert save(tmp_path / "other", backwards, encoder={"depth": 3, "width": 8}) == first


@pytest.mark.parametrize("storage", model_folder.STORAGE)
def test_a_frozen_encoder_is_kept_bit_for_bit(tmp_path: Path, params: Any, storage: str) -> None:
    first = save(tmp_path / "old", params, "int8")
    frozen = model_folder.read_frozen(tmp_path / "old")
    # What is in `params` in their place was rounded once already, and trained on besides.
    rounded = model_folder.load(tmp_path / "old")[1]
    other = changed(changed(rounded, "decoder"), "encoder")
    second = model_folder.save(tmp_path / "new", CONFIG, other, "", storage, frozen)
    assert second == first
    loaded = model_folder.load(tmp_path / "new")[1]
    for part in ("encoder", "quantizer"):
        jax.tree.map(np.testing.assert_array_equal, loaded[part], rounded[part])
    assert loaded["decoder"]["output"]["kernel"].any()
    again = model_folder.read_frozen(tmp_path / "new")
    assert {name: x.dtype for name, x in again.items()} == {n: x.dtype for n, x in frozen.items()}


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
def test_a_missing_file_is_named(tmp_path: Path, params: Any, name: str) -> None:
    save(tmp_path, params)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{tmp_path}.*{name} is missing"):
        model_folder.load(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        model_folder.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, params: Any, name: str, share: float) -> None:
    save(tmp_path, params)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * (len(content) - 2))])
    with pytest.raises(UserError, match="damaged"):
        model_folder.load(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[]", b"null", b'"text"', b"\x00" * 64])
@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
def test_a_damaged_file_is_refused(tmp_path: Path, params: Any, name: str, content: bytes) -> None:
    save(tmp_path, params)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        model_folder.load(tmp_path)


def test_a_later_format_is_refused(tmp_path: Path, params: Any) -> None:
    save(tmp_path, params)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "format": 3}))
    with pytest.raises(UserError, match="format 3, this program reads 2"):
        model_folder.load(tmp_path)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"a": {"kernel": np.zeros((3, 5))}}, r"a\.kernel is \(3, 4\), should be \(3, 5\)"),
        ({"b": np.zeros(2)}, r"a\.kernel is \(3, 4\), should be absent"),
        (
            {"a": {"bias": np.zeros(2), "kernel": np.zeros((3, 4))}},
            r"a\.bias is missing, should be",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(expected: Any, message: str) -> None:
    params = {"a": {"kernel": np.zeros((3, 4), np.float32)}}
    model_folder.check(Path("here"), params, jax.eval_shape(lambda: params))
    with pytest.raises(UserError, match=message):
        model_folder.check(Path("here"), params, expected)


def test_a_new_model_takes_the_place_of_the_old_one(tmp_path: Path, params: Any) -> None:
    save(tmp_path / "model", params)
    (tmp_path / "model" / "left_over").write_text("of the old model")
    save(tmp_path / "model", changed(params, "encoder"), "int8")
    assert os.listdir(tmp_path) == ["model"]
    names = ["README.md", "config.json", "weights.safetensors"]
    assert sorted(os.listdir(tmp_path / "model")) == names


def test_a_failed_save_leaves_the_old_model_and_nothing_else(
    tmp_path: Path, params: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "model", params)
    with pytest.raises(TypeError):
        save(tmp_path / "model", params, comment=object())  # no JSON
    assert os.listdir(tmp_path) == ["model"]
    jax.tree.map(np.testing.assert_array_equal, model_folder.load(tmp_path / "model")[1], params)


ENTROPY = {"input": np.array([[1, -127], [0, 5]], np.int8)}


def test_an_entropy_model_joins_and_all_else_stays(tmp_path: Path, params: Any) -> None:
    first = save(tmp_path / "old", params, "int8")
    added = model_folder.with_entropy_model(tmp_path / "old", tmp_path / "new", {"a": 1}, ENTROPY)
    assert added == first
    (config, before), (other, after) = (model_folder.load(tmp_path / x) for x in ("old", "new"))
    assert other == {**config, "entropy_model": {"a": 1}}
    np.testing.assert_array_equal(after.pop("entropy_model")["input"], ENTROPY["input"])
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert (tmp_path / "new" / "README.md").read_text() == "# card\n"
    again = {"input": -ENTROPY["input"]}
    model_folder.with_entropy_model(tmp_path / "new", tmp_path / "new", {"a": 2}, again)
    config, after = model_folder.load(tmp_path / "new")
    assert config["entropy_model"] == {"a": 2} and after["entropy_model"]["input"][0, 0] == -1


def test_an_entropy_model_goes_with_the_codes(tmp_path: Path, params: Any) -> None:
    save(tmp_path / "old", params, "int8")
    model_folder.with_entropy_model(tmp_path / "old", tmp_path / "old", {"a": 1}, ENTROPY)
    frozen = model_folder.read_frozen(tmp_path / "old")
    config, loaded = model_folder.load(tmp_path / "old")
    model_folder.save(tmp_path / "kept", config, loaded, "", "int8", frozen)
    config, kept = model_folder.load(tmp_path / "kept")
    assert config["entropy_model"] == {"a": 1}
    np.testing.assert_array_equal(kept["entropy_model"]["input"], ENTROPY["input"])
    model_folder.save(tmp_path / "lost", config, loaded, "", "int8")  # codes of its own
    config, lost = model_folder.load(tmp_path / "lost")
    assert "entropy_model" not in config and "entropy_model" not in lost
