from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from gac_jax.errors import UserError
from gac_jax.training.reader import open_reader
from tests import listening


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return listening.write_language_model(tmp_path_factory.mktemp("language_model"))


def settings(folder: Path, **changes: object) -> ConfigDict:
    config = listening.get_config(folder.parent).language_model
    config.update({"path": str(folder), **changes})
    return config


def test_a_reader_is_the_model_with_its_tokenizer_and_prompt(folder: Path) -> None:
    opened = open_reader(settings(folder, remat=True))
    assert opened
    words = opened.frozen["language_model"]["embedding"]
    assert words.shape == (listening.VOCABULARY, opened.reader.model.config.width)
    assert opened.reader.loudness == pytest.approx(np.sqrt(np.mean(words**2)), rel=1e-5)
    assert opened.reader.model.config.remat
    assert opened.reader.prefix == tuple(opened.targets.prefix) and opened.reader.prefix
    assert opened.reader.stop_tokens == (opened.targets.end,)
    assert opened.targets.max_tokens == 48


def test_weights_are_kept_in_the_dtype_asked_for(folder: Path) -> None:
    opened = open_reader(settings(folder, dtype="bfloat16"))
    assert opened and opened.reader.model.config.dtype == "bfloat16"
    assert opened.frozen["language_model"]["embedding"].dtype.name == "bfloat16"


def test_no_path_is_no_reader(folder: Path) -> None:
    assert open_reader(settings(folder, path="")) is None


def test_the_tokenizer_may_be_elsewhere(folder: Path, tmp_path: Path) -> None:
    other = listening.write_language_model(tmp_path / "other")
    moved = (other / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="tokenizer.json: no such file"):
        open_reader(settings(other))
    assert open_reader(settings(other, tokenizer=str(moved)))


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    golden = listening.LLAMA  # 96 tokens
    with pytest.raises(UserError, match=r"tokenizer.json: has token 299, but .*llama ends at"):
        open_reader(settings(golden, tokenizer=str(folder / "tokenizer.json")))
