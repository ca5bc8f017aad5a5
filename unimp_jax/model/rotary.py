"""Frequencies of rotary positions, and their scaling for texts longer than those a model was trained on."""

import dataclasses
import math
from typing import Literal

import numpy as np


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """How the frequencies of rotary positions are scaled."""

    kind: Literal["none", "linear", "llama3"] = "none"
    """linear divides each frequency by `factor`; llama3 (Llama 3.1) only those of long wavelengths."""
    factor: float = 1.0
    low_factor: float = 1.0
    """llama3: frequencies of wavelengths above original_positions / low_factor are divided by `factor`."""
    high_factor: float = 4.0
    """llama3: wavelengths below original_positions / high_factor are unchanged; in between the change is gradual."""
    original_positions: int = 8192
    """llama3: length in tokens of the longest text that the model was first trained on."""

    def __post_init__(self) -> None:
        if self.factor <= 0 or self.original_positions < 1 or not 0 < self.low_factor < self.high_factor:
            raise ValueError(
                "decoder: rotary_scaling must have factor above 0, original_positions at least 1 and low_factor "
                f"between 0 and high_factor, not {self}"
            )


def frequencies(width: int, base: float, scaling: RotaryScaling) -> np.ndarray:
    """Returns float32 [width / 2]: base^(-2i / width) (RoFormer, arXiv:2104.09864, eq. 15), scaled."""
    plain = base ** (-np.arange(0, width, 2, dtype=np.float32) / width)
    if scaling.kind == "none":
        return plain
    scaled = plain / np.float32(scaling.factor)
    if scaling.kind == "linear":
        return scaled
    turns = plain * np.float32(scaling.original_positions / (2 * math.pi))  # over the longest text
    kept = (turns - scaling.low_factor) / (scaling.high_factor - scaling.low_factor)
    return (scaled + (plain - scaled) * np.clip(kept, 0, 1)).astype(np.float32)
