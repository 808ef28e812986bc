import json
import types
from collections.abc import Callable

import pytest

from gac_jax import cli
from gac_jax.scaling import forecast as forecasts
from tests.commands import load
from tests.config import get_config
from tests.scaling.forecast_test import made

dry_run = load("gac_jax.dry_run")[0]
Run = Callable[..., tuple[object, str, str]]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], standard_promotion: None
) -> Run:
    """Runs the command with a config of the smallest sizes: exit code, stdout and stderr."""

    def run(
        topology: str,
        stage: str = "generation",
        as_json: bool = False,
        num_slices: int = 1,
        **changes: int,
    ) -> tuple[object, str, str]:
        config = get_config()
        config.update_from_flattened_dict(changes)
        flags = {"_CONFIG": config, "_TOPOLOGY": topology, "_STAGE": stage, "_JSON": as_json}
        flags["_NUM_SLICES"] = num_slices
        for name, value in flags.items():
            monkeypatch.setattr(dry_run, name, types.SimpleNamespace(value=value))
        code: object = 0
        try:
            cli._guard(dry_run.main)
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return run


def test_a_report_for_machines(run: Run) -> None:
    code, out, err = run("cpu:8", "sampler", as_json=True, **{"mesh.fsdp": 4})
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["topology"], found["chips"]) == ("cpu:8", 8)
    assert found["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    sampler = found["programs"]["sampler"]
    # Weights are split over four chips and gathered to be used; rows never meet.
    assert sampler["collectives"]["all-gather"]["bytes"] > 0
    assert sampler["memory"]["arguments"] < sampler["parameters"] * 4
    assert sampler["flops"] > 0 and sampler["step"] is None and sampler["fits"] is None


def test_a_report_for_people(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def forecast(name: str, *_: object) -> object:
        asked.append(name)
        return made(program=name)

    monkeypatch.setattr(forecasts, "forecast", forecast)
    code, out, err = run("h100:8", "all")
    assert (code, err) == (0, "")
    assert asked == ["understanding", "generation", "sampler"]
    assert out.startswith("smallest on h100:8: 8 chips (data 8, fsdp 1, tensor 1)")
    assert out.count("at best") == 3 and "not checked" in out


def test_what_does_not_fit_shows_in_the_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecasts, "forecast", lambda *_: made(fits=False, problem="too large"))
    code, out, _ = run("h100:8")
    assert code == 1 and "DOES NOT FIT: too large" in out


@pytest.mark.parametrize(
    ("topology", "changes", "told"),
    [
        ("v9:2x2", {}, "--topology=v9:2x2: not a slice like v5e:4x4"),
        ("cpu:8", {"mesh.fsdp": 3}, "configuration: mesh"),
        ("cpu:8", {"generation.batch_size": 6}, "cannot share"),
    ],
)
def test_mistakes_are_told_in_one_line(
    run: Run, topology: str, changes: dict[str, int], told: str
) -> None:
    code, out, err = run(topology, **changes)
    assert (code, out) == (2, "")
    assert told in err and err.count("\n") == 1
