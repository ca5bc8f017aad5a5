"""The folder of a VQGAN's run that was never trained."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.vqgan.images import open_images
from experiments.vqgan.train import open_run, trainer_of
from tests.experiments.test_vqgan import experiment
from unimp_jax.training.checkpoint import Checkpoints


def write_vqgan_run(data: Path, folder: Path) -> Path:
    """Of the geometry of `test_vqgan`; its codewords are as large as latents are.

    Parameters are drawn by NumPy, because JAX would compile a program for each shape; all else is zero.
    """
    config = experiment(data)
    open_run(config, folder, open_images(config.data, config.vqgan.image_size))
    trainer, rng = trainer_of(config), np.random.default_rng(0)

    def draw(path, variable):
        spread = math.prod(variable.shape[:-1]) ** -0.5 if len(variable.shape) > 1 else 0.1
        mean, spread = (1.0 if path[-1] == "scale" else 0.0), 1.0 if path[-1] == "codebook" else spread
        return variable.replace(jnp.asarray(mean + spread * rng.normal(size=variable.shape), jnp.float32))

    shapes = jax.eval_shape(lambda: trainer.begin(trainer.new_model()))
    blank = jax.tree.map(lambda x: jnp.asarray(np.zeros(x.shape, x.dtype)), shapes)
    state = blank.replace(model=nnx.map_state(draw, shapes.model))
    with Checkpoints(folder / "checkpoints", config.checkpoint) as checkpoints:
        checkpoints.save(1, state, {})
    return folder
