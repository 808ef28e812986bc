import json

from gac_jax.scaling.chips import parse
from gac_jax.scaling.report import lines, not_checked, record
from gac_jax.sharding import make_mesh
from tests.scaling.forecast_test import made

GATHERS = {"all-gather": {"count": 52, "bytes": 3_000_000_000}}


def test_a_forecast_in_words() -> None:
    found = list(lines("xl", parse("h100:8"), make_mesh(fsdp=4), [made(collectives=GATHERS)]))
    assert found[:6] == [
        "xl on h100:8: 8 chips (data 2, fsdp 4, tensor 1); compiled for cpu",
        "generation: 0.0 M parameters, 8 s of audio a call",
        "  memory per chip: 0.93 arguments + 0.93 temporaries + 0.00 new results = 1.86 GiB of "
        "74.5: fits",
        "  computation: 4 TFLOP a call on all chips, 25 % recomputed",
        "  collectives per chip: all-gather 52 x, 3 GB sent",
        "  at best 1e+03 ms a call (compute 500, memory 250, network 1e+03): 8 hours of audio an "
        "hour, 0 % of peak (MFU)",
    ]
    assert all(line.startswith("not checked: ") for line in found[6:]) and len(found) == 8


def test_what_does_not_fit_is_told_with_remedies() -> None:
    one = made(memory={}, fits=False, problem="19 GiB of 16", seconds={})
    found = "\n".join(lines("large", parse("h100:8"), make_mesh(), [one]))
    assert "DOES NOT FIT: 19 GiB of 16" in found and "remat" in found
    assert "at best" not in found and "memory per chip" not in found


def test_complaints_of_the_partitioner_are_passed_on() -> None:
    found = "\n".join(lines("large", parse("cpu:8"), make_mesh(), [made(complaints=3)]))
    assert "3 arrays are held whole by every chip" in found
    assert "at best" not in found  # nothing is known of this CPU


def test_the_record_is_json() -> None:
    found = json.loads(json.dumps(record("xl", parse("h100:8"), make_mesh(), [made()])))
    assert found["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    assert found["programs"]["generation"]["step"] == 1.0
    assert found["not_checked"] == not_checked(parse("h100:8"))


def test_several_slices_are_named_and_what_is_open_told() -> None:
    slices = parse("v4:2x2x1", slices=2)
    assert next(lines("xl", slices, make_mesh(), [])).startswith("xl on 2 x v4:2x2x1: 8 chips")
    assert record("xl", slices, make_mesh(), [])["slices"] == 2
    assert any("slices" in text for text in not_checked(slices))
    assert not any("slices" in text for text in not_checked(parse("v4:2x2x1")))
