"""Package metadata. Tool settings (ruff, pytest, mypy) live in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent

# 0.10.2 is the newest JAX for Python 3.11; 0.12 is the newest line tested.
JAX_BOUNDS = ">=0.10.2,<0.13"

INSTALL_REQUIRES = [
    # Networks and their training.
    f"jax{JAX_BOUNDS}",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "safetensors>=0.5",
    "chex>=0.1.90",
    # Data. The array_record files that tensorflow-datasets writes are read without TensorFlow.
    "grain>=0.2.18,<0.3",
    "tensorflow-datasets>=4.9.10,<5",
    "array-record>=0.8",
    "importlib_resources>=6",  # imported by tensorflow-datasets, which does not declare it
    # Audio. soundfile reads and writes files, soxr resamples, librosa gives the mel filters.
    "librosa>=0.11",
    "soundfile>=0.13",  # its wheels bring libsndfile with FLAC, Ogg, Opus and MP3
    "soxr>=0.5",
    "numpy>=2.0",
    "scipy>=1.11",
    # Command lines, configs and logs.
    "absl-py>=2.3",
    "ml-collections>=1.1",
    "matplotlib>=3.9",
    "tensorboardX>=2.6",
    "tqdm>=4.66",
    "flatbuffers>=24",  # jax.export imports it and does not declare it
]

# Language models for the understanding stage: their tokenizers and weight files, and errors of
# what they answer.
TEXT_REQUIRE = ["gguf>=0.17", "jiwer>=4.0", "tokenizers>=0.21"]

EXTRAS_REQUIRE = {
    # Accelerators: the same code, another jaxlib.
    "cuda12": [f"jax[cuda12]{JAX_BOUNDS}"],
    "cuda13": [f"jax[cuda13]{JAX_BOUNDS}"],
    "tpu": [f"jax[tpu]{JAX_BOUNDS}"],
    "text": TEXT_REQUIRE,
    # Judges of decoded audio: word errors, opinion scores, intelligibility.
    "eval": [
        "faster-whisper>=1.2",
        "jiwer>=4.0",
        "kaldi-native-fbank>=1.22",  # what WeSpeaker's networks hear
        "onnxruntime>=1.20",  # speechmos runs its networks with it
        "opencc>=1.1.9",
        "pystoi>=0.4.1",
        "requests>=2",  # speechmos imports it and does not declare it
        "speechmos>=0.0.1",
        "whisper-normalizer>=0.1.15",
    ],
    # ruff and mypy are held to one minor version: the test suite runs both, and a newer
    # formatter or checker must not turn an unchanged commit red.
    "dev": [
        *TEXT_REQUIRE,  # the suite reads and writes small files of both kinds
        "mypy>=2.4,<2.5",
        "pre-commit>=4.0",
        "pytest>=9.0",
        "pytest-timeout>=2.3",
        "pyyaml>=6.0",
        "ruff>=0.17,<0.18",
    ],
}


def read_version() -> str:
    """Returns `__version__` of the package, read as text so that nothing is imported.

    Raises:
        RuntimeError: if the package names no version.
    """
    text = (ROOT / "gac_jax" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('gac_jax/__init__.py has no line __version__ = "..."')
    return match.group(1)


def read_readme() -> str:
    """Returns README.md, or an empty text in a tree that has none."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


setup(
    name="gac_jax",
    version=read_version(),
    description="Generative audio compression at 0.175 to 0.975 kbps, in JAX",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # Naming the root makes `pip install -e .` put the whole clone on the import path, so that
    # configs/ (`from configs import base`) is found from any folder, not only from the clone.
    package_dir={"": "."},
    packages=find_namespace_packages(
        include=["gac_jax", "gac_jax.*"], exclude=["*.__pycache__", "*.__pycache__.*"]
    ),
    # The bundled clips and the model that works without a download.
    package_data={"gac_jax": ["examples/*", "pretrained/*/*"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Multimedia :: Sound/Audio :: Compression",
    ],
)
