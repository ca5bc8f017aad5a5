"""One measurement of `training_speed` in a process of its own: what to do comes as JSON, the figures go out as JSON.

python -m experiments.benchmarks.training_worker '{"side": "ours", "task": "FOLDER", "devices": 2, "seconds": 5}'
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def torch_peak(size: int = 4096, repeats: int = 6) -> float:
    """The best of some square float32 products, in FLOP/s."""
    import torch

    left, right = torch.rand(size, size), torch.rand(size, size)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def measure(side: str, devices: int = 1, task: str = "", **arguments: Any) -> dict[str, float]:
    """
    Args:
      side: peer, ours, fed (ours with the loader beside it), or peak (of matrix products, in FLOP/s, by torch) or
        our_peak (the same by JAX).
      devices: host devices, for ours.
    """
    if side in ("peer", "peak"):
        import torch

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        if side == "peak":
            return {"flops": torch_peak()}
        from experiments.benchmarks import training_peer

        return training_peer.measure(Path(task), **arguments)
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    if side == "our_peak":
        from unimp_jax.training.peak import measured_matmul_flops

        return {"flops": max(measured_matmul_flops("float32", size) for size in (1024, 2048, 4096))}
    from experiments.benchmarks import training_ours

    run = training_ours.measure_fed if side == "fed" else training_ours.measure
    return run(Path(task), **arguments)


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
