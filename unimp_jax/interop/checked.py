"""Validation of arrays as weights: complete, of the right dtype and shape, and finite."""

import re
from collections.abc import Mapping

import numpy as np

from unimp_jax.interop.layout import WeightsError, some
from unimp_jax.interop.weights import FLOATS, UNQUANTISED, Weights

QUANTISED = re.compile(
    r"(.+)\.(qweight|qzeros|scales|SCB|weight_packed|weight_scale(_inv)?|weight_zero_point"
    r"|weight\.(SCB|absmax|quant_map|quant_state\..+))"
)
"""Keys stored beside quantised matrices by GPTQ, AWQ, bitsandbytes, FP8 and compressed-tensors."""


def check_arrays(weights: Weights, wanted: Mapping[str, tuple[int, ...]], optional: tuple[str, ...] = ()) -> list[str]:
    """Returns the keys of `wanted` (key -> shape) that are present; reads no array. Raises WeightsError if an array is
    missing (unless its key has one of the `optional` prefixes), quantised, of a dtype that weights do not have, or of
    another shape."""
    arrays = weights.arrays
    quantised = {f"{found[1]}.weight": key for key in sorted(arrays) if (found := QUANTISED.fullmatch(key))}
    if affected := [key for key in wanted if key in quantised]:
        raise WeightsError(
            f"{weights.name}: {affected[0]} is quantised (there is also {quantised[affected[0]]}): {UNQUANTISED}"
        )
    missing = {key for key in wanted if key not in arrays and not key.startswith(optional or "\0")}
    if missing:
        raise WeightsError(
            f"{weights.name}: {len(missing)} arrays required by the geometry are missing: {some(missing)}"
        )
    present = [key for key in wanted if key in arrays]
    for key in present:
        check_kind(weights, key)
    for key in present:
        if arrays[key].shape != wanted[key]:
            raise WeightsError(
                f"{weights.name}: {key} has shape {arrays[key].shape}, but the geometry requires {wanted[key]}"
            )
    return present


def check_kind(weights: Weights, key: str) -> None:
    """Raises WeightsError if an array has a dtype that weights do not have."""
    kind = weights.arrays[key].kind
    if kind not in FLOATS:
        raise WeightsError(
            f"{weights.name}: {key} has the dtype {kind}; supported dtypes of weights are {', '.join(FLOATS)}: "
            f"{UNQUANTISED}"
        )


def read_finite(weights: Weights, key: str) -> np.ndarray:
    """Reads an array; raises WeightsError, which says how many, if some of its numbers are not finite in float32."""
    array = weights.arrays[key].read()
    with np.errstate(over="ignore", invalid="ignore"):
        ends = np.array([array.min(), array.max()] if array.size else [], np.float32)  # NaN if any number is NaN
        bad = 0 if np.isfinite(ends).all() else int(np.count_nonzero(~np.isfinite(array.astype(np.float32))))
    if bad:
        what = "is NaN, infinite or beyond float32" if bad == 1 else "are NaN, infinite or beyond float32"
        raise WeightsError(
            f"{weights.name}: {bad} of the {array.size} values of {key} {what}: the file is damaged, or the "
            "training that wrote it diverged; use another checkpoint"
        )
    return array
