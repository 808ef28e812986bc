from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

import gac_jax
from gac_jax import model_folder
from gac_jax.data.sources import open_source
from gac_jax.tokenization import tokenize
from tests import token_sets
from tests.commands import Run, load, runner

command = load("gac_jax.fit_entropy_model")


@pytest.fixture
def run(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rng: np.random.Generator,
) -> Iterator[Run]:
    """Runs the command in this process, in tmp_path, with the tokens of two clips in set/."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in ("a", "b"):
        soundfile.write(f"in/{name}.wav", 0.1 * rng.standard_normal(400_000), 32_000)
    with runner(
        command,
        monkeypatch,
        capsys,
        lambda *a: ["fit", f"--model={tiny_model}", "--steps=2", "--batch_size=1", *a],
    ) as call:
        yield call


@pytest.mark.usefixtures("standard_promotion")
def test_a_model_learns_to_compress(run: Run, tiny_model: Path) -> None:
    codec = gac_jax.load(tiny_model)
    tokenize(codec, open_source("in"), Path("set"), 1, 0, 1)
    result = run("--tokens=set", "--out=new", "--validation_percent=0")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[-1] == "new: 'random' with an entropy model"
    fitted = gac_jax.load("new")
    assert fitted.fingerprint == codec.fingerprint
    tokens = codec.encode_file("in/a.wav", 0.375)
    assert fitted.read(fitted.compress(tokens)) == tokens
    before, after = (model_folder.load(Path(f))[1] for f in (tiny_model, "new"))
    np.testing.assert_array_equal(
        before["decoder"]["input"]["kernel"], after["decoder"]["input"]["kernel"]
    )


def test_mistakes_are_told(run: Run) -> None:
    token_sets.write_set(open_source("in"), Path("other"))
    Path("there").mkdir()
    for flags, told in {
        ("--tokens=set", "--out=there"): "there: exists; name a new folder",
        ("--tokens=none", "--out=new"): "none",
        ("--tokens=other", "--out=new"): "other",
        ("--tokens=set", "--out=new", "--model=gone"): "gone: no such model",
    }.items():
        result = run(*flags)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        assert told in result.err
    assert not Path("new").exists()
