"""Data that a compiled program moves per step and device: between devices, and between memory and chip."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh

from unimp_jax.planning.program import Array, Computation, Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Sent:
    """Data that a device sends per step by one kind of collective along some mesh axes.

    Attributes:
      axes: Mesh axes along which the participating devices lie; empty if unknown.
      bytes: Total over all executions of all these collectives.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: float


def collectives(program: Program, mesh: Mesh) -> list[Sent]:
    """Returns all exchanges of a step, largest first; one that XLA split into a start, steps and an end counts once."""
    found: dict[str, Sent] = {}
    for name, times in program.runs.items():
        for computation, instruction in with_fused(program, program.computations[name]):
            one = sent_by(instruction, computation, mesh)
            if one is None:
                continue
            one = dataclasses.replace(one, bytes=times * one.bytes)
            number = None if instruction.opcode == "send" else instruction.attribute("channel_id")
            channel = f"{name}/{instruction.name}" if number is None else f"{one.kind} {number}"
            if channel not in found or found[channel].bytes < one.bytes:
                found[channel] = one
    sums: dict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
    for one in found.values():
        sums[one.kind, one.axes] += one.bytes
    return sorted((Sent(*key, count) for key, count in sums.items()), key=lambda one: -one.bytes)


def sent_by(instruction: Instruction, computation: Computation, mesh: Mesh) -> Sent | None:
    """Returns what a device sends in one execution of an instruction; None if nothing."""
    kind = instruction.opcode.removesuffix("-start")
    across = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    if kind == "send" and across:  # to other slices, through the hosts
        kind = across.group(1).lower().replace("_", "-")
        return Sent(kind, ("slice",), _sent(kind, instruction.out[0].bytes, mesh.shape["slice"]))
    if kind not in KINDS:
        return None
    group = group_of(kind, instruction.attributes, mesh.size)
    if len(group) < 2:
        return None
    if kind == "all-reduce" and ("reduce-scatter" in computation.name or "reduce_scatter" in computation.name):
        kind = "reduce-scatter"
    return Sent(kind, axes_of(group, mesh), _sent(kind, _moved(instruction, computation), len(group)))


def with_fused(program: Program, computation: Computation) -> Iterator[tuple[Computation, Instruction]]:
    """Yields all instructions of a computation and of the computations that they fuse."""
    for instruction in computation.instructions.values():
        yield computation, instruction
        fused = program.of_fusion(instruction) if instruction.opcode == "fusion" else None
        if fused is not None:
            yield from with_fused(program, fused)


def _moved(instruction: Instruction, computation: Computation) -> float:
    """Returns exchanged bytes: all parts together for an all-gather, otherwise a device's input."""
    sources = [computation.instructions[name] for name in instruction.operands if name in computation.instructions]
    given = sum(array.bytes for source in sources for array in source.out)
    if instruction.opcode.startswith("all-gather"):
        return max(sum(array.bytes for array in instruction.out) - given * instruction.opcode.endswith("start"), given)
    return given


def _sent(kind: str, moved: float, size: int) -> float:
    """Returns the bytes that one of `size` devices sends with the usual ring algorithms."""
    if kind == "collective-permute":
        return moved
    return moved * (size - 1) / size * (2 if kind == "all-reduce" else 1)


def group_of(kind: str, attributes: str, devices: int) -> np.ndarray:
    """Returns the numbers of the devices in the first group that exchange with one another."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)
        ring, targets = [0], {}
        for source, target in re.findall(r"\{(\d+),(\d+)\}?", f"{pairs.group(1)}}}" if pairs else ""):
            targets[int(source)] = int(target)
        while targets and len(ring) <= devices and targets.get(ring[-1]) not in (None, 0, ring[-1]):
            ring.append(targets[ring[-1]])
        return np.array(ring if len(ring) > 1 else sorted(next(iter(targets.items()), (0,))))
    named = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=(\S+))? \{(.*?)\}", attributes)
    if named:
        sizes = [int(size) for size in re.findall(r"=(\d+)", named.group(1))]
        names = re.findall(r"'([^']+)'=", named.group(1))
        along = [name in re.findall(r"'([^']+)'", named.group(3)) for name in names]
        numbers = _iota(named.group(2) or "", sizes)
        return numbers[tuple(slice(None) if own else 0 for own in along)].ravel()
    iota = re.search(r"replica_groups=\[([\d,]+)\](<=\S+)", attributes)
    if iota:
        return _iota(iota.group(2), [int(size) for size in iota.group(1).split(",")])[0].ravel()
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    return np.array([int(number) for number in listed.group(1).split(",")]) if listed else np.arange(devices)


def _iota(text: str, sizes: list[int]) -> np.ndarray:
    """Parses XLA's `<=[4,2]T(1,0)`: 0, 1, … in that shape, transposed, then reshaped to `sizes`."""
    found = re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not found:
        return np.arange(math.prod(sizes)).reshape(sizes)
    numbers = np.arange(math.prod(int(n) for n in found.group(1).split(","))).reshape(
        [int(n) for n in found.group(1).split(",")]
    )
    if found.group(2):
        numbers = numbers.transpose([int(n) for n in found.group(2).split(",")])
    return numbers.reshape(sizes)


def axes_of(group: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
    """Returns the mesh axes along which the devices of a group differ; devices are numbered in the mesh's order."""
    places = np.unravel_index(group, mesh.devices.shape)
    return tuple(name for name, place in zip(mesh.axis_names, places, strict=True) if len(set(place.tolist())) > 1)


NOTHING_MOVED = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "call", "conditional",
                 "partition-id", "after-all", "iota", "async-start", "async-done", "async-update"}  # fmt: skip


def memory_bytes(program: Program) -> float:
    """Returns bytes read from and written to main memory in a step; data that stays on the chip is not counted."""
    total = 0.0
    for name, times in program.runs.items():
        computation = program.computations[name]
        for instruction in computation.instructions.values():
            if instruction.opcode not in NOTHING_MOVED and not instruction.opcode.endswith(("-done", "-update")):
                total += times * _touched(program, computation, instruction)
    return total


def _touched(program: Program, computation: Computation, instruction: Instruction) -> float:
    given = [
        [array for array in computation.instructions[name].out] if name in computation.instructions else []
        for name in instruction.operands
    ]
    if instruction.opcode in ("copy-start", "slice-start", "dynamic-slice", "slice", "gather"):
        arrays = [array for array in instruction.out if array.bytes > 64]
        least = min((array.bytes for array in arrays), default=0)
        return float(least * (1 + (instruction.opcode == "copy-start" and all(a.in_memory for a in arrays))))
    if instruction.opcode == "dynamic-update-slice":
        return 2.0 * _in_memory(given[1])
    out = _in_memory(instruction.out)
    fused = program.of_fusion(instruction) if instruction.opcode == "fusion" else None
    if fused is None:
        return float(out + sum(_in_memory(arrays) for arrays in given))
    parameters = [one for one in fused.instructions.values() if one.opcode == "parameter"]
    total = 0.0
    for parameter in parameters:
        number = int(parameter.inside)
        if number >= len(given):
            continue
        users = [one for one in fused.instructions.values() if parameter.name in one.operands]
        if users and all(one.opcode == "dynamic-slice" for one in users):
            total += sum(array.bytes for one in users for array in one.out) * bool(_in_memory(given[number]))
        elif users and all(one.opcode == "dynamic-update-slice" and one.operands[0] == parameter.name for one in users):
            # Updated in place: only the slice is written, not the whole array.
            written = sum(a.bytes for one in users for a in fused.instructions[one.operands[1]].out)
            total += written * bool(_in_memory(given[number]))
            out -= min(sum(array.bytes for array in parameter.out), out)
        else:
            total += _in_memory(given[number])
    return float(total + out)


def _in_memory(arrays: tuple[Array, ...] | list[Array]) -> float:
    return float(sum(array.bytes for array in arrays if array.in_memory))


def kept_bytes(program: Program) -> float:
    """Returns bytes of stored activations, which forward loops write slice by slice and backward loops read. Loops are
    in the entry computation or in one that it calls, as newer XLA for CPUs does with small loops."""
    total = 0.0
    for computation in (program.computations[name] for name, times in program.runs.items() if times == 1):
        for loop in computation.instructions.values():
            if loop.opcode != "while" or "transpose(jvp())" in loop.attributes:
                continue
            body = program.computations[loop.attribute("body") or ""]
            root, trips = body.instructions[body.root], program.trips(loop, computation)
            for number, name in enumerate(root.operands):
                own, array = body.instructions[name], loop.out[number]
                unchanged = own.opcode == "get-tuple-element" and own.attribute("index") == str(number)
                if array.in_memory and trips > 1 and array.shape[:1] == (trips,) and not unchanged:
                    total += array.bytes
    return total
