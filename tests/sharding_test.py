import contextlib
import dataclasses
import json
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gac_jax.scaling.compiler import Compiled, compile_and_listen
from gac_jax.scaling.hlo import collectives, gathers_of
from gac_jax.sharding import BATCH, make_mesh, shard_batch, shardings
from gac_jax.training.optimizer import path_name
from gac_jax.training.state import TrainState, make_train_step
from tests.golden.make_sharding import CONFIGS, FOLDER, MESHES, abstract_state, table, text
from tests.tiny import adversarial, batch, drawn, frozen_parts, generation, meanflow, understanding

STAGES = ("understanding", "generation", "meanflow", "adversarial")
# The last two have a generation in them, and little else that has parameters: one mesh will do.
ON_MESHES = [
    pytest.param(stage, mesh, id=f"{stage}-{name}")
    for stage in STAGES
    for name, mesh in MESHES.items()
    if stage in ("understanding", "generation") or name == "2x2x2"
]
# Adam would blow rounding up to whole steps wherever a gradient is next to nothing.
MOMENTUM = optax.sgd(0.05, momentum=0.9)


def named(tree: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("config", CONFIGS)
def test_training_states_are_split_as_they_were(config: str) -> None:
    golden = (FOLDER / f"{config}.json").read_text(encoding="utf-8")
    # After a wanted change: python -m tests.golden.make_sharding
    assert table(config) == json.loads(golden)
    assert text(json.loads(golden)) == golden


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("config", CONFIGS)
def test_every_leaf_of_a_training_state_has_a_rule(config: str, stage: str) -> None:
    state = abstract_state(config, stage)
    layout = shardings(make_mesh(data=2, fsdp=2, tensor=2), state)
    assert jax.tree.structure(layout) == jax.tree.structure(state)
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(layout), strict=True):
        sharding.shard_shape(leaf.shape)  # raises where the split is not even


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("mesh", [(1, 8, 1), (1, 2, 4)])
def test_the_flagship_is_split_over_all_devices(stage: str, mesh: tuple[int, int, int]) -> None:
    state = abstract_state("xl", stage)
    layout = named(shardings(make_mesh(*mesh), state))
    shapes = named(state)
    total = sum(leaf.size for leaf in shapes.values())
    held = sum(np.prod(layout[name].shard_shape(leaf.shape)) for name, leaf in shapes.items())
    assert total > 2e9 and held < 1.05 * total / 8
    for name, leaf in shapes.items():
        if "/blocks/" in name and name.endswith("kernel"):
            assert layout[name].shard_shape(leaf.shape)[0] == leaf.shape[0]  # layers stay whole


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("stage", STAGES)
def test_averages_and_moments_are_split_as_their_parameters(stage: str) -> None:
    layout = named(shardings(make_mesh(data=2, fsdp=2, tensor=2), abstract_state("tiny", stage)))
    for name, sharding in layout.items():
        if name.startswith("params/"):
            own = name.removeprefix("params/")
            same = [other for key, other in layout.items() if key.endswith(f"/{own}")]
            assert len(same) == 4 and set(same) == {sharding}  # params, ema, mu, nu


def test_matrices_are_split_along_their_axes() -> None:
    tree = {
        "blocks": {
            "query": {"kernel": array(5, 16, 8), "bias": array(5, 8)},
            "out": {"kernel": array(5, 16, 8)},
        },
        "conv1": {"kernel": array(3, 8, 16)},
        "input": {"kernel": array(16, 8)},
        "basis": array(16, 8),
        "residual_codes": array(8, 16, 8),
        "count": array(),
    }
    layout = named(shardings(make_mesh(data=2, fsdp=2, tensor=2), tree))
    assert {name: tuple(sharding.spec) for name, sharding in layout.items()} == {
        "blocks/query/kernel": (None, "fsdp", "tensor"),
        "blocks/query/bias": (None, None),
        "blocks/out/kernel": (None, "tensor", "fsdp"),
        "conv1/kernel": (None, "fsdp", "tensor"),
        "input/kernel": ("fsdp", None),
        "basis": ("fsdp", None),
        "residual_codes": (None, "fsdp", None),
        "count": (),
    }


def test_an_axis_that_does_not_divide_is_dropped() -> None:
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    tree = {"a": {"query": {"kernel": array(6, 8)}}, "b": {"query": {"kernel": array(8, 7)}}}
    layout = named(shardings(mesh, tree))
    assert layout["a/query/kernel"].spec == P(None, "tensor")
    assert layout["b/query/kernel"].spec == P("fsdp", None)


def test_a_leaf_without_a_rule_is_named() -> None:
    with pytest.raises(ValueError, match=r"no sharding rule for part/mystery \(3, 4\)"):
        shardings(make_mesh(), {"part": {"mystery": array(3, 4)}})


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((1, 8, 1), (1, 8, 1))],
)
def test_a_mesh_uses_all_devices(sizes: tuple, expected: tuple) -> None:
    assert make_mesh(*sizes).shape == dict(zip(("data", "fsdp", "tensor"), expected, strict=True))


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (16, 1, 1), (2, 2, 1), (-1, -1, 1)])
def test_a_mesh_that_does_not_fit_is_refused(sizes: tuple) -> None:
    with pytest.raises(ValueError, match="does not use 8 devices"):
        make_mesh(*sizes)


def test_rows_of_a_batch_are_spread_over_data_and_fsdp() -> None:
    rows = {"wave": np.arange(16.0, dtype=np.float32).reshape(8, 2), "domain": np.arange(8)}
    found = shard_batch(make_mesh(data=2, fsdp=2, tensor=2), rows)
    for name, value in rows.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].sharding.shard_shape(value.shape)[0] == 2


@dataclasses.dataclass(frozen=True)
class Chip:
    """As much of a device as meshes ask for."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"
    process_index: int = 0


def test_slices_are_joined_by_the_data_axis() -> None:
    mesh = make_mesh(data=4, tensor=2, devices=[Chip(i, slice_index=i % 2) for i in range(8)])
    assert mesh.shape == {"data": 4, "fsdp": 1, "tensor": 2}
    slices = [{chip.slice_index for chip in row.flat} for row in mesh.devices]
    assert slices == [{0}, {0}, {1}, {1}]
    assert {chip.id for chip in mesh.devices.flat} == set(range(8))


def test_a_mesh_that_cuts_across_slices_is_refused() -> None:
    with pytest.raises(ValueError, match="2 slices need data to be a multiple of 2"):
        make_mesh(data=1, fsdp=8, devices=[Chip(i, slice_index=i // 4) for i in range(8)])


class Step(NamedTuple):
    """A training step, compiled, and what it takes."""

    compiled: Compiled
    state: TrainState
    frozen: Any
    rows: dict[str, jax.Array]


@cache
def compiled_step(stage: str, sizes: tuple[int, int, int] | None) -> Step:
    """A step on one device (None) or on a mesh, as the loop has it."""
    tasks = {"generation": generation, "meanflow": meanflow, "adversarial": adversarial}
    task = understanding(listens=True) if stage == "understanding" else tasks[stage]()
    params, zero = drawn(task.init), jnp.zeros((), jnp.int32)
    state = TrainState(zero, params, params, MOMENTUM.init(params), task.init_memory(params), zero)
    frozen, rows, layouts, mesh = frozen_parts(), batch(rows=24), {}, None
    if sizes is not None:
        mesh = make_mesh(*sizes)
        layout, frozen_layout = shardings(mesh, state), shardings(mesh, frozen)
        state, frozen = jax.device_put((state, frozen), (layout, frozen_layout))
        rows = shard_batch(mesh, jax.tree.map(np.asarray, rows))
        layouts = {
            "in_shardings": (layout, frozen_layout, NamedSharding(mesh, BATCH)),
            "out_shardings": (layout, NamedSharding(mesh, P())),
        }
    step = jax.jit(make_train_step(task, MOMENTUM, seed=0, ema_decay=0.9), **layouts)
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        lowered = step.lower(state, frozen, rows)
    return Step(compile_and_listen(lowered, xla_backend_optimization_level=0), state, frozen, rows)


@pytest.fixture(scope="module", autouse=True)
def forgotten_steps() -> Iterator[None]:
    """Lets go of the steps with their module: each holds thousands of mappings of memory."""
    yield
    compiled_step.cache_clear()


def two_steps(step: Step) -> Any:
    """State and metrics after two steps."""
    run = step.compiled.program
    state, first = run(step.state, step.frozen, step.rows)
    state, second = run(state, step.frozen, step.rows)
    return state, first, second


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return {stage: two_steps(compiled_step(stage, None)) for stage in STAGES}


@pytest.mark.parametrize(("stage", "mesh"), ON_MESHES)
def test_a_step_on_a_mesh_is_a_step_on_one_device(
    alone: dict[str, Any], stage: str, mesh: tuple[int, int, int]
) -> None:
    found = two_steps(compiled_step(stage, mesh))
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(found[0]))
    expected = named(alone[stage])
    for name, leaf in named(found).items():
        size = np.abs(expected[name]).max(initial=1e-3)
        np.testing.assert_allclose(leaf, expected[name], atol=1e-4 * size, err_msg=name)


@pytest.mark.parametrize(("stage", "mesh"), ON_MESHES)
def test_no_chip_ever_holds_the_whole_model(stage: str, mesh: tuple[int, int, int]) -> None:
    step = compiled_step(stage, mesh)
    found = collectives(step.compiled.program.as_text())
    kernels = {
        leaf.shape
        for name, leaf in named((step.state.params, step.frozen)).items()
        if "/blocks/" in name and name.endswith("kernel")
    }
    assert len(kernels) > 3 and found
    # Layers are gathered one at a time: never a parameter with the stack of all layers.
    assert gathers_of(found, kernels) == []
    assert step.compiled.complaints == []


def test_gathering_all_layers_at_once_is_found() -> None:
    mesh = make_mesh(data=2, fsdp=4)
    split, rows = NamedSharding(mesh, P(None, "fsdp")), NamedSharding(mesh, BATCH)

    def loss(kernels: jax.Array, x: jax.Array, whole: bool) -> jax.Array:
        if whole:
            kernels = jax.lax.with_sharding_constraint(kernels, NamedSharding(mesh, P()))
        return jax.lax.scan(lambda h, kernel: (jnp.tanh(h @ kernel), None), x, kernels)[0]

    for whole in (False, True):
        step = jax.jit(loss, in_shardings=(split, rows), static_argnums=2)
        program = compile_and_listen(step.lower(array(3, 16, 16), array(8, 16), whole)).program
        found = gathers_of(collectives(program.as_text()), {(3, 16, 16)})
        assert len(found) == whole
