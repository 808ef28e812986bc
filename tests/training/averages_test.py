import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gac_jax.errors import UserError
from gac_jax.sharding import make_mesh, shardings
from gac_jax.training.averages import load_averages
from gac_jax.training.checkpoints import Checkpoints
from gac_jax.training.state import TrainState


def made_state(step: int) -> TrainState:
    """A state that is another at every step."""
    rng = np.random.default_rng(step)
    params = {
        "encoder": {"kernel": jnp.asarray(rng.standard_normal((8, 6)), jnp.float32)},
        "adapter": {"bias": jnp.asarray(rng.standard_normal(7), jnp.float32)},
    }
    return TrainState(
        step=jnp.int32(step),
        params=params,
        ema=jax.tree.map(lambda x: 2 * x, params),
        opt_state=optax.adamw(0.1).init(params),
        memory={"seen": jnp.zeros(3)},
        skipped=jnp.int32(0),
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A stage's folder with checkpoints of steps 10 and 20."""
    with Checkpoints(str(tmp_path), every=10, keep=2) as store:
        for step in (10, 20):
            store.save(step, made_state(step), {"name": "toy"}, force=False)
    return tmp_path


def like(**shapes: Any) -> Any:
    """Wanted parts, split over eight devices."""
    tree = {"encoder": {"kernel": jax.ShapeDtypeStruct((8, 6), jnp.float32)}, **shapes}
    layout = shardings(make_mesh(data=2, fsdp=4), tree)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, layout
    )


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    paths = [folder, *folder.rglob("*")]
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in paths}


def test_the_newest_averages_are_read_in_the_layout_asked_for(saved: Path) -> None:
    wanted = like()
    step, found, config = load_averages(str(saved), wanted)
    assert (step, list(found), config) == (20, ["encoder"], {"name": "toy"})
    kernel = found["encoder"]["kernel"]
    np.testing.assert_array_equal(kernel, made_state(20).ema["encoder"]["kernel"])
    assert kernel.sharding == wanted["encoder"]["kernel"].sharding
    assert kernel.sharding.shard_shape((8, 6)) == (2, 6)


def test_nothing_is_written_or_told(
    saved: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = snapshot(saved)
    load_averages(str(saved), like())
    assert snapshot(saved) == before
    assert [r for r in caplog.records if r.levelname != "INFO"] == []
    assert capfd.readouterr() == ("", "")


def test_a_folder_without_checkpoint_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no checkpoint here; name the workdir"):
        load_averages(str(tmp_path / "nowhere"), like())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"head": {"kernel": jax.ShapeDtypeStruct((2, 2), jnp.float32)}}, "head/kernel is missing"),
        (
            {"adapter": {"bias": jax.ShapeDtypeStruct((9,), jnp.float32)}},
            r"adapter/bias is float32 \(7,\), should be float32 \(9,\)",
        ),
    ],
)
def test_another_configuration_is_told(saved: Path, part: Any, told: str) -> None:
    with pytest.raises(UserError, match=f"checkpoints/20: made by another config: ema/{told}"):
        load_averages(str(saved), like(**part))


def test_a_damaged_checkpoint_is_told(saved: Path) -> None:
    index = saved / "checkpoints" / "20" / "state" / "_METADATA"
    index.write_text(index.read_text()[:500])
    with pytest.raises(UserError, match="checkpoints/20: damaged checkpoint") as error:
        load_averages(str(saved), like())
    assert "\n" not in str(error.value)
