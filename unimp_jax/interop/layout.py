"""One table a family says which of their arrays become which of our parameters; it reads in both directions.

A layout such as "(h p k) d -> p d h k" is a pattern of einops. It names the axes of their array, parentheses around
those that are merged into one, and of ours. Where one of their arrays holds several of our parameters, p counts these;
where theirs has several equal copies of a part, copy counts these. An axis 1 is theirs alone.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import einops
import numpy as np
from flax import nnx

from unimp_jax.model import ModelConfig
from unimp_jax.sharding import structure

AXES = re.compile(r"\([^)]*\)|\S+")
"""Each axis of one side of a layout."""


class WeightsError(ValueError):
    """Weights that cannot be read, or do not fit a geometry, told in one line."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of their arrays and the parameters it becomes.

    Attributes:
      theirs: its key; where our parameters have leading axes that count layers, that of each layer, {} its number.
      sizes: of axes that our shape does not tell.
      first: the number that they give to the first layer.
      step: how far their numbers of two layers are apart.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: str
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    first: int = 0
    step: int = 1


Table = list[Entry]


def entry(theirs: str, ours: str, layout: str, **sizes: int) -> Entry:
    """`ours` lists the parameters, separated by blanks."""
    return Entry(theirs, tuple(ours.split()), layout, sizes)


def norm(theirs: str, ours: str, *, bias: bool = True) -> Table:
    """A norm's scale and bias."""
    scale = entry(f"{theirs}.weight", f"{ours}/scale", "d -> d")
    return [scale, entry(f"{theirs}.bias", f"{ours}/bias", "d -> d")] if bias else [scale]


def linear(theirs: str, ours: str, *, bias: bool = False) -> Table:
    """A matrix between unsplit axes."""
    kernel = entry(f"{theirs}.weight", f"{ours}/kernel", "o i -> i o")
    return [kernel, entry(f"{theirs}.bias", f"{ours}/bias", "o -> o")] if bias else [kernel]


def into_heads(theirs: str, ours: str, *, bias: bool = False, copies: int = 1) -> Table:
    """A matrix onto heads: queries, keys or values, where theirs has each head so many times, one after the other."""
    layout, sizes = ("(h copy k) d -> d h k", {"copy": copies}) if copies > 1 else ("(h k) d -> d h k", {})
    kernel = entry(f"{theirs}.weight", f"{ours}/kernel", layout, **sizes)
    return [kernel, entry(f"{theirs}.bias", f"{ours}/bias", "(h k) -> h k")] if bias else [kernel]


def out_of_heads(theirs: str, ours: str, *, bias: bool = False) -> Table:
    """The matrix after attention."""
    kernel = entry(f"{theirs}.weight", f"{ours}/kernel", "d (h k) -> h k d")
    return [kernel, entry(f"{theirs}.bias", f"{ours}/bias", "d -> d")] if bias else [kernel]


@dataclasses.dataclass(frozen=True)
class Placement:
    """One of their arrays, by key, and the slices of our parameters that it fills.

    Attributes:
      key: theirs.
      entry: where it comes from.
      index: of the slice in the leading axes (layers) of each of `entry.ours`.
      shape: of the slice.
    """

    key: str
    entry: Entry
    index: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def _layout(self) -> tuple[str, str, dict[str, int]]:
        """(their axes, ours, the size of each)."""
        theirs, ours = self.entry.layout.split(" -> ")
        parts = len(self.entry.ours)
        named = zip(AXES.findall(ours), (parts, *self.shape) if parts > 1 else self.shape, strict=True)
        return theirs, ours, {name: size for name, size in named if name.isidentifier()} | dict(self.entry.sizes)

    @property
    def their_shape(self) -> tuple[int, ...]:
        theirs, _, sizes = self._layout
        merged = (axis.strip("()").split() for axis in AXES.findall(theirs))
        return tuple(math.prod(sizes.get(name, 1) for name in names) for names in merged)

    def to_ours(self, array: np.ndarray) -> list[np.ndarray]:
        """Their array, of `their_shape`, as the slices of each of `entry.ours`, each of `shape`.

        Raises:
          WeightsError: copies differ from one another, so that one of them would be lost.
        """
        theirs, ours, sizes = self._layout
        first, *copies = einops.rearrange(array, f"{theirs} -> {'copy' if 'copy' in sizes else '1'} {ours}", **sizes)
        if any(not np.array_equal(first, copy) for copy in copies):
            raise WeightsError(f"{self.key}: heads that share keys and values differ")
        return list(first) if len(self.entry.ours) > 1 else [first]

    def to_theirs(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The inverse of `to_ours`."""
        theirs, ours, sizes = self._layout
        array = np.stack(arrays) if len(arrays) > 1 else arrays[0]
        return np.ascontiguousarray(einops.repeat(array, f"{ours} -> {theirs}", **sizes))


Shapes = Mapping[str, tuple[int, ...]]
"""Name of a parameter, such as decoder/norm/scale -> its shape."""
Slice = tuple[str, tuple[int, ...]]
"""A parameter of ours, and the index of a layer in its leading axes."""


def by_name(*states: Any) -> dict[str, nnx.Variable[Any]]:
    """Name, such as decoder/norm/scale, -> parameter, of all those of some states."""
    return {"/".join(map(str, path)): variable for state in states for path, variable in nnx.to_flat_state(state)}


def shapes_of(make: Callable[[], nnx.Module]) -> dict[str, tuple[int, ...]]:
    """Of the parameters of a module, none of which is made."""
    return {name: tuple(variable.shape) for name, variable in by_name(nnx.state(nnx.eval_shape(make))).items()}


def model_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Of the parameters of `UniMP(config)`."""
    return {name: tuple(variable.shape) for name, variable in by_name(structure(config)[1]).items()}


def placements(table: Table, shapes: Shapes) -> Iterator[Placement]:
    """Every array that a table asks of theirs, for the parameters of one geometry.

    Raises:
      WeightsError: the geometry has no such parameter.
    """
    for entry in table:
        for ours in entry.ours:
            if ours not in shapes:
                raise WeightsError(f"{entry.theirs}: the geometry gives the model no parameter {ours}")
        shape = shapes[entry.ours[0]]
        layers = len(shape) - len(AXES.findall(entry.layout.split(" -> ")[1])) + (len(entry.ours) > 1)
        for number, index in enumerate(np.ndindex(*shape[:layers])):
            yield Placement(entry.theirs.format(entry.first + number * entry.step), entry, index, shape[layers:])


def unfilled(shapes: Shapes, slices: Iterable[Slice]) -> set[str]:
    """The parts of parameters that none of the slices is; a part is named as its parameter, with its index."""
    found: dict[str, set[tuple[int, ...]]] = {name: set() for name in shapes}
    for name, index in slices:
        found[name].add(index)
    return {
        "/".join([name, *map(str, index)])
        for name, indices in found.items()
        for index in np.ndindex(*shapes[name][: len(next(iter(indices), ()))])
        if index not in indices
    }


def some(names: Sequence[str] | set[str], count: int = 3) -> str:
    """The first few of them."""
    names = sorted(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
