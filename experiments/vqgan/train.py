"""`unimp vqgan train`: a configuration and a folder in, a trained VQGAN in that folder out.

The folder holds `vqgan.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/` and, at the end, `evaluation.json` and
`reconstructions.png`. The same command on the same folder goes on where it was interrupted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from data_pipelines.errors import DataError
from experiments.config import differences, read_config, save_config
from experiments.vqgan.config import FILE, VQGANExperiment
from experiments.vqgan.measure import likeness
from experiments.vqgan.perceptual import perceptual_model
from experiments.vqgan.pictures import Pictures, open_pictures
from experiments.vqgan.run import decoder_of, encoder_of, open_vqgan, trainer_of
from unimp_jax.image_tokens import from_pixels
from unimp_jax.image_tokens.loop import VQGANRun, train_vqgan
from unimp_jax.image_tokens.training import Trainer, VQGANState, make_step
from unimp_jax.semantic_ids import ResidualKMeansConfig
from unimp_jax.semantic_ids.residual_kmeans import residual_kmeans
from unimp_jax.sharding import MeshConfig, batch_sharding, check_rows, make_mesh
from unimp_jax.training.checkpoint import Checkpoints
from unimp_jax.training.log import RunLog
from unimp_jax.training.preemption import EndRequest

LATENTS = 16
"""For each code, of which k-means makes the first codebook."""
VALIDATION = 256
"""Held-out pictures, at most, that a validation looks at."""


def train_vqgan_run(config: VQGANExperiment, folder: Path) -> None:
    """Trains, or goes on training, the run in `folder`.

    Raises:
      DataError: the folder holds a run of another configuration, or the source is not prepared.
      ValueError: parts of the configuration do not fit one another.
    """
    config = open_run(config, folder)
    pictures = open_pictures(config.data, config.vqgan.image_size)
    learnt, held_out = pictures.parts(config.data.held_out, config.seed)
    mesh = make_mesh(MeshConfig(data=-1))
    check_rows(config.batch, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    distance, frozen = perceptual_model(config.perceptual)
    trainer = trainer_of(config, distance)
    with EndRequest() as end, Checkpoints(folder / "checkpoints", config.checkpoint) as checkpoints:
        shapes = jax.eval_shape(lambda: trainer.begin(trainer.new_model()))
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes)
        restored = checkpoints.restore_latest(shapes)
        state = restored[0] if restored else jax.device_put(begin(config, trainer, pictures, learnt), everywhere)
        step = jax.jit(make_step(trainer), donate_argnums=0, out_shardings=(everywhere, None))
        run = VQGANRun(
            step,
            jax.device_put(frozen, everywhere),
            lambda done: pictures.batches(learnt, config.batch, config.seed, done),
            lambda images: jax.device_put(images, batch_sharding(mesh)),
            validation(trainer, pictures.take(held_out[:VALIDATION])),
        )
        print(
            f"{config.data.source}: {len(learnt):,} pictures to learn from, {len(held_out):,} held out; "
            f"{sum(x.size for x in jax.tree.leaves(state.model)):,} parameters, {config.vqgan.codes_per_image} codes "
            f"a picture, {config.vqgan.bits_per_image:.0f} bits"
        )
        with RunLog(folder, step=int(state.step), steps=config.loop.steps) as log:
            state, whole = train_vqgan(state, run, config.loop, config.guard.patience, checkpoints, log, end)
    if not whole:
        print(f"asked to end: step {int(state.step)} is saved; the same command goes on")
        raise SystemExit(0)


def open_run(config: VQGANExperiment, folder: Path) -> VQGANExperiment:
    """The configuration with the geometry of its start; it is saved in a new folder, compared in an old one."""
    saved = folder / FILE
    if config.start is not None:
        config = dataclasses.replace(config, vqgan=open_vqgan(config.start).config)
    if (folder / "config.json").exists():
        raise DataError(f"{folder} holds something else than a VQGAN's run; name another folder")
    if not saved.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_config(config, saved)
        return config
    changed = differences(read_config(saved, VQGANExperiment), config)
    if changed:
        raise DataError(
            f"{folder} holds a run of another configuration ({'; '.join(changed[:3])}"
            f"{' …' if len(changed) > 3 else ''}); name another folder to start anew"
        )
    return config


def begin(config: VQGANExperiment, trainer: Trainer, pictures: Pictures, learnt: np.ndarray) -> VQGANState:
    """Step 0: a new model, its codewords the centres of its own latents; or the start's."""
    if config.start is not None:
        return trainer.begin(open_vqgan(config.start))
    model = trainer.new_model()
    count = -(-LATENTS * config.vqgan.codes // config.vqgan.codes_per_image)
    shown = pictures.take(np.random.default_rng(config.seed).permutation(learnt)[:count])
    graph, parameters = nnx.split(model)
    encode = jax.jit(lambda parameters, images: nnx.merge(graph, parameters).encode(from_pixels(images)))
    latents = np.concatenate([encode(parameters, part) for part in np.array_split(shown, -(-len(shown) // 64))])
    centres = ResidualKMeansConfig(levels=1, codes=config.vqgan.codes, iterations=10, scaling="none", seed=config.seed)
    model.codebook[...] = jnp.asarray(residual_kmeans(latents.reshape(-1, latents.shape[-1]), centres).codebooks[0])
    return trainer.begin(model)


def validation(trainer: Trainer, images: np.ndarray) -> Callable[[Any], dict[str, float]]:
    """How like held-out pictures are what their codes say."""
    graph = nnx.graphdef(nnx.eval_shape(trainer.new_model))

    def validate(parameters: Any) -> dict[str, float]:
        model = nnx.merge(graph, parameters)
        figures = likeness(images, decoder_of(model)(encoder_of(model)(images)))
        return {name: float(values.mean()) for name, values in figures.items()}

    return validate
