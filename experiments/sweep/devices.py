"""The devices of this machine, shared out evenly among processes that run beside one another."""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import os
from typing import Literal

Kind = Literal["cpu", "gpu", "tpu"]
CHIP_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
"""How so many TPU chips of a host lie beside one another."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclasses.dataclass(frozen=True)
class Share:
    """What one process may use."""

    cores: tuple[int, ...]
    environment: dict[str, str]


def kind_here() -> Kind:
    """What JAX would use, as far as can be told without starting it."""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    if wanted.startswith("cpu"):
        return "cpu"
    if _gpus() and any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        return "gpu"
    return "tpu" if _chips() and importlib.util.find_spec("libtpu") else "cpu"


def shares(jobs: int, kind: Kind) -> list[Share]:
    """One for each of the jobs.

    Raises:
      ValueError: there are fewer devices, or more jobs than cores.
    """
    cores = sorted(os.sched_getaffinity(0))
    devices = {"cpu": list(map(str, cores)), "gpu": _gpus(), "tpu": _chips()}[kind]
    if not 1 <= jobs <= min(len(devices), len(cores)):
        raise ValueError(
            f"--jobs {jobs}: there are {len(devices)} {kind} devices and {len(cores)} cores here; "
            f"1 to {min(len(devices), len(cores))} can run at once"
        )
    each, cores_each = len(devices) // jobs, len(cores) // jobs
    if kind == "tpu" and each not in CHIP_BOUNDS:
        raise ValueError(f"--jobs {jobs}: {each} TPU chips cannot be shown to one process; 1, 2, 4 or 8 can")
    return [
        Share(
            tuple(cores[job * cores_each : (job + 1) * cores_each]),
            dict.fromkeys(THREADS, str(cores_each)) | _visible(kind, devices[job * each : (job + 1) * each]),
        )
        for job in range(jobs)
    ]


def _visible(kind: Kind, devices: list[str]) -> dict[str, str]:
    if kind == "cpu":
        return {"JAX_PLATFORMS": "cpu"}
    if kind == "gpu":
        return {"CUDA_VISIBLE_DEVICES": ",".join(devices)}
    return {
        "TPU_VISIBLE_CHIPS": ",".join(devices),
        "TPU_CHIPS_PER_PROCESS_BOUNDS": CHIP_BOUNDS[len(devices)],
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }


def _gpus() -> list[str]:
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [one for one in told.split(",") if one]
    return [str(number) for number in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def _chips() -> list[str]:
    told = os.environ.get("TPU_VISIBLE_CHIPS")
    if told is not None:
        return [one for one in told.split(",") if one]
    return [str(number) for number in range(len(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")))]
