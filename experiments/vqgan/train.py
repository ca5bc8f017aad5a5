"""`unimp vqgan train`: trains a VQGAN in a run folder.

The folder holds `vqgan.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/` and, at the end, `evaluation.json` and
`reconstructions.png`. The same command on the same folder continues an interrupted run.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipelines.errors import DataError
from data_pipelines.fingerprint import FILE as IMAGES_FILE
from data_pipelines.fingerprint import save_fingerprint
from experiments.config import note_changes, read_config, refuse_changes, save_config, to_json
from experiments.lock import alone_in
from experiments.vqgan.config import FILE, VQGANExperiment
from experiments.vqgan.images import CatalogueImages, open_images
from experiments.vqgan.measure import likeness
from experiments.vqgan.run import (
    abstract_state,
    decoder_of,
    encoder_of,
    in_parts,
    is_vqgan_run,
    open_vqgan,
    perceptual_model,
    trainer_of,
)
from unimp_jax.compiling import compiler_options, draw
from unimp_jax.image_tokens import from_pixels
from unimp_jax.image_tokens.metrics import VQGANMetrics, VQGANWindow
from unimp_jax.image_tokens.training import Trainer, VQGANState, make_step, with_codewords
from unimp_jax.semantic_ids.residual_kmeans import residual_kmeans
from unimp_jax.sharding import MeshConfig, batch_sharding, check_rows, make_mesh
from unimp_jax.training.checkpoint import Checkpoints, abstract
from unimp_jax.training.guard import check_skips
from unimp_jax.training.log import RunLog
from unimp_jax.training.loop import train
from unimp_jax.training.preemption import EndRequest, print_saved
from unimp_jax.training.prefetch import LoadedBatch, Prefetcher
from unimp_jax.training.wandb_run import WandbRun, check_wandb

LATENTS = 16
"""Number of latents per code from which k-means makes the first codebook."""
VALIDATION = 256
"""Maximum number of held-out images of a validation."""


def train_vqgan_run(config: VQGANExperiment, folder: Path) -> None:
    """Trains, or continues to train, the run in `folder`.

    Raises:
      DataError: the folder holds a run of another configuration or one that is being trained, or the source is not
        prepared.
      ValueError: parts of the configuration do not fit one another, or there are several processes.
    """
    if jax.process_count() > 1:
        raise ValueError("a VQGAN must be trained by one process on one host")
    check_wandb(config.loop.wandb)
    mesh = make_mesh(MeshConfig(data=-1))
    check_rows(config.batch_size, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    config = with_init_geometry(config, folder)
    distance, frozen = perceptual_model(config.perceptual)
    images = open_images(config.data, config.vqgan.image_size)
    parts = images.parts(config.data)
    open_run(config, folder, images)
    trainer = trainer_of(config, distance)
    with alone_in(folder), EndRequest() as end, Checkpoints(folder / "checkpoints", config.checkpoint) as checkpoints:
        frozen = jax.device_put(frozen, everywhere)
        with ThreadPoolExecutor(1) as other_thread:
            compiling = other_thread.submit(compile_step, config, trainer, frozen, mesh)
            state, notes = restore_or_init(config, trainer, everywhere, checkpoints)
            compiled = compiling.result()
        note_changes(read_config(folder / FILE, VQGANExperiment), config, folder / FILE)
        learnt, held_out = parts
        print(
            f"{config.data.source}: {len(learnt):,} images to learn from, {len(held_out):,} held out, "
            f"{config.vqgan.codes_per_image} codes or {config.vqgan.bits_per_image:.0f} bits per image"
        )
        few = -(-LATENTS * config.vqgan.codes // config.vqgan.codes_per_image)
        first = images.take(np.random.default_rng(config.seed).permutation(learnt)[:few])
        done, project = int(state.step), config.loop.wandb
        wandb = None if project is None else WandbRun(project, folder, to_json(config))
        with (
            RunLog(folder, step=done, steps=config.loop.steps, wandb=wandb) as log,
            contextlib.closing(images.batches(learnt, config.batch_size, config.seed, done)) as batches,
        ):
            state, finished = train(
                state,
                train_step(config, trainer, compiled, state, frozen, everywhere, first),
                Prefetcher(map(loaded, batches), lambda pixels: jax.device_put(pixels, batch_sharding(mesh))),
                validation(trainer, images.take(held_out[:VALIDATION])),
                config=config.loop,
                window=VQGANWindow(notes),
                check_skips=functools.partial(check_skips, config.guard.patience, "guard.spike"),
                checkpoints=checkpoints,
                log=log,
                end=end,
            )
    if not finished:
        print_saved(int(state.step))
        raise SystemExit(0)


def loaded(pixels: np.ndarray) -> LoadedBatch:
    """Returns a batch for the training loop, without a position: batches depend on the number of steps alone."""
    return LoadedBatch(pixels, position=None, counts={})


def restore_or_init(
    config: VQGANExperiment, trainer: Trainer, sharding: NamedSharding, checkpoints: Checkpoints
) -> tuple[VQGANState, dict[str, Any] | None]:
    """Returns the latest checkpoint and its notes, or the state at step 0 and None if there is none; CheckpointError if
    an existing checkpoint cannot be read."""
    restored = checkpoints.restore_latest(abstract_state(trainer, sharding))
    if restored is not None:
        return restored
    if config.init_from is None:
        return draw(lambda: trainer.begin(trainer.new_model()), sharding), None
    return jax.device_put(trainer.begin(open_vqgan(config.init_from)), sharding), None


def compile_step(config: VQGANExperiment, trainer: Trainer, frozen: Any, mesh: Mesh) -> Callable[..., Any]:
    """Compiles the train step ahead of time, in any thread; `frozen` are the parameters of the perceptual model."""
    everywhere, size = NamedSharding(mesh, PartitionSpec()), config.vqgan.image_size
    batch = jax.ShapeDtypeStruct((config.batch_size, size, size, 3), jnp.uint8, sharding=batch_sharding(mesh))
    jitted = jax.jit(
        make_step(trainer), donate_argnums=0, out_shardings=(everywhere, None), compiler_options=compiler_options()
    )
    return jitted.lower(abstract_state(trainer, everywhere), abstract(frozen), batch).compile()


def train_step(
    config: VQGANExperiment,
    trainer: Trainer,
    compiled: Callable[..., Any],
    state: VQGANState,
    frozen: Any,
    sharding: NamedSharding,
    pixels: np.ndarray,
) -> Callable[[VQGANState, jax.Array], tuple[VQGANState, VQGANMetrics]]:
    """Returns the step that continues from `state`; before step `quantiser.after`, it places the codewords, made from
    the images `pixels`, uint8 [N, H, W, 3]. `sharding` is the state's, `frozen` the perceptual model's parameters."""
    place, after = codewords(config, trainer, pixels), config.quantiser.after if config.init_from is None else None
    numbers = itertools.count(int(state.step))

    def step(state: VQGANState, batch: jax.Array) -> tuple[VQGANState, VQGANMetrics]:
        if next(numbers) == after:
            state = jax.device_put(place(state), sharding)
        return compiled(state, frozen, batch)

    return step


def with_init_geometry(config: VQGANExperiment, folder: Path) -> VQGANExperiment:
    """Returns the configuration with the geometry of `init_from`, or that of the run already in the folder."""
    if config.init_from is None:
        return config
    begun = is_vqgan_run(folder)  # with the geometry of `init_from`, which may be gone
    geometry = read_config(folder / FILE, VQGANExperiment).vqgan if begun else open_vqgan(config.init_from).config
    return dataclasses.replace(config, vqgan=geometry, quantiser=dataclasses.replace(config.quantiser, after=0))


def open_run(config: VQGANExperiment, folder: Path, images: CatalogueImages) -> None:
    """Saves the configuration and the images' fingerprint in a new folder, or compares them in an old one."""
    saved = folder / FILE
    if (folder / "config.json").exists():
        raise DataError(f"{folder} contains a run that is not a VQGAN; name another folder")
    if not saved.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_fingerprint(folder / IMAGES_FILE, images.fingerprint)
        save_config(config, saved)
        return
    refuse_changes(read_config(saved, VQGANExperiment), config, folder)
    images.check_same(folder)


def codewords(config: VQGANExperiment, trainer: Trainer, images: np.ndarray) -> Callable[[VQGANState], VQGANState]:
    """Returns a function that replaces the codewords by the centres of the latents of images."""
    graph = nnx.graphdef(nnx.eval_shape(trainer.new_model))

    def place(state: VQGANState) -> VQGANState:
        encode = in_parts(nnx.merge(graph, state.model), lambda model, images: model.encode(from_pixels(images)))
        latents_NZ = encode(images).reshape(-1, config.vqgan.code_width)
        centres = residual_kmeans(latents_NZ, levels=1, codes=config.vqgan.codes, iterations=10, seed=config.seed)
        return with_codewords(state, graph, jnp.asarray(centres.codebooks[0], jnp.float32))

    return place


def validation(trainer: Trainer, images: np.ndarray) -> Callable[[VQGANState], dict[str, float]]:
    """Returns the validation: the similarity of held-out images and their reconstructions."""
    graph = nnx.graphdef(nnx.eval_shape(trainer.new_model))

    def validate(state: VQGANState) -> dict[str, float]:
        model = nnx.merge(graph, state.model)
        metrics = likeness(images, decoder_of(model)(encoder_of(model)(images)))
        return {name: float(values.mean()) for name, values in metrics.items()}

    return validate
