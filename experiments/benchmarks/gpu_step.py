"""Measures attention kernels and a training step on one GPU (80 GB or more), in less than four minutes.

python -m experiments.benchmarks.gpu_step
python -m experiments.benchmarks.gpu_step --presets openflamingo-4b qwen3-1.7b --rows 4

For each kernel: the largest differences of attention and its gradients to plain attention in float32, and seconds and
memory of attention with its gradients; then the step of the first preset, with its MFU.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.config import ExperimentConfig
from experiments.parameters import abstract_parameters, init_parameters
from experiments.presets import PRESETS
from experiments.step import abstract_batch, init_state, lower_step, make_mesh_of, model_flops
from unimp_jax.batch import Batch
from unimp_jax.model.attention import Kernel, attention, segment_mask
from unimp_jax.model.axes import platform
from unimp_jax.model.decoder import DecoderConfig

TOLERANCE = 0.02
"""Largest difference to float32, as a share of the largest number: five roundings to the 8 bits of bfloat16."""
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}
"""Dense bfloat16 operations per second of NVIDIA's SXM modules, from their data sheets."""
SEGMENTS = 8


def main(
    presets: tuple[str, ...] = ("openflamingo-3b", "qwen3-0.6b"),
    lengths: tuple[int, ...] = (1024, 2048, 4096),
    tokens: int = 8192,
    rows: int = 8,
    step: bool = True,
    seconds: float = 240,
    without_gpu: bool = False,
) -> None:
    """Prints the measurements.

    Args:
      presets: presets whose heads attention has.
      lengths: tokens of a row, for attention.
      tokens: tokens of all rows together, for attention.
      rows: rows of the training step's batch.
      step: whether the training step of the first preset is measured.
      seconds: no kernel's step is begun after this time, and no attention after half of it.
      without_gpu: measure here, with the kernels that can be interpreted; for small sizes.
    """
    kernels: tuple[Kernel, ...] = ("xla", "cudnn", "triton")
    if platform() != "gpu":
        if not without_gpu:
            print("gpu_step: there is no NVIDIA GPU, so nothing is measured; --without-gpu True interprets the kernels")
            return
        kernels = ("xla", "triton")
    start, same = time.perf_counter(), True
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    for name in presets:
        decoder = PRESETS[name].model.decoder
        heads = f"{decoder.heads} heads of {decoder.head_dim}, {decoder.num_kv_heads} of keys, {decoder.position}"
        print(f"{name}: {heads}\n{'tokens':>8}{'kernel':>8}{'difference':>12}{'seconds':>10}{'GB of temporaries':>19}")
        for length in lengths:
            over = time.perf_counter() - start > seconds / 2
            for line, equal in () if over else measured(decoder, max(tokens // length, 1), length, kernels):
                print(f"{length:8,}{line}", flush=True)
                same &= equal
    over = not step or time.perf_counter() - start > seconds
    for line in () if over else step_speeds(PRESETS[presets[0]], rows, kernels[1:]):
        print(f"{presets[0]}, a step with {line}", flush=True)
        if time.perf_counter() - start > seconds:
            break
    print(f"{time.perf_counter() - start:.0f} s")
    if not same:
        raise SystemExit(f"gpu_step: a kernel differs from plain attention by more than {TOLERANCE}")


def measured(decoder: DecoderConfig, rows: int, length: int, kernels: Sequence[Kernel]) -> Iterator[tuple[str, bool]]:
    """Yields (difference, seconds and memory in words, whether the difference is within the tolerance) of kernels."""
    rng = np.random.default_rng(0)
    arguments = tuple(
        jnp.asarray(rng.normal(size=(rows, length, heads, decoder.head_dim)), jnp.bfloat16)
        for heads in (decoder.heads, decoder.num_kv_heads, decoder.num_kv_heads, decoder.heads)
    )

    def run(kernel: Kernel, *arguments: jax.Array) -> tuple[jax.Array, ...]:
        ids, positions = (jnp.broadcast_to(x, arguments[0].shape[:2]) for x in packed(length))
        costs = positions if decoder.position == "alibi" else None
        mask = segment_mask(ids, ids, kernel, causal=True, alibi_positions_BT=costs)
        out, back = jax.vjp(functools.partial(attention, mask=mask), *arguments[:3])
        return out, *back(arguments[3])

    with jax.default_matmul_precision("highest"):
        exact = jax.jit(functools.partial(run, "xla"))(*(x[:1].astype(jnp.float32) for x in arguments))
    for kernel in kernels:
        try:
            compiled = jax.jit(functools.partial(run, kernel)).lower(*arguments).compile()
            took, mine = timed(compiled, *arguments)
        except jax.errors.JaxRuntimeError as error:
            yield f"{kernel:>8}  {str(error).splitlines()[0][:90]}", "Out of memory" in str(error)
            continue
        worst = max(float(jnp.abs(x[:1] - y).max() / jnp.abs(y).max()) for x, y in zip(mine, exact, strict=True))
        memory = compiled.memory_analysis().temp_size_in_bytes
        yield f"{kernel:>8}{worst:12.4f}{took:10.5f}{memory / 1e9:19.3f}", worst <= TOLERANCE


def packed(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (segment ids, positions) of a row of equal segments with its last sixteenth empty, int32 [T]."""
    size = max(length * 15 // 16 // SEGMENTS, 1)
    number, position = np.divmod(np.arange(length, dtype=np.int32), size)
    filled = number < SEGMENTS
    return np.where(filled, number + 1, 0), np.where(filled, position, 0)


def timed(function: Callable[..., Any], *arguments: Any, times: int = 5) -> tuple[float, Any]:
    """Returns (the mean duration of calls after the first, in seconds; the result)."""
    jax.block_until_ready(function(*arguments))
    start = time.perf_counter()
    for _ in range(times):
        result = function(*arguments)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / times, result


def step_speeds(config: ExperimentConfig, rows: int, kernels: Sequence[Kernel]) -> Iterator[str]:
    """Yields the speed and memory of a training step for each kernel; the second goes on where the first has ended."""
    config = dataclasses.replace(config, loader=dataclasses.replace(config.loader, batch_size=rows))
    mesh, device = make_mesh_of(config, jax.devices()[:1]), jax.devices()[0].device_kind
    peak = next((flops for name, flops in PEAKS.items() if name in device), None)
    with jax.set_mesh(mesh):
        parameters = init_parameters(config, mesh)
        state = init_state(config, parameters.trainable, mesh)
        frozen, batch = parameters.frozen, random_batch(config, abstract_batch(config, mesh))
        del parameters  # its arrays are given away with the state
        for kernel in kernels:
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention=kernel))
            compiled = lower_step(config, abstract_parameters(config, mesh), state, mesh).compile()
            for _ in range(4):
                start = time.perf_counter()
                state, metrics = compiled(state, frozen, batch)
                loss = float(metrics.loss)
                took = time.perf_counter() - start
            use, slots = compiled.memory_analysis(), rows * config.row_shape.tokens
            held = use.argument_size_in_bytes + use.temp_size_in_bytes
            mfu = "MFU unknown" if peak is None else f"MFU {model_flops(config) / took / peak:.1%}"
            speed = f"{took:.4f} s, {slots / took:,.0f} token slots/s, {mfu}"
            yield f"{kernel}: {speed}, {held / 1e9:.2f} GB, loss {loss:.4f}"


def random_batch(config: ExperimentConfig, shapes: Batch) -> Batch:
    """Returns equal rows of equal segments, with images and answers spread over them, and random tokens and pixels."""
    rng, vocabulary = np.random.default_rng(0), config.model.decoder.vocab_size
    T, N, A = shapes.tokens.shape[1], shapes.image_segment_ids.shape[1], shapes.answer_positions.shape[1]
    ids, positions = packed(T)
    batch = Batch(
        tokens=rng.integers(vocabulary, size=shapes.tokens.shape),
        segment_ids=ids,
        positions=positions,
        image_index=np.where(ids > 0, np.arange(T) * N // T, -1),
        images=rng.integers(256, size=shapes.images.shape, dtype=np.uint8),
        image_segment_ids=ids[np.arange(N) * T // N],
        answer_positions=np.arange(A) * T // (2 * A),
        answer_targets=rng.integers(vocabulary, size=shapes.answer_targets.shape),
        answer_weights=np.float32(1),
        answer_tasks=np.int32(0),
    )
    return jax.tree.map(lambda x, of: jax.device_put(np.broadcast_to(x, of.shape).astype(of.dtype)), batch, shapes)


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.FlagConversionOff,))
