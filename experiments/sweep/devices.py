"""Divides the devices of this machine evenly among cells that run at the same time."""

import glob
import importlib.util
import os
from typing import Literal, NamedTuple

Kind = Literal["cpu", "gpu", "tpu"]
CHIP_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}
"""Number of TPU chips of a host that one process can have -> their arrangement, as libtpu expects it."""


class DeviceShare(NamedTuple):
    """The cores and the environment variables of one cell; without cores there is no restriction."""

    cores: tuple[int, ...]
    environment: dict[str, str]


def kind_here() -> Kind:
    """Returns the kind of device that JAX would use, as far as this is known without starting it."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return "cpu"
    if devices("gpu") and any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        return "gpu"
    return "tpu" if devices("tpu") and importlib.util.find_spec("libtpu") else "cpu"


def devices(kind: Kind) -> list[str]:
    """Returns the devices that the environment allows, or that have a device file; for CPUs, the cores."""
    if kind == "cpu":
        return [str(core) for core in sorted(os.sched_getaffinity(0))]
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES" if kind == "gpu" else "TPU_VISIBLE_CHIPS")
    if allowed is not None:
        return [one for one in allowed.split(",") if one]
    patterns = ["/dev/nvidia[0-9]*"] if kind == "gpu" else ["/dev/accel[0-9]*", "/dev/vfio/[0-9]*"]
    return [str(number) for number in range(max(len(glob.glob(pattern)) for pattern in patterns))]


def shares(jobs: int, kind: Kind) -> list[DeviceShare]:
    """Returns one share for each of the jobs; ValueError if there are fewer devices or cores than jobs."""
    all_cores, all_devices = sorted(os.sched_getaffinity(0)), devices(kind)
    most = min(len(all_devices), len(all_cores))
    if not 1 <= jobs <= most:
        raise ValueError(
            f"--jobs {jobs}: this machine has {len(all_devices)} {kind} devices and {len(all_cores)} cores, so 1 "
            f"to {most} jobs can run at once"
        )
    each, cores_each = len(all_devices) // jobs, len(all_cores) // jobs
    if kind == "tpu" and each not in CHIP_BOUNDS:
        raise ValueError(f"--jobs {jobs}: one process cannot use {each} TPU chips; 1, 2, 4 or 8 are possible")
    made = []
    for job in range(jobs):
        own = ",".join(all_devices[job * each :][:each])
        environment = {"OMP_NUM_THREADS": str(cores_each)}
        if kind == "cpu":
            environment |= {"JAX_PLATFORMS": "cpu"}
        elif kind == "gpu":
            environment |= {"CUDA_VISIBLE_DEVICES": own}
        else:
            bounds = {"TPU_CHIPS_PER_PROCESS_BOUNDS": CHIP_BOUNDS[each], "TPU_PROCESS_BOUNDS": "1,1,1"}
            environment |= {"TPU_VISIBLE_CHIPS": own, **bounds, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        made.append(DeviceShare(tuple(all_cores[job * cores_each :][:cores_each]), environment))
    return made
