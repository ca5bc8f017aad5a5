"""Where the time of a training step goes: its parts, each compiled alone and timed on the same batch.

    python -m experiments.benchmarks.step_breakdown --data data --size "256 x 6"

Beside each part's time stand the operations that it must do (`unimp_jax.model.flops`) and how fast it did them. Parts
overlap: the step holds gradients and optimizer, gradients hold tower, resampler, text and head, text holds attention.
What is compiled alone is not fused with its neighbours, so parts add up to somewhat more than the whole.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from flax import nnx

from experiments.benchmarks.sizes import Size
from experiments.benchmarks.training_ours import Ours, read_arrays
from experiments.benchmarks.training_task import experiment, prepare_task
from experiments.step import batch_shape
from unimp_jax.batch import Batch
from unimp_jax.model import PARTS
from unimp_jax.model.attention import attention as text_attention
from unimp_jax.model.attention import segments
from unimp_jax.model.flops import (
    Forward,
    decoder_row,
    gated_row,
    head_row,
    patch_embedding_image,
    resampler_image,
    training_step_flops,
    vision_image,
)
from unimp_jax.objective import chunked_loss


@dataclasses.dataclass(frozen=True)
class Options:
    """What is taken apart."""

    data: Path = Path("data")
    """Where MovieLens small is prepared."""
    size: str = "256 x 6"
    rows: int = 16
    devices: int = len(os.sched_getaffinity(0))
    """Host devices."""
    repeats: int = 5
    """The fastest of so many is taken."""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Timed:
    """Of one run: seconds by the clock, and of all cores together."""

    wall: float
    cores: float


def timed(run: Callable[[], Any], repeats: int) -> Timed:
    jax.block_until_ready(run())
    found = []
    for _ in range(repeats):
        start, cores = time.perf_counter(), time.process_time()
        jax.block_until_ready(run())
        found.append(Timed(time.perf_counter() - start, time.process_time() - cores))
    return Timed(min(one.wall for one in found), min(one.cores for one in found))


def whole(*passes: Forward) -> float:
    """Operations of forward and backward, where everything trains."""
    return sum(one.step(trains=True, below=True) for one in passes)


def parts(ours: Ours, batch: Batch) -> dict[str, tuple[Callable[[], Any], float]]:
    """Name -> (what to run, operations that it must do)."""
    config, B = ours.config.model, batch.tokens.shape[0]
    shape = batch_shape(ours.config)
    _, T, N, A = shape
    frozen, graph = ours.frozen, ours.graph
    trainable = jax.tree.map(jnp.copy, ours.state.trainable)  # the step's own are donated

    def loss(trainable: Any, frozen: Any, batch: Batch, latents: Any = None) -> jax.Array:
        hidden = nnx.merge(graph, trainable, frozen).answer_hidden(batch, None, latents)
        return head_loss(hidden, trainable, frozen, batch)

    def head_loss(hidden: jax.Array, trainable: Any, frozen: Any, batch: Batch) -> jax.Array:
        head_graph, head = nnx.split(nnx.merge(graph, trainable, frozen).embeddings)
        weights = batch.answer_weights / (batch.answer_weights > 0).sum()
        return chunked_loss(
            lambda head, hidden: nnx.merge(head_graph, head).logits(hidden),
            head, hidden, batch.answer_targets, weights, 0.0, ours.config.objective.chunk,
        )[0]  # fmt: skip

    def tower(trainable: Any, frozen: Any, batch: Batch) -> jax.Array:
        flat = batch.images.reshape(B * N, *batch.images.shape[2:])
        return jnp.square(nnx.merge(graph, trainable, frozen).vision(flat)).sum()

    def images(trainable: Any, frozen: Any, batch: Batch) -> jax.Array:
        return jnp.square(nnx.merge(graph, trainable, frozen).encode_images(batch.images)).sum()

    def attention(qkv: tuple[jax.Array, jax.Array, jax.Array], batch: Batch) -> jax.Array:
        query, key, value = qkv
        sees = segments(batch.segment_ids, batch.segment_ids, "xla", causal=True)
        return jnp.square(text_attention(query, key, value, sees)).sum()

    decoder = config.decoder
    key = jax.random.key(0)
    qkv = tuple(jax.random.normal(key, (B, T, decoder.heads, decoder.head_dim)) for _ in range(3))
    hidden = jax.random.normal(key, (B, A, decoder.width))
    latents = jax.random.normal(key, (B, N, config.resampler.latents, config.vision.width))
    qkv, hidden, latents = jax.device_put((qkv, hidden, latents), batch.tokens.sharding)
    looks, pictures = B * decoder_row(config, T).attention, B * N
    tower_flops = pictures * whole(vision_image(config), patch_embedding_image(config))
    images_flops = tower_flops + pictures * whole(*resampler_image(config))
    head_flops = B * whole(head_row(config, A))
    layers = config.decoder.layers * whole(decoder_row(config, T)) + config.groups * whole(*gated_row(config, T, N))
    text_flops = B * layers + head_flops
    step_flops = training_step_flops(config, shape, frozenset(PARTS))

    def compiled(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        return functools.partial(jax.jit(function), *arguments)

    model = (trainable, frozen, batch)
    return {
        "step": (lambda: ours.step(batch), step_flops),
        "gradients": (compiled(jax.grad(loss), *model), step_flops),
        "forward": (compiled(loss, *model), step_flops / 3),
        "tower, forward": (compiled(tower, *model), tower_flops / 3),
        "tower, gradients": (compiled(jax.grad(tower), *model), tower_flops),
        "tower and resampler, gradients": (compiled(jax.grad(images), *model), images_flops),
        "text and head, forward": (compiled(loss, *model, latents), text_flops / 3),
        "text and head, gradients": (compiled(jax.grad(loss, (0, 3)), *model, latents), text_flops),
        "head, gradients": (compiled(jax.grad(head_loss, (0, 1)), hidden, *model), head_flops),
        "self-attention of a layer, forward": (compiled(attention, qkv, batch), looks),
        "self-attention of a layer, gradients": (compiled(jax.grad(attention), qkv, batch), 3 * looks),
    }


def products(ours: Ours) -> dict[str, tuple[Callable[[], Any], float]]:
    """Products of the shapes that a step is made of, each alone."""
    config, (B, T, N, _) = ours.config.model, batch_shape(ours.config)
    D, F, C = config.decoder.width, config.decoder.mlp_width, config.vision.width
    shapes = {
        "tokens x width -> MLP": (B * T, D, F),
        "tokens x MLP -> width": (B * T, F, D),
        "tokens x width -> width": (B * T, D, D),
        "gradient of an MLP's weights": (D, B * T, F),
        "patches x width -> MLP": (B * N * (config.vision.patches + 1), C, 4 * C),
    }
    found: dict[str, tuple[Callable[[], Any], float]] = {}
    for name, (m, k, n) in shapes.items():
        run = functools.partial(jax.jit(jnp.matmul), jnp.ones((m, k)), jnp.ones((k, n)))
        found[f"{name}: {m} x {k} x {n}"] = (run, 2.0 * m * k * n)
    return found


def main(options: Options) -> None:
    jax.config.update("jax_num_cpu_devices", options.devices)
    width, layers = map(int, options.size.split(" x "))
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task"
        prepare_task(experiment(Size(width, layers), "all", options.rows, options.data, options.seed), task, 1, ())
        ours = Ours(task)
        batch = ours.place(read_arrays(task / "ours")[0])
    print(f"| {options.size} | ms | core ms | GFLOP | GFLOP/s |\n|---|---|---|---|---|")
    with jax.set_mesh(ours.mesh):
        for name, (run, flops) in (parts(ours, batch) | products(ours)).items():
            found = timed(run, options.repeats)
            print(
                f"| {name} | {1e3 * found.wall:.1f} | {1e3 * found.cores:.1f} | {flops / 1e9:.2f} "
                f"| {flops / found.wall / 1e9:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Options))
