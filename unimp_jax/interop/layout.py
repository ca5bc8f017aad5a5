"""Tables that map arrays of other packages to our parameters, one per model family, usable in both directions.

A layout such as "(h p k) d -> p d h k" is an einops pattern. It names the axes of the other package's array, with
merged axes in parentheses, and those of our parameter. If one array contains several parameters, p indexes them; if it
contains several equal copies of a part, copy indexes these. An axis 1 exists only in the other package.
"""

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
    """Weights that cannot be read or do not fit a configuration; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of another package and the parameters that it contains.

    Attributes:
      theirs: Its key; if our parameters have leading axes for layers, a pattern with {} for the layer's number.
      sizes: Sizes of axes that do not follow from our shape.
      first: The other package's number of the first layer.
      step: Difference between the other package's numbers of consecutive layers.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: str
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    first: int = 0
    step: int = 1


Table = list[Entry]


def entry(theirs: str, ours: str, layout: str, **sizes: int) -> Entry:
    """Creates an entry; `ours` lists the parameters, separated by spaces."""
    return Entry(theirs, tuple(ours.split()), layout, sizes)


def norm(theirs: str, ours: str, *, bias: bool = True) -> Table:
    """Returns the entries of a norm's scale and bias."""
    scale = entry(f"{theirs}.weight", f"{ours}/scale", "d -> d")
    return [scale, entry(f"{theirs}.bias", f"{ours}/bias", "d -> d")] if bias else [scale]


def linear(theirs: str, ours: str, *, bias: bool = False) -> Table:
    """Returns the entries of a linear layer whose axes are not split into heads."""
    kernel = entry(f"{theirs}.weight", f"{ours}/kernel", "o i -> i o")
    return [kernel, entry(f"{theirs}.bias", f"{ours}/bias", "o -> o")] if bias else [kernel]


def into_heads(theirs: str, ours: str, *, bias: bool = False, copies: int = 1) -> Table:
    """Returns the entries of a projection to heads; the other package stores each head `copies` times in a row."""
    layout, sizes = ("(h copy k) d -> d h k", {"copy": copies}) if copies > 1 else ("(h k) d -> d h k", {})
    kernel = entry(f"{theirs}.weight", f"{ours}/kernel", layout, **sizes)
    return [kernel, entry(f"{theirs}.bias", f"{ours}/bias", "(h k) -> h k")] if bias else [kernel]


def out_of_heads(theirs: str, ours: str, *, bias: bool = False) -> Table:
    """Returns the entries of the output projection of attention."""
    kernel = entry(f"{theirs}.weight", f"{ours}/kernel", "d (h k) -> h k d")
    return [kernel, entry(f"{theirs}.bias", f"{ours}/bias", "d -> d")] if bias else [kernel]


@dataclasses.dataclass(frozen=True)
class Placement:
    """One array of another package, by key, and the slices of our parameters that it fills; `index` is that of the
    slice in the leading axes (layers) of each of `entry.ours`."""

    key: str
    entry: Entry
    index: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def _layout(self) -> tuple[str, str, dict[str, int]]:
        """(axes of the other package, our axes, size of each axis)."""
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
        """Converts an array of `their_shape` to the slices of each of `entry.ours`, each of `shape`; raises
        WeightsError if copies differ from one another, so that one of them would be lost."""
        theirs, ours, sizes = self._layout
        first, *copies = einops.rearrange(array, f"{theirs} -> {'copy' if 'copy' in sizes else '1'} {ours}", **sizes)
        if any(not np.array_equal(first, copy) for copy in copies):
            raise WeightsError(f"{self.key}: heads that must share keys and values differ")
        return list(first) if len(self.entry.ours) > 1 else [first]

    def to_theirs(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """Computes the inverse of `to_ours`."""
        theirs, ours, sizes = self._layout
        array = np.stack(arrays) if len(arrays) > 1 else arrays[0]
        return np.ascontiguousarray(einops.repeat(array, f"{ours} -> {theirs}", **sizes))


Shapes = Mapping[str, tuple[int, ...]]
"""Name of a parameter, such as decoder/norm/scale -> its shape."""
Slice = tuple[str, tuple[int, ...]]
"""One of our parameters, and the index of a layer in its leading axes."""


def by_name(*states: Any) -> dict[str, nnx.Variable[Any]]:
    """Returns name, such as decoder/norm/scale, -> parameter for all parameters of some states."""
    return {"/".join(map(str, path)): variable for state in states for path, variable in nnx.to_flat_state(state)}


def shapes_of(make: Callable[[], nnx.Module]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a module's parameters without creating them."""
    return {name: tuple(variable.shape) for name, variable in by_name(nnx.state(nnx.eval_shape(make))).items()}


def model_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the parameters of `UniMP(config)`."""
    return {name: tuple(variable.shape) for name, variable in by_name(structure(config)[1]).items()}


def placements(table: Table, shapes: Shapes) -> Iterator[Placement]:
    """Yields every array of a table, for the parameters of one configuration; raises WeightsError if it lacks one of
    them."""
    for entry in table:
        for ours in entry.ours:
            if ours not in shapes:
                raise WeightsError(f"{entry.theirs}: the model has no parameter {ours} in this geometry")
        shape = shapes[entry.ours[0]]
        layers = len(shape) - len(AXES.findall(entry.layout.split(" -> ")[1])) + (len(entry.ours) > 1)
        for number, index in enumerate(np.ndindex(*shape[:layers])):
            yield Placement(entry.theirs.format(entry.first + number * entry.step), entry, index, shape[layers:])


def unfilled(shapes: Shapes, slices: Iterable[Slice]) -> set[str]:
    """Returns the parts of parameters that no slice fills, named by parameter and index."""
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
    """Formats the first few names."""
    names = sorted(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
