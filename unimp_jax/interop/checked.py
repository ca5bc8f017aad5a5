"""Whether arrays are weights: all there, of the right type and shape, and every one of their numbers finite."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np

from unimp_jax.interop.layout import WeightsError, some
from unimp_jax.interop.weights import FLOATS, UNQUANTISED, Weights

QUANTISED = re.compile(
    r"(.+)\.(qweight|qzeros|scales|SCB|weight_packed|weight_scale(_inv)?|weight_zero_point"
    r"|weight\.(SCB|absmax|quant_map|quant_state\..+))"
)
"""Keys beside those of quantised matrices, such as GPTQ, AWQ, bitsandbytes, FP8 and compressed-tensors have."""
BLOCK = 2**22
"""Numbers looked at at once."""


def check_arrays(weights: Weights, wanted: Mapping[str, tuple[int, ...]], optional: tuple[str, ...] = ()) -> list[str]:
    """The keys of `wanted` (key -> shape) that are there, of which none has been read.

    Args:
      optional: keys that begin so may be absent.

    Raises:
      WeightsError: one is missing, quantised, of a type that no weights have, or of another shape.
    """
    present = set(weights.keys())
    quantised = {f"{found[1]}.weight": key for key in sorted(present) if (found := QUANTISED.fullmatch(key))}
    missing = [key for key in wanted if key not in present and not key.startswith(optional or "\0")]
    if told := [key for key in wanted if key in quantised]:
        raise WeightsError(f"{weights.name}: {told[0]} is quantised ({quantised[told[0]]} is beside it): {UNQUANTISED}")
    if missing:
        raise WeightsError(
            f"{weights.name}: {len(missing)} arrays are missing that the geometry asks for: {some(set(missing))}"
        )
    there = [key for key in wanted if key in present]
    for key in there:
        check_kind(weights, key)
    for key in there:
        if weights.shape(key) != wanted[key]:
            raise WeightsError(
                f"{weights.name}: {key} has shape {weights.shape(key)}, the geometry asks for {wanted[key]}"
            )
    return there


def check_kind(weights: Weights, key: str) -> None:
    """
    Raises:
      WeightsError: an array's type is none that weights have.
    """
    if weights.kind(key) not in FLOATS:
        raise WeightsError(
            f"{weights.name}: {key} is of type {weights.kind(key)}, which no weights are that can be read "
            f"({', '.join(FLOATS)} are): {UNQUANTISED}"
        )


def read_finite(weights: Weights, key: str) -> np.ndarray:
    """An array, all of whose numbers are finite in float32.

    Raises:
      WeightsError: they are not; says how many.
    """
    array = weights.read(key)
    bad = sum(int(np.count_nonzero(~np.isfinite(block))) for block in blocks(array))
    if bad:
        what = "is NaN, infinite or beyond float32" if bad == 1 else "are NaN, infinite or beyond float32"
        raise WeightsError(
            f"{weights.name}: {bad} of the {array.size} numbers of {key} {what}: the file is damaged, or the training "
            "that wrote it had failed; take another checkpoint"
        )
    return array


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array part by part, so that looking at it needs no copy; float64 as the float32 that will become of it."""
    array = np.atleast_1d(array)
    rows = max(1, BLOCK * len(array) // max(1, array.size))
    for start in range(0, len(array), rows):
        block = array[start : start + rows]
        with np.errstate(over="ignore"):
            yield block.astype(np.float32) if block.dtype == np.float64 else block
