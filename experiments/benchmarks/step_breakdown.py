"""Where the time of a training step goes: its parts, each compiled alone and timed on the same batch.

    python -m experiments.benchmarks.step_breakdown --data data --size "256 x 6"

Beside each part's time stand the operations that it must do (`unimp_jax.model.flops`) and how fast it did them. Parts
overlap: the step holds gradients and optimizer, gradients hold tower, resampler, text and head. What is compiled alone
is not fused with its neighbours, so parts add up to somewhat more than the whole. Below stand products of the shapes
that a step is made of, each alone.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from flax import nnx

from experiments.benchmarks.measuring import CORES, print_header, print_row, timed
from experiments.benchmarks.training_ours import Ours, read_arrays
from experiments.benchmarks.training_task import experiment, prepare_task
from experiments.step import batch_shape
from unimp_jax.batch import Batch
from unimp_jax.model import PARTS
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

Parts = dict[str, tuple[Callable[[], Any], float]]
"""Name -> (what to run, operations that it must do)."""


def whole(*passes: Forward) -> float:
    """Operations of forward and backward, where everything trains."""
    return sum(one.step(trains=True, below=True) for one in passes)


def compiled(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return functools.partial(jax.jit(function), *arguments)


def parts(ours: Ours, batch: Batch) -> Parts:
    config, shape, graph = ours.config.model, batch_shape(ours.config), ours.graph
    B, T, N, A = shape
    trainable = jax.tree.map(jnp.copy, ours.state.trainable)  # the step's own are donated

    def loss(trainable: Any, frozen: Any, batch: Batch, latents: Any = None) -> jax.Array:
        hidden = nnx.merge(graph, trainable, frozen).answer_hidden(batch, None, latents)
        return head_loss(hidden, trainable, frozen, batch)

    def head_loss(hidden: jax.Array, trainable: Any, frozen: Any, batch: Batch) -> jax.Array:
        head_graph, head = nnx.split(nnx.merge(graph, trainable, frozen).embeddings.tables())
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

    key = jax.random.key(0)
    hidden = jax.random.normal(key, (B, A, config.decoder.width))
    latents = jax.random.normal(key, (B, N, config.resampler.latents, config.vision.width))
    hidden, latents = jax.device_put((hidden, latents), batch.tokens.sharding)
    tower_flops = B * N * whole(vision_image(config), patch_embedding_image(config))
    images_flops = tower_flops + B * N * whole(*resampler_image(config))
    head_flops = B * whole(head_row(config, A))
    layers = config.decoder.layers * whole(decoder_row(config, T)) + config.groups * whole(*gated_row(config, T, N))
    text_flops = B * layers + head_flops
    step_flops = training_step_flops(config, shape, frozenset(PARTS))
    model = (trainable, ours.frozen, batch)
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
    }


def products(ours: Ours) -> Parts:
    config, (B, T, N, _) = ours.config.model, batch_shape(ours.config)
    D, F, C = config.decoder.width, config.decoder.mlp_width, config.vision.width
    shapes = {
        "tokens x width -> MLP": (B * T, D, F),
        "tokens x MLP -> width": (B * T, F, D),
        "tokens x width -> width": (B * T, D, D),
        "gradient of an MLP's weights": (D, B * T, F),
        "patches x width -> MLP": (B * N * (config.vision.patches + 1), C, 4 * C),
    }
    return {
        f"{name}: {m} x {k} x {n}": (compiled(jnp.matmul, jnp.ones((m, k)), jnp.ones((k, n))), 2.0 * m * k * n)
        for name, (m, k, n) in shapes.items()
    }


def main(
    data: Path = Path("data"), size: str = "256 x 6", rows: int = 16, devices: int = CORES, repeats: int = 5,
    seed: int = 0,
) -> None:  # fmt: skip
    """Prints a row for each part.

    Args:
      data: where MovieLens small is, or will be, prepared.
      devices: host devices.
      repeats: the fastest of so many is taken.
    """
    jax.config.update("jax_num_cpu_devices", devices)
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task"
        prepare_task(experiment(size, "all", rows, data, seed), task, 1, ())
        ours = Ours(task)
        batch = ours.place(read_arrays(task / "ours")[0])
    print_header([size, "ms", "core ms", "GFLOP", "GFLOP/s"])
    with jax.set_mesh(ours.mesh):
        for name, (run, flops) in (parts(ours, batch) | products(ours)).items():
            wall, cores = timed(run, repeats).min(axis=0)
            print_row(
                [name, f"{1e3 * wall:.1f}", f"{1e3 * cores:.1f}", f"{flops / 1e9:.2f}", f"{flops / wall / 1e9:.0f}"]
            )


if __name__ == "__main__":
    tyro.cli(main)
