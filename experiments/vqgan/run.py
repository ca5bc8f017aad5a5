"""Opens a VQGAN from a run folder, from a folder for diffusers, or from a checkpoint of taming-transformers."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipelines.errors import DataError
from experiments.config import read_config
from experiments.parameters import Checkpoint, step_of
from experiments.run import ALL_DEVICES, open_model
from experiments.vqgan.config import FILE, ImageData, PerceptualConfig, VQGANExperiment
from unimp_jax.compiling import compiler_options
from unimp_jax.evaluation.mapping import batch_size, in_batches
from unimp_jax.image_tokens import VQGAN, VQGANConfig, from_pixels, pixels
from unimp_jax.image_tokens.perceptual import tower_distance
from unimp_jax.image_tokens.training import Distance, Trainer, VQGANState
from unimp_jax.interop.feature_extractors import read_clip
from unimp_jax.interop.lpips import read_lpips
from unimp_jax.interop.vqgan import read_vqgan
from unimp_jax.model.vision import VisionTower
from unimp_jax.sharding import batch_sharding, make_mesh, put_everywhere
from unimp_jax.training.checkpoint import Checkpoints
from unimp_jax.training.optimizer import make_optimizer


def trainer_of(config: VQGANExperiment, distance: Distance | None = None) -> Trainer:
    """Returns the trainer of an experiment, with the distance of the perceptual model if there is one."""
    optimizer = make_optimizer(config.optimizer, config.loop.steps, lambda path, parameter: False)
    return Trainer(
        config.vqgan, config.loss, config.quantiser, config.discriminator, config.guard, optimizer, config.loop.steps,
        config.seed, distance,
    )  # fmt: skip


def abstract_state(trainer: Trainer, sharding: jax.sharding.Sharding) -> VQGANState:
    """Returns the shapes and dtypes of a state, all of it in one sharding."""
    return placed(jax.eval_shape(lambda: trainer.begin(trainer.new_model())), sharding)


def placed(shapes: Any, sharding: jax.sharding.Sharding) -> Any:
    """Returns shapes and dtypes, all of them in one sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


@functools.lru_cache(maxsize=8)
def structure(config: VQGANConfig) -> tuple[nnx.GraphDef[VQGAN], nnx.State]:
    """Returns the graph of a VQGAN and the shapes of its parameters, which take a second to trace."""
    return nnx.split(nnx.eval_shape(lambda: VQGAN(config, rngs=nnx.Rngs(0))))


def is_vqgan_run(folder: Path) -> bool:
    """Returns whether a folder is the run folder of a VQGAN."""
    return (folder / FILE).is_file()


def trained_on(folder: Path) -> ImageData | None:
    """Returns the images that a run was trained on; None for other VQGANs; DataError if the path does not exist."""
    if not folder.exists():
        raise DataError(f"{folder} does not exist; it must be the folder of a VQGAN")
    return read_config(folder / FILE, VQGANExperiment).data if is_vqgan_run(folder) else None


def open_vqgan(folder: Path, checkpoint: Checkpoint = "best") -> VQGAN:
    """Opens a VQGAN, of a run its best or latest checkpoint. Raises DataError if the run has no complete checkpoint,
    WeightsError if the folder is neither a run nor another VQGAN."""
    if not is_vqgan_run(folder):
        return read_vqgan(folder)[0]
    config = read_config(folder / FILE, VQGANExperiment)
    graph, shapes = structure(config.vqgan)
    with Checkpoints(folder / "checkpoints", config.checkpoint, reads_only=True) as checkpoints:
        step = step_of(checkpoints, checkpoint, "unimp vqgan train")
        everywhere = NamedSharding(make_mesh(ALL_DEVICES), PartitionSpec())
        parameters = checkpoints.restore_parameters(step, placed(shapes, everywhere), "model")
    return nnx.merge(graph, parameters)


def encoder_of(model: VQGAN) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from images, uint8 [N, H, W, 3], to codes, int32 [N, h, w]."""
    return in_parts(model, encode)


def decoder_of(model: VQGAN) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from codes, int32 [N, h, w], to images, uint8 [N, H, W, 3]."""
    return in_parts(model, decode)


def encode(model: VQGAN, images: jax.Array) -> jax.Array:
    return model.codes(from_pixels(images))


def decode(model: VQGAN, codes: jax.Array) -> jax.Array:
    return pixels(model.decode(codes))


def in_parts(model: VQGAN, run: Callable[[VQGAN, jax.Array], jax.Array]) -> Callable[[np.ndarray], np.ndarray]:
    """Applies the jitted `run` in batches shared by all available devices; every process must take part."""
    mesh = make_mesh(ALL_DEVICES)
    graph, parameters = nnx.split(model)
    parameters, jitted = put_everywhere(mesh, parameters), program(graph, mesh, run)

    def on_mesh(some: np.ndarray) -> jax.Array:
        return jitted(parameters, put_everywhere(mesh, some))

    return lambda whole: in_batches(on_mesh, whole, batch_size(mesh.size))


@functools.lru_cache(maxsize=8)
def program(
    graph: nnx.GraphDef[VQGAN], mesh: Mesh, run: Callable[[VQGAN, jax.Array], jax.Array]
) -> Callable[[Any, jax.Array], jax.Array]:
    """Compiles `run`. Models of one structure share the program, so that only the first validation compiles it."""

    @jax.jit(out_shardings=NamedSharding(mesh, PartitionSpec()), compiler_options=compiler_options(mesh))
    def jitted(parameters: Any, some: jax.Array) -> jax.Array:
        return run(nnx.merge(graph, parameters), jax.lax.with_sharding_constraint(some, batch_sharding(mesh)))

    return jitted


def perceptual_model(config: PerceptualConfig) -> tuple[Distance | None, Any]:
    """Returns (the distance function, the model's parameters), or (None, {}) if no model is named."""
    if config.lpips:
        graph, parameters = nnx.split(read_lpips(config.lpips))

        def lpips(parameters: Any, images: jax.Array, others: jax.Array) -> jax.Array:
            return nnx.merge(graph, parameters).distance(images, others)

        return lpips, parameters
    if config.tower is not None:
        tower_graph, parameters = nnx.split(open_tower(config.tower))

        def of_tower(parameters: Any, images: jax.Array, others: jax.Array) -> jax.Array:
            return tower_distance(nnx.merge(tower_graph, parameters), images, others)

        return of_tower, parameters
    return None, {}


def open_tower(folder: Path) -> VisionTower:
    """Returns the vision tower of a run, or of a CLIP in Hugging Face's format."""
    if not (folder / "vocabulary").is_dir():
        return read_clip(folder).vision
    _, predictor, _ = open_model(folder, "best")
    return predictor.model().vision
