"""LPIPS on VGG-16, from the files that hold it: the lpips package's, torchvision's VGG-16 with that package's linear
layers, or a checkpoint of taming-transformers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from flax import nnx

from unimp_jax.image_tokens.perceptual import LPIPS, STAGES
from unimp_jax.interop.layout import Table, WeightsError, entry
from unimp_jax.interop.matching import filled
from unimp_jax.interop.weights import read_files, renamed

NAMES = (
    (re.compile(r"(?:.*\.)?(?:net\.slice\d|features)\.(\d+)\.(weight|bias)"), r"features.\1.\2"),
    (re.compile(r"(?:.*\.)?lins?\.?(\d)\.model\.1\.weight"), r"lin\1"),
)
"""What convolutions and weights of channels are called, and what they are called here."""


def read_lpips(paths: Sequence[Path]) -> LPIPS:
    """
    Raises:
      WeightsError: the files lack a part of it, two of them have the same, or one cannot be read.
    """
    if not paths:
        raise WeightsError("LPIPS: no file is named")
    weights = renamed(read_files(paths, ", ".join(map(str, paths))), our_name)
    return filled(lambda: LPIPS(rngs=nnx.Rngs(0)), table(), weights)


def our_name(key: str) -> str:
    for pattern, ours in NAMES:
        if found := pattern.fullmatch(key):
            return found.expand(ours)
    return key


def table() -> Table:
    """torchvision's numbers of VGG's layers, among which ReLUs and poolings are counted."""
    entries, number = [], 0
    for stage, (_, count) in enumerate(STAGES):
        for layer in range(count):
            ours = f"stages/{stage}/{layer}"
            entries.append(entry(f"features.{number}.weight", f"{ours}/kernel", "o i y x -> y x i o"))
            entries.append(entry(f"features.{number}.bias", f"{ours}/bias", "o -> o"))
            number += 2
        number += 1
        entries.append(entry(f"lin{stage}", f"weights/{stage}", "1 c 1 1 -> c"))
    return entries
