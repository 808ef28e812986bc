"""What every test runs under: eight CPU devices, strict array rules, a shared compilation cache."""

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

# A command that a test starts inherits these; the settings below them it does not, so it sees the
# one device and the lenient rules that its user sees.
_CACHE = Path(tempfile.gettempdir()) / f"gac_jax-tests-{os.getuid()}" / f"jax-{jax.__version__}"
for _name, _value in {
    "jax_platforms": os.environ.get("JAX_PLATFORMS", "cpu"),
    "jax_compilation_cache_dir": str(_CACHE),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}.items():
    jax.config.update(_name, _value)
    os.environ[_name.upper()] = str(_value)

# Each collective of each device blocks a thread of XLA's pool, which has no more threads than there
# are devices: two collectives under way at once fill it, and neither ever ends. XLA takes the size
# of the pool from NPROC when the first device is made.
os.environ["NPROC"] = "64"
jax.config.update("jax_num_cpu_devices", 8)
jax.devices()
del os.environ["NPROC"]
# A shape that broadcasts by luck, or a dtype that widens unseen, is an error here.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests of an accelerator that JAX_PLATFORMS does not name."""
    platforms = os.environ["JAX_PLATFORMS"].split(",")
    for marker, platform in (("gpu", "cuda"), ("tpu", "tpu")):
        if platform in platforms:
            continue
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"needs JAX_PLATFORMS={platform}"))


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs() -> Iterator[None]:
    """Lets go of a module's compiled programs, each of which holds several mappings of memory.

    Linux allows a process 65,530. The suite comes near that, and XLA crashes beyond it.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    """Lenient dtype promotion, for tests that run an optax optimizer.

    Adam's bias correction raises a Python float to the power of an int32 step count, which the
    strict rules refuse.
    """
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    """A NumPy generator that starts the same in every test."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights: its audio is noise, its programs compile in seconds."""
    from gac_jax import model_folder  # late: most tests need no model
    from gac_jax.codec import Codec
    from tests import tiny

    config = {
        "name": "random",
        "encoder": dataclasses.asdict(tiny.ENCODER),
        "quantizer": dataclasses.asdict(tiny.QUANTIZER),
        "decoder": dataclasses.asdict(tiny.DECODER),
        "window": 32,
        "sampling": {"steps": 2, "solver": "euler", "guidance": 1.0, "temperature": 1.0},
        "fingerprint": bytes(8).hex(),
    }
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: 0.2 * rng.standard_normal(x.shape), Codec(config, {}).abstract_params()
    )
    folder = tmp_path_factory.mktemp("model") / "random"
    model_folder.save(folder, config, params, "# random weights\n", "float32")
    return folder


@pytest.fixture(scope="session")
def compressing_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with an entropy model."""
    from tests import tiny

    folder = tmp_path_factory.mktemp("model") / "compressing"
    tiny.add_entropy_model(tiny_model, folder)
    return folder
