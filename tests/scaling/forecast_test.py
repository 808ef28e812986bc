import json
import math
import types
from typing import Any

import jax
import pytest

from gac_jax.scaling import forecast as forecasts
from gac_jax.scaling.chips import CHIPS, parse
from gac_jax.scaling.compiler import Compiled
from gac_jax.scaling.forecast import Forecast, forecast, seconds
from gac_jax.scaling.hlo import Array, Collective
from gac_jax.sharding import make_mesh
from tests.config import get_config

MEMORY = {"arguments": 10**9, "temporaries": 10**9, "results": 10**9, "shared": 10**9}


def made(**changes: Any) -> Forecast:
    values = {
        "program": "generation",
        "parameters": 10,
        "audio": 8.0,
        "memory": {**MEMORY, "total": 2 * 10**9},
        "fits": True,
        "problem": "",
        "flops": 4e12,
        "recomputed": 1e12,
        "collectives": {},
        "complaints": 0,
        "seconds": {"compute": 0.5, "memory": 0.25, "network": 1.0},
    }
    return Forecast(**{**values, **changes})


def test_least_times_follow_from_the_data_sheet() -> None:
    chip, slice_ = CHIPS["v5e"], parse("v5e:2x4")
    found = [Collective("collective-permute", (Array("f32", (1000,)),), 8, 10)]
    assert seconds(8e12, MEMORY, found, slice_) == pytest.approx(
        {
            "compute": 1e12 / chip.flops,
            "memory": 4e9 / chip.bandwidth,  # temporaries are written and read
            "network": 40_000 / chip.link,
        }
    )
    assert seconds(8e12, MEMORY, found, parse("cpu:8")) == {}


def test_what_goes_between_slices_takes_the_slower_network() -> None:
    chip, slices = CHIPS["v5e"], parse("v5e:2x4", slices=2)
    array = (Array("f32", (1000,)),)
    within = Collective("all-reduce", array, 8, 1)
    between = within._replace(group=2, times=3, between=True)
    found = seconds(8e12, MEMORY, [within, between], slices)
    assert found["network"] == pytest.approx(7_000 / chip.link)
    assert found["slices"] == pytest.approx(12_000 / chip.network)
    assert "slices" not in seconds(8e12, MEMORY, [within], slices)
    assert "slices" not in seconds(8e12, MEMORY, [between], parse("v4:2x2x1", slices=2))  # unknown
    assert forecasts._by_kind([within, between]) == {
        "all-reduce": {"count": 1, "bytes": 7_000},
        "all-reduce between slices": {"count": 3, "bytes": 12_000},
    }


def test_the_slowest_of_three_decides_and_recomputation_is_no_use() -> None:
    slice_ = parse("v5e:2x4")
    one = made()
    assert one.step == 1.0
    assert one.utilisation(slice_) == pytest.approx(3e12 / (8 * CHIPS["v5e"].flops))
    nothing = made(seconds={})
    assert math.isnan(nothing.step) and math.isnan(nothing.utilisation(slice_))
    record = json.loads(json.dumps(nothing.record(parse("cpu:8"))))
    assert record["step"] is None and record["utilisation"] is None


@pytest.mark.parametrize(
    ("topology", "arguments", "fits"),
    [
        ("h100:8", 10**9, None),  # the CPU's compiler says nothing of a GPU's temporaries
        ("h100:8", 10**12, False),
        ("cpu:8", 10**12, None),
    ],
)
def test_what_fits_is_not_guessed(topology: str, arguments: int, fits: bool | None) -> None:
    assert forecasts._fits({"arguments": arguments}, parse(topology)) is fits


@pytest.mark.usefixtures("standard_promotion")
def test_a_program_that_does_not_fit_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(lowered: Any) -> Compiled:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 19.00G exceeds 15.75G.\nmore")

    monkeypatch.setattr(forecasts, "compile_and_listen", give_up)
    config = get_config()
    config.decoder.remat = True
    one = forecast("sampler", config, make_mesh(fsdp=2), parse("h100:8"))
    assert (one.fits, one.problem) == (False, "RESOURCE_EXHAUSTED: 19.00G exceeds 15.75G.")
    assert one.flops > 0 and one.recomputed == 0  # nothing to recompute: no gradient

    def fail(lowered: Any) -> Compiled:
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    monkeypatch.setattr(forecasts, "compile_and_listen", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        forecast("sampler", config, make_mesh(fsdp=2), parse("h100:8"))


@pytest.mark.usefixtures("standard_promotion")
def test_recomputation_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = types.SimpleNamespace(
        argument_size_in_bytes=100,
        temp_size_in_bytes=20,
        output_size_in_bytes=90,
        alias_size_in_bytes=80,
    )
    program = types.SimpleNamespace(
        memory_analysis=lambda: sizes, as_text=lambda: "ENTRY %main (p: f32[]) -> f32[] {\n}\n"
    )
    monkeypatch.setattr(forecasts, "compile_and_listen", lambda _: Compiled(program, ["a", "b"]))
    found = {}
    for remat in (False, True):
        config = get_config()
        config.decoder.remat = remat
        found[remat] = forecast("generation", config, make_mesh(), parse("v5e:2x4"))
    assert found[False].recomputed == 0 < found[True].recomputed < found[True].flops / 3
    assert found[True].flops - found[True].recomputed == found[False].flops
    assert found[True].memory["total"] == 130 and found[True].complaints == 2
    assert not config.encoder.remat and config.decoder.remat  # the configuration is left alone
