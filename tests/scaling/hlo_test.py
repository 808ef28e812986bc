import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gac_jax.scaling.hlo import Array, Collective, collectives, gathers_of, sent
from gac_jax.sharding import make_mesh

GROUPS = {
    "{{0,1,2,3},{4,5,6,7}}": 4,
    "[4,2]<=[8]": 2,
    "[2,4]<=[2,2,2]T(0,2,1)": 4,
    "mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_0'}": 4,
    "mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}": 8,
    "mesh['axis_0'=8] {'axis_0':(1)4}": 4,
    "{}": 8,
}


def program(*lines: str, others: str = "") -> str:
    """The text of a program over eight chips, its main computation made of these lines."""
    body = "\n".join(f"  {line}" for line in lines)
    head = "HloModule jit_f, is_scheduled=true, num_partitions=8\n\n"
    return f"{head}{others}\nENTRY %main.1_spmd (p: f32[4]) -> f32[4] {{\n{body}\n}}\n"


def computation(name: str, *lines: str) -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"%{name} (p: f32[4]) -> f32[4] {{\n{body}\n}}\n\n"


def gather(result: str = "f32[8,4]{1,0}", name: str = "all-gather", channel: int = 1) -> str:
    options = f"channel_id={channel}, replica_groups=[2,4]<=[8], dimensions={{0}}"
    return f"%all-gather.{channel} = {result} {name}(%p), {options}"


@pytest.mark.parametrize(("groups", "size"), GROUPS.items())
def test_groups_are_read_in_every_form(groups: str, size: int) -> None:
    line = (
        f"%x = bf16[8,4]{{1,0:T(8,128)(2,1)S(1)}} all-gather(%p), replica_groups={groups}, x={{0}}"
    )
    found = collectives(program(line))
    assert found == [Collective("all-gather", (Array("bf16", (8, 4)),), size, 1)]


@pytest.mark.parametrize(
    ("kind", "bytes_sent"),
    [
        ("all-gather", 128 * 3 // 4),  # all but its own quarter
        ("all-reduce", 2 * 128 * 3 // 4),
        ("reduce-scatter", 128 * 3),  # the result is a quarter of what is summed
        ("all-to-all", 128 * 3 // 4),
        ("collective-permute", 128),
    ],
)
def test_bytes_sent_are_those_of_rings(kind: str, bytes_sent: int) -> None:
    assert Collective(kind, (Array("f32", (8, 4)),), group=4, times=1).sent == bytes_sent
    assert Collective(kind, (Array("bf16", (8, 4)),), group=4, times=5).sent == 5 * bytes_sent // 2


def test_types_have_their_sizes() -> None:
    names = ("pred", "s4", "u8", "bf16", "f8e4m3fn", "f32", "c64")
    assert [Array(name, (16,)).bytes for name in names] == [16, 8, 16, 32, 16, 64, 128]
    assert Array("f32", ()).bytes == 4


@pytest.mark.parametrize("noted", [True, False])
def test_a_loop_multiplies(noted: bool) -> None:
    config = ', backend_config={"known_trip_count":{"n":"5"}}' if noted else ""
    limit = "ROOT %lt = pred[] compare(%i, %c), direction=LT"
    condition = computation("cond.1", "%c = s32[]{:T(128)} constant(5)", limit)
    body = computation("body.1", gather())
    line = f"ROOT %w = (s32[], f32[4]{{0}}) while(%t), condition=%cond.1, body=%body.1{config}"
    (found,) = collectives(program(line, others=condition + body))
    assert (found.times, found.sent) == (5, 5 * 96)


def test_the_dearest_branch_counts() -> None:
    cheap = computation("cheap", gather())
    dear = computation("dear", gather("f32[16,4]{1,0}"))
    lines = (
        "%a = f32[4]{0} conditional(%i, %x, %x), branch_computations={%cheap, %dear}",
        "%b = f32[4]{0} conditional(%p, %x, %x), true_computation=%dear, false_computation=%cheap",
    )
    for line in lines:
        assert sent(collectives(program(line, others=cheap + dear))) == 192


def test_an_asynchronous_collective_counts_once() -> None:
    start = gather("(f32[2,4]{1,0}, f32[8,4]{1,0}, u32[]{:S(2)})", "all-gather-start")
    done = "%d = f32[8,4]{1,0} all-gather-done(%all-gather.1)"
    plain = collectives(program(gather()))
    assert collectives(program(start, done)) == plain

    # On TPUs it may be spread over fusions, each of which names it.
    parts = "".join(computation(f"async_collective_fusion.{i}", gather()) for i in range(3))
    calls = [
        f"%f.{i} = f32[4]{{0}} fusion(%p), kind=kCustom, calls=%async_collective_fusion.{i}"
        for i in range(3)
    ]
    assert collectives(program(*calls, others=parts)) == plain
    assert len(collectives(program(gather(channel=1), gather(channel=2)))) == 2


def test_a_tpus_reduce_scatter_is_one() -> None:
    options = "channel_id=3, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add"
    inner = computation(
        "all-reduce-scatter.2", f"%all-reduce.1 = f32[8,4]{{1,0}} all-reduce(%p), {options}"
    )
    line = "%f = f32[2,4]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.2"
    found = collectives(program(line, others=inner))
    assert found == [Collective("reduce-scatter", (Array("f32", (2, 4)),), 4, 1)]


def test_gathers_are_found_whatever_the_order_of_their_axes() -> None:
    found = collectives(
        program(gather("bf16[1,3,8,4]{3,2,1,0}"), gather("f32[8,4]{1,0}", channel=2))
    )
    assert gathers_of(found, {(3, 4, 8), (5, 5)}) == found[:1]


def test_other_text_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("module @jit_f {}")


def test_a_compiled_scan_gathers_each_layer() -> None:
    mesh = make_mesh(data=2, fsdp=4)
    rows = NamedSharding(mesh, P(("data", "fsdp")))
    kernels = NamedSharding(mesh, P(None, "fsdp"))

    def f(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda h, layer: (jnp.tanh(h @ layer), None), x, w)[0]

    step = jax.jit(f, in_shardings=(kernels, rows), out_shardings=rows)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((5, 16, 16), (64, 16))]
    found = collectives(step.lower(*shapes).compile().as_text())
    assert found == [Collective("all-gather", (Array("f32", (16, 16)),), 4, 5)]
    assert sent(found) == 5 * 16 * 16 * 4 * 3 // 4


@pytest.mark.parametrize(
    ("transfer", "target", "kind", "slices", "bytes_sent"),
    [
        ("ALL_REDUCE", "{1,2}x{0:3}", "all-reduce", 2, 128),
        ("ALL_REDUCE", "{1:4}x{0:15}", "all-reduce", 4, 2 * 128 * 3 // 4),
        ("ALL_GATHER", "{1:4}x{0:3}", "all-gather", 4, 3 * 128),
        ("REDUCE_SCATTER", "{1,2}x{0:3}", "reduce-scatter", 2, 64),
        ("ONE_TO_ONE", "{1,2}x{0:3}", "collective-permute", 2, 128),
    ],
)
def test_what_goes_between_slices_is_told_apart(
    transfer: str, target: str, kind: str, slices: int, bytes_sent: int
) -> None:
    """As libtpu 0.0.42 writes it; hosts carry other sends too."""
    line = (
        "%send = (f32[4,8]{1,0:T(8,128)}, u32[], token[]) send(%p, %t), channel_id=5, "
        'is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_'
        f'megascale_runtime",_xla_megascale_target="{target}",_xla_megascale_transfer_type="'
        f'{transfer}"}}'
    )
    other = line.replace("_xla_megascale", "_xla_other")
    (found,) = collectives(program(line, other))
    assert (found.kind, found.group, found.between) == (kind, slices, True)
    assert found.sent == bytes_sent
    (looped,) = collectives(
        program(
            "%l = f32[4] while(%p), condition=%c, body=%b, "
            'backend_config={"known_trip_count":{"n":"5"}}',
            others=computation("c", "%k = s32[] constant(5)") + computation("b", line),
        )
    )
    assert looped == found._replace(times=5)
