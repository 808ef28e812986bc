from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gac_jax.training.optimizer import OptimizerConfig, decayed, make_optimizer, path_name

pytestmark = pytest.mark.usefixtures("standard_promotion")

CONFIG = OptimizerConfig(
    learning_rate=1e-2,
    warmup_steps=4,
    final_fraction=0.1,
    b2=0.99,
    weight_decay=0.0,
    clip_norm=1e9,
)


def params() -> Any:
    layer = {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full((3,), 2.0)}
    return {
        "encoder": {"semantic": layer, "acoustic": {**layer, "norm": {"scale": jnp.ones((3,))}}},
        "quantizer": {"basis": jnp.ones((4, 2)), "residual_codes": jnp.ones((2, 4, 2))},
    }


def updates_of(steps: int, gradient: float, total: int = 100, **changes: Any) -> Any:
    """The updates at each of the first steps under a constant gradient, and the last state."""
    optimizer = make_optimizer(OptimizerConfig(**{**vars(CONFIG), **changes}), total)
    update = jax.jit(optimizer.update)
    state, tree = optimizer.init(params()), params()
    gradients, found = jax.tree.map(lambda x: jnp.full_like(x, gradient), tree), []
    for _ in range(steps):
        updates, state = update(gradients, state, tree)
        found.append(updates)
    return found, state


def flat(tree: Any) -> dict[str, np.ndarray]:
    return {path_name(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def test_the_learning_rate_rises_falls_and_ends_at_its_fraction() -> None:
    # Under a constant gradient Adam moves by exactly the learning rate.
    found, _ = updates_of(13, gradient=3.0, total=12, warmup_steps=3)
    rates = [-float(u["quantizer"]["basis"][0, 0]) for u in found]
    np.testing.assert_allclose(rates[:4], [0.0, 1e-2 / 3, 2e-2 / 3, 1e-2], rtol=1e-4, atol=1e-9)
    cosine = 0.5 * (1 + np.cos(np.pi * np.arange(10) / 9))
    np.testing.assert_allclose(rates[3:], 1e-2 * (0.1 + 0.9 * cosine), rtol=1e-3)


@pytest.mark.parametrize("total", [1, 2, 3, 20])
def test_warm_up_takes_no_more_than_a_quarter_of_a_short_run(total: int) -> None:
    found, _ = updates_of(max(total // 4, 1) + 1, gradient=1.0, total=total, warmup_steps=1_000)
    assert float(found[-1]["quantizer"]["basis"][0, 0]) == pytest.approx(-1e-2, rel=1e-3)


def test_the_first_matching_scale_multiplies_an_update() -> None:
    scales = (("encoder/semantic", 0.1), ("encoder/.*/bias$", 0.0), ("encoder", 0.5))
    plain = flat(updates_of(3, gradient=1.0)[0][-1])
    scaled = flat(updates_of(3, gradient=1.0, scales=scales)[0][-1])
    factor = {name: float((scaled[name] / plain[name]).mean()) for name in plain}
    assert factor == pytest.approx(
        {
            "encoder/semantic/kernel": 0.1,
            "encoder/semantic/bias": 0.1,
            "encoder/acoustic/kernel": 0.5,
            "encoder/acoustic/bias": 0.0,
            "encoder/acoustic/norm/scale": 0.5,
            "quantizer/basis": 1.0,
            "quantizer/residual_codes": 1.0,
        }
    )


def test_only_kernels_decay() -> None:
    found = flat(updates_of(5, gradient=0.0, weight_decay=0.5)[0][-1])
    for name, update in found.items():
        expected = -1e-2 * 0.5 * 2.0 if name.endswith("kernel") else 0.0
        np.testing.assert_allclose(update, expected, rtol=1e-4)
    assert {name for name, mask in flat(decayed(params())).items() if mask} == {
        "encoder/semantic/kernel",
        "encoder/acoustic/kernel",
    }


def test_a_scale_of_0_freezes_a_part_against_decay_too() -> None:
    found, _ = updates_of(5, gradient=1.0, weight_decay=0.5, scales=(("semantic", 0.0),))
    assert not any(x.any() for x in jax.tree.leaves(found[-1]["encoder"]["semantic"]))


@pytest.mark.parametrize(("gradient", "seen"), [(1e4, 1 / np.sqrt(45)), (1e-3, 1e-3)])
def test_large_gradients_are_clipped_to_the_norm(gradient: float, seen: float) -> None:
    size = sum(x.size for x in jax.tree.leaves(params()))
    assert size == 45
    _, state = updates_of(1, gradient=gradient, clip_norm=1.0)
    first = optax.tree.get(state, "mu")["quantizer"]["basis"]
    second = optax.tree.get(state, "nu")["quantizer"]["basis"]
    np.testing.assert_allclose(first, 0.1 * seen, rtol=1e-4)
    np.testing.assert_allclose(second, 0.01 * seen**2, rtol=1e-3)


def test_path_names_join_keys_fields_and_indices() -> None:
    class Moments(NamedTuple):
        mu: Any

    tree = {"opt": [Moments({"dense": 1.0}), 2.0]}
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert paths == ["opt/0/mu/dense", "opt/1"]


def matrix_updates(name: str, gradient: np.ndarray, **changes: Any) -> Any:
    """Second updates of a kernel, stacked kernels, a bias and a filter under `gradient`."""
    tree = {
        "layer": {"kernel": gradient, "bias": gradient[0]},
        "blocks": {"kernel": np.stack([gradient, 2.0 * gradient])},
        "depthwise": {"kernel": gradient},
    }
    optimizer = make_optimizer(OptimizerConfig(**{**vars(CONFIG), "name": name, **changes}), 100)
    state = optimizer.init(tree)
    for _ in range(2):
        updates, state = jax.jit(optimizer.update)(tree, state, tree)
    return flat(updates)


def test_muon_moves_matrices_along_all_directions_alike(rng: np.random.Generator) -> None:
    gradient = rng.standard_normal((8, 8)).astype(np.float32) * np.geomspace(1, 0.02, 8)[:, None]
    adam, muon = (matrix_updates(name, gradient.astype(np.float32)) for name in ("adamw", "muon"))
    singular = np.linalg.svd(muon["layer/kernel"], compute_uv=False)
    assert singular.min() > 0.5 * singular.max()
    rate = 1e-2 / 4  # at the second step of the warm-up
    assert np.sqrt(np.mean(np.square(muon["layer/kernel"]))) == pytest.approx(0.2 * rate, rel=0.2)
    # Each matrix of a stack moves as it would alone; size does not matter.
    for i in range(2):
        np.testing.assert_allclose(muon["blocks/kernel"][i], muon["layer/kernel"], rtol=0.02)
    for name in ("layer/bias", "depthwise/kernel"):  # by Adam, with Nesterov's momentum
        np.testing.assert_allclose(muon[name], adam[name], rtol=0.2)
        assert (np.abs(muon[name]) > np.abs(adam[name])).all()
    assert not np.allclose(muon["layer/kernel"], adam["layer/kernel"], rtol=0.1)


def test_muon_spends_nothing_on_matrices_that_stay(rng: np.random.Generator) -> None:
    gradient = rng.standard_normal((4, 4)).astype(np.float32)
    still = matrix_updates("muon", gradient, scales=(("layer", 0.0),))
    assert not still["layer/kernel"].any() and not still["layer/bias"].any()
    config = OptimizerConfig(**{**vars(CONFIG), "name": "muon", "scales": (("layer", 0.0),)})
    shapes = jax.eval_shape(make_optimizer(config, 10).init, {"layer": {"kernel": gradient}})
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    assert not any("muon" in name and name.endswith("kernel") for name in names)


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(ValueError, match="adamw or muon"):
        OptimizerConfig(**{**vars(CONFIG), "name": "sgd"})
