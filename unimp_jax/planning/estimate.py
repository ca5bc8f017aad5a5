"""From a compiled step to what it needs of each device, and how long it might take."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from unimp_jax.planning.chips import Slices
from unimp_jax.planning.program import read_program
from unimp_jax.planning.schedule import schedule_of
from unimp_jax.planning.traffic import Sent, collectives, kept_bytes, memory_bytes


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step computes, on all devices together, in floating-point operations.

    Attributes:
      model: what must be computed (`unimp_jax.model.flops`).
      again: what is computed a second time in the backward pass.
      kernels: of both, what is computed in kernels that do not say themselves how much they compute.
    """

    model: float
    again: float
    kernels: float


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
      trainable, frozen, optimizer, batch: what the step is given.
      activations: what forward loops keep for backward ones.
      temporaries: everything else at the moment of most.
      program: the code.
    """

    trainable: float
    frozen: float
    optimizer: float
    batch: float
    activations: float
    temporaries: float
    program: float

    @property
    def total(self) -> float:
        return math.fsum(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Of a step; all but `waiting` are each as if there were nothing else.

    Attributes:
      compute: all products at the chip's peak.
      memory: what is moved between main memory and chip.
      rings: what devices of a slice send one another, each along one ring of the torus.
      network: what they send to other slices.
      compiler: XLA's own estimate of what it has compiled, and kernels (`unimp_jax.planning.schedule`).
      waiting: besides, for exchanges within the slice that the compiler's order does not hide behind work.
    """

    compute: float
    memory: float
    rings: float
    network: float
    compiler: float
    waiting: float

    @property
    def in_order(self) -> float:
        """What the compiler has made, one after the other."""
        return self.compiler + self.waiting + self.network

    @property
    def roofline(self) -> float:
        """Where everything within a slice goes on at once, and nothing else while slices exchange gradients."""
        return max(self.compute, self.memory, self.rings) + self.network

    @property
    def step(self) -> float:
        """The larger of both estimates: what to plan with."""
        return max(self.roofline, self.in_order)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one compiled step.

    Attributes:
      fits: whether it needs no more memory than a device has.
      mfu: model FLOPs over what all devices could do in `seconds.step`.
      mfu_without_waiting: the same if all exchanges within a slice were hidden behind work.
    """

    fits: bool
    memory: Memory
    available: float
    sent: tuple[Sent, ...]
    work: Work
    seconds: Seconds
    mfu: float
    mfu_without_waiting: float
    compile_seconds: float


def bytes_a_device(tree: Any) -> float:
    """Of arrays, or abstract ones, with a sharding."""

    def size(x: jax.ShapeDtypeStruct) -> float:
        place = x.sharding
        shape = place.shard_shape(x.shape) if isinstance(place, NamedSharding) else x.shape
        return math.prod(shape) * x.dtype.itemsize

    return math.fsum(size(x) for x in jax.tree.leaves(tree))


def estimate(
    compiled: jax.stages.Compiled, mesh: Mesh, slices: Slices, work: Work, given: dict[str, Any], compile_seconds: float
) -> Estimate:  # fmt: skip
    """
    Args:
      given: abstract arrays: trainable, frozen, optimizer, batch.
    """
    chip = slices.chip
    program = read_program(compiled.as_text())
    analysis = compiled.memory_analysis()
    kept = min(kept_bytes(program), analysis.temp_size_in_bytes)
    memory = Memory(
        **{name: bytes_a_device(tree) for name, tree in given.items()},
        activations=kept,
        temporaries=analysis.temp_size_in_bytes - kept,
        program=float(analysis.generated_code_size_in_bytes),
    )
    sent = tuple(collectives(program, mesh))
    across = math.fsum(one.bytes for one in sent if slices.count > 1 and "slice" in one.axes)
    within = math.fsum(one.bytes for one in sent) - across
    schedule = schedule_of(program, mesh, chip)
    kernels = 0.0 if schedule.kernels_told else work.kernels / mesh.size / chip.flops
    seconds = Seconds(
        compute=(work.model + work.again) / mesh.size / chip.flops,
        memory=memory_bytes(program) / chip.memory_bandwidth,
        rings=within / chip.ring_bandwidth,
        network=across / chip.network_bandwidth,
        compiler=schedule.work + kernels,
        waiting=schedule.waiting,
    )
    ideal = work.model / mesh.size / chip.flops
    return Estimate(
        fits=memory.total <= chip.memory,
        memory=memory,
        available=chip.memory,
        sent=sent,
        work=work,
        seconds=seconds,
        mfu=ideal / seconds.step,
        mfu_without_waiting=ideal / dataclasses.replace(seconds, waiting=0.0).step,
        compile_seconds=compile_seconds,
    )
