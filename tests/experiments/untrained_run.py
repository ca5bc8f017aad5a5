"""The folder of a run that was never trained: drawn parameters in a checkpoint, made in seconds."""

from pathlib import Path

import jax

from experiments.config import ExperimentConfig
from experiments.parameters import take_apart
from experiments.train import open_run
from tests.unimp_jax.models import drawn
from unimp_jax.training.checkpoint import Checkpoints
from unimp_jax.training.frozen import save_frozen

STEP = 3


def write_run(config: ExperimentConfig, folder: Path, scale: float = 8.0) -> Path:
    """`scale`: so many times larger are the parameters than those drawn, so that answers hang on the history."""
    _, config = open_run(config, folder)
    parameters = take_apart(config, drawn(config.model))
    trainable, frozen = jax.tree.map(lambda x: scale * x, (parameters.trainable, parameters.frozen))
    with Checkpoints(folder / "checkpoints", config.checkpoint) as checkpoints:
        checkpoints.save(STEP, {"trainable": trainable, "moments": jax.tree.map(abs, trainable)}, {})
    save_frozen(folder / "frozen", frozen)
    return folder
