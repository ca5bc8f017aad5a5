"""Estimates memory and step time per device from a compiled step."""

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
    """Floating-point operations of a step, on all devices together.

    Attributes:
      model: Required operations (`unimp_jax.model.flops`).
      again: Operations recomputed in the backward pass.
      kernels: Of both, the operations in kernels that do not report their own cost.
    """

    model: float
    again: float
    kernels: float


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of memory on one device.

    Attributes:
      activations: Activations that forward loops store for backward loops.
      temporaries: All other buffers at peak.
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
    """Duration of parts of a step; each except `waiting` is estimated as if there were nothing else.

    Attributes:
      compute: All products at the chip's peak.
      memory: Transfers between main memory and chip.
      rings: Communication within a slice, each exchange along one ring of the torus.
      compiler: XLA's own estimate of the compiled program, plus kernels (`unimp_jax.planning.schedule`).
      waiting: Additional time for exchanges within the slice that the compiler's order does not hide behind work.
    """

    compute: float
    memory: float
    rings: float
    network: float
    compiler: float
    waiting: float

    @property
    def in_order(self) -> float:
        """The compiled program executed in order."""
        return self.compiler + self.waiting + self.network

    @property
    def roofline(self) -> float:
        """The step time if all work within a slice overlaps, and nothing overlaps with exchanges between slices."""
        return max(self.compute, self.memory, self.rings) + self.network

    @property
    def step(self) -> float:
        """The larger of both estimates, to be used for planning."""
        return max(self.roofline, self.in_order)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimate for one compiled step.

    Attributes:
      mfu: Model FLOPs divided by the peak FLOPs of all devices in `seconds.step`.
      mfu_without_waiting: The same if all exchanges within a slice were hidden behind work.
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
    """Returns the bytes per device of arrays, concrete or abstract, with a sharding."""

    def size(x: jax.ShapeDtypeStruct) -> float:
        place = x.sharding
        shape = place.shard_shape(x.shape) if isinstance(place, NamedSharding) else x.shape
        return math.prod(shape) * x.dtype.itemsize

    return math.fsum(size(x) for x in jax.tree.leaves(tree))


def estimate(
    compiled: jax.stages.Compiled, mesh: Mesh, slices: Slices, work: Work, given: dict[str, Any], compile_seconds: float
) -> Estimate:  # fmt: skip
    """Estimates memory, communication and duration of a compiled step.

    Args:
      given: Abstract arrays by name: trainable, frozen, optimizer, batch.
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
