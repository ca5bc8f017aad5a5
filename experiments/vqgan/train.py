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
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipelines.errors import DataError
from data_pipelines.fingerprint import FILE as IMAGES_FILE
from data_pipelines.fingerprint import save_fingerprint
from experiments.config import differences, note_changes, read_config, save_config
from experiments.lock import alone_in
from experiments.vqgan.config import FILE, VQGANExperiment
from experiments.vqgan.images import Images, open_images
from experiments.vqgan.measure import likeness
from experiments.vqgan.perceptual import perceptual_model
from experiments.vqgan.run import abstract_state, decoder_of, encoder_of, in_parts, open_vqgan, trainer_of
from unimp_jax.image_tokens import from_pixels
from unimp_jax.image_tokens.loop import VQGANRun, train_vqgan
from unimp_jax.image_tokens.training import Trainer, VQGANState, make_step, with_codewords
from unimp_jax.semantic_ids import ResidualKMeansConfig
from unimp_jax.semantic_ids.residual_kmeans import residual_kmeans
from unimp_jax.sharding import MeshConfig, batch_sharding, check_rows, make_mesh
from unimp_jax.training.checkpoint import Checkpoints
from unimp_jax.training.log import RunLog
from unimp_jax.training.preemption import EndRequest

LATENTS = 16
"""For each code, of which k-means makes the first codebook."""
VALIDATION = 256
"""Held-out images, at most, that a validation looks at."""


def train_vqgan_run(config: VQGANExperiment, folder: Path) -> None:
    """Trains, or goes on training, the run in `folder`.

    Raises:
      DataError: the folder holds a run of another configuration, or one that trains just now, or the source is not
        prepared.
      ValueError: parts of the configuration do not fit one another, or there are several processes.
    """
    if jax.process_count() > 1:
        raise ValueError("a VQGAN is trained by one process: on one host, whose devices are all that it sees")
    mesh = make_mesh(MeshConfig(data=-1))
    check_rows(config.batch_size, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    config = with_start(config)
    distance, frozen = perceptual_model(config.perceptual)
    images = open_images(config.data, config.vqgan.image_size)
    parts = images.parts(config.data)
    open_run(config, folder, images)
    trainer = trainer_of(config, distance)
    with alone_in(folder), EndRequest() as end, Checkpoints(folder / "checkpoints", config.checkpoint) as checkpoints:
        restored = checkpoints.restore_latest(abstract_state(trainer, everywhere))
        if restored is not None:
            state = restored[0]
        else:
            first = trainer.new_model() if config.start is None else open_vqgan(config.start)
            state = jax.device_put(trainer.begin(first), everywhere)
            del first  # whose parameters would be there to the end
        note_changes(read_config(folder / FILE, VQGANExperiment), config, folder / FILE)
        run = run_of(config, trainer, frozen, mesh, images, parts)
        with RunLog(folder, step=int(state.step), steps=config.loop.steps) as log:
            state, whole = train_vqgan(state, run, config.loop, config.guard.patience, checkpoints, log, end)
    if not whole:
        print(f"asked to end: step {int(state.step)} is saved; the same command goes on")
        raise SystemExit(0)


def run_of(
    config: VQGANExperiment, trainer: Trainer, frozen: Any, mesh: Mesh, images: Images,
    parts: tuple[np.ndarray, np.ndarray],
) -> VQGANRun:  # fmt: skip
    """What the loop drives: the step, its images, and the held-out ones; says what is about to run.

    Args:
      parts: as of `Images.parts`.
    """
    learnt, held_out = parts
    print(
        f"{config.data.source}: {len(learnt):,} images to learn from, {len(held_out):,} held out, "
        f"{config.vqgan.codes_per_image} codes or {config.vqgan.bits_per_image:.0f} bits each"
    )
    everywhere = NamedSharding(mesh, PartitionSpec())
    few = -(-LATENTS * config.vqgan.codes // config.vqgan.codes_per_image)
    place = codewords(config, trainer, images.take(np.random.default_rng(config.seed).permutation(learnt)[:few]))
    return VQGANRun(
        step=jax.jit(make_step(trainer), donate_argnums=0, out_shardings=(everywhere, None)),
        frozen=jax.device_put(frozen, everywhere),
        batches=lambda done: images.batches(learnt, config.batch_size, config.seed, done),
        to_device=lambda pixels: jax.device_put(pixels, batch_sharding(mesh)),
        codes_after=config.quantiser.after if config.start is None else None,
        place_codewords=lambda state: jax.device_put(place(state), everywhere),
        validate=validation(trainer, images.take(held_out[:VALIDATION])),
    )


def with_start(config: VQGANExperiment) -> VQGANExperiment:
    """The configuration with the geometry of its start."""
    if config.start is None:
        return config
    has_codes = dataclasses.replace(config.quantiser, after=0)
    return dataclasses.replace(config, vqgan=open_vqgan(config.start).config, quantiser=has_codes)


def open_run(config: VQGANExperiment, folder: Path, images: Images) -> None:
    """The configuration, and what the images are, are saved in a new folder, compared in an old one."""
    saved = folder / FILE
    if (folder / "config.json").exists():
        raise DataError(f"{folder} holds something else than a VQGAN's run; name another folder")
    if not saved.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_fingerprint(folder / IMAGES_FILE, images.fingerprint)
        save_config(config, saved)
        return
    changed = differences(read_config(saved, VQGANExperiment), config)
    if changed:
        raise DataError(
            f"{folder} holds a run of another configuration ({'; '.join(changed[:3])}"
            f"{' …' if len(changed) > 3 else ''}); name another folder to start anew"
        )
    images.check_same(folder)


def codewords(config: VQGANExperiment, trainer: Trainer, images: np.ndarray) -> Callable[[VQGANState], VQGANState]:
    """Puts the centres of what a model makes of images in the place of its codewords."""
    graph = nnx.graphdef(nnx.eval_shape(trainer.new_model))
    centres = ResidualKMeansConfig(levels=1, codes=config.vqgan.codes, iterations=10, scaling="none", seed=config.seed)

    def place(state: VQGANState) -> VQGANState:
        encode = in_parts(nnx.merge(graph, state.model), lambda model, images: model.encode(from_pixels(images)))
        latents_NZ = encode(images).reshape(-1, config.vqgan.code_width)
        words_KZ = jnp.asarray(residual_kmeans(latents_NZ, centres).codebooks[0], jnp.float32)
        return with_codewords(state, graph, words_KZ)

    return place


def validation(trainer: Trainer, images: np.ndarray) -> Callable[[Any], dict[str, float]]:
    """How like held-out images are what their codes say."""
    graph = nnx.graphdef(nnx.eval_shape(trainer.new_model))

    def validate(parameters: Any) -> dict[str, float]:
        model = nnx.merge(graph, parameters)
        metrics = likeness(images, decoder_of(model)(encoder_of(model)(images)))
        return {name: float(values.mean()) for name, values in metrics.items()}

    return validate
