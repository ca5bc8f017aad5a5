"""The folder of a run that was never trained: drawn parameters in a checkpoint, made in seconds."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.config import ExperimentConfig
from experiments.init import with_content
from experiments.parameters import take_apart
from experiments.train import open_run
from tests.unimp_jax.models import drawn
from unimp_jax.training.checkpoint import Checkpoints
from unimp_jax.training.frozen import save_frozen

STEP = 3


def write_run(config: ExperimentConfig, folder: Path, scale: float = 8.0) -> Path:
    """`scale`: so many times larger are the parameters than those drawn, so that answers hang on the history."""
    data, config = open_run(config, folder)
    graph, state = nnx.split(drawn(config.model))
    larger = jax.tree.map(lambda x: jnp.asarray(np.asarray(x) * scale, x.dtype), state)
    parameters = with_content(take_apart(config, nnx.merge(graph, larger)), data)
    trainable = parameters.trainable
    moments = jax.tree.map(lambda x: jnp.asarray(np.abs(x)), trainable)
    with Checkpoints(folder / "checkpoints", config.checkpoint) as checkpoints:
        checkpoints.save(STEP, {"trainable": trainable, "moments": moments}, {})
    save_frozen(folder / "frozen", parameters.frozen)
    return folder
