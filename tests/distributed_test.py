"""Finding a group. What two real processes do, tests/multihost_test.py shows."""

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from gac_jax import distributed
from gac_jax.distributed import Place, join
from gac_jax.errors import UserError
from gac_jax.sharding import make_mesh, shardings

LAUNCHERS = ("JAX_", "OMPI_", "SLURM_", "KUBERNETES_", "JOB_COMPLETION")
NONE_FOUND = "coordinator_address should be defined."


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides what started these tests; changes to JAX's configuration end with each."""
    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Place, dict[str, Any]]]:
    """What JAX is asked to start."""
    calls: list[tuple[Place, dict[str, Any]]] = []
    monkeypatch.setattr(
        jax.distributed,
        "initialize",
        lambda *place, **options: calls.append((Place(*place), options)),
    )
    return calls


def refuse(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def initialize(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", initialize)


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        (Place(), {}, Place()),
        (
            Place(),
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"},
            Place("a:1", 4, 0),
        ),
        (Place(), {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, Place(None, 2, 1)),
        (Place("a:1", 8), {"JOB_COMPLETION_INDEX": "7"}, Place("a:1", 8, 7)),
        (
            Place("b:2", 3, 0),
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "1"},
            Place("b:2", 3, 0),
        ),
        (Place(), {"JAX_NUM_PROCESSES": "", "OMPI_COMM_WORLD_SIZE": "2"}, Place(None, 2, None)),
    ],
)
def test_the_environment_adds_what_is_not_given(
    given: Place, environment: dict[str, str], expected: Place
) -> None:
    assert given.completed(environment) == expected


@pytest.mark.parametrize(
    ("given", "environment", "told"),
    [
        (Place("a"), {}, "'a' should be HOST:PORT"),
        (Place(), {"JAX_COORDINATOR_ADDRESS": "a:b"}, "'a:b' should be HOST:PORT"),
        (Place(), {"JAX_NUM_PROCESSES": "x"}, "JAX_NUM_PROCESSES or .* is 'x', should be a number"),
    ],
)
def test_what_makes_no_sense_is_told(given: Place, environment: dict[str, str], told: str) -> None:
    with pytest.raises(UserError, match=f"^process group: {told}$"):
        given.completed(environment)


def test_a_group_that_is_known_is_not_looked_for(
    asked: list[tuple[Place, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    join(Place("a:1", 2, 1), patience=7)
    ((place, options),) = asked
    assert place == ("a:1", 2, 1) and options["cluster_detection_method"] == "deactivate"
    assert options["initialization_timeout"] > 7  # or JAX would abort before we can say why
    assert capsys.readouterr().out == ""  # of one process: this is none, but for the call


def test_what_is_missing_jax_looks_for(asked: list[tuple[Place, dict[str, Any]]]) -> None:
    join(Place())
    ((place, options),) = asked
    assert place == Place() and options["cluster_detection_method"] is None


@pytest.mark.parametrize(
    ("given", "environment"),
    [
        (Place(num_processes=1), {}),
        (Place(), {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}),
        (Place(), {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}),
    ],
)
def test_a_lone_process_stays_alone(
    asked: list[tuple[Place, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    given: Place,
    environment: dict[str, str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    join(given)
    assert asked == []


def test_no_group_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, ValueError(NONE_FOUND))
    join(Place())


@pytest.mark.parametrize("name", ["JOB_COMPLETION_INDEX", "OMPI_COMM_WORLD_SIZE"])
def test_one_of_many_does_not_train_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    refuse(monkeypatch, ValueError(NONE_FOUND))
    monkeypatch.setenv(name, "3")
    with pytest.raises(UserError, match="^process group: .*give --coordinator=HOST:PORT"):
        join(Place())


def test_what_jax_says_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, RuntimeError("no such host"))
    with pytest.raises(UserError, match="^process group: no such host"):
        join(Place())


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[Place], int]:
    """Joins a group that never comes together: the exit code."""
    codes: list[int] = []
    left = threading.Event()

    def leave(code: int) -> None:
        codes.append(code)
        left.set()

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: left.wait(60))

    def wait(place: Place) -> int:
        join(place, patience=0)
        return codes[0]

    return wait


def test_a_group_that_stays_incomplete_ends(
    wait: Callable[[Place], int], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert wait(Place(address, 4, 0)) == 2
    assert capsys.readouterr().err == (
        f"error: process group: not all 4 processes came to {address} in 0 s; see that each runs, "
        "with the same address and number of processes\n"
    )


def test_a_coordinator_that_is_not_there_is_told_apart(
    wait: Callable[[Place], int], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    assert wait(Place(address, 4, 1)) == 2
    assert "in 0 s (no answer from there: " in capsys.readouterr().err


def test_what_is_split_is_gathered() -> None:
    tree = {"a": {"kernel": np.arange(64.0, dtype=np.float32).reshape(8, 8)}, "b": np.float32(3)}
    mesh = make_mesh(data=1, fsdp=8)
    split = {"a": jax.device_put(tree["a"], shardings(mesh, tree["a"])), "b": tree["b"]}
    found = distributed.gather(split)
    assert {type(x) for x in jax.tree.leaves(found)} == {np.ndarray}
    jax.tree.map(np.testing.assert_array_equal, found, tree)


def test_alone_any_folder_is_shared(tmp_path: Path) -> None:
    distributed.check_shared(tmp_path / "nowhere")


@pytest.mark.parametrize("seen", [[True, True, True], [True, False, False]])
def test_processes_that_see_another_folder_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[bool]
) -> None:
    def gathered(here: np.ndarray) -> np.ndarray:
        assert here and len(list(tmp_path.iterdir())) == 1
        return np.array(seen)

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda x: x)
    monkeypatch.setattr(multihost_utils, "sync_global_devices", lambda _: None)
    monkeypatch.setattr(multihost_utils, "process_allgather", gathered)
    if all(seen):
        distributed.check_shared(tmp_path)
    else:
        with pytest.raises(UserError, match=f"^{tmp_path}: processes 1, 2 see another folder"):
            distributed.check_shared(tmp_path)
    assert list(tmp_path.iterdir()) == []
