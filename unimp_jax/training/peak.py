"""Peak matrix-multiplication speed of the hardware, the reference for model FLOP utilisation."""

import functools
import time

import jax
import jax.numpy as jnp

# Dense bfloat16 FLOP/s of one device, from the vendors' data sheets.
PEAK_BFLOAT16 = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(dtype: str = "bfloat16") -> float:
    """Returns FLOP/s of all devices together: from data sheets for bfloat16 on known accelerators, else measured. CPU
    devices share the host's cores, so the measurement on one device is the total."""
    device = jax.devices()[0]
    for name, flops in PEAK_BFLOAT16.items():
        if device.device_kind.startswith(name) and dtype == "bfloat16":
            return flops * jax.device_count()
    if device.platform == "cpu":
        return measured_matmul_flops(dtype, size=1024)
    return measured_matmul_flops(dtype, size=2048) * jax.device_count()


@functools.cache
def measured_matmul_flops(dtype: str, size: int, repeats: int = 5) -> float:
    """Returns the best FLOP/s of several square matrix products on one device; measured once per process."""
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
