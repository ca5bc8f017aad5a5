"""A parser for compiled programs: computations, instructions, and how often each is executed.

The source is XLA's text of a program (`compiled.as_text()`) after all passes, because `cost_analysis` counts a loop
only once, however often it is executed.
"""

import dataclasses
import functools
import math
import re
from collections import defaultdict

SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4,
         "f64": 8, "s64": 8, "u64": 8}  # fmt: skip
"""Bytes per element."""

_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """Shape of a value, and whether it is stored in the device's main memory instead of on the chip."""

    dtype: str
    shape: tuple[int, ...]
    in_memory: bool

    @property
    def bytes(self) -> int:
        return SIZES.get(self.dtype, 1) * math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """name = out opcode(operands), attributes."""

    name: str
    out: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    inside: str
    """The text in the brackets, unchanged; for a constant, its value."""
    attributes: str

    def attribute(self, name: str) -> str | None:
        found = re.search(rf"\b{name}=%?([^\s,]+)", self.attributes)
        return found.group(1) if found else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in order; the root is the last one or the one marked as such."""

    name: str
    instructions: dict[str, Instruction]
    root: str


@dataclasses.dataclass(frozen=True)
class Program:
    """All computations, and the name of the entry computation."""

    computations: dict[str, Computation]
    entry: str

    @functools.cached_property
    def runs(self) -> dict[str, int]:
        """Number of executions of each computation that is not part of a fusion."""
        counts: dict[str, int] = defaultdict(int)

        def visit(name: str, times: int) -> None:
            counts[name] += times
            computation = self.computations[name]
            for instruction in computation.instructions.values():
                if instruction.opcode == "while":
                    body = instruction.attribute("body")
                    if body in self.computations:
                        visit(body, times * self.trips(instruction, computation))
                elif instruction.opcode in ("call", "async-start"):
                    for called in _CALLED.findall(instruction.attributes):
                        visit(called, times)

        visit(self.entry, 1)
        return dict(counts)

    def trips(self, loop: Instruction, where: Computation) -> int:
        """Returns how often a loop is executed that counts from, to and by a constant, as a scan does; otherwise 1."""
        known = re.search(r'known_trip_count"?:\s*\{"?n"?:\s*"?(\d+)', loop.attributes)
        if known:  # not given by XLA for TPUs
            return int(known.group(1))
        condition = self.computations.get(loop.attribute("condition") or "")
        body = self.computations.get(loop.attribute("body") or "")
        if condition is None or body is None:
            return 1
        compare = condition.instructions[condition.root]
        if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
            return 1
        counter, bound = (condition.instructions[name] for name in compare.operands)
        index = int(counter.attribute("index") or 0)
        step = self._step(body, index)
        start = self._constant(where, where.instructions[loop.operands[0]].operands, index)
        end = _value(bound)
        return 1 if end is None or not step else max(-(-(end - start) // step), 1)

    def _step(self, body: Computation, index: int) -> int | None:
        root = body.instructions[body.root]
        if root.opcode != "tuple":
            return None
        added = body.instructions[root.operands[index]]
        while added.opcode in ("copy", "bitcast"):
            added = body.instructions[added.operands[0]]
        if added.opcode != "add":
            return 1
        steps = [_value(body.instructions[name]) for name in added.operands]
        return next((step for step in steps if step is not None), 1)

    def _constant(self, where: Computation, operands: tuple[str, ...], index: int) -> int:
        first = where.instructions.get(operands[index]) if index < len(operands) else None
        while first is not None and first.opcode in ("copy", "bitcast"):
            first = where.instructions.get(first.operands[0])
        return (_value(first) if first is not None else None) or 0

    def of_fusion(self, instruction: Instruction) -> Computation | None:
        """Returns the computation of a fusion."""
        return self.computations.get(instruction.attribute("calls") or "")


def _value(instruction: Instruction) -> int | None:
    if instruction.opcode != "constant" or not re.fullmatch(r"-?\d+", instruction.inside):
        return None
    return int(instruction.inside)


def arrays(text: str) -> tuple[Array, ...]:
    """Parses the arrays of an output in XLA's notation, one or a tuple."""
    return tuple(
        Array(dtype, tuple(int(size) for size in sizes.split(",") if size), not re.search(r"S\([1-9]", layout or ""))
        for dtype, sizes, layout in _ARRAY.findall(text)
    )


def read_program(text: str) -> Program:
    """Parses the output of `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry, name, root, instructions = "", "", "", dict[str, Instruction]()
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY ")):
            name = line.removeprefix("ENTRY ").removeprefix("%").split(" ", 1)[0]
            entry = name if line.startswith("ENTRY ") else entry
            root, instructions = "", {}
        elif line == "}" and name:
            computations[name] = Computation(name, instructions, root or next(reversed(instructions), ""))
            name = ""
        elif name and line.startswith(("  %", "  ROOT ")):
            instruction = _instruction(line)
            instructions[instruction.name] = instruction
            root = instruction.name if line.lstrip().startswith("ROOT ") else root
    return Program(computations, entry)


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    out, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name.removeprefix("%"), arrays(out), rest[:opening], operands, inside, rest[closing + 1 :])


def _closing(text: str, opening: int) -> int:
    depth = 0
    for bracket in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if bracket.group() == "(" else -1
        if depth == 0:
            return bracket.start()
    raise ValueError(f"a bracket is not closed: {text[:80]}")
