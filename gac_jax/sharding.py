"""The device mesh and the one table that says how every array of a training state is split.

Rules match parameter paths, so the same table also shards EMA and optimiser moments, whose
paths end in the parameter's own. Layers stacked by `nn.scan` keep their leading axis whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gac_jax.training.optimizer import path_name

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))

# First match wins. A spec covers the last axes of an array; () replicates it.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"basis_map/kernel$", ()),  # small; split, XLA's partitioner copies it from layout to layout
    (r"(query|key|value|gate|mlp_in|expand|affine|unfold)/kernel$", ("fsdp", "tensor")),
    (r"(out|mlp_out|project)/kernel$", ("tensor", "fsdp")),
    (r"(conv1|conv2)/kernel$", (None, "fsdp", "tensor")),
    (r"(basis|residual_codes|embedding)$", ("fsdp", None)),
    (r"kernel$", ("fsdp", None)),
    (r"(bias|scale|mean|null|lost|neighbours/weights)$", ()),
    (r"memory/.*$", ()),
    (r"(step|count|skipped|ns_coeffs)$", ()),
)


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh with axes `AXES`; one size may be -1, "the rest".

    Where devices are in several slices (TPU slices or GPU nodes, with a slower network between
    them), the axis `data`, which has the least to send, goes from slice to slice, and the others
    stay within one.

    Args:
      data: size of the axis.
      fsdp: see data.
      tensor: see data.
      devices: to use instead of all.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or data is no multiple of the
        number of slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    known = int(np.prod([n for n in sizes if n != -1]))
    sizes = [len(devices) // known if n == -1 else n for n in sizes]
    shape = dict(zip(AXES, sizes, strict=True))
    if int(np.prod(sizes)) != len(devices):
        raise ValueError(f"mesh {shape} does not use {len(devices)} devices")
    types = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=devices)
    if sizes[0] % slices:
        raise ValueError(f"mesh {shape}: {slices} slices need data to be a multiple of {slices}")
    within = (sizes[0] // slices, *sizes[1:])
    grid = mesh_utils.create_hybrid_device_mesh(
        within, (slices, 1, 1), devices, allow_split_physical_axes=True
    )
    return Mesh(grid, AXES, axis_types=types)


def shardings(mesh: Mesh, tree: object) -> object:
    """The NamedSharding of every leaf of `tree` (arrays or ShapeDtypeStructs) by `RULES`.

    An axis that does not divide its dimension is dropped, and the log says so.

    Raises:
      ValueError: a leaf that no rule names.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, x: _sharding(mesh, path_name(path), x), tree
    )


def shard_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays from this process's rows of a batch, split over data and fsdp."""
    sharding = NamedSharding(mesh, BATCH)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def _sharding(mesh: Mesh, name: str, x: jax.ShapeDtypeStruct) -> NamedSharding:
    axes = next((axes for pattern, axes in RULES if re.search(pattern, name)), None)
    if axes is None:
        raise ValueError(f"no sharding rule for {name} {x.shape}")
    axes = axes[len(axes) - min(len(axes), x.ndim) :]
    axes = (None,) * (x.ndim - len(axes)) + axes
    fitted = (_fit(mesh, name, axis, n) for axis, n in zip(axes, x.shape, strict=True))
    return NamedSharding(mesh, P(*fitted))


def _fit(mesh: Mesh, name: str, axis: str | None, size: int) -> str | None:
    if axis is None or mesh.shape[axis] == 1:
        return None
    if size % mesh.shape[axis]:
        logging.info("%s: %d does not divide by mesh axis %s, not split", name, size, axis)
        return None
    return axis
