"""Weight folders written here, whole and with every fault that a user can meet."""

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from gac_jax.errors import UserError
from gac_jax.pretrained.checkpoint import Checkpoint

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "b.weight": np.linspace(-1, 1, 4).astype(ml_dtypes.bfloat16),
    "c": np.float16([0.1]),
    "d.weight": np.float64([[0.1]]),
}
Damage = Callable[[Path], object]


def write_single(folder: Path) -> Path:
    (folder / "config.json").write_text('{"model_type": "any", "width": 3}')
    save_file(TENSORS, folder / "model.safetensors")
    return folder


def write_sharded(folder: Path) -> Path:
    (folder / "config.json").write_text('{"model_type": "any", "width": 3}')
    shards = dict(zip(TENSORS, (SHARDS[1], SHARDS[0], SHARDS[0], SHARDS[1]), strict=True))
    for shard in SHARDS:
        save_file({k: v for k, v in TENSORS.items() if shards[k] == shard}, folder / shard)
    write_index(shards)(folder)
    return folder


def write_index(shards: object) -> Damage:
    text = json.dumps({"metadata": {"total_size": 0}, "weight_map": shards})
    return lambda folder: (folder / INDEX).write_text(text)


@pytest.mark.parametrize("write", [write_single, write_sharded])
def test_reads_every_tensor_as_stored(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    with Checkpoint(write(tmp_path)) as checkpoint:
        assert checkpoint.config == {"model_type": "any", "width": 3}
        assert checkpoint.keys == set(TENSORS)
        read = {name: checkpoint.tensor(name) for name in TENSORS}
        floats = {name: checkpoint.floats(name, *TENSORS[name].shape) for name in TENSORS}
    for name, expected in TENSORS.items():
        assert read[name].dtype == expected.dtype
        assert floats[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], expected)
        np.testing.assert_array_equal(floats[name], expected.astype(np.float32))


def test_names_the_file_of_a_tensor(tmp_path: Path) -> None:
    with Checkpoint(write_sharded(tmp_path)) as checkpoint:
        assert checkpoint.path_of("a.weight") == tmp_path / SHARDS[1]
        assert checkpoint.path_of("nothing") == tmp_path / INDEX
    with Checkpoint(write_single(tmp_path)) as checkpoint:  # now both are there
        assert checkpoint.path_of("a.weight") == tmp_path / "model.safetensors"
        assert checkpoint.path_of("nothing") == tmp_path / "model.safetensors"


def test_a_shard_is_opened_only_for_its_tensors(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / SHARDS[1]).write_bytes(b"not safetensors")
    with Checkpoint(tmp_path) as checkpoint:
        np.testing.assert_array_equal(checkpoint.tensor("c"), TENSORS["c"])
        with pytest.raises(UserError, match=f"{SHARDS[1]}: damaged safetensors file"):
            checkpoint.tensor("a.weight")


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def text(name: str, content: str) -> Damage:
    return lambda folder: (folder / name).write_text(content)


def truncate(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1])


def store(**tensors: np.ndarray) -> Damage:
    return lambda folder: save_file(tensors, folder / "model.safetensors")


def remove_folder(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


SINGLE = {
    "no folder": (remove_folder, "config.json: no such file; name a folder"),
    "no config": (remove("config.json"), "config.json: no such file"),
    "not JSON": (text("config.json", "{"), "config.json: not valid JSON"),
    "not UTF-8": (lambda f: (f / "config.json").write_bytes(b"\xff"), "config.json: not valid"),
    "a list": (text("config.json", "[]"), "config.json: not a JSON object"),
    "no weights": (remove("model.safetensors"), f"safetensors: no such file, and no {INDEX}"),
    "no bytes": (text("model.safetensors", ""), "model.safetensors: damaged"),
    "truncated": (truncate("model.safetensors"), "model.safetensors: damaged"),
    "missing": (store(b=np.zeros(1)), "model.safetensors: tensor a.weight is missing"),
    "other shape": (store(**{"a.weight": np.zeros((3, 2))}), r"has shape \(3, 2\)"),
    "other rank": (store(**{"a.weight": np.zeros(6)}), r"has shape \(6,\).* for \(2, 3\)"),
    "int8": (store(**{"a.weight": np.zeros((2, 3), np.int8)}), "a.weight is I8; use .* not quant"),
    "float8": (
        store(**{"a.weight": np.zeros((2, 3), ml_dtypes.float8_e4m3fn)}),
        "a.weight is F8_E4M3; use weights that are not quantised",
    ),
}
SHARDED = {
    "index not JSON": (text(INDEX, "{"), f"{INDEX}: not valid JSON"),
    "index a list": (text(INDEX, "[]"), f"{INDEX}: not a JSON object"),
    "no map": (text(INDEX, "{}"), f"{INDEX}: no weight_map"),
    "empty map": (write_index({}), f"{INDEX}: no weight_map"),
    "map a list": (write_index(["a.weight"]), f"{INDEX}: no weight_map"),
    "shard a number": (write_index({"a.weight": 1}), f"{INDEX}: 1 is not the name of a shard"),
    "shard elsewhere": (write_index({"a.weight": f"../{SHARDS[0]}"}), "'../.*' is not the name"),
    "shard above": (write_index({"a.weight": ".."}), "'..' is not the name of a shard"),
    "shard unnamed": (write_index({"a.weight": ""}), "'' is not the name of a shard"),
    "no shard": (remove(SHARDS[0]), f"{SHARDS[0]}: no such file, but {INDEX} names it"),
    "truncated": (truncate(SHARDS[1]), f"{SHARDS[1]}: damaged"),
    "not in map": (write_index({"c": SHARDS[0]}), f"{INDEX}: tensor a.weight is missing"),
    "in another": (
        write_index({"a.weight": SHARDS[0]}),
        f"{SHARDS[0]}: tensor a.weight is missing",
    ),
}
CASES = {f"single: {name}": (write_single, *case) for name, case in SINGLE.items()}
CASES |= {f"sharded: {name}": (write_sharded, *case) for name, case in SHARDED.items()}


@pytest.mark.parametrize("case", CASES)
def test_refuses_with_the_file_and_a_remedy(tmp_path: Path, case: str) -> None:
    write, damage, message = CASES[case]
    damage(write(tmp_path))
    with pytest.raises(UserError, match=message) as caught, Checkpoint(tmp_path) as checkpoint:
        checkpoint.floats("a.weight", 2, 3)
    line = str(caught.value)
    assert line.startswith(str(tmp_path)) and "; " in line and "\n" not in line
