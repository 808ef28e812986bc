import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gac_jax.evaluation import gac
from gac_jax.evaluation.gac import Gac

SAMPLING = {"seed": 3, "steps": 1}


def test_it_sends_gac_files(tiny_model: Path, rng: np.random.Generator) -> None:
    wave = (0.1 * rng.standard_normal(20_000)).astype(np.float32)
    system = Gac(str(tiny_model), "mini", 0.375, SAMPLING)
    codec = gac._load(tiny_model)  # compiled once for both
    tokens = codec.encode(wave, kbps=0.375)
    data = system.encode(wave)
    assert data == tokens.to_bytes()
    assert np.array_equal(system.decode(data, len(wave)), codec.decode(tokens, **SAMPLING))
    assert system.parameters == codec.num_parameters
    assert system.settings["codebooks"] == [64] + 8 * [16]


def test_names_tell_models_apart(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "run1" / "model")
    names = [
        Gac(folder, str(tiny_model), 0.175, {}).name
        for folder in (None, str(tiny_model), str(tmp_path / "run1" / "model"))
    ]
    assert names == ["gac@0.175", "gac-random@0.175", "gac-run1@0.175"]


def test_settings_name_what_the_audio_depends_on(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(tiny_model, folder)
    tensors = load_file(folder / "weights.safetensors")
    last = sorted(name for name in tensors if name.startswith("decoder."))[-1]
    tensors[last] = tensors[last] + 1
    save_file(tensors, folder / "weights.safetensors")
    one, other = (Gac(str(path), "", 0.175, SAMPLING).settings for path in (tiny_model, folder))
    assert one["model"] != other["model"]
    assert {**one, "model": ""} == {**other, "model": ""}
    assert one["seed"] == 3 and one["trained_seconds"] is None  # its card says nothing of training
    shipped = Gac(None, "mini", 0.175, SAMPLING).settings
    assert shipped["trained_seconds"] == pytest.approx(355_942.4)
