import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh
from ml_collections import ConfigDict

from gac_jax.rates import FRAME_SAMPLES
from gac_jax.scaling.programs import PROGRAMS, build
from gac_jax.sharding import make_mesh
from gac_jax.training.stages import STAGES
from tests.config import get_config

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def config() -> ConfigDict:
    return get_config()


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return make_mesh(data=2, fsdp=2, tensor=2)


FROZEN = {
    "understanding": set(),
    "generation": {"encoder", "quantizer"},
    "meanflow": {"encoder", "quantizer", "decoder", "spectrum"},
    "adversarial": {"encoder", "quantizer", "decoder", "spectrum"},
}


@pytest.mark.parametrize("name", STAGES)
def test_a_training_step_takes_the_state_and_returns_it(
    name: str, config: ConfigDict, mesh: Mesh
) -> None:
    program = build(name, config, mesh)
    state, frozen, batch = program.arguments
    assert set(frozen) == FROZEN[name]
    assert {key: leaf.shape[0] for key, leaf in batch.items()} == dict.fromkeys(batch, 8)
    found, metrics = jax.eval_shape(program.function, *program.arguments)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, state)
    assert "loss" in metrics
    assert program.parameters == sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert program.audio == 8 * config[name].crop_frames * 0.08


def test_a_training_step_donates_its_state(config: ConfigDict, mesh: Mesh) -> None:
    program = build("generation", config, mesh)
    lowered = program.function.trace(*program.arguments).lower()
    (state, *_), _ = lowered.args_info
    assert all(leaf.donated for leaf in jax.tree.leaves(state))


def test_the_sampler_makes_audio_of_codes(config: ConfigDict, mesh: Mesh) -> None:
    program = build("sampler", config, mesh)
    found = jax.eval_shape(program.function, *program.arguments)
    rows, frames = config.generation.batch_size, config.generation.crop_frames
    assert found.shape == (rows, frames * FRAME_SAMPLES)
    assert set(program.arguments[0]) == {"quantizer", "decoder", "spectrum"}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_batch_that_the_mesh_cannot_share_is_refused(name: str, mesh: Mesh) -> None:
    config = get_config()
    for stage in STAGES:
        config[stage].batch_size = 6
    with pytest.raises(ValueError, match="4 devices cannot share"):
        build(name, config, mesh)
