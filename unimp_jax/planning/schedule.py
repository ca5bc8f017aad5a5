"""Duration of a compiled program in the compiler's order: work, and waiting for other devices."""

import dataclasses
import re
from typing import Literal

from jax.sharding import Mesh

from unimp_jax.planning.chips import Chip
from unimp_jax.planning.program import Computation, Instruction, Program
from unimp_jax.planning.traffic import Sent, sent_by, with_fused


@dataclasses.dataclass
class Schedule:
    """Seconds of a program on one device, instruction by instruction.

    Exchanges within a slice that are started early overlap with work until their end is needed, one after the other
    along one ring of the torus; all others block at once. Exchanges between slices are not counted.

    Attributes:
      work: From the compiler's cycles, or for kernels, which have none, from the operations that they report.
      waiting: Time for exchanges that are not complete when their end is needed.
      kernels_told: Whether all kernels report their operations.
    """

    work: float = 0.0
    waiting: float = 0.0
    kernels_told: bool = True


def schedule_of(program: Program, mesh: Mesh, chip: Chip) -> Schedule:
    """Computes the schedule from the instruction order of a program that was compiled for TPUs."""
    schedule = Schedule()
    _follow(program, program.computations[program.entry], mesh, chip, 1, schedule)
    return schedule


def _follow(program: Program, computation: Computation, mesh: Mesh, chip: Chip, times: int, total: Schedule) -> float:
    """Adds the durations of `times` executions of a computation; returns the seconds of one."""
    now = link_free = 0.0
    ends: dict[str, float] = {}  # of pending exchanges, by their keys
    for instruction in computation.instructions.values():
        called, runs = _called(program, computation, instruction)
        if called is not None:
            now += runs * _follow(program, called, mesh, chip, times * runs, total)
            continue
        work = _work(instruction, chip)
        if work is None:
            total.kernels_told, work = False, 0.0
        sent, part = _sent(program, computation, instruction, mesh), _part(program, instruction)
        over = now
        if part == "end":
            over = ends.pop(_key(instruction, sent), now)
        elif part != "middle" and sent is not None:
            link_free = max(now, link_free) + sent[0].bytes / chip.ring_bandwidth
            if part == "start":
                ends[_key(instruction, sent)] = link_free
            else:
                over = link_free
        waiting = max(over - now, 0.0)
        now += waiting + work
        total.work += times * work
        total.waiting += times * waiting
    return now


def _called(program: Program, computation: Computation, instruction: Instruction) -> tuple[Computation | None, int]:
    """Returns (the computation that an instruction executes besides itself, how often)."""
    if instruction.opcode == "while":
        body = program.computations.get(instruction.attribute("body") or "")
        return body, program.trips(instruction, computation)
    return program.computations.get(
        instruction.attribute("to_apply") or ""
    ) if instruction.opcode == "call" else None, 1


def _work(instruction: Instruction, chip: Chip) -> float | None:
    """Returns seconds of work; None for a kernel that does not report its cost."""
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    if found:
        return int(found.group(1)) / chip.clock
    if "tpu_custom_call" not in instruction.attributes:
        return 0.0
    flops = re.search(r'"cost_estimate":\{"flops":"(\d+)"', instruction.attributes)
    return int(flops.group(1)) / chip.flops / chip.kernel_share if flops else None


def _sent(
    program: Program, computation: Computation, instruction: Instruction, mesh: Mesh
) -> tuple[Sent, Instruction] | None:
    """Returns the largest transfer within a slice by an instruction or the instructions that it fuses."""
    alone = Computation(computation.name, {instruction.name: instruction}, instruction.name)
    found = [(computation if where is alone else where, one) for where, one in with_fused(program, alone)]
    sent = [
        (transfer, one)
        for where, one in found
        if (transfer := sent_by(one, where, mesh)) and "slice" not in transfer.axes
    ]
    return max(sent, key=lambda pair: pair[0].bytes, default=None)


def _key(instruction: Instruction, sent: tuple[Sent, Instruction] | None) -> str:
    """Returns a key shared by the start and the end of an exchange."""
    if instruction.opcode.endswith("-done"):
        return instruction.operands[0]
    channel = None if sent is None or instruction.opcode != "fusion" else sent[1].attribute("channel_id")
    return instruction.name if channel is None else f"channel {channel}"


def _part(program: Program, instruction: Instruction) -> Literal["start", "middle", "end", "all"]:
    """Returns which part of an exchange an instruction is; on-chip exchanges continue in fusions with other work."""
    if instruction.opcode.endswith(("-start", "-done")):
        return "start" if instruction.opcode.endswith("-start") else "end"
    fused = program.of_fusion(instruction) if instruction.opcode == "fusion" else None
    if fused is None:
        return "all"
    if fused.name.startswith("async_collective_fusion"):
        return "middle"
    targets = " ".join(one.attributes for one in fused.instructions.values() if one.opcode == "custom-call")
    return "start" if "AsyncCollectiveStart" in targets else "end" if "AsyncCollectiveDone" in targets else "all"
