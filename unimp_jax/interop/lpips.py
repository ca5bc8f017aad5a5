"""LPIPS on VGG-16 from files of the lpips package, of torchvision's VGG-16 plus that package's linear layers, or of a
taming-transformers checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from flax import nnx

from unimp_jax.image_tokens.perceptual import LPIPS, STAGES
from unimp_jax.interop.layout import Table, WeightsError, entry
from unimp_jax.interop.matching import filled
from unimp_jax.interop.weights import canonical, read_files, renamed

NAMES = (
    (r"^(?:.*\.)?(?:net\.slice\d|features)\.(\d+)\.(weight|bias)$", r"features.\1.\2"),
    (r"^(?:.*\.)?lins?\.?(\d)\.model\.1\.weight$", r"lin\1"),
)
"""Names of convolutions and channel weights in the files, and the names used here."""


def read_lpips(paths: Sequence[Path]) -> LPIPS:
    """Reads LPIPS from one or more files.

    Raises:
      WeightsError: The files lack a part of it, two of them contain the same part, or one cannot be read.
    """
    if not paths:
        raise WeightsError("LPIPS: no file is given")
    weights = renamed(read_files(paths, ", ".join(map(str, paths))), lambda key: canonical(key, NAMES))
    return filled(lambda: LPIPS(rngs=nnx.Rngs(0)), table(), weights)


def table() -> Table:
    """Returns the table by torchvision's layer numbers of VGG, which count ReLUs and pooling layers."""
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
