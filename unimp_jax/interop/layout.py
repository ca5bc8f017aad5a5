"""One table a family says which of their arrays become which of our parameters; it reads in both directions.

A layout such as "(h p k) d -> p d h k" names the axes of their array, parentheses around those that are merged into
one, and of ours. Where one of their arrays holds several of ours, p counts these. An axis 1 is theirs alone.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from flax import nnx

from unimp_jax.model import ModelConfig, UniMP


class WeightsError(ValueError):
    """Weights that cannot be read, or do not fit a geometry, told in one line."""


Stack = Literal["one", "vision", "resampler", "gated", "gated_by_layer", "decoder"]
"""How their layers are numbered: not at all, or as the layers of a part; `gated_by_layer` counts decoder layers."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of their arrays (or one a layer, {} its number) and the parameters it becomes.

    Attributes:
      repeat: theirs has each key or value head (h) so many times, one after the other.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: str
    stack: Stack = "one"
    repeat: int = 1


Table = list[Entry]


def entry(theirs: str, ours: str, layout: str, stack: Stack = "one", *, repeat: int = 1) -> Entry:
    """`ours` lists the parameters, separated by blanks."""
    return Entry(theirs, tuple(ours.split()), layout, stack, repeat)


def norm(theirs: str, ours: str, stack: Stack = "one", *, bias: bool = True) -> Table:
    """A norm's scale and bias."""
    scale = entry(f"{theirs}.weight", f"{ours}/scale", "d -> d", stack)
    return [scale, entry(f"{theirs}.bias", f"{ours}/bias", "d -> d", stack)] if bias else [scale]


def linear(theirs: str, ours: str, stack: Stack, *, bias: bool) -> Table:
    """A matrix between unsplit axes."""
    kernel = entry(f"{theirs}.weight", f"{ours}/kernel", "o i -> i o", stack)
    return [kernel, entry(f"{theirs}.bias", f"{ours}/bias", "o -> o", stack)] if bias else [kernel]


def into_heads(theirs: str, ours: str, stack: Stack, *, bias: bool = False, repeat: int = 1) -> Table:
    """A matrix onto heads: queries, keys or values."""
    kernel = entry(f"{theirs}.weight", f"{ours}/kernel", "(h k) d -> d h k", stack, repeat=repeat)
    return [kernel, entry(f"{theirs}.bias", f"{ours}/bias", "(h k) -> h k", stack)] if bias else [kernel]


def out_of_heads(theirs: str, ours: str, stack: Stack, *, bias: bool = False) -> Table:
    """The matrix after attention."""
    kernel = entry(f"{theirs}.weight", f"{ours}/kernel", "d (h k) -> h k d", stack)
    return [kernel, entry(f"{theirs}.bias", f"{ours}/bias", "d -> d", stack)] if bias else [kernel]


@dataclasses.dataclass(frozen=True)
class Piece:
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
    def _axes(self) -> tuple[list[list[str]], list[str], dict[str, int]]:
        """(their axes, each a list of those merged; ours; sizes), with repeated heads split into h and copy."""
        left, right = self.entry.layout.split("->")
        merged, ours = [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\w+", left)], right.split()
        parts = len(self.entry.ours)
        sizes = dict(zip(ours, (parts, *self.shape) if parts > 1 else self.shape, strict=True)) | {"1": 1}
        if self.entry.repeat > 1:
            merged = [
                [name for axis in group for name in ([axis, "copy"] if axis == "h" else [axis])] for group in merged
            ]
            sizes["copy"] = self.entry.repeat
        return merged, ours, sizes

    @property
    def their_shape(self) -> tuple[int, ...]:
        merged, _, sizes = self._axes
        return tuple(math.prod(sizes[name] for name in group) for group in merged)

    def to_ours(self, array: np.ndarray) -> list[np.ndarray]:
        """Their array, of `their_shape`, as the slices of each of `entry.ours`, each of `shape`.

        Raises:
          WeightsError: repeated heads differ from one another, so that one of them would be lost.
        """
        merged, ours, sizes = self._axes
        names = [name for group in merged for name in group]
        split = array.reshape([sizes[name] for name in names])
        if "copy" in names:
            first = np.take(split, [0], axis=names.index("copy"))
            if not np.array_equal(np.broadcast_to(first, split.shape), split):
                raise WeightsError(f"{self.key}: heads that share keys and values differ")
            split = first
        unit = [name for name in names if name not in ours]
        order = [names.index(name) for name in ours] + [i for i, name in enumerate(names) if name in unit]
        return list(split.transpose(order).reshape(len(self.entry.ours), *self.shape))

    def to_theirs(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The inverse of `to_ours`."""
        merged, ours, sizes = self._axes
        names = [name for group in merged for name in group]
        array = np.stack(arrays) if len(arrays) > 1 else arrays[0]
        present = [name for name in names if name in ours]
        array = array.transpose([ours.index(name) for name in present])
        array = array.reshape([sizes[name] if name in ours else 1 for name in names])
        array = np.broadcast_to(array, [sizes[name] for name in names])
        return np.ascontiguousarray(array.reshape(self.their_shape))


def abstract_parameters(config: ModelConfig) -> dict[str, nnx.Variable]:
    """Name, such as decoder/norm/scale, -> parameter of `UniMP(config)`, without values."""
    state = nnx.state(nnx.eval_shape(lambda: UniMP(config, rngs=nnx.Rngs(0))))
    return {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def leading_axes(name: str) -> int:
    """How many of a parameter's axes count layers."""
    part, *rest = name.split("/")
    if part == "decoder" and rest[0] == "layers":
        return 2
    return int(part == "gated" or rest[0] in ("blocks", "layers"))


def numbers(config: ModelConfig, stack: Stack) -> list[tuple[int, tuple[int, ...]]]:
    """(their number of a layer, its index in ours) for all layers of a stack."""
    every = config.gated.every
    if stack == "one":
        return [(0, ())]
    if stack == "decoder":
        return [(layer, divmod(layer, every)) for layer in range(config.decoder.layers)]
    if stack == "gated_by_layer":
        return [(group * every + config.gated.block_layer, (group,)) for group in range(config.groups)]
    count = {"vision": config.vision.layers, "resampler": config.resampler.layers, "gated": config.groups}[stack]
    return [(layer, (layer,)) for layer in range(count)]


def pieces(table: Table, config: ModelConfig, parameters: Mapping[str, nnx.Variable] | None = None) -> Iterator[Piece]:
    """Every array that a table asks of theirs, for one geometry.

    Args:
      parameters: `abstract_parameters(config)`, where they are at hand.

    Raises:
      WeightsError: the geometry has no such parameter.
    """
    parameters = abstract_parameters(config) if parameters is None else parameters
    for entry in table:
        for ours in entry.ours:
            if ours not in parameters:
                raise WeightsError(f"{entry.theirs}: the geometry gives the model no parameter {ours}")
        shape = tuple(parameters[entry.ours[0]].shape[leading_axes(entry.ours[0]) :])
        for number, index in numbers(config, entry.stack):
            yield Piece(entry.theirs.format(number), entry, index, shape)


def some(names: Sequence[str] | set[str], count: int = 3) -> str:
    """The first few of them."""
    names = sorted(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
