"""How many devices JAX sees in a slice of TPUs."""

from __future__ import annotations

import re


def tpu_devices(name: str) -> int | None:
    """Of a slice by its name, as v5p-64; None where the name is not of a known generation.

    The number counts TensorCores up to v5p, and chips of the generations that have one core each. From v4 on the two
    cores of a chip are one device.
    """
    match = re.fullmatch(r"(v\d\w*)-(\d+)", name)
    if not match:
        return None
    generation, number = match[1], int(match[2])
    if generation in ("v4", "v5p"):
        return number // 2
    return number if generation in ("v2", "v3", "v5e", "v5litepod", "v6e") else None
