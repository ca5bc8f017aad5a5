"""Elastic training: adapts mesh, accumulation and remat of a run to the available devices, but not its batches."""

import dataclasses
import math
from pathlib import Path
from typing import Self

import jax

from experiments.config import ExperimentConfig, read_config
from unimp_jax.sharding import MeshConfig, tpu_slices

FILE = "first_machine.json"
"""File in the run folder with the `Machine` that the run began on."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """The devices that a mesh is made of."""

    devices: int
    """Total number of devices."""
    slices: int = 1
    """Number of TPU slices; 1 for other devices."""

    @classmethod
    def here(cls) -> Self:
        return cls(len(jax.devices()), tpu_slices(jax.devices()))


def first_machine(folder: Path | None) -> Machine | None:
    """Returns the machine that a run began on; None if there is no run, or if an earlier version began it."""
    return read_config(folder / FILE, Machine) if folder is not None and (folder / FILE).exists() else None


def fitted(config: ExperimentConfig, folder: Path | None, machine: Machine | None = None) -> ExperimentConfig:
    """Returns the experiment adapted to a machine; unchanged unless `training.elastic` is set.

    The mesh is that of `fitted_mesh`. Accumulation is the smallest number of parts with which a device has no more of a
    batch at a time than on the machine that the run began on, counting rows and the share of a row that `mesh.context`
    and `mesh.tensor` leave it. If even one row is more than that, layers are recomputed (`model.remat full`).

    Args:
      folder: the run folder; None if the run begins on this machine.
      machine: all devices available here by default.

    Raises:
      ValueError: the rows of a batch cannot be split over the devices.
    """
    if not config.training.elastic:
        return config
    machine = machine or Machine.here()
    first, mesh = fitted_mesh(config.mesh, first_machine(folder) or machine), fitted_mesh(config.mesh, machine)
    rows, shards, parts = config.loader.batch_size, mesh.row_shards, mesh.context * mesh.tensor
    if rows % shards:
        right = parts * next(count for count in range(shards, 0, -1) if rows % count == 0)
        raise ValueError(
            f"training.elastic: a batch of {rows} rows cannot be split over {shards} shards, which "
            f"{machine.devices} devices with context={mesh.context} and tensor={mesh.tensor} make; use {right} "
            "devices, or another mesh.context or mesh.tensor"
        )
    most = rows * parts // (first.row_shards * first.context * first.tensor * config.training.accumulate)
    at_once = max(count for count in range(1, max(most, 1) + 1) if rows // shards % count == 0)
    return dataclasses.replace(
        config,
        mesh=mesh,
        training=dataclasses.replace(config.training, accumulate=rows // shards // at_once),
        model=config.model if most else dataclasses.replace(config.model, remat="full"),
    )


def fitted_mesh(asked: MeshConfig, machine: Machine) -> MeshConfig:
    """Returns the requested axis sizes, each reduced to its greatest common divisor with the devices that are left,
    starting with the last axis.

    The remaining devices go to the axis whose size is -1, else to `data`. Each size divides the requested one (except
    for these two axes and the TPU slices), so that heads, channels and tokens that could be split over the one can be
    split over the other.
    """
    left, sizes = machine.devices // machine.slices, {}
    wanted = dataclasses.asdict(asked)
    rest = next((axis for axis, size in wanted.items() if size == -1), "data")
    wanted |= {"slice": max(asked.slice // machine.slices, 1), rest: 1}
    for axis in ("tensor", "context", "fsdp", "slice", "data"):
        sizes[axis] = math.gcd(wanted[axis], left)
        left //= sizes[axis]
    sizes[rest] *= left
    sizes["slice"] *= machine.slices
    return MeshConfig(**sizes)


def described(config: ExperimentConfig) -> str:
    """Summarises the adapted fields."""
    mesh = " ".join(f"{axis}={size}" for axis, size in dataclasses.asdict(config.mesh).items() if size > 1)
    parts = config.training.accumulate
    rows = config.loader.batch_size // config.mesh.row_shards // parts
    return f"mesh {mesh or 'data=1'}, {rows} rows at a time, accumulate {parts}, remat {config.model.remat}"
