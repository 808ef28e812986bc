import os
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gac_jax.scaling.compiler import COMPLAINT, compile_and_listen
from gac_jax.sharding import make_mesh


class Complaining:
    """A program whose compiler writes to stderr as C++ does, and may fail."""

    def __init__(self, *lines: str, error: Exception | None = None) -> None:
        self.lines, self.error = lines, error

    def compile(self, compiler_options: dict[str, Any] | None) -> str:
        assert jax.config.jax_enable_compilation_cache is False
        os.write(2, "".join(f"{line}\n" for line in self.lines).encode())
        if self.error:
            raise self.error
        return f"compiled with {compiler_options}"


def test_complaints_are_heard_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    complaint = f"W0000 spmd_partitioner.cc:1] [SPMD] {COMPLAINT}. The compiler was not able"
    found = compile_and_listen(Complaining("chatter", complaint, "more"), some_option=1)
    assert found == ("compiled with {'some_option': 1}", [complaint])
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_a_failure_leaves_stderr_and_the_cache_as_they_were(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = jax.config.jax_enable_compilation_cache
    with pytest.raises(RuntimeError, match="no room"):
        compile_and_listen(Complaining(error=RuntimeError("no room")))
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
    assert jax.config.jax_enable_compilation_cache is before is True


@pytest.mark.parametrize(("rows", "complaints"), [(("data", "fsdp", "tensor"), 1), ("data", 0)])
def test_xla_complains_of_a_layout_that_it_cannot_reach(rows: object, complaints: int) -> None:
    mesh = make_mesh(data=2, fsdp=2, tensor=2)

    def f(x: jax.Array) -> jax.Array:
        y = jax.lax.with_sharding_constraint(jnp.sin(x), NamedSharding(mesh, P(rows)))
        return jax.lax.with_sharding_constraint(
            jnp.cos(y), NamedSharding(mesh, P("tensor", "data"))
        )

    lowered = jax.jit(f).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32))
    assert len(compile_and_listen(lowered).complaints) == complaints
