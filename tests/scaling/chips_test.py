import importlib.util
import math

import jax
import pytest

from gac_jax.errors import UserError
from gac_jax.scaling import chips
from gac_jax.scaling.chips import CHIPS, Topology, devices, parse
from gac_jax.sharding import make_mesh


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [("v5e:4x4", "v5e", 16), ("v5p:4x4x4", "v5p", 64), ("h100:8", "h100", 8), ("cpu:3", "cpu", 3)],
)
def test_slices_are_read(name: str, kind: str, count: int) -> None:
    assert parse(name) == Topology(name, kind, count)


def test_several_slices_are_counted_together() -> None:
    several = parse("v5e:4x4", slices=4)
    assert (several.name, several.chips, several.slices) == ("v5e:4x4", 64, 4)
    assert (str(several), str(parse("v5e:4x4"))) == ("4 x v5e:4x4", "v5e:4x4")
    assert several.link == CHIPS["v5e"].link > several.chip.network > 0
    with pytest.raises(UserError, match="--num_slices=2: of TPUs only; give all h100"):
        parse("h100:8", slices=2)


@pytest.mark.parametrize("name", ["", "v5p", "v9:2x2", "v5e:0x4", "v5e:4x", "v5e:-4", "v5e:4x4 "])
def test_other_slices_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match="not a slice like v5e:4x4") as caught:
        parse(name)
    assert "\n" not in str(caught.value) and "v5p" in str(caught.value)


def test_specifications_agree_with_each_other() -> None:
    for name, chip in CHIPS.items():
        assert chip.flops > 100 * chip.bandwidth > 100 * chip.link > chip.network, name
        assert 10e9 < chip.memory < 200e9


def test_gpus_beyond_a_node_go_over_the_network() -> None:
    assert parse("h100:8").link == CHIPS["h100"].link
    assert parse("h100:16").link == CHIPS["h100"].network
    assert parse("v5e:16x16").link == CHIPS["v5e"].link
    assert math.isnan(parse("cpu:8").link) and parse("cpu:8").chip is None


def test_the_cpu_stands_in_where_no_compiler_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("v5e:2x4", "h100:8", "cpu:8"):
        found = devices(parse(name))
        assert list(found) == jax.devices("cpu") and parse(name).compiled_by == "cpu"
    assert len(devices(parse("cpu:3"))) == 3
    with pytest.raises(UserError, match="JAX has started with 8 CPU devices"):
        devices(parse("cpu:16"))


@pytest.mark.skipif(chips.importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_libtpu_describes_slices() -> None:
    found = devices(parse("v5e:2x4"))
    assert len(found) == 8 and {device.platform for device in found} == {"tpu"}
    assert len(devices(parse("v4:2x2x1"))) == 4  # not the 8 cores
    several = devices(parse("v5e:2x4", slices=2))
    assert [device.slice_index for device in several] == 8 * [0] + 8 * [1]
    mesh = make_mesh(data=-1, fsdp=2, tensor=2, devices=several)
    assert [{d.slice_index for d in row.flat} for row in mesh.devices] == [{0}, {0}, {1}, {1}]
    with pytest.raises(UserError, match="v5e:4x5: no such slice"):
        devices(parse("v5e:4x5"))
