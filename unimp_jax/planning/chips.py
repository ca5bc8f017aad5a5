"""TPU types: the specifications of a chip, and slices to compile for without having the hardware."""

import dataclasses
import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

GIGA = 1e9
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, from Google Cloud's pages "TPU v5e", "TPU v5p" and "TPU v6e" (docs.cloud.google.com/tpu/docs).

    Attributes:
      flops: Dense bfloat16 operations per second.
      memory: Bytes of HBM.
      memory_bandwidth: Bytes per second between HBM and the chip.
      ring_bandwidth: Bytes per second sent along one dimension of the torus, both directions together.
      network_bandwidth: Bytes per second sent to other slices, the chip's share of its host's network.
      clock: Cycles per second, from `flops` and the size of its matrix units.
      cores: Cores per chip, which slice names count: two for v5p.
      kernel_share: Fraction of `flops` that attention kernels reach according to libtpu's schedules; wider matrix units
        find no more work, while the softmax takes as long.
      layout: The chip configuration name for libtpu.
    """

    flops: float
    memory: float
    memory_bandwidth: float
    ring_bandwidth: float
    network_bandwidth: float
    clock: float
    cores: int
    shapes: dict[int, str]
    kernel_share: float
    layout: str = "default"


FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8",
    1024: "8x8x16",
}  # fmt: skip
CHIPS: dict[str, Chip] = {
    "v5e": Chip(197e12, 16 * GIB, 819 * GIGA, 100 * GIGA, 3.125 * GIGA, 1.5e9, 1, FLAT, 0.65),
    "v5p": Chip(459e12, 95 * GIB, 2765 * GIGA, 200 * GIGA, 6.25 * GIGA, 1.75e9, 2, CUBES, 0.65, "megachip"),
    "v6e": Chip(918e12, 32 * GIB, 1640 * GIGA, 200 * GIGA, 12.5 * GIGA, 1.75e9, 1, FLAT, 0.2),
}


@dataclasses.dataclass(frozen=True)
class Slices:
    """One or more equal slices.

    Attributes:
      name: Name of one slice as in the cloud: v5e-16 (or v5litepod-16) has 16 chips, v5p-64 has 64 cores on 32 chips.
    """

    name: str
    count: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name.replace("v5litepod", "v5e"))
        kind = self.name.partition("-")[0]
        if kind not in CHIPS:
            raise ValueError(f"{self.name}: unknown chip {kind}; known are {', '.join(CHIPS)}")
        names = [f"{kind}-{chips * CHIPS[kind].cores}" for chips in CHIPS[kind].shapes]
        if self.name not in names:
            raise ValueError(f"{self.name} is not a slice; available are {', '.join(names)}")
        if self.count < 1:
            raise ValueError(f"{self.count} slices; there must be at least 1")

    @property
    def chip(self) -> Chip:
        return CHIPS[self.name.partition("-")[0]]

    @property
    def chips_each(self) -> int:
        return int(self.name.partition("-")[2]) // self.chip.cores

    @property
    def chips(self) -> int:
        return self.count * self.chips_each

    def __str__(self) -> str:
        each = "" if self.chip.cores == 1 else f" ({self.chips_each} chips)"
        return f"{self.name}{each}" if self.count == 1 else f"{self.count} x {self.name}{each}"


def devices(slices: Slices) -> list[jax.Device]:
    """Returns devices to build a mesh of and to compile for; nothing can be run on them.

    Raises:
      ValueError: libtpu, which contains the compiler, is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("libtpu, the compiler for TPUs, is not installed: pip install 'unimp_jax[tpu]'")
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",  # there is no TPU with metadata to query
        "TPU_ACCELERATOR_TYPE": "v5p-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # lets several compilers run at once
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"chip_config_name": slices.chip.layout, "num_slices": slices.count}
    shape = slices.chip.shapes[slices.chips_each]
    options["chips_per_host_bounds"] = (2, 2, 1) if slices.chips_each > 1 else (1, 1, 1)
    kind = slices.name.partition("-")[0]
    return list(topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{shape}", **options).devices)
